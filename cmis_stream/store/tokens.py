"""Orgs and API tokens, for several processes at once.

A token's text is `cmis_<token id>_<secret>`; only the SHA-256 of the secret is stored. The secret is 256 random bits,
so guessing from the hash is hopeless however fast the hash is; slow password hashes are for what people can remember,
and would cost 50 ms where this costs a microsecond.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Select, func, or_, select, update

from ..core.errors import CmisError, Rejected
from ..core.time import MINUTE_MS
from .access_tables import named, orgs, tokens
from .database import Database, Unavailable

SCOPES = ("ingest", "read", "write", "admin")
ORG_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
STALE_S = 1.0
"""How long a verified token is believed without a look into the database: what a revocation elsewhere takes at most."""
USED_EVERY_MS = MINUTE_MS
_CACHE_SIZE = 10_000
_NOBODY = hashlib.sha256(secrets.token_bytes(32)).hexdigest()
_COLUMNS: tuple[Column[Any], ...] = (
    tokens.c.id, tokens.c.org_id, tokens.c.name, tokens.c.scopes,
    tokens.c.created_at, tokens.c.expires_at, tokens.c.revoked_at, tokens.c.last_used,
)  # fmt: skip
_log = logging.getLogger(__name__)


class Unauthorized(CmisError):
    """A token that does not open anything.

    reason: malformed, unknown, wrong_secret, revoked or expired. For logs only: who asks learns no more than "no".
    """

    def __init__(self, reason: str, token_id: str | None = None) -> None:
        super().__init__("the token is not valid")
        self.reason, self.token_id = reason, token_id


@dataclass(frozen=True, slots=True)
class Org:
    id: str
    slug: str
    name: str
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class Token:
    """A token without its secret. Times are epoch milliseconds; last_used_ms is exact to a minute."""

    id: str
    org: str
    name: str
    scopes: frozenset[str]
    created_at_ms: int
    expires_at_ms: int | None
    revoked_at_ms: int | None
    last_used_ms: int | None


class TokenStore:
    """Safe for threads. What it is asked for blocks, but for `verify` of what was verified within the last second."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._verified: dict[bytes, tuple[float, Token]] = {}
        self._used: dict[str, int] = {}
        # A note may wait for another writer, and must not hold up whoever only looks.
        self._noting = ThreadPoolExecutor(1, thread_name_prefix="tokens-used")

    def close(self) -> None:
        """When all notes are written. The database is closed by whoever has opened it."""
        self._noting.shutdown(wait=True)

    def create_org(self, slug: str, name: str, now_ms: int | None = None) -> Org:
        """Rejected when the slug is taken or is not lower-case letters, digits, - and _."""
        if not ORG_ID.fullmatch(slug):
            raise Rejected("invalid", "slug", slug, "1 to 63 lower-case letters, digits, - or _, not starting with - or _")
        if not name or len(name) > 200:
            raise Rejected("too_long" if name else "missing", "name", name, "a name of 1 to 200 characters")
        org = Org(slug, slug, name, _now_ms(now_ms))
        with self._database.transaction(None, writes=True) as tx:
            row = {"id": org.id, "slug": org.slug, "name": org.name, "created_at": org.created_at_ms}
            if not tx.insert_new(orgs, row):
                raise Rejected("invalid", "slug", slug, "a slug that is not taken")
        return org

    def org(self, id_or_slug: str) -> Org | None:
        if not ORG_ID.fullmatch(id_or_slug):  # neither surrogates nor NUL, which a database would choke on
            return None
        with self._database.transaction(None) as tx:
            rows = tx.rows(_select_orgs().where(or_(orgs.c.id == id_or_slug, orgs.c.slug == id_or_slug)))
        return Org(*rows[0]) if rows else None

    def orgs(self) -> Sequence[Org]:
        with self._database.transaction(None) as tx:
            return [Org(*row) for row in tx.rows(_select_orgs().order_by(orgs.c.id))]

    def create(
        self,
        org: str,
        scopes: Iterable[str],
        expires_at_ms: int | None = None,
        name: str = "",
        now_ms: int | None = None,
    ) -> tuple[Token, str]:
        """A new token and its text, which is shown this once and stored nowhere. Rejected: unknown org or scope."""
        owner = self.org(org)
        if owner is None:
            raise Rejected("invalid", "org", org, "an org that exists")
        chosen = frozenset(scopes)
        if not chosen or chosen - set(SCOPES):
            raise Rejected("invalid", "scopes", sorted(chosen), f"some of {', '.join(SCOPES)}")
        token_id, secret, now_ms = secrets.token_hex(6), secrets.token_urlsafe(32), _now_ms(now_ms)
        row = {
            "id": token_id, "org_id": owner.id, "name": name, "scopes": " ".join(sorted(chosen)),
            "secret_sha256": _sha256(secret), "created_at": now_ms, "expires_at": expires_at_ms,
        }  # fmt: skip
        with self._database.transaction(owner.id, writes=True) as tx:
            tx.run(tokens.insert(), row)
        return Token(token_id, owner.id, name, chosen, now_ms, expires_at_ms, None, None), f"cmis_{token_id}_{secret}"

    def verify(self, text: str, now_ms: int) -> Token:
        """The token that `text` is; raises Unauthorized. Microseconds when it was verified within the last second."""
        key = _hashed(text)
        known = self._verified.get(key)
        if known is None or time.monotonic() - known[0] > STALE_S:
            self._verified.pop(key, None)
            looked_at = time.monotonic()
            known = (looked_at, self._looked_up(text))
            if len(self._verified) >= _CACHE_SIZE:
                self._verified.clear()
            self._verified[key] = known
        token = known[1]
        if token.expires_at_ms is not None and now_ms >= token.expires_at_ms:
            raise Unauthorized("expired", token.id)
        if now_ms - self._used.get(token.id, token.last_used_ms or 0) >= USED_EVERY_MS:
            self._used[token.id] = now_ms
            self._noting.submit(self._note_use, token, now_ms)
        return token

    def knows(self, text: str, org: str) -> bool:
        """Whether `verify` answers without a look into the database, with a token of the org of this id."""
        known = self._verified.get(_hashed(text))
        return known is not None and known[1].org == org and time.monotonic() - known[0] <= STALE_S

    def revoke(self, token_id: str, now_ms: int | None = None) -> bool:
        """False when there is no such token, or it was revoked before. Elsewhere within a second."""
        row = self._found(token_id)
        if row is None:
            return False
        with self._database.transaction(row.org_id, writes=True) as tx:
            this = update(tokens).where(tx.own(tokens), tokens.c.id == token_id, tokens.c.revoked_at.is_(None))
            done = tx.run(this.values(revoked_at=_now_ms(now_ms)))
        self._verified.clear()
        return done.rowcount == 1

    def list(self, org: str) -> Sequence[Token]:
        """The org's tokens, oldest first, revoked and expired ones included."""
        owner = self.org(org)
        if owner is None:
            return []
        with self._database.transaction(owner.id) as tx:
            wanted = select(*_COLUMNS).where(tx.own(tokens)).order_by(tokens.c.created_at, tokens.c.id)
            return [_token(row) for row in tx.rows(wanted)]

    def _looked_up(self, text: str) -> Token:
        prefix, _, rest = text.partition("_")
        token_id, _, secret = rest.partition("_")
        if prefix != "cmis" or not token_id or not secret:
            raise Unauthorized("malformed")
        row = self._found(token_id)
        stored = row.secret_sha256 if row is not None else _NOBODY
        if not hmac.compare_digest(_sha256(secret), stored) or row is None:
            raise Unauthorized("unknown" if row is None else "wrong_secret", token_id)
        token = _token(row[:-1])
        if token.revoked_at_ms is not None:
            raise Unauthorized("revoked", token.id)
        return token

    def _found(self, token_id: str) -> Any:
        """_COLUMNS and the secret's hash, whatever org it is of; None when there is none."""
        with self._database.transaction(None) as tx:
            rows = tx.rows(select(*_COLUMNS, tokens.c.secret_sha256).where(named(tx, [token_id])(tokens.c.id)))
        return rows[0] if rows else None

    def _note_use(self, token: Token, now_ms: int) -> None:
        earlier = func.coalesce(tokens.c.last_used, 0) < now_ms
        try:
            with self._database.transaction(token.org, writes=True) as tx:
                this = update(tokens).where(tx.own(tokens), tokens.c.id == token.id, earlier)
                tx.run(this.values(last_used=now_ms))
        except Unavailable as error:
            _log.warning("when token %s was used could not be noted: %s", token.id, error)


def _select_orgs() -> Select[Any]:
    return select(orgs.c.id, orgs.c.slug, orgs.c.name, orgs.c.created_at)


def _token(row: Sequence[Any]) -> Token:
    token_id, org, name, scopes, *times = row
    return Token(token_id, org, name, frozenset(scopes.split()), *times)


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _now_ms(now_ms: int | None) -> int:
    return time.time_ns() // 1_000_000 if now_ms is None else now_ms


def _hashed(text: str) -> bytes:
    """Of the whole text, as a key: no secret stays in memory, and a lookup's timing says nothing about one."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
