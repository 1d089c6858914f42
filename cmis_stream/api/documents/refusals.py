"""The store called in threads, and what it refuses as problems: 404 409 412 422 429, 503 when the database cannot."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from ...core.errors import ConfigError, Rejected, shown
from ...store.bodies import NotValid
from ...store.database import Busy, Unavailable
from ...store.kinds import Kinds, ProblemCode
from ...store.writing import Stale
from ..problems import TITLES, Problem

P = ParamSpec("P")
T = TypeVar("T")
STATUSES: Mapping[str, int] = {
    "not_found": 404, "stale": 412, "not_unique": 409, "restricted": 409, "no_transition": 409, "unknown_ref": 422, "cycle": 422,
    "key_reused": 422, "missing": 422, "wrong_type": 422, "out_of_range": 422, "invalid": 422, "too_long": 422,
    "wrong_org": 422, "in_future": 422, "too_late": 422, "unsupported": 422, "too_many": 429,
}  # fmt: skip
RETRY_AFTER_S = 1
TOO_MANY_RETRY_AFTER_S = 10
WRITERS = 8
"""At once, in this process: fewer than there are connections to the database."""
_HEADERS = {"version": "If-Match", "Idempotency-Key": "Idempotency-Key"}
_log = logging.getLogger(__name__)


class Refusals:
    """Of all kinds, with the codes that their modules declare. ConfigError when one of these is another's."""

    def __init__(self, kinds: Kinds) -> None:
        self._own: dict[str, ProblemCode] = {}
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="documents-write")
        for manifest in kinds.manifests:
            for code, problem in manifest.problems.items():
                if code in TITLES or code in self._own:
                    raise ConfigError(f"{manifest.name}: the problem code {code!r} has a meaning already")
                if not 400 <= problem.status < 500:
                    raise ConfigError(f"{manifest.name}: expected a status from 400 to 499 for {code!r}, got {problem.status}")
                self._own[code] = problem

    def problem(self, error: Rejected) -> Problem:
        if isinstance(error, Stale):
            etag = f'"{error.version}"'
            one = {"header": "If-Match", "code": "stale", "expected": etag}
            return self._made(
                "stale", f"If-Match: expected {etag}, the version that is there.", {"errors": [one]}, {"ETag": etag}
            )
        errors = [_error(one.as_dict()) for one in (error.errors if isinstance(error, NotValid) else [error])]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        later = {"Retry-After": str(TOO_MANY_RETRY_AFTER_S)} if error.code == "too_many" else None
        return self._made(error.code, f"{error}{more}.", {"errors": errors}, later)

    def of_item(self, rejected: Mapping[str, Any]) -> Problem:
        """Of an item of a bulk. rejected: `Rejected.as_dict`; what a header says of one document is in the item's body there."""
        errors = [_error(one) for one in rejected.get("errors") or [rejected]]
        for error in errors:
            if (header := error.pop("header", None)) is not None:
                error["pointer"] = "/version" if header == "If-Match" else f"/{header}"
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        detail = f"expected {rejected['expected']}, got {rejected['got']}{more}."
        return self._made(rejected["code"], f"{rejected['field']}: {detail}" if rejected["field"] else detail, {"errors": errors})

    def _made(self, code: str, detail: str, extra: dict[str, Any], headers: Mapping[str, str] | None = None) -> Problem:
        if (own := self._own.get(code)) is not None:
            return Problem(own.status, code, detail, extra={"title": own.title, **extra}, headers=headers)
        if code not in STATUSES:
            _log.error("a command was rejected with the code %r, which no manifest declares", code)
            code = "invalid"
        return Problem(STATUSES[code], code, detail, extra=extra, headers=headers)

    async def read(self, call: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """What it answers, called in a thread; Problem when the store refuses or cannot."""
        return await self._answered(None, partial(call, *args, **named))

    async def write(self, call: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """As `read`, in threads of its own: writers that wait for each other hold up no reader."""
        return await self._answered(self._writers, partial(call, *args, **named))

    async def _answered(self, threads: ThreadPoolExecutor | None, call: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(threads, call)
        except Rejected as error:
            raise self.problem(error) from None
        except Busy:
            detail = "Other writers of the org took too long. Nothing was done: send the same request again."
            raise _later(detail) from None
        except Unavailable:  # why stands in the log, written where it was seen
            detail = (
                "The store cannot be used now. Send the same request again, with its Idempotency-Key if it changes something."
            )
            raise _later(detail) from None


def malformed(header: str, got: str, expected: str) -> Problem:
    """Problem 400 about a header."""
    error = {"header": header, "code": "malformed", "got": shown(got), "expected": expected}
    return Problem(400, "malformed", f"{header}: expected {expected}, got {shown(got)}.", extra={"errors": [error]})


def _error(rejected: Mapping[str, Any]) -> dict[str, Any]:
    """With where it is: `pointer` into the body, `header`, or `parameter` of the path."""
    field = rejected["field"]
    place = "pointer" if field == "" or field.startswith("/") else "header" if field in _HEADERS else "parameter"
    return {place: _HEADERS.get(field, field), **{name: rejected[name] for name in ("code", "got", "expected")}}


def _later(detail: str) -> Problem:
    return Problem(503, "unavailable", detail, headers={"Retry-After": str(RETRY_AFTER_S)})
