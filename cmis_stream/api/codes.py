"""`GET /problems` and `/problems/{code}`: what the `type` of a problem leads to. One published enumeration, never renamed.

What is said of a code stands once, in the docstrings of `core.errors` (what input and commands are refused for) and of
`problems` (all others, and their statuses).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from ..core import errors
from ..store.kinds import Manifest
from . import problems
from .documents.requests import parameters
from .problems import TITLES, Problem, described

_LINE = re.compile(r"^ {4}([a-z_]+) +((?:[45]\d\d +)*)(\S.*)$", re.MULTILINE)
_OF_INPUT: Final = (400, 422)
"""Of codes whose docstring says no status: 400 about a parameter or header, 422 about a body."""


class Code(NamedTuple):
    """statuses: of the answers that have it, or of an item's in an answer about several."""

    code: str
    type: str
    statuses: tuple[int, ...]
    title: str
    description: str


def codes(manifests: Iterable[Manifest] = ()) -> Mapping[str, Code]:
    """All that answers can have, in the order of the alphabet."""
    said: dict[str, tuple[tuple[int, ...], str]] = {}
    for document in (errors.__doc__, problems.__doc__):
        for code, statuses, text in _LINE.findall(document or ""):
            before = said.get(code, ((), ""))
            said[code] = (tuple(int(status) for status in statuses.split()) or before[0], text or before[1])
    found = {}
    for code, title in TITLES.items():
        statuses, text = said.get(code, ((), ""))
        found[code] = _code(code, statuses or _OF_INPUT, title, text)
    for manifest in manifests:
        for code, own in manifest.problems.items():
            found[code] = _code(code, (own.status,), own.title, "")
    return dict(sorted(found.items()))


def _code(code: str, statuses: tuple[int, ...], title: str, text: str) -> Code:
    description = text or title
    return Code(code, f"/problems/{code}", statuses, title, f"{description[:1].upper()}{description[1:]}.")


def codes_router(manifests: Iterable[Manifest] = ()) -> APIRouter:
    router = APIRouter(tags=["problems"])
    known = codes(manifests)
    listed = {"items": [one._asdict() for one in known.values()], "next": None, "total_estimate": len(known)}

    @router.get(
        "/problems", summary="List the codes of problems", operation_id="list_problem_codes", response_class=Response,
        responses={200: _found(_PAGE), 400: described("There is a parameter: it takes none.")}, openapi_extra={"security": []},
    )  # fmt: skip
    async def list_problem_codes(request: Request) -> Response:
        """All that an answer can have, those of modules included. Codes are added, never renamed."""
        parameters(request)
        return _answer(listed)

    @router.get(
        "/problems/{code}", summary="What a code of problems means", operation_id="get_problem_code", response_class=Response,
        responses={200: _found(_CODE), 404: described("There is no such code.")},
        openapi_extra={"security": [], "parameters": [_PARAMETER]},
    )  # fmt: skip
    async def get_problem_code(request: Request) -> Response:
        """Where the `type` of a problem leads."""
        one = known.get(request.path_params["code"])
        if one is None:
            raise Problem(404, "not_found", "There is no such code.")
        return _answer(one._asdict())

    return router


def _answer(body: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")


# --- OpenAPI ----------------------------------------------------------------------------------------------------------

_TEXT: Final[dict[str, Any]] = {"type": "string"}
_PARAMETER: Final[dict[str, Any]] = {
    "in": "path", "name": "code", "required": True, "schema": _TEXT, "description": "The last part of a problem's `type`.",
}  # fmt: skip
_CODE: Final[dict[str, Any]] = {
    "type": "object",
    "required": list(Code._fields),
    "properties": {
        **dict.fromkeys(("code", "type", "title", "description"), _TEXT),
        "statuses": {"type": "array", "items": {"type": "integer"}, "minItems": 1},
    },
    "examples": [
        {
            "code": "not_unique", "type": "/problems/not_unique", "statuses": [409], "title": "Another one has this value",
            "description": "Another one has this value.",
        }
    ],
}  # fmt: skip
_PAGE: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["items", "next", "total_estimate"],
    "properties": {
        "items": {"type": "array", "items": _CODE},
        "next": {"type": "null"},
        "total_estimate": {"type": "integer"},
    },
}


def _found(schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": "Found.", "content": {"application/json": {"schema": schema}}}
