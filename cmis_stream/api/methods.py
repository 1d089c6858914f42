"""HEAD wherever there is GET, and Allow: which methods a path takes."""

from __future__ import annotations

from starlette.requests import ClientDisconnect, Request
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")


def allowed(request: Request) -> str:
    """Allow of the request's path, "" when no route has it. Routes say so one by one: each knows only its own method."""
    routes = request.app.router.routes
    asked = ((method, {**request.scope, "method": method}) for method in _METHODS)
    found = [method for method, scope in asked if any(route.matches(scope)[0] == Match.FULL for route in routes)]
    return ", ".join(sorted([*found, *(["HEAD"] if "GET" in found else [])]))


class _Enough(OSError):
    """Nobody reads on. An OSError is what a stream's sending may fail with."""


class HeadAsGet:
    """ASGI middleware: HEAD is answered with what GET has, without the body (RFC 9110), and no stream is read for it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        asked = {**scope, "method": "GET"}  # the server looks at its own scope: it sends no body with HEAD
        ended = False

        async def send_head(message: Message) -> None:
            nonlocal ended
            if ended:
                raise _Enough
            if message["type"] == "http.response.body":
                ended = True
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            elif "route" in asked:
                scope["route"], scope["path_params"] = asked["route"], asked["path_params"]
            await send(message)

        try:
            await self.app(asked, receive, send_head)
        except (_Enough, ClientDisconnect):
            if not ended:
                raise
