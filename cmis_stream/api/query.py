"""`POST /api/orgs/{org}/query`: the one read path over declared datasets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from ..core.errors import shown
from ..query.datasets import NotHere, Queries
from ..query.model import MOST_ROWS, Faulty
from .auth import Caller
from .bodies import read_body
from .documents.openapi import path_parameters
from .documents.operations import actor_of
from .documents.requests import parameters
from .problems import Problem

LARGEST_BODY = 256 << 10
_DATASETS_PATH = "/api/orgs/{org}/datasets"

Admitted = Callable[[Request, str, str], Awaitable[Caller]]
"""(request, org, scope) -> the caller; Problem when it may not."""


def query_router(queries: Queries, admitted: Admitted) -> APIRouter:
    router = APIRouter(tags=["query"])

    @router.post(
        "/api/orgs/{org}/query", summary="Ask a dataset", operation_id="query", response_class=Response,
        openapi_extra=_openapi(queries.schemas), responses=_RESPONSES,
    )  # fmt: skip
    async def query(request: Request, org: str) -> Response:
        """Measures of a dataset by dimensions and time. The answer says up to where it is final, and of which position."""
        caller = await admitted(request, org, "read")
        parameters(request)
        body = await read_body(request, LARGEST_BODY)
        try:
            raw = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise Problem(400, "malformed", f"The body is not JSON: {error}", extra={"got": shown(body)}) from None
        try:
            if (scope := queries.scope(raw)) not in caller.scopes:
                raise Problem(403, "forbidden", f"This dataset needs the scope {scope!r}.", extra={"scope": scope})
            return Response(await queries.answer(caller.org, raw, actor_of(caller)), media_type="application/json")
        except Faulty as faulty:
            raise Problem(422, faulty.code, f"{faulty}.", extra={"errors": [_error(fault) for fault in faulty.faults]}) from None
        except NotHere as error:
            raise Problem(503, "unavailable", f"{error}.", headers={"Retry-After": "1"}) from None

    @router.get(
        _DATASETS_PATH, summary="List the datasets that can be asked", operation_id="list_datasets",
        openapi_extra={"security": _SECURITY, "parameters": path_parameters(_DATASETS_PATH)},
        responses=_DATASETS_RESPONSES, response_class=Response,
    )  # fmt: skip
    async def datasets(request: Request) -> Response:
        """With their measures, dimensions and filters, and what types and units these have."""
        caller = await admitted(request, request.path_params["org"], "read")
        parameters(request)
        items = queries.described(caller.scopes)
        found = {"items": items, "next": None, "total_estimate": len(items)}
        return Response(orjson.dumps(found), media_type="application/json")

    return router


def _error(fault: Any) -> dict[str, str]:
    return dict(fault._asdict())


_SECURITY: list[dict[str, list[str]]] = [{"token": []}, {"session": []}]


def _openapi(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    """The body is one of these, which their `dataset` tells apart."""
    bodies = [{name: part for name, part in one.items() if name != "examples"} for one in schemas]
    examples = {one["properties"]["dataset"]["const"]: {"value": one["examples"][0]} for one in schemas}
    content = {"application/json": {"schema": {"oneOf": bodies}, "examples": examples}}
    return {"security": _SECURITY, "requestBody": {"required": True, "content": content}}


_COLUMN: dict[str, Any] = {
    "type": "object",
    "required": ["name", "type", "unit"],
    "properties": {
        "name": {"type": "string"},
        "type": {"type": "string", "enum": ["time", "string", "integer", "number", "boolean"]},
        "unit": {
            "type": ["string", "null"],
            "description": "count, micros, ratio, ms, currency (whole units); null: it has none",
        },
    },
}
_TIME = {"type": ["string", "null"], "format": "date-time"}
_POSITION = {
    "type": "object",
    "properties": {
        "topic": {"type": "string"},
        "partition": {"type": "integer"},
        "offset": {"type": "integer"},
        "seq": {"type": "integer", "description": "Of documents instead: the org's last change."},
    },
}
_ANSWER: dict[str, Any] = {
    "type": "object",
    "required": ["columns", "rows", "watermark", "provisional", "position", "from", "to", "step"],
    "properties": {
        "columns": {"type": "array", "items": _COLUMN},
        "rows": {
            "type": "array",
            "items": {"type": "array"},
            "maxItems": MOST_ROWS,
            "description": "Values in the columns' order.",
        },
        "watermark": {"type": ["string", "null"], "format": "date-time", "description": "Final up to here, late events aside."},
        "provisional": {"type": "boolean", "description": "Whether the time asked for reaches beyond the watermark."},
        "position": {**_POSITION, "description": "The newest log record in the answer, or the change that it has at least."},
        "from": {**_TIME, "description": "Moved back to a step's beginning; null: however old."},
        "to": {**_TIME, "description": "Moved on to a step's end; null: up to what is there."},
        "step": {"type": ["string", "null"]},
        "coarsest": {"type": ["string", "null"], "description": "Of history: the largest pane that crosses steps."},
    },
}
_EXAMPLE = {
    "columns": [
        {"name": "time", "type": "time", "unit": None},
        {"name": "campaign", "type": "string", "unit": None},
        {"name": "currency", "type": "string", "unit": None},
        {"name": "spend_micros", "type": "integer", "unit": "micros"},
        {"name": "ctr", "type": "number", "unit": "ratio"},
    ],
    "rows": [["2026-01-01T00:00:00Z", "spring", "EUR", 14_200_000, 0.0258]],
    "watermark": "2026-01-01T00:00:42.500Z",
    "provisional": True,
    "position": {"topic": "cmis.metrics.v1", "partition": 6, "offset": 1041},
    "from": "2026-01-01T00:00:00Z",
    "to": "2026-01-01T00:01:00Z",
    "step": "1m",
}


def _problem(description: str) -> dict[str, Any]:
    names = ("type", "title", "detail", "request_id")
    error = {"type": "object", "properties": {name: {"type": "string"} for name in ("pointer", "code", "got", "expected")}}
    properties = {
        **{name: {"type": "string"} for name in names},
        "status": {"type": "integer"},
        "errors": {"type": "array", "items": error},
    }
    return {
        "description": description,
        "content": {"application/problem+json": {"schema": {"type": "object", "properties": properties}}},
    }


_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The answer.", "content": {"application/json": {"schema": _ANSWER, "example": _EXAMPLE}}},
    400: _problem("The body is not JSON, or there is a parameter: it takes none."),
    401: _problem("No valid token or session."),
    403: _problem("The token or session lacks the scope `read`."),
    404: _problem("No such org, or it is not yours."),
    413: _problem("The body is too large."),
    422: _problem("The query cannot be answered as it is: `invalid`, `not_kept` (panes of this step do not reach back so far), "
                  "`too_many_rows` or `too_expensive`. `errors` names each place."),
    503: _problem("The org's figures are being recovered, or the store is away; come back after Retry-After."),
}  # fmt: skip

_OFFERED: dict[str, Any] = {
    "type": "object",
    "required": ["name", "title", "measures", "dimensions", "filters", "steps", "measure_prefix", "from_required"],
    "properties": {
        "name": {"type": "string"},
        "title": {"type": "string"},
        "measures": {"type": "array", "items": _COLUMN},
        "dimensions": {"type": "array", "items": _COLUMN},
        "filters": {
            "type": "array",
            "items": {
                **_COLUMN,
                "required": [*_COLUMN["required"], "operators"],
                "properties": {**_COLUMN["properties"], "operators": {"type": "array", "items": {"type": "string"}}},
            },
        },
        "steps": {"type": "array", "items": {"type": "string"}},
        "measure_prefix": {
            "type": ["string", "null"],
            "description": "Of further measures: what sources send under names of their own.",
        },
        "from_required": {"type": "boolean", "description": "Whether a query has to say from when."},
    },
}
_DATASETS: dict[str, Any] = {
    "type": "object",
    "required": ["items", "next", "total_estimate"],
    "properties": {
        "items": {"type": "array", "items": _OFFERED}, "next": {"type": "null"}, "total_estimate": {"type": "integer"},
    },
}  # fmt: skip
_DATASETS_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "All of them that the caller may ask.", "content": {"application/json": {"schema": _DATASETS}}},
    **{status: _RESPONSES[status] for status in (400, 401, 403, 404, 503)},
}
