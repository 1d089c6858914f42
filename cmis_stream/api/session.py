"""`/api/session`: signing in with a one-time code, who is signed in, signing out; and what the gateway's clients need."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..core.time import rfc3339
from ..gateway.asyncapi import asyncapi_document
from ..store.sessions import SESSION_LASTS_MS, Session
from ..store.signing import GatewayTokens
from ..store.tokens import Unauthorized
from .attempts import Attempts
from .auth import COOKIE, Auth
from .bodies import read_body
from .problems import Problem, described

LARGEST_BODY = 4 << 10
ATTEMPTS_AT_ONCE, ATTEMPT_EVERY_MS = 10, 6_000
USER = {"id": "operator", "name": "Operator"}
"""Whoever opened the link. People with names and roles of their own come later."""


class SignIn(msgspec.Struct, forbid_unknown_fields=True):
    code: str


def session_router(auth: Auth, gateway_tokens: GatewayTokens) -> APIRouter:
    """The routes; one per app, since it counts the attempts to sign in."""
    attempts = Attempts(ATTEMPTS_AT_ONCE, ATTEMPT_EVERY_MS)
    router = APIRouter(tags=["session"])

    @router.post(
        "/api/session", summary="Sign in", operation_id="sign_in", response_class=Response,
        openapi_extra=_SIGN_IN, responses=_responses(_SESSION, 400, 401, 403, 413, 415, 429, headers=_COOKIE),
    )  # fmt: skip
    async def sign_in(request: Request) -> Response:
        """Exchanges the code of a link, once, for the cookie `cmis_session`. Answers what `GET /api/session` does."""
        host = auth.hosts.of(request)
        auth.hosts.require_own_origin(request, or_none=True)
        code = await _code(request)
        wait_ms = attempts.wait_ms(request.client.host if request.client else "", auth.clock())
        if wait_ms:
            retry = str(math.ceil(wait_ms / 1000))
            raise Problem(429, "rate_limited", f"Too many attempts to sign in; wait {retry} s.", headers={"Retry-After": retry})
        try:
            session, text = await asyncio.to_thread(auth.sessions.exchange, code, auth.clock())
        except Unauthorized:
            detail = "The code is unknown, used or expired; `cmis sign-in` makes another link."
            raise Problem(401, "code_not_valid", detail) from None
        response = _answer(await asyncio.to_thread(told, request, session))
        response.set_cookie(
            COOKIE, text, max_age=SESSION_LASTS_MS // 1000, path="/", secure=host.secure, httponly=True, samesite="strict"
        )
        return response

    @router.get(
        "/api/session", summary="Who is signed in", operation_id="get_session", response_class=Response,
        openapi_extra=_BY_COOKIE, responses=_responses(_SESSION, 400, 401),
    )  # fmt: skip
    async def get_session(request: Request) -> Response:
        """Who is signed in, what is open to them, and where the gateway is."""
        return _answer(await asyncio.to_thread(lambda: told(request, auth.session(request))))

    @router.delete(
        "/api/session", summary="Sign out", operation_id="sign_out", status_code=204, response_class=Response,
        openapi_extra=_BY_COOKIE, responses=_responses(None, 400, 401, 403, headers=_COOKIE),
    )  # fmt: skip
    async def sign_out(request: Request) -> Response:
        """Ends the session here and, within a second, at the gateway."""
        session = await asyncio.to_thread(auth.session, request)
        await asyncio.to_thread(auth.sessions.revoke, session.id, auth.clock())
        response = Response(status_code=204)
        response.delete_cookie(COOKIE, path="/", secure=auth.hosts.of(request).secure, httponly=True, samesite="strict")
        return response

    @router.post(
        "/api/session/gateway-token", summary="A gateway token for the page", operation_id="session_gateway_token",
        response_class=Response, openapi_extra=_BY_COOKIE, responses=_responses(_TOKEN, 400, 401, 403),
    )  # fmt: skip
    async def session_gateway_token(request: Request) -> Response:
        """A JWT of five minutes that opens at the gateway what the session opens."""
        session = await asyncio.to_thread(auth.session, request)
        return issued(session.id, session.expires_at_ms)

    @router.get("/asyncapi.json", include_in_schema=False)
    async def asyncapi(request: Request) -> Response:
        return _answer(asyncapi_document(auth.hosts.of(request).gateway_url))

    @router.post(
        "/api/orgs/{org}/gateway-token", summary="A gateway token for a program", operation_id="gateway_token",
        response_class=Response, openapi_extra={"security": [{"token": []}], "parameters": [_ORG]},
        responses=_responses(_TOKEN, 401, 403, 404),
    )  # fmt: skip
    async def gateway_token(request: Request) -> Response:
        """A JWT of five minutes that opens at the gateway what the API token (scope `read`) opens."""
        caller = await auth.admitted_program(request, request.path_params["org"], "read")
        return issued(caller.id, caller.expires_at_ms)

    def issued(holder_id: str, until_ms: int | None) -> Response:
        token, expires_at_ms = gateway_tokens.issue(holder_id, auth.clock(), until_ms)
        return _answer({"token": token, "expires_at": rfc3339(expires_at_ms)})

    def told(request: Request, session: Session) -> dict[str, Any]:
        orgs = [org for org in auth.tokens.orgs() if session.opens(org.id)]
        return {
            "user": USER,
            "orgs": [{"id": org.id, "name": org.name, "role": session.role} for org in orgs],
            "gateway": {"url": auth.hosts.of(request).gateway_url},
            "expires_at": rfc3339(session.expires_at_ms),
            "server_time": rfc3339(auth.clock()),
        }

    return router


async def _code(request: Request) -> str:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # also what keeps forms of other sites out
        detail = f"Content-Type {kind or 'none'!r} is not taken; send application/json."
        raise Problem(415, "unsupported_media", detail, headers={"Accept": "application/json"})
    try:
        return msgspec.json.decode(await read_body(request, LARGEST_BODY), type=SignIn).code
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(400, "malformed", f'The body cannot be read: expected {{"code": "…"}}: {error}') from None


def _answer(body: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")


# --- OpenAPI ----------------------------------------------------------------------------------------------------------

_TEXT: dict[str, Any] = {"type": "string"}
_TIME: dict[str, Any] = {"type": "string", "format": "date-time"}
_BY_COOKIE: dict[str, Any] = {"security": [{"session": []}]}
_ORG: dict[str, Any] = {"in": "path", "name": "org", "required": True, "schema": _TEXT, "description": "The org's id or slug."}
_SIGN_IN: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"type": "object", "required": ["code"], "properties": {"code": _TEXT}}},
        },
    }
}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


_SESSION = _object(
    user=_object(id=_TEXT, name=_TEXT),
    orgs={"type": "array", "items": _object(id=_TEXT, name=_TEXT, role={"type": "string", "enum": ["owner"]})},
    gateway=_object(url=_TEXT),
    expires_at=_TIME,
    server_time=_TIME,
)
_TOKEN = _object(token=_TEXT, expires_at=_TIME)
_COOKIE: dict[str, Any] = {"Set-Cookie": {"schema": _TEXT, "description": "cmis_session, or that it is gone."}}
_REFUSALS = {
    400: "The request cannot be read, or came under a name that is not ours.",
    401: "No valid code, session or token.",
    403: "Another site's page sent it, or the scope is missing.",
    404: "No such org, or the token is of another.",
    413: "The body is too large.",
    415: "Content-Type is not taken.",
    429: "Too many attempts; Retry-After says when to come back.",
    503: "The store cannot be used now; send the same request again after Retry-After.",
}


def _responses(
    schema: dict[str, Any] | None, *refusals: int, headers: dict[str, Any] | None = None
) -> dict[int | str, dict[str, Any]]:
    """schema None: 204."""
    done: dict[str, Any] = {"description": "Done.", **({"headers": headers} if headers else {})}
    if schema is not None:
        done["content"] = {"application/json": {"schema": schema}}
    return {200 if schema is not None else 204: done, **{status: described(_REFUSALS[status]) for status in (*refusals, 503)}}
