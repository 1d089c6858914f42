"""Documents over REST, as a client: lists with all their pages, and bulks.

A bulk that got no answer is sent again under its key, so that it is done once.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import httpx
import orjson

from cmis_stream.api.documents.places import collections
from cmis_stream.api.documents.shapes import READ_ONLY
from cmis_stream.core.errors import CmisError
from cmis_stream.modules.applying import Existing, Operation, place_of
from cmis_stream.store.kinds import Kinds

PAGE: Final = 500
BULK_BYTES: Final = 8 << 20
TRIES, FIRST_PAUSE_S = 6, 0.2
_LATER = frozenset({429, 502, 503, 504})
_CHANGED = "changed by somebody else meanwhile, so it was left as it is; apply again to see what differs now"


class Refused(CmisError):
    """A whole request was not done."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class DocumentsClient:
    """One org's documents. Used as a context manager."""

    def __init__(self, url: str, org: str, token: str, kinds: Kinds) -> None:
        self.url = url.rstrip("/")
        org_path = quote(org, safe="")
        self._paths = {
            place.kind.name: place.path.replace("{org}", org_path) for place in collections(kinds) if not place.by_token
        }
        # Loading the certificates of a TLS context takes longer than the whole work on this machine.
        self._client = httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {token}"}, timeout=httpx.Timeout(60, connect=5),
            trust_env=False, verify=self.url.startswith("https:"),
        )  # fmt: skip

    def __enter__(self) -> DocumentsClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def documents(self, kind: str, *, deleted: bool = False) -> Iterator[Existing]:
        """All of a kind; with `deleted` those that are deleted. Raises Refused, CmisError."""
        parameters = {"limit": str(PAGE), "sort": "id", **({"deleted": "only"} if deleted else {})}
        while True:
            page = self._answer("GET", self._paths[kind], params=parameters)
            for item in page["items"]:
                body = {name: value for name, value in item.items() if name not in READ_ONLY}
                yield Existing(kind, item["id"], item["version"], body, item["deleted_at"] is not None)
            if page["next"] is None:
                return
            parameters["cursor"] = page["next"]

    def bulk(self, kind: str, operations: Sequence[Operation]) -> list[str | None]:
        """Why an operation was not done, None for what was. Raises Refused, CmisError: then nothing is known of what was not
        answered."""
        problems: list[str | None] = []
        for items in _in_parts(operations):
            content = b'{"items":[' + b",".join(items) + b"]}"
            headers = {"Content-Type": "application/json", "Idempotency-Key": secrets.token_hex(16)}
            answer = self._answer("POST", f"{self._paths[kind]}/bulk", content=content, headers=headers)
            problems += [_problem(result.get("problem")) for result in answer["results"]]
        return problems

    def _answer(self, method: str, path: str, **more: Any) -> Any:
        pause = FIRST_PAUSE_S
        for tries_left in reversed(range(TRIES)):
            try:
                response = self._client.request(method, path, **more)
            except httpx.TransportError as error:
                if not tries_left or method == "GET":  # nothing is done yet: better said at once
                    raise CmisError(f"{self.url} does not answer ({error or type(error).__name__})") from None
            else:
                if response.is_success:
                    return orjson.loads(response.content)
                if response.status_code not in _LATER or not tries_left:
                    raise Refused(f"{method} {path}: {_said(response)}", response.status_code)
            time.sleep(pause)
            pause *= 2
        raise AssertionError("the last try answers or raises")


def _in_parts(operations: Iterable[Operation]) -> Iterator[list[bytes]]:
    """Items of a bulk, as many as a request may carry."""
    part: list[bytes] = []
    size = 0
    for one in operations:
        item = orjson.dumps({name: value for name, value in one._asdict().items() if name != "kind" and value is not None})
        if part and size + len(item) > BULK_BYTES:
            yield part
            part, size = [], 0
        part.append(item)
        size += len(item) + 1
    if part:
        yield part


def _problem(problem: Mapping[str, Any] | None) -> str | None:
    if problem is None:
        return None
    if problem["status"] == 412:
        return _CHANGED
    errors = [one for one in problem.get("errors", []) if "expected" in one]
    if not errors:
        return str(problem["detail"]).rstrip(".")
    return "; ".join(_sentence(one) for one in errors)


def _sentence(error: Mapping[str, Any]) -> str:
    field = place_of(str(error.get("pointer", "")).removeprefix("/body")).removeprefix(".")
    said = f"expected {error['expected']}, got {error.get('got')}"
    return f"{field}: {said}" if field else said


def _said(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"
