"""Operations: is it alive, is it ready, its metrics, and its status for a person on call. Every role serves these.

`/healthz`, `/readyz` and `/metrics` are open, and name no org. `/status` does, so it is answered only where `authorize`
allows: to this machine itself, and to whoever has a peer token.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from ..health import metrics
from ..health.health import Health
from ..health.status import Trouble
from .problems import Problem, described

Authorize = Callable[[Request], None]
"""Problem when this request may not see the status."""
_LOCAL_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?")
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")

_TROUBLE = {
    "type": "object",
    "required": ["code", "detail"],
    "properties": {
        "code": {"type": "string", "description": "failed, recovering, log_away, store_locked, backplane_away, lagging"},
        "detail": {"type": "string"},
    },
}


def _state(status: str, example: dict[str, Any]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": ["status"],
        "properties": {"status": {"type": "string"}, "reasons": {"type": "array", "items": _TROUBLE}},
    }
    return {"description": status, "content": {"application/json": {"schema": schema, "example": example}}}


_LAGGING = {
    "code": "lagging",
    "detail": "cmis.metrics.v1, partition 3: 95 s behind (1,204 records wait), more than 60 s",
}
_HEALTH: dict[int | str, dict[str, Any]] = {
    200: _state("Alive.", {"status": "ok"}),
    503: _state(
        "About to end: start it again.",
        {"status": "failed", "reasons": [{"code": "failed", "detail": "metrics failed: OSError: no space left on device"}]},
    ),
}
_READY: dict[int | str, dict[str, Any]] = {
    200: _state("It does its role.", {"status": "ready"}),
    503: _state("It cannot do its role now; `reasons` says why.", {"status": "not_ready", "reasons": [_LAGGING]}),
}
_STATUS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["role", "version", "uptime_s", "healthy", "ready", "problems", "lag", "partitions"],
    "properties": {
        "role": {"type": "string"},
        "version": {"type": "string"},
        "started_at": {"type": "string", "format": "date-time"},
        "uptime_s": {"type": "number"},
        "healthy": {"type": "boolean", "description": "No problems."},
        "ready": {"type": "boolean"},
        "problems": {"type": "array", "items": _TROUBLE},
        "lag": {
            "type": "object",
            "properties": {
                "of": {"type": "string", "enum": ["held", "group"]},
                "records": {"type": "integer"},
                "seconds": {"type": "number"},
                "slowest": {"type": ["object", "null"]},
                "topics": {"type": "array", "items": {"type": "object"}},
            },
        },
        "partitions": {"type": "array", "items": {"type": "object"}, "description": "Held by this process."},
        "busiest_orgs": {"type": "array", "items": {"type": "object"}, "maxItems": 5},
        "slowest_clients": {"type": "array", "items": {"type": "object"}, "maxItems": 5},
    },
}


def operations_router(health: Health, authorize: Authorize) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/healthz", summary="Is the process alive", operation_id="health", response_class=Response, responses=_HEALTH)
    async def healthz() -> Response:
        """503 when it is about to end; no answer when its event loop is blocked. Whoever runs it starts it again."""
        return _answer("ok", "failed", health.dead())

    @router.get("/readyz", summary="Can it do its role", operation_id="ready", response_class=Response, responses=_READY)
    async def readyz() -> Response:
        """Send it no new work on 503. It need not be started again for that."""
        return _answer("ready", "not_ready", await health.not_ready())

    @router.get(
        "/metrics", summary="Metrics for Prometheus", operation_id="metrics", response_class=Response,
        responses={200: {"description": "Text exposition format.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
    )  # fmt: skip
    async def exposition() -> Response:
        """Read from the live objects at this moment. No org is named."""
        return Response(await health.exposition(), media_type=metrics.CONTENT_TYPE)

    @router.get(
        "/status", summary="Its status, for a person on call", operation_id="status", response_class=Response,
        openapi_extra={"security": [{"token": []}]},
        responses={
            200: {"description": "The status, whatever it is.", "content": {"application/json": {"schema": _STATUS_SCHEMA}}},
            403: described("Neither from this machine nor with a peer token."),
        },
    )  # fmt: skip
    async def status(request: Request) -> Response:
        """Problems in sentences, how far behind, who is slow. It names orgs, so it is not for the public."""
        authorize(request)
        return Response(
            msgspec.json.encode(await health.status()), media_type="application/json", headers={"Cache-Control": "no-store"}
        )

    return router


def _answer(good: str, bad: str, reasons: Sequence[Trouble]) -> Response:
    if not reasons:
        return Response(msgspec.json.encode({"status": good}), media_type="application/json")
    document = {"status": bad, "reasons": [reason._asdict() for reason in reasons]}
    return Response(msgspec.json.encode(document), 503, media_type="application/json", headers={"Retry-After": "5"})


def local_or(may: Callable[[str], bool]) -> Authorize:
    """Allows requests of this machine's own programs, and those with a bearer token that `may` takes."""

    def authorize(request: Request) -> None:
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and may(text.strip()):
            return
        if not from_this_machine(request):
            raise Problem(403, "forbidden", "The status is told to this machine itself, or with a peer token.")

    return authorize


def from_this_machine(request: Request) -> bool:
    """Whether a program here asked by a loopback name. Not: what a proxy here passes on for others, and what a browser asks for
    a page of another site (also one whose name points here)."""
    headers = request.headers
    if any(header in headers for header in _FORWARDED) or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return False
    try:
        named_so = _LOCAL_HOST.fullmatch(headers.get("host", "").lower()) is not None
        return named_so and request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
