"""The rule sets in force per org, with versions, and which of them still have to be published (SQLite, store.db)."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

_SCHEMA = """
create table if not exists rule_sets(
    org text primary key, version integer not null, evaluate text not null, rules text not null, published integer not null
)
"""


class RuleSetRow(NamedTuple):
    org: str
    version: int
    evaluate: str
    rules: list[Any]


class RuleSetStore:
    """One row per org: the newest accepted rules. A version is stored before it is published, and published until it is."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma busy_timeout=5000")
        self._db.execute(_SCHEMA)

    def close(self) -> None:
        self._db.close()

    def current(self) -> dict[str, RuleSetRow]:
        rows = self._db.execute("select org, version, evaluate, rules from rule_sets")
        return {org: RuleSetRow(org, version, evaluate, json.loads(rules)) for org, version, evaluate, rules in rows}

    def put(self, org: str, evaluate: str, rules: list[Any], now_ms: int) -> RuleSetRow:
        """Stores a new version; versions grow, also over restarts and clock changes."""
        (last,) = self._db.execute("select coalesce(max(version), 0) from rule_sets where org = ?", (org,)).fetchone()
        version = max(now_ms, last + 1)
        self._db.execute("insert or replace into rule_sets values(?, ?, ?, ?, 0)", (org, version, evaluate, json.dumps(rules)))
        return RuleSetRow(org, version, evaluate, rules)

    def unpublished(self) -> list[RuleSetRow]:
        rows = self._db.execute("select org, version, evaluate, rules from rule_sets where not published order by org")
        return [RuleSetRow(org, version, evaluate, json.loads(rules)) for org, version, evaluate, rules in rows]

    def mark_published(self, org: str, version: int) -> None:
        self._db.execute("update rule_sets set published = 1 where org = ? and version = ?", (org, version))
