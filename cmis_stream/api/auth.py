"""Who asks, and for which org: a bearer token, or the session of a browser.

    token       Authorization: Bearer cmis_…   one org, its scopes
    session     the cookie cmis_session        its orgs, the scopes of its role

A request that changes something and is known by its cookie has to come from our own page: browsers add the cookie to what
any other page on this host sends (SameSite does not look at ports), and never an Authorization header.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request

from ..store.sessions import Session, SessionStore
from ..store.tokens import Token, TokenStore, Unauthorized
from .hosts import Hosts
from .problems import Problem

COOKIE = "cmis_session"
SCOPES_OF_ROLE = {"owner": frozenset(("read", "write", "admin"))}
"""What a browser may do; feeds are programs, so no role has the scope `ingest`."""
_CHANGES_NOTHING = ("GET", "HEAD", "OPTIONS")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, for one org.

    id: of the token or session. org: the org's id, whatever the path called it. scopes: what is allowed in this org.
    expires_at_ms None: never.
    """

    id: str
    org: str
    scopes: frozenset[str]
    expires_at_ms: int | None


class Auth:
    """Made once per app; routers are given its methods."""

    def __init__(self, tokens: TokenStore, sessions: SessionStore, hosts: Hosts, clock: Callable[[], int]) -> None:
        self.tokens, self.sessions, self.hosts, self.clock = tokens, sessions, hosts, clock

    async def admitted(self, request: Request, org: str, scope: str) -> Caller:
        """As `authorize`, without holding up the loop: where it takes a look into the database, that is done in a thread."""
        if self._known(request, org):
            return self.authorize(request, org, scope)
        return await asyncio.to_thread(self.authorize, request, org, scope)

    async def admitted_program(self, request: Request, org: str, scope: str) -> Caller:
        """Likewise as `authorize_program`."""
        if self._known(request, org):
            return self.authorize_program(request, org, scope)
        return await asyncio.to_thread(self.authorize_program, request, org, scope)

    def _known(self, request: Request, org: str) -> bool:
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.tokens.knows(text.strip(), org)

    def authorize(self, request: Request, org: str, scope: str) -> Caller:
        """The caller, if it may do this in the org (id or slug). Problem 401 unknown, 404 an org that is not the caller's or
        does not exist, 403 the scope is missing or another page sent it."""
        who = self.authenticate(request)
        return self._in_org(who, org, scope)

    def authorize_program(self, request: Request, org: str, scope: str) -> Caller:
        """Likewise, by bearer token only."""
        return self._in_org(self.token(request), org, scope)

    def authenticate(self, request: Request) -> Token | Session:
        """A bearer token if there is one, else the session; Problem 401 without either, 403 when another page sent it."""
        # Other schemes are of a proxy before us; the cookie counts then.
        bearer = request.headers.get("authorization", "").lower().startswith("bearer")
        return self.session(request) if COOKIE in request.cookies and not bearer else self.token(request)

    def token(self, request: Request) -> Token:
        """The request's token; Problem 401 without a valid one. Why it is not valid stands in the log only."""
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not text.strip():
            raise _unauthorized("Send a token: Authorization: Bearer cmis_…")
        try:
            return self.tokens.verify(text.strip(), self.clock())
        except Unauthorized as error:
            _log.info("token %s refused: %s", error.token_id, error.reason)
            raise _unauthorized("The token is not valid: unknown, expired or revoked.", ', error="invalid_token"') from None

    def session(self, request: Request) -> Session:
        """The browser's session; Problem 400 under a foreign name, 401 without a valid one, 403 when another page sent it."""
        self.hosts.of(request)
        text = request.cookies.get(COOKIE)
        if not text:
            raise _unauthorized("Sign in first: open a link made by `cmis sign-in`.")
        try:
            session = self.sessions.verify(text, self.clock())
        except Unauthorized as error:
            _log.info("session %s refused: %s", error.token_id, error.reason)
            raise _unauthorized("The session has ended; open a new link made by `cmis sign-in`.") from None
        if request.method not in _CHANGES_NOTHING:
            self.hosts.require_own_origin(request)
        return session

    def _in_org(self, who: Token | Session, org: str, scope: str) -> Caller:
        if isinstance(who, Token):
            org_id = org if org == who.org else self._id_of(org)  # the ingest's way: without a look into the database
            kind, opened, scopes = "token", org_id == who.org, who.scopes
        else:
            org_id = self._id_of(org)
            kind, opened, scopes = "session", org_id is not None and who.opens(org_id), SCOPES_OF_ROLE.get(who.role, frozenset())
        if org_id is None or not opened:
            raise Problem(404, "not_found", "There is no such org, or it is not yours.")
        if scope not in scopes:
            raise Problem(403, "forbidden", f"The {kind} lacks the scope {scope!r}.", extra={"scope": scope})
        return Caller(who.id, org_id, scopes, who.expires_at_ms)

    def _id_of(self, id_or_slug: str) -> str | None:
        found = self.tokens.org(id_or_slug)
        return found.id if found is not None else None


def _unauthorized(detail: str, error: str = "") -> Problem:
    return Problem(401, "unauthorized", detail, headers={"WWW-Authenticate": f'Bearer realm="cmis"{error}'})
