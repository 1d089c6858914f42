"""What a request says besides its path: parameters, preconditions, idempotency key, body."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Final

import orjson
from starlette.requests import Request

from ...core.errors import Rejected, shown
from ...store.documents import LONGEST_KEY, Idempotency
from ...store.listing import MOST
from ..lists import refused
from ..problems import Problem
from .refusals import malformed

JSON, MERGE_PATCH = "application/json", "application/merge-patch+json"
LARGEST_BODY: Final = 2 << 20
"""Bytes. A document has at most 1 MiB, however its JSON is spaced and escaped."""
LARGEST_BULK: Final = 16 << 20
CHANGES_LIMIT: Final = 50
_ETAG = re.compile(r'"([^"]*)"')
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


def parameters(request: Request, known: Collection[str] = ()) -> dict[str, str]:
    """Those of the query string; Problem 400 for an unknown one and for one given twice."""
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known or name in found:
            expected = f"only {', '.join(known)}, each once" if known else "no parameters"
            raise refused(Rejected("invalid", name, value, expected))
        found[name] = value
    return found


def with_deleted(request: Request) -> bool:
    value = parameters(request, ("deleted",)).get("deleted")
    if value not in (None, "with"):
        raise refused(Rejected("invalid", "deleted", value, "with"))
    return value is not None


def page_of_changes(request: Request) -> tuple[int | None, int]:
    """(seq of the cursor, limit)"""
    given = parameters(request, ("limit", "cursor"))
    limit, cursor = given.get("limit", str(CHANGES_LIMIT)), given.get("cursor")
    if not re.fullmatch(r"[0-9]{1,4}", limit) or not 1 <= int(limit) <= MOST:
        raise refused(Rejected("invalid", "limit", limit, f"a number from 1 to {MOST}"))
    if cursor is not None and not _VERSION.fullmatch(cursor):
        raise refused(Rejected("invalid", "cursor", cursor, "`next` of an answer"))
    return None if cursor is None else int(cursor), int(limit)


def expected_version(request: Request, *, required: bool) -> int | None:
    """What If-Match says; None for any version. -1, which no document has, for an entity tag that is none of ours.

    Problem 428 when it is required and not there, 400 when it is no entity tag, or several.
    """
    given = request.headers.get("if-match")
    if given is None:
        if required:
            detail = "Say which version this is about: If-Match with the ETag that you have read, or * for whichever is there."
            raise Problem(428, "precondition_required", detail)
        return None
    if given.strip() == "*":
        return None
    match = _ETAG.fullmatch(given.strip().removeprefix("W/"))
    if match is None:
        raise malformed("If-Match", given, 'one entity tag such as "3", or *')
    # RFC 9110: a weak tag never matches here.
    return int(match[1]) if _VERSION.fullmatch(match[1]) and given.strip().startswith('"') else -1


def idempotency(request: Request, org: str) -> Idempotency | None:
    """The key counts for one token, one method and one path, whatever the path calls the org."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 1 <= len(key) <= LONGEST_KEY:
        raise malformed("Idempotency-Key", key, f"1 to {LONGEST_KEY} characters")
    parts = request.url.path.split("/")
    if "org" in request.path_params:
        parts[3] = org  # /api/orgs/{org}
    return Idempotency(f"{request.method} {'/'.join(parts)}", key)


def check_media(request: Request, raw: bytes, *kinds: str) -> None:
    """Problem 415 for a body of another type. This also keeps forms of other sites out."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if raw and kind not in kinds:
        taken = " or ".join(kinds)
        raise Problem(415, "unsupported_media", f"Content-Type {kind[:80] or 'none'!r} is not taken; send {taken}.", headers={
            "Accept-Patch" if request.method == "PATCH" else "Accept": ", ".join(kinds)
        })  # fmt: skip


def parsed(raw: bytes) -> Any:
    """Problem 400 for what is no JSON."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise Problem(400, "malformed", f"The body is not JSON: {error}", extra={"got": shown(raw)}) from None


def an_object(value: Any) -> dict[str, Any]:
    """Rejected for any other JSON."""
    if not isinstance(value, dict):
        raise Rejected("wrong_type", "", value, "an object")
    return value
