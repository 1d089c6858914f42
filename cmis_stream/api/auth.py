"""Who asks, and for which org: bearer tokens."""

from __future__ import annotations

import logging

from starlette.requests import Request

from ..store.tokens import Token, TokenStore, Unauthorized
from .problems import Problem

_log = logging.getLogger(__name__)


def authenticate(request: Request, tokens: TokenStore, now_ms: int) -> Token:
    """The request's token; Problem 401 without a valid one. Why it is not valid stands in the log only."""
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not text.strip():
        raise Problem(
            401,
            "unauthorized",
            "Send a token: Authorization: Bearer cmis_…",
            headers={"WWW-Authenticate": 'Bearer realm="cmis"'},
        )
    try:
        return tokens.verify(text.strip(), now_ms)
    except Unauthorized as error:
        _log.info("token %s refused: %s", error.token_id, error.reason)
        raise Problem(
            401,
            "unauthorized",
            "The token is not valid: unknown, expired or revoked.",
            headers={"WWW-Authenticate": 'Bearer realm="cmis", error="invalid_token"'},
        ) from None


def authorize(token: Token, tokens: TokenStore, org: str, scope: str) -> str:
    """The org's id. Problem 404 for any org but the token's own, existing or not; 403 without the scope."""
    if org != token.org:
        # Only a slug of the token's own org may differ from its id.
        named = tokens.org(org)
        if named is None or named.id != token.org:
            raise Problem(404, "not_found", "There is no such org, or the token is not for it.")
    if scope not in token.scopes:
        raise Problem(403, "forbidden", f"The token lacks the scope {scope!r}.", extra={"scope": scope})
    return token.org
