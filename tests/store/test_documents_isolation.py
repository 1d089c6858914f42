"""PostgreSQL's row security: it holds also where a condition were forgotten, and roles may do no more than they have to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import ColumnElement, Table, create_engine, event, exc, insert, select, text, true, update

from cmis_stream.core.errors import Rejected
from cmis_stream.store import tables
from cmis_stream.store.changes import Changes
from cmis_stream.store.database import Database, Transaction, driver_url
from cmis_stream.store.decisions import Command
from cmis_stream.store.documents import Documents, Idempotency, Item
from tests.servers.postgres import Urls
from tests.store.support import ADA, act, create, kinds

pytestmark = pytest.mark.slow

OF_ORGS = [table for table in tables.metadata.sorted_tables if "org_id" in table.c]
OF_THE_RELAY = ("catalogs", "relayed")


@pytest.fixture
def database(postgres_urls: Urls) -> Iterator[Database]:
    """One connection: each transaction gets the one that the last one left."""
    opened = Database(postgres_urls.app, connections=1)
    yield opened
    opened.close()


@pytest.fixture
def documents(database: Database, postgres_urls: Urls) -> Documents:
    """Two orgs with rows in every table."""
    made = Documents(database, kinds())
    for org in ("acme", "other"):
        one = create(made, "campaign", org, name="A", slug="a")
        create(made, "note", org, campaign=one.id)
        copy = Command("copy", "campaign", one.id, {"name": "B"})
        made.execute(org, ADA, copy, idempotency=Idempotency("/copy", "k"))
    postgres_urls.execute("insert into relayed values ('acme', '', 1), ('other', '', 1)")
    return made


@pytest.mark.parametrize("table", OF_ORGS, ids=lambda table: table.name)
def test_statements_without_a_condition_reach_one_org_only(documents: Documents, database: Database, table: Table) -> None:
    if table.name in OF_THE_RELAY:
        with pytest.raises(exc.ProgrammingError, match="permission denied"), database.transaction("acme") as tx:
            tx.rows(select(table.c.org_id))
        return
    with database.transaction("acme") as tx:
        assert {org for (org,) in tx.rows(select(table.c.org_id))} == {"acme"}
    with database.transaction(None) as tx:
        assert tx.rows(select(table.c.org_id)) == []
    if table.name in ("org_heads", "documents", "outbox", "idempotency"):
        with database.transaction("acme", writes=True) as tx:
            other = next(column for column in table.c if not column.primary_key)
            assert 1 <= tx.run(update(table).values({other.name: other})).rowcount < 4


def test_the_store_without_its_conditions_reads_and_changes_nothing_foreign(
    documents: Documents, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = documents.get("other", ADA, "campaign", "a")
    mine = documents.get("acme", ADA, "campaign", "a")
    assert theirs is not None and mine is not None
    conditions: list[str] = []

    def forgotten(_: Transaction, table: Table) -> ColumnElement[bool]:
        conditions.append(table.name)
        return true()

    monkeypatch.setattr(Transaction, "own", forgotten)
    found = documents.list("acme", ADA, "campaign")
    assert {one.org for one in found.items} == {"acme"} and found.total_estimate == 2
    assert documents.get("acme", ADA, "campaign", "a") == mine
    assert documents.get("acme", ADA, "campaign", theirs.id) is None
    with pytest.raises(Rejected):
        documents.execute("acme", ADA, Command("delete", "campaign", theirs.id))
    with pytest.raises(Rejected):
        create(documents, "note", campaign=theirs.id)
    act(documents, "delete", mine)
    assert documents.list("acme", ADA, "note").items == [] and len(documents.list("other", ADA, "note").items) == 1
    assert {one.org for one in Changes(database).after("acme", 0, 100)} == {"acme"}
    assert Changes(database).verify("acme").broken is Changes(database).verify("other").broken is None
    assert {"documents", "refs", "uniques", "changes", "org_heads"} <= set(conditions)
    assert documents.get("other", ADA, "campaign", theirs.id) == theirs


def test_a_row_cannot_be_written_into_another_org(documents: Documents, database: Database) -> None:
    row = {"kind": "campaign", "name": "slug", "value": "x", "id": "x"}
    for org in ("other", "new"):
        with pytest.raises(exc.ProgrammingError, match="row-level security"), database.transaction("acme", writes=True) as tx:
            tx.run(insert(tables.uniques).values({**row, "org_id": org}))
    with pytest.raises(exc.ProgrammingError, match="row-level security"), database.transaction("acme", writes=True) as tx:
        tx.run(update(tables.documents).values(org_id="other"))


def test_the_pool_does_not_hand_on_an_org(documents: Documents, database: Database) -> None:
    with pytest.raises(RuntimeError), database.transaction("acme", writes=True) as tx:
        assert tx.rows(text("select current_setting('cmis.org', true)"))[0][0] == "acme"
        raise RuntimeError
    for org in ("acme", "other"):
        with database.transaction(org, writes=True):
            pass
        with database._engine.connect() as connection:  # what was set in the transaction is gone behind it
            assert connection.execute(text("select current_setting('cmis.org', true)")).scalar() in (None, "")
            assert connection.execute(select(tables.documents.c.id)).all() == []
        with database.transaction(None) as tx:
            assert tx.rows(select(tables.documents.c.id)) == []


@pytest.mark.parametrize(
    "statement",
    [
        "create table mine (a int)",
        "alter table documents add column a int",
        "alter table documents disable row level security",
        "alter table documents no force row level security",
        "drop table documents",
        "drop policy own_org on documents",
        "create policy mine on documents using (true)",
        "truncate documents",
        "set role cmis_owner",
        "update changes set actor = 'x'",
        "delete from changes",
        "delete from documents",
        "update relayed set seq = 0",
        "update alembic_version set version_num = 'x'",
        "delete from slots",
        "create index on documents (doc)",
    ],
)
def test_the_role_of_the_application_may_not(documents: Documents, database: Database, statement: str) -> None:
    with pytest.raises(exc.ProgrammingError, match=r"permission denied|must be owner"), database.transaction("acme") as tx:
        tx.run(text(statement))


def test_the_role_of_the_relay_reads_changes_of_all_orgs_and_nothing_else(documents: Documents, postgres_urls: Urls) -> None:
    relay = Database(postgres_urls.relay)
    with relay.transaction(None) as tx:
        assert {org for (org,) in tx.rows(select(tables.changes.c.org_id))} == {"acme", "other"}
    for statement in (
        "select 1 from documents", "select body from outbox", "select 1 from idempotency", "update changes set actor = 'x'",
        "insert into org_heads values ('x', 0, '')", "update org_heads set seq = 0", "delete from relayed",
        "create table a (b int)",
    ):  # fmt: skip
        with pytest.raises(exc.ProgrammingError, match="permission denied"), relay.transaction(None) as tx:
            tx.run(text(statement))
    relay.close()


def test_row_security_binds_the_owner_of_the_tables_too(documents: Documents, postgres_urls: Urls) -> None:
    engine = create_engine(driver_url(postgres_urls.owner))
    with engine.connect() as connection:
        for table in OF_ORGS:
            assert connection.execute(select(table.c.org_id)).all() == [], table.name
    engine.dispose()


def test_every_table_with_an_org_has_row_security_forced(postgres_urls: Urls) -> None:
    found = postgres_urls.execute(
        "select c.relname, c.relrowsecurity and c.relforcerowsecurity from pg_class c"
        " join pg_attribute a on a.attrelid = c.oid where a.attname = 'org_id' and c.relkind = 'r'"
    )
    forced = dict(line.split("|") for line in found.split())
    assert {table.name for table in OF_ORGS} <= forced.keys() and set(forced.values()) == {"t"}


def test_texts_are_ordered_by_code_point_in_a_cluster_of_another_order(postgres_urls: Urls) -> None:
    assert postgres_urls.execute("select 'B' < 'a'").strip() == "f"
    odd = postgres_urls.execute(
        "select table_name, column_name from information_schema.columns where table_schema = 'public'"
        " and data_type = 'text' and collation_name is distinct from 'C'"
    )
    assert odd == ""


@pytest.mark.parametrize(
    ("parameters", "column"),
    [
        ([("sort", "-spend_micros")], "spend_micros"),
        ([("sort", "name")], "name"),
        ([("sort", "ctr_ratio")], "ctr_ratio"),
        ([("filter[name]", "7")], "name"),
        ([("filter[spend_micros][gte]", "2000"), ("sort", "spend_micros")], "spend_micros"),
    ],
)
def test_a_page_is_read_from_the_index_of_its_sort_or_filter(
    documents: Documents, database: Database, postgres_urls: Urls, parameters: list[tuple[str, str]], column: str
) -> None:
    """Below the policy of a role that does not own the table: what is not leakproof would be looked at row by row."""
    bodies = [{"name": str(number), "spend_micros": number, "ctr_ratio": number / 7} for number in range(3_000)]
    items = [Item(Command("create", "campaign", body=body)) for body in bodies]
    for start in range(0, len(items), 1_000):
        documents.bulk("acme", ADA, items[start : start + 1_000])
    postgres_urls.execute("analyze documents")
    said: list[tuple[str, Any]] = []
    event.listen(database._engine, "before_cursor_execute", lambda *of: said.append((of[2], of[3])))
    page = documents.list("acme", ADA, "campaign", [*parameters, ("limit", "5")])
    if page.next is not None:
        documents.list("acme", ADA, "campaign", [*parameters, ("limit", "5"), ("cursor", page.next)])
    pages = [one for one in said if "LIMIT" in one[0] and "count" not in one[0]]
    assert pages
    for statement, values in pages:
        with database.transaction("acme") as tx:
            plan = "\n".join(line for (line,) in tx.connection.exec_driver_sql(f"explain {statement}", values))
        assert f"documents_{documents._slots.columns('campaign')[column]} " in plan and "Sort" not in plan, plan
