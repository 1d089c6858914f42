"""Browser sessions and the one-time codes that open them, for several processes at once.

A code and a session's text are 256 random bits each, and only their SHA-256 is stored (`tokens.py` says why that is enough).
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, delete, select, update

from ..core.errors import Rejected
from ..core.time import DAY_MS, MINUTE_MS
from .access_tables import sessions, sign_in_codes
from .database import Database, Unavailable
from .tokens import TokenStore, Unauthorized

CODE_LASTS_MS = 15 * MINUTE_MS
SESSION_LASTS_MS = 14 * DAY_MS
SEEN_EVERY_MS = MINUTE_MS
FORGOTTEN_AFTER_MS = 30 * DAY_MS
"""Codes and sessions that ended longer ago than this are deleted when the next code is made."""

_COLUMNS: tuple[Column[Any], ...] = (
    sessions.c.id, sessions.c.orgs, sessions.c.role,
    sessions.c.created_at, sessions.c.last_seen, sessions.c.expires_at, sessions.c.revoked_at,
)  # fmt: skip
_log = logging.getLogger(__name__)


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
    """Safe for threads; what it is asked for blocks. What writes may wait for other writers, up to 5 s."""

    def __init__(self, database: Database, tokens: TokenStore) -> None:
        self._database, self._tokens = database, tokens
        self._seen: dict[str, int] = {}
        # A note may wait for another writer, and must not hold up whoever only looks.
        self._noting = ThreadPoolExecutor(1, thread_name_prefix="sessions-seen")

    def close(self) -> None:
        """When all notes are written. The database is closed by whoever has opened it."""
        self._noting.shutdown(wait=True)

    # --- signing in ---------------------------------------------------------------------------------------------------

    def make_code(self, orgs: Collection[str] | None = None, role: str = "owner", now_ms: int | None = None) -> str:
        """A code that opens one session within 15 minutes. orgs: ids or slugs; None: all. Rejected: none, or an unknown one."""
        now_ms = _now_ms(now_ms)
        named = None if orgs is None else " ".join(sorted({self._known(org) for org in orgs}))
        if named == "":
            raise Rejected("missing", "orgs", orgs, "at least one org")
        code, forgotten_ms = secrets.token_urlsafe(32), now_ms - FORGOTTEN_AFTER_MS
        row = {
            "code_sha256": _sha256(code), "orgs": named, "role": role,
            "created_at": now_ms, "expires_at": now_ms + CODE_LASTS_MS,
        }  # fmt: skip
        with self._database.transaction(None, writes=True) as tx:
            for table in (sign_in_codes, sessions):
                tx.run(delete(table).where(table.c.expires_at < forgotten_ms))
            tx.run(sign_in_codes.insert(), row)
        return code

    def _known(self, org: str) -> str:
        found = self._tokens.org(org)
        if found is None:
            raise Rejected("invalid", "org", org, "an org that exists")
        return found.id

    def exchange(self, code: str, now_ms: int) -> tuple[Session, str]:
        """A new session and its text, shown this once. Raises Unauthorized (unknown, used, expired): a code works once, also
        when it is sent twice at the same time, here or to another process."""
        this = sign_in_codes.c.code_sha256 == _sha256(code)
        session_id, text = "s" + secrets.token_hex(6), secrets.token_urlsafe(32)
        with self._database.transaction(None, writes=True) as tx:
            good = update(sign_in_codes).where(this, sign_in_codes.c.used_at.is_(None), sign_in_codes.c.expires_at > now_ms)
            taken = tx.rows(good.values(used_at=now_ms).returning(sign_in_codes.c.orgs, sign_in_codes.c.role))
            if not taken:
                rows = tx.rows(select(sign_in_codes.c.used_at).where(this))
                raise Unauthorized("unknown" if not rows else "expired" if rows[0].used_at is None else "used")
            ((orgs, role),) = taken
            row = (session_id, orgs, role, now_ms, now_ms, now_ms + SESSION_LASTS_MS, None)
            values = dict(zip((column.name for column in _COLUMNS), row, strict=True))
            tx.run(sessions.insert(), {**values, "text_sha256": _sha256(text)})
        return _session(row), text

    # --- being signed in ----------------------------------------------------------------------------------------------

    def verify(self, text: str, now_ms: int) -> Session:
        """The session that `text` is, as it stands in the database now; raises Unauthorized (unknown, revoked, expired)."""
        with self._database.transaction(None) as tx:
            rows = tx.rows(select(*_COLUMNS).where(sessions.c.text_sha256 == _sha256(text)))
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
        with self._database.transaction(None, writes=True) as tx:
            this = update(sessions).where(sessions.c.id == session_id, sessions.c.revoked_at.is_(None))
            done = tx.run(this.values(revoked_at=_now_ms(now_ms)))
        self._seen.pop(session_id, None)
        return done.rowcount == 1

    def list(self) -> Sequence[Session]:
        """All sessions, oldest first, revoked and expired ones included."""
        with self._database.transaction(None) as tx:
            return [_session(row) for row in tx.rows(select(*_COLUMNS).order_by(sessions.c.created_at, sessions.c.id))]

    def _note_seen(self, session_id: str, now_ms: int) -> None:
        this = update(sessions).where(sessions.c.id == session_id, sessions.c.last_seen < now_ms)
        try:
            with self._database.transaction(None, writes=True) as tx:
                tx.run(this.values(last_seen=now_ms))
        except Unavailable as error:
            _log.warning("when session %s was seen could not be noted: %s", session_id, error)


def _session(row: Sequence[Any]) -> Session:
    session_id, orgs, *rest = row
    return Session(session_id, None if orgs is None else frozenset(orgs.split()), *rest)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _now_ms(now_ms: int | None) -> int:
    return time.time_ns() // 1_000_000 if now_ms is None else now_ms
