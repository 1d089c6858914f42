"""How an operation of the primitives is described, and what they share in reading requests."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from ...core.errors import Rejected, shown
from ...store.listing import storable
from ..bodies import read_body
from ..documents.components import NULL, TEXT, Schema
from ..documents.openapi import READING, answers
from ..documents.requests import JSON, check_media
from ..lists import refused
from ..problems import Problem

READ: Final = READING
WRITE: Final = (400, 401, 403, 404, 429, 503)
WITH_BODY: Final = (*WRITE, 413, 415, 422)
LONGEST_ID: Final = 200
LARGEST_BODY: Final = 128 << 10
"""Bytes of a body that says one text."""
_PATH: Final[Mapping[str, str]] = {
    "org": "The org's id or slug.", "id": "Its id.", "name": "Its name; / need not be encoded.", "token": "Of a link.",
}  # fmt: skip


def described(
    path: str,
    name: str,
    title: str,
    success: Mapping[int, Schema],
    problems: Iterable[int],
    parameters: Iterable[Schema] = (),
    body: Schema | None = None,
    *,
    public: bool = False,
) -> dict[str, Any]:
    """What `APIRouter.add_api_route` is given besides the endpoint and its method. name: of the operation."""
    parts = [part.strip("{}").removesuffix(":path") for part in path.split("/") if part.startswith("{")]
    in_path = [{"in": "path", "name": one, "required": True, "schema": TEXT, "description": _PATH[one]} for one in parts]
    return {
        "path": path,
        "summary": title,
        "operation_id": name,
        "status_code": min(success),
        "response_class": Response,
        "responses": answers(success, sorted(problems)),
        "openapi_extra": {
            "security": [] if public else [{"token": []}, {"session": []}],
            "parameters": [*in_path, *parameters],
            **({} if body is None else {"requestBody": body}),
        },
    }


def query(name: str, schema: Schema, description: str = "") -> Schema:
    return {"in": "query", "name": name, "required": False, "schema": schema, "description": description}


def header(name: str, description: str) -> Schema:
    return {"in": "header", "name": name, "required": False, "schema": TEXT, "description": description}


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, NULL]}


def object_of(properties: Mapping[str, Schema], example: Mapping[str, Any] | None = None) -> Schema:
    """All of them are always there."""
    made: Schema = {"type": "object", "required": list(properties), "properties": dict(properties)}
    return made if example is None else {**made, "examples": [dict(example)]}


def one_text(field: str, longest: int, description: str) -> Schema:
    """A body that says one text."""
    text = {**TEXT, "minLength": 1, "maxLength": longest, "description": description}
    return {"required": True, "content": {JSON: {"schema": {**object_of({field: text}), "additionalProperties": False}}}}


# --- requests ----------------------------------------------------------------------------------------------------------


def identity(request: Request, missing: str) -> str:
    """The id that the path names; Problem 404 for what no id is, as for one that is not there."""
    text: str = request.path_params["id"]
    if len(text) > LONGEST_ID or not storable(text):
        raise Problem(404, "not_found", missing)
    return text


async def text_of(request: Request, field: str, longest_bytes: int) -> str:
    """The one text that the body says under this name. What came stands in no problem: it may be a secret."""
    raw = await read_body(request, LARGEST_BODY)
    check_media(request, raw or b" ", JSON)
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise Problem(400, "malformed", "The body is not JSON.") from None
    expected = f'{{"{field}": "…"}}'
    if not isinstance(body, dict) or body.keys() - {field}:
        raise _wrong("invalid", "", _kind_of(body), f"{expected} and nothing else")
    if field not in body:
        raise _wrong("missing", f"/{field}", "nothing", expected)
    text = body[field]
    if not isinstance(text, str):
        raise _wrong("wrong_type", f"/{field}", _kind_of(text), "a text")
    if not 1 <= len(text.encode()) <= longest_bytes:
        raise _wrong("too_long", f"/{field}", f"{len(text)} characters", f"1 to {longest_bytes} bytes")
    return text


def _wrong(code: str, pointer: str, got: str, expected: str) -> Problem:
    error = {"pointer": pointer, "code": code, "got": got, "expected": expected}
    return Problem(422, code, f"{pointer or 'body'}: expected {expected}, got {got}.", extra={"errors": [error]})


def _kind_of(value: Any) -> str:
    names: dict[type, str] = {dict: "an object", list: "an array", str: "a text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


# --- pages -------------------------------------------------------------------------------------------------------------


def cursor_of(created_at: int, identity: str) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([created_at, identity])).decode().rstrip("=")


def read_cursor(cursor: str | None) -> tuple[int, str] | None:
    """(created_at, id) of the last one of the page before. Problem 400 when nobody gave it that."""
    if cursor is None:
        return None
    try:
        at_ms, last = orjson.loads(base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)))
        fits = type(at_ms) is int and 0 <= at_ms < 2**63 and isinstance(last, str) and storable(last)
    except (ValueError, TypeError):
        fits = False
    if not fits:
        raise refused(Rejected("invalid", "cursor", cursor, "`next` of an answer"))
    return at_ms, last


def page(found: list[Any], limit: int, total: int, show: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """found: one more than `limit` where there are more."""
    items = found[:limit]
    following = cursor_of(items[-1].created_at, items[-1].id) if len(found) > limit else None
    return {"items": [show(one) for one in items], "next": following, "total_estimate": total}


def whole(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A list that is never long."""
    return {"items": items, "next": None, "total_estimate": len(items)}


def bounded_number(name: str, text: str, low: int, high: int) -> int:
    """Of a parameter; Problem 400."""
    if not (text.isascii() and text.isdigit() and len(text) <= 12 and low <= int(text) <= high):
        raise refused(Rejected("out_of_range", name, shown(text), f"a number from {low} to {high}"))
    return int(text)
