"""Databases: opening, upgrading, and what is said when they cannot be used; on both."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event, text

from cmis_stream.core.errors import ConfigError
from cmis_stream.settings import Settings
from cmis_stream.store import migrations, tables
from cmis_stream.store.changes import Changes
from cmis_stream.store.database import Busy, Database, Turns, Unavailable, upgraded
from cmis_stream.store.documents import Documents
from cmis_stream.store.migrations import HEAD, upgrade
from cmis_stream.stores import Stores
from scripts.postgres import OWNER, Postgres
from tests.servers.postgres import Urls
from tests.store.conftest import Places
from tests.store.support import ADA, create, kinds


def test_the_tables_are_those_that_the_code_says(places: Places, database: Database) -> None:
    with database.transaction(None) as tx:
        ours = {"include_name": lambda name, of, _: of != "table" or name in tables.metadata.tables}
        assert compare_metadata(MigrationContext.configure(tx.connection, opts=ours), tables.metadata) == []


def test_the_head_is_the_newest_revision() -> None:
    settings = Config()
    settings.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(settings).get_heads() == [HEAD]


def test_a_new_file_that_many_open_at_once_is_made_once(tmp_path: Path) -> None:
    url, opened, failed = f"sqlite:///{tmp_path / 'store.db'}", list[Database](), list[BaseException]()

    def open_it() -> None:
        try:
            opened.append(Database(url))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and len(opened) == 6
    for one in opened:
        one.close()


def test_processes_that_start_at_once_agree_on_columns(places: Places) -> None:
    databases = [Database(places.app) for _ in range(6)]
    found, start = list[Documents](), threading.Barrier(6)

    def open_it(database: Database) -> None:
        start.wait()
        found.append(Documents(database, kinds()))

    threads = [threading.Thread(target=open_it, args=(one,)) for one in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    layouts = [one._slots.columns("campaign") for one in found]
    assert len(layouts) == 6 and layouts == [layouts[0]] * 6 and len(set(layouts[0].values())) == 7
    for one in databases:
        one.close()


def test_what_else_is_in_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with sqlite3.connect(path) as other:
        other.execute("create table notes (id text)")
        other.execute("insert into notes values ('acme')")
    database = Database(f"sqlite:///{path}")
    with database.transaction(None) as tx:
        assert tx.rows(text("select id from notes"))[0][0] == "acme"
    database.close()


def test_a_file_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    Database(f"sqlite:///{path}").close()
    with sqlite3.connect(path) as other:
        other.execute("update alembic_version set version_num = '9999'")
    with pytest.raises(ConfigError, match="9999"):
        Database(f"sqlite:///{path}")


def test_a_migration_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with sqlite3.connect(path) as other:
        other.execute("create table relayed (a int)")  # the last table that the first migration makes
    with pytest.raises(Exception, match="relayed"):
        Database(f"sqlite:///{path}")
    with sqlite3.connect(path) as other:
        assert other.execute("select name from sqlite_master where type = 'table'").fetchall() == [("relayed",)]


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense", "sqlite://", "sqlite:///:memory:", "postgresql://host"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="expected sqlite:///PATH or postgresql://"):
        Database(url)


@pytest.mark.parametrize("url", ["mysql://user:hush@host/name", "postgres//user:hush@host/x", "postgresql://user:hush@host:p/x"])
def test_a_password_in_the_url_is_not_told(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Database(url)
    assert "hush" not in str(caught.value)


@pytest.mark.slow
def test_roles_that_row_security_does_not_hold_for_or_with_other_rights_are_refused(postgres_urls: Urls, tmp_path: Path) -> None:
    server, name = postgres_urls.server, postgres_urls.name
    server.execute(
        "create role beyond login bypassrls in role cmis_app; create role two login in role cmis_app, cmis_relay;"
        "create role member login in role cmis_app", database="postgres",
    )  # fmt: skip
    try:
        for role in ("postgres", "beyond"):
            with pytest.raises(ConfigError, match=f"got {role}, which may see what belongs to any org"):
                Database(server.url(role, name))
        for role in ("cmis_owner", "two"):
            with pytest.raises(ConfigError, match=f"got {role}, which has not the rights of exactly one"):
                Database(server.url(role, name))
        Database(server.url("member", name)).close()
    finally:
        server.execute("drop role beyond, two, member", database="postgres")
    with pytest.raises(ConfigError, match="--store: expected a URL of cmis_app"):
        Stores(Settings(tmp_path, store_url=postgres_urls.relay, store_relay_url=postgres_urls.relay), lambda: 0)
    with pytest.raises(ConfigError, match="--store-relay: expected a URL of cmis_relay"):
        Stores(Settings(tmp_path, store_url=postgres_urls.app, store_relay_url=postgres_urls.app), lambda: 0)


@pytest.mark.slow
def test_tables_are_made_by_the_owner_only(postgres: Postgres) -> None:
    postgres.execute("create database notables owner cmis_owner", database="postgres")
    try:
        with pytest.raises(ConfigError, match=r"made by the owner of the database, cmis_owner: permission denied"):
            upgraded(postgres.url("cmis_app", "notables"))
    finally:
        postgres.execute("drop database notables", database="postgres")


def test_a_file_that_cannot_be_opened_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="unable to open"):
        Database(f"sqlite:///{tmp_path / 'nowhere' / 'store.db'}")


def test_a_writer_waits_for_another_one_of_its_org_and_not_for_ever(
    database: Database, documents: Documents, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmis_stream.store.database.LOCK_S", 1)
    other = Database(places.app)
    theirs = Documents(other, kinds())
    with database.transaction("acme", writes=True) as tx:
        tx.lock_head(tables.org_heads)
        with pytest.raises(Busy):
            create(theirs, "campaign", name="A")
        assert theirs.list("acme", ADA, "campaign").items == []  # readers do not wait
    assert create(theirs, "campaign", name="A").version == 1
    other.close()


def test_a_full_disk_is_said_and_nothing_is_half_written(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    database = Database(url, connections=1)
    documents = Documents(database, kinds())
    create(documents, "campaign", name="A")

    def limit(pages: str) -> None:
        with database.transaction(None) as tx:
            tx.run(text(f"pragma max_page_count = {pages}"))

    with database.transaction(None) as tx:
        now = tx.rows(text("pragma page_count"))[0][0]
    limit(str(now))
    with pytest.raises(Unavailable, match="full"):
        for number in range(100):
            create(documents, "campaign", name=str(number), metadata={"long": "x" * 10_000})
    limit("1000000")
    verified = Changes(database).verify("acme")
    assert verified.broken is None and documents.list("acme", ADA, "campaign").total_estimate == verified.seq
    create(documents, "campaign", name="after")
    database.close()


@pytest.mark.slow
def test_only_the_owner_upgrades_postgresql(postgres: Postgres) -> None:
    postgres.execute(f"create database bare owner {OWNER}", database="postgres")
    app, owner = postgres.url("cmis_app", "bare"), postgres.url(OWNER, "bare")
    with pytest.raises(ConfigError, match="run `cmis db upgrade` as its owner"):
        Database(app)
    with pytest.raises(Exception, match="permission denied"):
        upgrade(app)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(upgrade(owner))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found, key=str) == [HEAD, HEAD, None]
    Database(app).close()
    postgres.execute("drop database bare", database="postgres")


@pytest.mark.slow
def test_a_database_that_is_away_is_said_and_used_again_when_it_is_back(postgres_urls: Urls) -> None:
    database = Database(postgres_urls.app)
    documents = Documents(database, kinds())
    first = create(documents, "campaign", name="A")
    postgres_urls.server.kill()
    calls: list[Callable[[], Any]] = [
        lambda: documents.get("acme", ADA, "campaign", first.id),
        lambda: create(documents, "campaign", name="B"),
        lambda: Database(postgres_urls.app),
    ]
    try:
        for call in calls:
            with pytest.raises(Unavailable):
                call()
    finally:
        postgres_urls.server.start()
    assert documents.get("acme", ADA, "campaign", first.id) == first
    database.close()


@pytest.mark.slow
def test_a_database_that_takes_no_writes_is_said(postgres_urls: Urls) -> None:
    postgres_urls.execute(f"alter database {postgres_urls.name} set default_transaction_read_only = on")
    with pytest.raises(Unavailable, match="read-only"):
        Documents(Database(postgres_urls.app), kinds())


def test_every_statement_of_a_document_names_its_org(documents: Documents, database: Database) -> None:
    """On SQLite nothing else keeps orgs apart."""
    said: list[str] = []
    event.listen(database._engine, "before_cursor_execute", lambda *of: said.append(str(of[2])))
    one = create(documents, "campaign", name="A", slug="a")
    create(documents, "note", campaign=one.id)
    documents.list("acme", ADA, "campaign", [("filter[name]", "A"), ("sort", "spend_micros")])
    documents.get("acme", ADA, "campaign", "a")
    Changes(database).verify("acme")
    ours = [one for one in said if any(f" {table.name}" in one for table in tables.metadata.sorted_tables)]
    assert len(ours) > 10 and [one for one in ours if "org_id" not in one] == []


def test_writers_get_their_turn_in_the_order_of_asking() -> None:
    turns, order = Turns(), list[int]()
    assert turns.acquire(0)

    def write(number: int) -> None:
        assert turns.acquire(60)
        order.append(number)
        turns.release()

    writers = []
    for number in range(20):
        writers.append(threading.Thread(target=write, args=(number,)))
        writers[-1].start()
        while len(turns._waiting) <= number:
            time.sleep(0.001)
    assert not turns.acquire(0.01), "who gives up leaves the line"
    turns.release()
    for writer in writers:
        writer.join()
    assert order == list(range(20))
    assert turns.acquire(0)
