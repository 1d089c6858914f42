"""Rules of a file of 0.3.0 become documents, once, whatever is killed in between."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from cmis_stream.modules.alerts.manifest import MANIFEST
from cmis_stream.modules.alerts.rule_sets import take_over
from cmis_stream.store.database import Database
from cmis_stream.store.decisions import Actor
from cmis_stream.store.documents import Documents
from cmis_stream.store.kinds import Kinds

ANYBODY = Actor("anybody")
SCHEMA = """create table rule_sets(
    org text primary key, version integer not null, evaluate text not null, rules text not null, published integer not null)"""


def rule(org: str, name: str) -> dict[str, object]:
    return {"id": name, "org": org, "metric": "spend", "window": "5m", "op": "gt", "threshold": 1}


def test_rule_sets_of_0_3_become_documents_and_the_table_goes(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with sqlite3.connect(path) as old:
        old.execute(SCHEMA)
        rows = [("acme", [rule("acme", "a"), rule("acme", "b/c")]), ("other", [rule("other", "a")])]
        for org, rules in rows:
            old.execute("insert into rule_sets values (?, 17, 'pane', ?, 1)", (org, json.dumps(rules)))
    database = Database(f"sqlite:///{path}")
    try:
        documents = Documents(database, Kinds([MANIFEST]))
        (error,) = take_over(database, documents, "rules-file")
        assert "b/c" in error
        for org in ("acme", "other"):
            (made,) = documents.list(org, ANYBODY, "alert_rule").items
            assert made.body["key"] == "a" and made.body["evaluate"] == "pane"
            assert made.body["metadata"]["applied_from"] == "rules-file"
        assert take_over(database, documents, "rules-file") == []
    finally:
        database.close()


def test_what_was_taken_over_before_a_kill_is_not_made_again(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    database = Database(f"sqlite:///{path}")
    try:
        documents = Documents(database, Kinds([MANIFEST]))
        for _ in range(2):  # the second time as if it had been killed before the table was dropped
            with sqlite3.connect(path) as old:
                old.execute(SCHEMA)
                old.execute("insert into rule_sets values ('acme', 17, 'live', ?, 1)", (json.dumps([rule("acme", "a")]),))
            old.close()
            assert take_over(database, documents, "rules-file") == []
        (made,) = documents.list("acme", ANYBODY, "alert_rule").items
        assert made.version == 1
    finally:
        database.close()
