"""Orgs and API tokens in SQLite, for several processes at once.

A token's text is `cmis_<token id>_<secret>`; only the SHA-256 of the secret is stored. The secret is 256 random bits,
so guessing from the hash is hopeless however fast the hash is; slow password hashes are for what people can remember,
and would cost 50 ms where this costs a microsecond.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import CmisError, Rejected
from ..core.time import MINUTE_MS

SCOPES = ("ingest", "read", "write", "admin")
ORG_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
STALE_S = 1.0
"""How long a verified token is believed without a look into the database: what a revocation elsewhere takes at most."""
USED_EVERY_MS = MINUTE_MS
_CACHE_SIZE = 10_000
Row = tuple[Any, ...]
_NOBODY = hashlib.sha256(secrets.token_bytes(32)).hexdigest()

_SCHEMA = """
CREATE TABLE IF NOT EXISTS orgs(
    id TEXT PRIMARY KEY, slug TEXT NOT NULL UNIQUE, name TEXT NOT NULL, created_at INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS tokens(
    id TEXT PRIMARY KEY, org_id TEXT NOT NULL REFERENCES orgs(id), name TEXT NOT NULL, scopes TEXT NOT NULL,
    secret_sha256 TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER, revoked_at INTEGER, last_used INTEGER)
    STRICT;
CREATE INDEX IF NOT EXISTS tokens_of_org ON tokens(org_id, created_at);
"""
_COLUMNS = "id, org_id, name, scopes, created_at, expires_at, revoked_at, last_used"


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
    """Made by `open`; safe for threads. Writers of all processes wait up to 5 s for one another (WAL: readers never
    wait)."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._lock = threading.Lock()
        self._verified: dict[bytes, tuple[float, Token]] = {}
        self._used: dict[str, int] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="tokens-used")
        # Its own: a note that waits for another writer must not hold up those who only look.
        self._notes = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)

    @classmethod
    def open(cls, path: Path | str) -> TokenStore:
        """Opens or creates the database file; only its owner can read it. OSError or sqlite3.Error when that is
        impossible."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Before SQLite touches it: the -wal and -shm files take over the permissions of the database.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        path.chmod(0o600)
        connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        return cls(path, connection)

    def close(self) -> None:
        self._writer.shutdown(wait=True)
        self._notes.close()
        with self._lock:
            self._connection.close()

    def create_org(self, slug: str, name: str, now_ms: int | None = None) -> Org:
        """Rejected when the slug is taken or is not lower-case letters, digits, - and _."""
        if not ORG_ID.fullmatch(slug):
            raise Rejected("invalid", "slug", slug, "1 to 63 lower-case letters, digits, - or _, not starting with - or _")
        if not name or len(name) > 200:
            raise Rejected("too_long" if name else "missing", "name", name, "a name of 1 to 200 characters")
        org = Org(slug, slug, name, _now_ms(now_ms))
        try:
            with self._lock:
                self._connection.execute("INSERT INTO orgs VALUES (?, ?, ?, ?)", (org.id, org.slug, org.name, org.created_at_ms))
        except sqlite3.IntegrityError:
            raise Rejected("invalid", "slug", slug, "a slug that is not taken") from None
        return org

    def org(self, id_or_slug: str) -> Org | None:
        rows = self._rows("SELECT id, slug, name, created_at FROM orgs WHERE id = ?1 OR slug = ?1", id_or_slug)
        return Org(*rows[0]) if rows else None

    def orgs(self) -> Sequence[Org]:
        return [Org(*row) for row in self._rows("SELECT id, slug, name, created_at FROM orgs ORDER BY id")]

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
        token = Token(token_id, owner.id, name, chosen, now_ms, expires_at_ms, None, None)
        with self._lock:
            self._connection.execute(
                "INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
                (token_id, owner.id, name, " ".join(sorted(chosen)), _sha256(secret), now_ms, expires_at_ms),
            )
        return token, f"cmis_{token_id}_{secret}"

    def verify(self, text: str, now_ms: int) -> Token:
        """The token that `text` is; raises Unauthorized. Microseconds when it was verified within the last second."""
        # The whole text's hash is the key: no secret stays in memory, and a lookup's timing says nothing about one.
        key = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
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
            self._writer.submit(self._note_use, token.id, now_ms)
        return token

    def revoke(self, token_id: str, now_ms: int | None = None) -> bool:
        """False when there is no such token, or it was revoked before. Elsewhere within a second."""
        with self._lock:
            done = self._connection.execute(
                "UPDATE tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (_now_ms(now_ms), token_id)
            )
        self._verified.clear()
        return done.rowcount == 1

    def list(self, org: str) -> Sequence[Token]:
        """The org's tokens, oldest first, revoked and expired ones included."""
        return [
            _token(row)
            for row in self._rows(
                f"SELECT {_COLUMNS} FROM tokens WHERE org_id IN (SELECT id FROM orgs WHERE id = ?1 OR slug = ?1)"
                " ORDER BY created_at, id",
                org,
            )
        ]

    def _looked_up(self, text: str) -> Token:
        prefix, _, rest = text.partition("_")
        token_id, _, secret = rest.partition("_")
        if prefix != "cmis" or not token_id or not secret:
            raise Unauthorized("malformed")
        rows = self._rows(f"SELECT {_COLUMNS}, secret_sha256 FROM tokens WHERE id = ?", token_id)
        stored = str(rows[0][-1]) if rows else _NOBODY
        if not hmac.compare_digest(_sha256(secret), stored):
            raise Unauthorized("wrong_secret" if rows else "unknown", token_id)
        token = _token(rows[0][:-1])
        if token.revoked_at_ms is not None:
            raise Unauthorized("revoked", token.id)
        return token

    def _note_use(self, token_id: str, now_ms: int) -> None:
        self._notes.execute("UPDATE tokens SET last_used = max(coalesce(last_used, 0), ?) WHERE id = ?", (now_ms, token_id))

    def _rows(self, sql: str, *parameters: str) -> Sequence[Row]:
        with self._lock:
            return self._connection.execute(sql, parameters).fetchall()


def _token(row: Row) -> Token:
    token_id, org, name, scopes, *times = row
    return Token(token_id, org, name, frozenset(str(scopes).split()), *times)


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _now_ms(now_ms: int | None) -> int:
    return time.time_ns() // 1_000_000 if now_ms is None else now_ms
