"""A file of 0.3.0 is taken over: its incidents, with what they are filtered by, and how far its readers were."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from cmis_stream.core.rules import SEVERITIES
from cmis_stream.store.database import Database
from cmis_stream.store.facts import Change, Facts
from tests.store.fact_support import NOW, Writer, fact_kinds, incident, numbers

OLD = """
create table if not exists facts(
    org_id text not null, kind text not null, id text not null, version integer not null, at integer not null,
    doc text not null, primary key (org_id, kind, id)) strict;
create index if not exists facts_by_state on facts(org_id, kind, json_extract(doc, '$.state'), id);
create table if not exists positions(
    reader text not null, epoch text not null, topic text not null, partition integer not null, position integer not null,
    primary key (reader, epoch, topic, partition)) strict, without rowid;
"""


def old_file(folder: Path, incidents: list[tuple[str, str, dict[str, Any], int]]) -> Path:
    """incidents: (org, id, body, version), which had id and version in the document, too."""
    path = folder / "store.db"
    db = sqlite3.connect(path)
    db.executescript(OLD)
    docs = [
        (org, one, version, NOW + 9, json.dumps({"id": one, **body, "version": version})) for org, one, body, version in incidents
    ]
    db.executemany("insert into facts values (?, 'incident', ?, ?, ?, ?)", docs)
    db.execute("insert into positions values ('project', 'e', 'cmis.transitions.v1', 3, 17), ('project', 'd', 't', 0, -1)")
    db.commit()
    db.close()
    return path


def test_every_incident_and_position_of_an_older_file_is_there(tmp_path: Path) -> None:
    made = [incident(n, severity=SEVERITIES[n % 4], state="resolved" if n % 3 else "firing", rule=f"r{n % 5}") for n in range(60)]
    for number, (_, body) in enumerate(made):
        if body["state"] == "resolved":
            body |= {"resolved_at": NOW + 100 + number, "value": 104.2, "events": ["é", "\\"], "reason": "rule_changed"}
    path = old_file(tmp_path, [("beta" if n < 5 else "acme", *one, 1 + n % 2) for n, one in enumerate(made)])
    database = Database(f"sqlite:///{path}")
    facts = Facts(database, fact_kinds())
    for number, (identity, body) in enumerate(made):
        found = facts.get("beta" if number < 5 else "acme", "incident", identity)
        assert found is not None and (found.body, found.version, found.at) == (body, 1 + number % 2, NOW + 9)
    assert facts.positions("project", "e") == {("cmis.transitions.v1", 3): 17} and facts.positions("project", "d") == {
        ("t", 0): -1
    }
    assert facts.orgs("incident") == ["acme", "beta"] and facts.fill_slots() == 0
    newest = list(range(59, 4, -1))

    def listed(*parameters: tuple[str, str]) -> list[int]:
        return numbers(facts.list("acme", "incident", [*parameters, ("limit", "500")]).items)

    assert listed() == newest
    assert listed(("filter[state]", "firing")) == [n for n in newest if n % 3 == 0]
    assert listed(("filter[rule]", "r2")) == [n for n in newest if n % 5 == 2]
    assert listed(("sort", "severity")) == sorted(newest, key=lambda n: n % 4)
    assert listed(("filter[started_at][lt]", str(NOW + 10))) == [9, 8, 7, 6, 5]
    for field in ("level", "platform", "campaign", "key"):
        assert listed((f"filter[{field}]", made[9][1][field])) == newest
    # And it goes on: with the version after the one that is there.
    Writer(facts)(Change("acme", "incident", made[9][0], NOW, lambda before: {**(before or {}), "state": "resolved"}))
    changed = facts.get("acme", "incident", made[9][0])
    assert changed is not None and changed.version == 3
    database.close()


def test_what_no_index_can_hold_is_taken_over_all_the_same(tmp_path: Path) -> None:
    odd = incident(1, rule="x" * 501, severity="urgent")
    database = Database(f"sqlite:///{old_file(tmp_path, [('acme', *odd, 1)])}")
    facts = Facts(database, fact_kinds())
    found = facts.get("acme", "incident", odd[0])
    assert found is not None and found.body == odd[1]
    assert facts.list("acme", "incident", [("filter[rule]", "x" * 500)]).items == []
    database.close()


def test_what_a_foreign_record_left_without_an_org_does_not_keep_a_process_from_starting(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{old_file(tmp_path, [('acme', *incident(1), 1), ('', *incident(2), 1)])}")
    assert numbers(Facts(database, fact_kinds()).everywhere("incident")) == [1]
    database.close()


def test_a_list_walks_an_index_in_its_order(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{old_file(tmp_path, [('acme', *incident(1), 1)])}")
    facts = Facts(database, fact_kinds())
    columns = facts._slots.columns("incident")
    db = sqlite3.connect(tmp_path / "store.db")
    own = "select doc from facts where org_id = 'acme' and kind = 'incident'"
    for where, order, index in (
        (f"and {columns['state']} = 0", "id desc", columns["state"]),
        (f"and {columns['started_at']} is not null", f"{columns['started_at']} desc, id desc", columns["started_at"]),
        (f"and {columns['severity']} is not null", f"{columns['severity']} desc, id desc", columns["severity"]),
    ):
        plan = db.execute(f"explain query plan {own} {where} order by {order} limit 5").fetchall()
        assert any(f"facts_{index} " in row[3] for row in plan) and not any("TEMP B-TREE" in row[3] for row in plan), plan
    db.close()
    database.close()
