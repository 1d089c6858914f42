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
from .problems import TITLES, Problem

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
    """Public; not in the OpenAPI document, whose description names it: it is about the interface, as that is."""
    router = APIRouter(include_in_schema=False)
    known = codes(manifests)
    listed = {"items": [one._asdict() for one in known.values()], "next": None, "total_estimate": len(known)}

    @router.get("/problems")
    async def list_problem_codes() -> Response:
        """All that an answer can have, those of modules included."""
        return _answer(listed)

    @router.get("/problems/{code}")
    async def get_problem_code(request: Request) -> Response:
        one = known.get(request.path_params["code"])
        if one is None:
            raise Problem(404, "not_found", "There is no such code.")
        return _answer(one._asdict())

    return router


def _answer(body: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
