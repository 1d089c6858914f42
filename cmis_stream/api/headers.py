"""Headers that every answer carries, whoever made it: what a browser may do with it, and that it keeps no personal data."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Answers that are no page need nothing; `page.py` sets its own.
_NOTHING = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


def secured(headers: MutableHeaders, path: str) -> None:
    """Adds them where the answer has none of its own."""
    headers.setdefault("Content-Security-Policy", _NOTHING)
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Referrer-Policy", "no-referrer")
    if path.startswith("/api/"):
        headers.setdefault("Cache-Control", "no-store")


def content_security_policy(gateway_url: str) -> str:
    """Of our page. gateway_url: the only other place that it may talk to.

    No script and no style stands in the page itself, but style attributes may: the charts' tooltips are made with them.
    """
    return (
        f"default-src 'self'; connect-src 'self' {gateway_url}; img-src 'self' data:; style-src-attr 'unsafe-inline'; "
        "object-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    )


class SecurityHeaders:
    """ASGI middleware around all routes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                secured(MutableHeaders(raw=message["headers"]), scope["path"])
            await send(message)

        await self.app(scope, receive, send_secured)
