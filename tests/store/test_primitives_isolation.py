"""Jobs, schedules, files, secrets and subjects' keys: rows of one org only, whatever a statement says; and the tables are those
that the code knows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Table, create_engine, exc, insert, inspect, select, text, update

from cmis_stream.store import primitive_tables
from cmis_stream.store.blobs import FolderBlobs
from cmis_stream.store.database import Database, driver_url
from cmis_stream.store.due import Due
from cmis_stream.store.files import Files
from cmis_stream.store.jobs import Jobs
from cmis_stream.store.keyring import Keyring
from cmis_stream.store.personal import PersonalData, Place
from cmis_stream.store.schedules import Schedule, Schedules
from cmis_stream.store.secrets import Secrets
from tests.servers.postgres import Urls
from tests.store.conftest import Places
from tests.store.primitives import JOB_KINDS
from tests.store.test_personal import FIELDS

TABLES = primitive_tables.metadata.sorted_tables


@pytest.fixture
def filled(postgres_urls: Urls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """Two orgs with a row in every table; one connection, so each transaction gets the one that the last one left."""
    database, keys = Database(postgres_urls.app, connections=1), Keyring([bytes(32)])
    for org in ("acme", "other"):
        Jobs(database, JOB_KINDS).enqueue(org, "j", "count", {}, "ada")
        Schedules(database).put(org, Schedule("s", "UTC", "* * * * *", "job"))
        Secrets(database, keys).set(org, "s", "value", "ada")
        with Files(database, FolderBlobs(tmp_path_factory.mktemp("files"))).create(org, "f", "text/csv", "ada") as upload:
            upload.finish()
        with database.transaction(org, writes=True) as tx:
            PersonalData(database, keys).seal(tx, FIELDS, Place("mention", "1"), {"author_id": "p1", "author_name": "Ada"})
    yield database
    database.close()


@pytest.mark.slow
@pytest.mark.spec("TEN-M05", "TEN-M06")
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_statements_without_a_condition_reach_one_org_only(filled: Database, postgres_urls: Urls, table: Table) -> None:
    with filled.transaction("acme") as tx:
        assert tx.rows(select(table.c.org_id)) == [("acme",)]
    with filled.transaction(None) as tx:
        assert tx.rows(select(table.c.org_id)) == []
    other = next(column for column in table.c if not column.primary_key)
    with filled.transaction("acme", writes=True) as tx:
        assert tx.run(update(table).values({other.name: other})).rowcount == 1
    with pytest.raises(exc.ProgrammingError, match="row-level security"), filled.transaction("acme", writes=True) as tx:
        tx.run(update(table).values(org_id="other"))
    with pytest.raises(exc.ProgrammingError, match="row-level security"), filled.transaction("acme", writes=True) as tx:
        row = dict(tx.rows(select(table))[0]._mapping)
        tx.run(insert(table).values({**row, "org_id": "new"}))
    engine = create_engine(driver_url(postgres_urls.owner))
    with engine.connect() as connection:
        assert connection.execute(select(table.c.org_id)).all() == []  # the owner, too
    engine.dispose()


@pytest.mark.slow
def test_who_looks_over_all_orgs_sees_when_something_is_due_and_nothing_else(filled: Database, postgres_urls: Urls) -> None:
    relay = Database(postgres_urls.relay)
    assert Due(relay).jobs(2**60) == Due(relay).schedules(2**60) == ["acme", "other"] and Due(relay).files(2**60) == []
    statements = ["select body from jobs", "select result from jobs", "select checkpoint from jobs", "select body from schedules"]
    statements += [
        "select name from files",
        "select * from secrets",
        "select * from subject_keys",
        "update jobs set state = 'done'",
    ]
    statements += ["delete from schedules", "update files set expires_at = 0", "insert into jobs (org_id, id) values ('a', 'b')"]
    for statement in statements:
        with pytest.raises(exc.ProgrammingError, match="permission denied"), relay.transaction(None) as tx:
            tx.run(text(statement))
    with pytest.raises(exc.ProgrammingError, match="permission denied"), filled.transaction("acme", writes=True) as tx:
        tx.run(text("delete from subject_keys"))
    relay.close()


def test_the_migrations_make_the_tables_that_the_code_knows(places: Places, database: Database) -> None:
    engine = create_engine(driver_url(places.app))
    found = inspect(engine)
    for table in TABLES:
        columns = {one["name"]: (type(one["type"].as_generic()), one["nullable"]) for one in found.get_columns(table.name)}
        assert columns == {one.name: (type(one.type.as_generic()), bool(one.nullable)) for one in table.c}
        assert found.get_pk_constraint(table.name)["constrained_columns"] == [one.name for one in table.primary_key]
        indexes = {(one["name"], tuple(one["column_names"]), bool(one["unique"])) for one in found.get_indexes(table.name)}
        assert indexes == {(one.name, tuple(column.name for column in one.columns), one.unique) for one in table.indexes}
    engine.dispose()
