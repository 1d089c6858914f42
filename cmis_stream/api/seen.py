"""Every request has an id; what was slow or went wrong on our side leaves one line in the log, under that id."""

from __future__ import annotations

import logging
import random
import re
import time
from typing import Any, Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SLOW_MS: Final = 1000
"""Up to the first byte of the answer."""
_LONGEST: Final = 80
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = logging.getLogger(__name__)


class RequestIds:
    """ASGI middleware: every request has an id, its sender's own if that is a sane one, and every answer names it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"request-id"), "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
        scope.setdefault("state", {}).update(request_id=request_id, began=time.perf_counter())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                headers.setdefault("Request-Id", request_id)
                if message["status"] >= 500 or _ms(scope) > SLOW_MS:
                    tell(scope, message["status"])
            await send(message)

        await self.app(scope, receive, send_with_id)


def tell(scope: Scope, status: int, error: Exception | None = None) -> None:
    """The request's line in the log. Its path as it is declared, so no id, link or query string is in it; error: the traceback
    goes with it."""
    route, org = scope.get("route"), scope.get("path_params", {}).get("org")
    fields: dict[str, Any] = {
        "request_id": scope.get("state", {}).get("request_id"),
        "method": scope["method"],
        "path": getattr(route, "path", None),
        "status": status,
        "ms": round(_ms(scope)),
        "org": None if org is None else str(org)[:_LONGEST],
    }
    about = "request %(request_id)s: %(method)s %(path)s answered %(status)s in %(ms)s ms, org %(org)r"
    _log.log(logging.ERROR if error else logging.WARNING, about, fields, exc_info=error, extra={"fields": fields})


def _ms(scope: Scope) -> float:
    began: float = scope.get("state", {}).get("began", time.perf_counter())
    return 1000 * (time.perf_counter() - began)
