"""`GET /api/orgs/{org}/alerts/history`: incidents, firing and resolved."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from ..core.errors import Rejected
from ..core.rules import SEVERITIES
from ..core.time import rfc3339
from ..modules.alerts.history import HISTORY, VOCABULARIES
from ..modules.alerts.incidents import KIND, PATH
from ..store.facts import Doc, FactStore
from .auth import Caller
from .lists import LIMIT, MOST, asked, refused
from .problems import Problem


def incidents_router(facts: FactStore, authorize: Callable[[Request, str, str], Caller]) -> APIRouter:
    router = APIRouter(tags=["alerts"])

    @router.get(
        "/api/orgs/{org}/alerts/history", summary="List incidents", operation_id="list_incidents", response_class=Response,
        openapi_extra=_LIST, responses=_responses(_PAGE, 400, 401, 403, 404),
    )  # fmt: skip
    async def list_incidents(request: Request, org: str) -> Response:
        """Each time that a rule fired, the newest first."""
        caller = authorize(request, org, "read")
        wanted = asked(request, HISTORY.filters, "-started_at", VOCABULARIES)
        try:
            page = await asyncio.to_thread(
                facts.page, caller.org, HISTORY, wanted.filters, wanted.sort, wanted.limit, wanted.cursor
            )
        except Rejected as error:
            raise refused(error) from None
        return _json({"items": [shown_incident(doc) for doc in page.items], "next": page.next, "total_estimate": page.total})

    @router.get(
        "/api/orgs/{org}/alerts/history/{id}", summary="Get an incident", operation_id="get_incident", response_class=Response,
        openapi_extra=_SECURITY, responses=_responses(_INCIDENT, 401, 403, 404),
    )  # fmt: skip
    async def get_incident(request: Request, org: str, id: str) -> Response:
        caller = authorize(request, org, "read")
        doc = await asyncio.to_thread(facts.get, caller.org, KIND, id)
        if doc is None:
            raise Problem(404, "not_found", "There is no such incident.")
        return _json(shown_incident(doc))

    return router


def shown_incident(doc: Doc) -> dict[str, Any]:
    """An incident with times as people and programs read them."""
    return {**doc, **{name: None if doc[name] is None else rfc3339(doc[name]) for name in ("started_at", "resolved_at")}}


def _json(body: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")


_SECURITY: dict[str, Any] = {"security": [{"token": []}, {"session": []}]}
_TEXT, _TIME = {"type": "string"}, {"type": "string", "format": "date-time"}
_INCIDENT: dict[str, Any] = {
    "type": "object",
    "required": ["id", "key", "rule", "severity", "state", "started_at", "resolved_at", "version"],
    "properties": {
        "id": {**_TEXT, "format": "uuid"},
        "key": {**_TEXT, "description": "The same for all incidents of a rule and an entity."},
        "entity": {**_TEXT, "description": "As in the gateway's channels: the path below, percent-encoded, joined by /."},
        **dict.fromkeys(("rule", "level", *PATH), _TEXT),
        "severity": {**_TEXT, "enum": list(SEVERITIES)},
        "state": {**_TEXT, "enum": list(VOCABULARIES["state"])},
        "started_at": {**_TIME, "description": "In event time."},
        "resolved_at": {"type": ["string", "null"], "format": "date-time"},
        "reason": {**_TEXT, "description": "Why it was resolved, when it is not that the condition no longer held."},
        "value": {"type": ["number", "null"], "description": "Of the rule's metric when it began to fire; null: undefined."},
        "window": _TEXT,
        "sums": {
            "type": "array", "items": {"type": "integer"}, "minItems": 6, "maxItems": 6,
            "description": "Of that window: events, impressions, clicks, spend_micros, conversions_micros, revenue_micros.",
        },
        "events": {"type": "array", "items": _TEXT, "description": "Ids of the newest events that led to it, at most three."},
        "version": {"type": "integer"},
    },
    "example": {
        "id": "019b76da-a800-71d6-a2ec-7216849ac021", "key": "496e9d647d06eee1", "entity": "EUR/meta/act_7/spring",
        "rule": "overspend", "severity": "high", "level": "campaign", "currency": "EUR", "platform": "meta", "account": "act_7",
        "campaign": "spring", "ad_set": "", "ad": "", "state": "resolved", "started_at": "2026-01-01T00:00:00.000Z",
        "resolved_at": "2026-01-01T00:04:10.000Z", "value": 104.2, "window": "5m",
        "sums": [41, 1200, 31, 104_200_000, 2_000_000, 61_500_000], "events": ["e41", "e40", "e39"], "version": 2,
    },
}  # fmt: skip
_PAGE: dict[str, Any] = {
    "type": "object",
    "required": ["items", "next", "total_estimate"],
    "properties": {
        "items": {"type": "array", "items": _INCIDENT},
        "next": {"type": ["string", "null"], "description": "Ask again with cursor= this, and the same filters and sort."},
        "total_estimate": {"type": "integer", "description": "Exact up to 10,000."},
    },
}


def _parameter(name: str, schema: dict[str, Any], description: str = "") -> dict[str, Any]:
    return {"in": "query", "name": name, "required": False, "schema": schema, "description": description}


_SORTS = [f"{way}{name}" for name in HISTORY.sorts for way in ("", "-")]
_LIST: dict[str, Any] = {
    **_SECURITY,
    "parameters": [
        *(
            _parameter(
                f"filter[{field}]",
                {**_TEXT, "enum": list(VOCABULARIES[field])} if field in VOCABULARIES else _TEXT,
                f"Or filter[{field}][in]=a,b",
            )
            for field in sorted(HISTORY.filters)
        ),
        _parameter("sort", {**_TEXT, "enum": _SORTS, "default": "-started_at"}, "severity: critical, high, medium, low"),
        _parameter("limit", {"type": "integer", "minimum": 1, "maximum": MOST, "default": LIMIT}),
        _parameter("cursor", _TEXT, "`next` of the page before."),
    ],
}  # fmt: skip
_PROBLEMS = {
    400: "A parameter is unknown or has a value that it cannot have; `parameter`, `got` and `expected` say which.",
    401: "No valid token or session.",
    403: "The token or session lacks the scope `read`.",
    404: "No such org or incident, or it is not yours.",
}


def _responses(schema: dict[str, Any], *problems: int) -> dict[int | str, dict[str, Any]]:
    properties = {**dict.fromkeys(("type", "title", "detail", "request_id"), _TEXT), "status": {"type": "integer"}}
    problem = {"application/problem+json": {"schema": {"type": "object", "properties": properties}}}
    answers: dict[int | str, dict[str, Any]] = {
        200: {"description": "Found.", "content": {"application/json": {"schema": schema}}}
    }
    return answers | {status: {"description": _PROBLEMS[status], "content": problem} for status in problems}
