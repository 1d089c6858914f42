"""The API's app, made from its ports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from ..store.database import Unavailable
from ..store.kinds import Manifest
from .codes import codes_router
from .document import completed
from .headers import SecurityHeaders
from .ingest import CLOUD_EVENT, CLOUD_EVENTS, JSON, NDJSON, ApiPorts, Ingest
from .methods import HeadAsGet
from .problems import Problem, described, on_bug, on_http_exception, on_problem, on_unavailable
from .seen import RequestIds

_FLAT: dict[str, Any] = {
    "id": "e1", "ts": 1767225600000, "platform": "meta", "campaign": "c1", "ad_set": "s1", "ad": "a1",
    "impressions": 1200, "clicks": 31, "spend": 14.2, "conversions": 2, "revenue": 61.5,
    "custom": {"video_views": 300},
}  # fmt: skip
_CLOUD: dict[str, Any] = {
    "specversion": "1.0", "id": "e1", "source": "//meta/act_7", "type": "cmis.ads.metrics.v1",
    "time": "2026-01-01T00:00:00Z", "orgid": "acme",
    "data": {"platform": "meta", "account_id": "act_7", "campaign_id": "c1", "impressions": 1200, "clicks": 31,
             "spend": 14.2, "currency": "EUR"},
}  # fmt: skip
_ERROR: dict[str, Any] = {
    "index": 1, "line": 2, "id": "e2", "code": "out_of_range", "field": "spend", "got": "-1",
    "expected": "a number from 0 to 9007199254", "detail": "spend: expected a number from 0 to 9007199254, got -1",
    "pointer": "/spend",
}  # fmt: skip


def _result_schema() -> dict[str, Any]:
    count = {"type": "integer", "minimum": 0}
    text = {"type": "string"}
    error = {
        "type": "object",
        "properties": {
            "index": {**count, "description": "0-based position in the request"},
            "line": {"type": ["integer", "null"], "description": "1-based, NDJSON only"},
            "id": {"type": ["string", "null"]},
            **dict.fromkeys(("code", "field", "got", "expected", "detail", "pointer"), text),
        },
    }
    return {
        "type": "object",
        "required": ["accepted", "rejected", "errors_total", "errors"],
        "properties": {
            "accepted": count, "rejected": count, "errors_total": count,
            "errors": {"type": "array", "items": error, "maxItems": 100},
        },
    }  # fmt: skip


def _ingest_openapi() -> dict[str, Any]:
    line = msgspec.json.encode(_FLAT).decode() + "\n"
    header = {"in": "header", "required": False}
    return {
        "security": [{"token": []}],
        "parameters": [
            {**header, "name": "Cmis-Source", "schema": {"type": "string", "maxLength": 200},
             "description": "The sender's name, under which events are deduplicated. Default: token:<token id>."},
            {**header, "name": "Cmis-Sequence", "schema": {"type": "integer", "minimum": 0},
             "description": "Number of the body's first event, for senders that count theirs: none counts twice."},
            {**header, "name": "Content-Encoding", "schema": {"type": "string", "enum": ["identity", "gzip"]}},
        ],
        "requestBody": {
            "required": True,
            "content": {
                NDJSON: {"schema": {"type": "string"}, "example": line * 2},
                JSON: {"schema": {"type": ["object", "array"]}, "example": [_FLAT]},
                CLOUD_EVENT: {"schema": {"type": "object"}, "example": _CLOUD},
                CLOUD_EVENTS: {"schema": {"type": "array", "items": {"type": "object"}}, "example": [_CLOUD]},
            },
        },
    }  # fmt: skip


_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Durable in the log. Rejected events are listed, at most 100 of them, and kept as dead letters.",
        "content": {
            "application/json": {
                "schema": _result_schema(),
                "example": {"accepted": 1, "rejected": 1, "errors_total": 1, "errors": [_ERROR]},
            }
        },
    },
    400: described("The body or a header cannot be read."),
    401: described("No valid token."),
    403: described("The token lacks the scope `ingest`."),
    404: described("No such org, or the token is of another."),
    413: described("More than 64 MiB, or 8 MiB compressed."),
    415: described("Content-Type or Content-Encoding is not taken."),
    422: described("Every event was rejected; the document lists them as a 200 does."),
    429: described("Busy: send the same request again after Retry-After."),
    503: described("The log cannot be written: send the same request again."),
}


def plain_app(routers: Sequence[APIRouter]) -> FastAPI:
    """An app with these routers; problems, request ids and security headers as everywhere."""
    # A redirect to or from a final slash would take its host from the request.
    app = FastAPI(title="CMIS Stream", version="1", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(HeadAsGet)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(RequestIds)
    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(Unavailable, on_unavailable)
    app.add_exception_handler(Exception, on_bug)
    for router in routers:
        app.include_router(router)
    return app


def create_app(
    ports: ApiPorts,
    routers: Sequence[APIRouter] = (),
    page: ASGIApp | None = None,
    schemas: Mapping[str, Any] | None = None,
    manifests: Iterable[Manifest] = (),
) -> FastAPI:
    """The app with ingest, these routers, and the page on every path that none of them takes.

    schemas: name -> JSON schema, what the routers' operations refer to as #/components/schemas/NAME. manifests: whose codes of
    problems are published with ours.
    """
    app = plain_app([*routers, codes_router(manifests)])
    ingest = Ingest(ports)

    @app.post(
        "/api/orgs/{org}/events",
        summary="Send events",
        operation_id="send_events",
        tags=["events"],
        response_class=Response,
        responses=_RESPONSES,
        openapi_extra=_ingest_openapi(),
    )
    async def send_events(request: Request, org: str) -> Response:
        """Ad metric events as NDJSON, CloudEvents or JSON, one or many. Good events are kept, bad ones are listed."""
        return await ingest(request, org)

    if page is not None:
        app.router.default = page
    app.openapi = completed(app.openapi, schemas or {})  # type: ignore[method-assign]  # FastAPI's documented way to extend the document
    return app
