"""Browser sessions and the one-time codes that open them, in SQLite beside the tokens, for several processes at once.

A code and a session's text are 256 random bits each, and only their SHA-256 is stored (`tokens.py` says why that is enough).
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ..core.errors import Rejected
from ..core.time import DAY_MS, MINUTE_MS
from .tokens import TokenStore, Unauthorized

CODE_LASTS_MS = 15 * MINUTE_MS
SESSION_LASTS_MS = 14 * DAY_MS
SEEN_EVERY_MS = MINUTE_MS
FORGOTTEN_AFTER_MS = 30 * DAY_MS
"""Codes and sessions that ended longer ago than this are deleted when the next code is made."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sign_in_codes(
    code_sha256 TEXT PRIMARY KEY, orgs TEXT, role TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL,
    used_at INTEGER) STRICT;
CREATE TABLE IF NOT EXISTS sessions(
    id TEXT PRIMARY KEY, text_sha256 TEXT NOT NULL UNIQUE, orgs TEXT, role TEXT NOT NULL, created_at INTEGER NOT NULL,
    last_seen INTEGER NOT NULL, expires_at INTEGER NOT NULL, revoked_at INTEGER) STRICT;
"""
_COLUMNS = "id, orgs, role, created_at, last_seen, expires_at, revoked_at"
# orgs: ids separated by spaces, which no id contains; NULL means all.


@dataclass(frozen=True, slots=True)
class Session:
    """A session without its text.

    orgs None: every org of the installation, those included that are made later. Times are epoch milliseconds;
    last_seen_ms is exact to a minute.
    """

    id: str
    orgs: frozenset[str] | None
    role: str
    created_at_ms: int
    last_seen_ms: int
    expires_at_ms: int
    revoked_at_ms: int | None

    def opens(self, org_id: str) -> bool:
        return self.orgs is None or org_id in self.orgs


class SessionStore:
    """Reads never wait for a writer (WAL); writers of all processes wait up to 5 s for one another, so what writes belongs
    into a thread."""

    def __init__(self, tokens: TokenStore) -> None:
        """Beside the orgs and tokens in the same file. sqlite3.Error when it cannot be written."""
        self._tokens = tokens
        # Two connections: a writer that waits for another process must not hold up those who only look.
        self._reader, self._writer = self._connected(), self._connected()
        self._read_lock, self._write_lock = threading.Lock(), threading.Lock()
        self._writer.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        self._seen: dict[str, int] = {}
        self._noting = ThreadPoolExecutor(1, thread_name_prefix="sessions-seen")

    def _connected(self) -> sqlite3.Connection:
        return sqlite3.connect(self._tokens.path, timeout=5, isolation_level=None, check_same_thread=False)

    def close(self) -> None:
        self._noting.shutdown(wait=True)
        with self._read_lock, self._write_lock:
            self._reader.close()
            self._writer.close()

    # --- signing in ---------------------------------------------------------------------------------------------------

    def make_code(self, orgs: Collection[str] | None = None, role: str = "owner", now_ms: int | None = None) -> str:
        """A code that opens one session within 15 minutes. orgs: ids or slugs; None: all. Rejected: none, or an unknown one."""
        now_ms = _now_ms(now_ms)
        named = None if orgs is None else " ".join(sorted({self._known(org) for org in orgs}))
        if named == "":
            raise Rejected("missing", "orgs", orgs, "at least one org")
        code = secrets.token_urlsafe(32)
        with self._write_lock, self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            self._writer.execute("DELETE FROM sign_in_codes WHERE expires_at < ?", (now_ms - FORGOTTEN_AFTER_MS,))
            self._writer.execute("DELETE FROM sessions WHERE expires_at < ?", (now_ms - FORGOTTEN_AFTER_MS,))
            self._writer.execute(
                "INSERT INTO sign_in_codes VALUES (?, ?, ?, ?, ?, NULL)",
                (_sha256(code), named, role, now_ms, now_ms + CODE_LASTS_MS),
            )
        return code

    def _known(self, org: str) -> str:
        found = self._tokens.org(org)
        if found is None:
            raise Rejected("invalid", "org", org, "an org that exists")
        return found.id

    def exchange(self, code: str, now_ms: int) -> tuple[Session, str]:
        """A new session and its text, shown this once. Raises Unauthorized (unknown, used, expired): a code works once, also
        when it is sent twice at the same time, here or to another process."""
        key = _sha256(code)
        session_id, text = "s" + secrets.token_hex(6), secrets.token_urlsafe(32)
        with self._write_lock, self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            taken = self._writer.execute(
                "UPDATE sign_in_codes SET used_at = ? WHERE code_sha256 = ? AND used_at IS NULL AND expires_at > ?"
                " RETURNING orgs, role",
                (now_ms, key, now_ms),
            ).fetchall()
            if not taken:
                row = self._writer.execute("SELECT used_at FROM sign_in_codes WHERE code_sha256 = ?", (key,)).fetchone()
                raise Unauthorized("unknown" if row is None else "expired" if row[0] is None else "used")
            (orgs, role) = taken[0]
            row = (session_id, orgs, role, now_ms, now_ms, now_ms + SESSION_LASTS_MS, None)
            self._writer.execute(
                f"INSERT INTO sessions ({_COLUMNS}, text_sha256) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*row, _sha256(text))
            )
        return _session(row), text

    # --- being signed in ----------------------------------------------------------------------------------------------

    def verify(self, text: str, now_ms: int) -> Session:
        """The session that `text` is, as it stands in the database now; raises Unauthorized (unknown, revoked, expired)."""
        rows = self._rows(f"SELECT {_COLUMNS} FROM sessions WHERE text_sha256 = ?", _sha256(text))
        if not rows:
            raise Unauthorized("unknown")
        session = _session(rows[0])
        if session.revoked_at_ms is not None:
            raise Unauthorized("revoked", session.id)
        if now_ms >= session.expires_at_ms:
            raise Unauthorized("expired", session.id)
        if now_ms - max(self._seen.get(session.id, 0), session.last_seen_ms) >= SEEN_EVERY_MS:
            self._seen[session.id] = now_ms
            self._noting.submit(self._note_seen, session.id, now_ms)
        return session

    def revoke(self, session_id: str, now_ms: int | None = None) -> bool:
        """False when there is no such session, or it was revoked before."""
        with self._write_lock:
            done = self._writer.execute(
                "UPDATE sessions SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (_now_ms(now_ms), session_id)
            )
        self._seen.pop(session_id, None)
        return done.rowcount == 1

    def list(self) -> Sequence[Session]:
        """All sessions, oldest first, revoked and expired ones included."""
        return [_session(row) for row in self._rows(f"SELECT {_COLUMNS} FROM sessions ORDER BY created_at, id")]

    def _note_seen(self, session_id: str, now_ms: int) -> None:
        with self._write_lock:
            self._writer.execute("UPDATE sessions SET last_seen = max(last_seen, ?) WHERE id = ?", (now_ms, session_id))

    def _rows(self, sql: str, *parameters: str) -> Sequence[tuple[Any, ...]]:
        with self._read_lock:
            return self._reader.execute(sql, parameters).fetchall()


def _session(row: tuple[Any, ...]) -> Session:
    session_id, orgs, *rest = row
    return Session(session_id, None if orgs is None else frozenset(orgs.split()), *rest)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _now_ms(now_ms: int | None) -> int:
    return time.time_ns() // 1_000_000 if now_ms is None else now_ms
