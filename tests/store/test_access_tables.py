"""The tables of access: as the code says, and taken over from the file of a version that made them by itself."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text

from cmis_stream.store import access_tables, migrations
from cmis_stream.store.database import Database
from cmis_stream.store.rights import Rights
from cmis_stream.store.sessions import Session, SessionStore
from cmis_stream.store.tokens import Org, Token, TokenStore

NOW = 1_767_225_600_000
SECRET_SHA256 = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"
OLD_ORGS_AND_TOKENS = f"""
CREATE TABLE orgs(
    id TEXT PRIMARY KEY, slug TEXT NOT NULL UNIQUE, name TEXT NOT NULL, created_at INTEGER NOT NULL) STRICT;
CREATE TABLE tokens(
    id TEXT PRIMARY KEY, org_id TEXT NOT NULL REFERENCES orgs(id), name TEXT NOT NULL, scopes TEXT NOT NULL,
    secret_sha256 TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER, revoked_at INTEGER, last_used INTEGER)
    STRICT;
CREATE INDEX tokens_of_org ON tokens(org_id, created_at);
INSERT INTO orgs VALUES ('acme', 'acme', 'Acme', 1), ('globex', 'globex', 'Globex', 2);
INSERT INTO tokens VALUES
    ('0123456789ab', 'acme', 'feed', 'ingest read', '{SECRET_SHA256}', 3, {NOW + 1}, NULL, 4),
    ('ba9876543210', 'globex', '', 'admin', '{SECRET_SHA256}', 5, NULL, 6, NULL);
"""
OLD_SESSIONS = f"""
CREATE TABLE sign_in_codes(
    code_sha256 TEXT PRIMARY KEY, orgs TEXT, role TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL,
    used_at INTEGER) STRICT;
CREATE TABLE sessions(
    id TEXT PRIMARY KEY, text_sha256 TEXT NOT NULL UNIQUE, orgs TEXT, role TEXT NOT NULL, created_at INTEGER NOT NULL,
    last_seen INTEGER NOT NULL, expires_at INTEGER NOT NULL, revoked_at INTEGER) STRICT;
INSERT INTO sign_in_codes VALUES ('{SECRET_SHA256}', 'acme', 'owner', 7, {NOW + 1}, NULL), ('used', NULL, 'owner', 7, 8, 9);
INSERT INTO sessions VALUES
    ('s0', '{SECRET_SHA256}', 'acme globex', 'owner', 10, {NOW}, {NOW + 1}, NULL),
    ('s1', 'other', NULL, 'owner', 12, 13, 14, 15);
"""


def test_the_tables_are_those_that_the_code_says(database: Database) -> None:
    names = access_tables.metadata.tables
    ours = {"include_name": lambda name, of, _: of != "table" or name in names, "compare_type": True}
    with database.transaction(None) as tx:
        assert compare_metadata(MigrationContext.configure(tx.connection, opts=ours), access_tables.metadata) == []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def made_by_an_older_version(path: Path, sql: str) -> None:
    """Opened as it did that, and closed."""
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.execute("PRAGMA journal_mode = WAL")
        old.executescript(f"BEGIN IMMEDIATE; {sql} COMMIT;")
    path.chmod(0o600)


@pytest.fixture
def taken_over(path: Path) -> Iterator[Database]:
    made_by_an_older_version(path, OLD_ORGS_AND_TOKENS + OLD_SESSIONS)
    database = Database(f"sqlite:///{path}")
    yield database
    database.close()


def test_what_an_older_version_has_stored_is_taken_over(taken_over: Database, path: Path) -> None:
    tokens = TokenStore(taken_over)
    sessions = SessionStore(taken_over, tokens)
    assert tokens.orgs() == [Org("acme", "acme", "Acme", 1), Org("globex", "globex", "Globex", 2)]
    feed = Token("0123456789ab", "acme", "feed", frozenset({"ingest", "read"}), 3, NOW + 1, None, 4)
    assert tokens.list("acme") == [feed] and tokens.verify("cmis_0123456789ab_secret", NOW) == feed
    assert tokens.list("globex") == [Token("ba9876543210", "globex", "", frozenset({"admin"}), 5, None, 6, None)]
    both = Session("s0", frozenset({"acme", "globex"}), "owner", 10, NOW, NOW + 1, None)
    assert sessions.verify("secret", NOW) == both
    assert sessions.list() == [both, Session("s1", None, "owner", 12, 13, 14, 15)]
    assert Rights(taken_over).readable(["0123456789ab", "ba9876543210", "s0", "s1"], NOW) == {
        "0123456789ab": {"acme"},
        "s0": {"acme", "globex"},
    }
    assert sessions.exchange("secret", NOW)[0].orgs == {"acme"}, "a code that was not used yet"
    with taken_over.transaction(None) as tx:
        assert tx.rows(text("select used_at from sign_in_codes where code_sha256 = 'used'"))[0][0] == 9
    sessions.close()
    tokens.close()
    assert [file.stat().st_mode & 0o777 for file in path.parent.iterdir()].count(0o600) == len(list(path.parent.iterdir()))


def test_the_tables_of_a_file_that_was_taken_over_are_those_of_a_new_one(taken_over: Database, tmp_path: Path) -> None:
    Database(f"sqlite:///{tmp_path / 'new.db'}").close()
    described = "select type, name, tbl_name, sql from sqlite_master order by type, name"
    with closing(sqlite3.connect(tmp_path / "new.db")) as new, taken_over.transaction(None) as tx:
        assert [tuple(row) for row in tx.rows(text(described))] == new.execute(described).fetchall()


@pytest.mark.parametrize("sql", [OLD_ORGS_AND_TOKENS, OLD_ORGS_AND_TOKENS + OLD_SESSIONS], ids=["no sessions", "all"])
@pytest.mark.parametrize("revision", ["0001", "0003"])
def test_a_file_that_has_documents_already_is_taken_over(path: Path, revision: str, sql: str) -> None:
    settings, engine = Config(), create_engine(f"sqlite:///{path}")
    settings.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with engine.begin() as connection:
        settings.attributes["connection"] = connection
        command.upgrade(settings, revision)
    engine.dispose()
    made_by_an_older_version(path, sql)
    database = Database(f"sqlite:///{path}")
    tokens = TokenStore(database)
    assert [len(tokens.list(org.id)) for org in tokens.orgs()] == [1, 1]
    assert len(SessionStore(database, tokens).list()) == (2 if sql.endswith(OLD_SESSIONS) else 0)
    tokens.close()
    database.close()


def test_only_the_owner_reads_a_file_that_is_made_or_opened(path: Path) -> None:
    Database(f"sqlite:///{path}").close()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o666)
    database = Database(f"sqlite:///{path}")
    with database.transaction(None, writes=True) as tx:
        tx.insert_new(access_tables.orgs, {"id": "acme", "slug": "acme", "name": "Acme", "created_at": 1})
    files = list(path.parent.iterdir())
    assert {file.name for file in files} >= {"store.db", "store.db-wal", "store.db-shm"}
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    database.close()


def test_a_file_opened_again_in_this_process_keeps_the_locks_of_who_has_it_open(path: Path) -> None:
    """Closing it by hand would let go of all its locks, and another process that ends would delete the WAL."""
    database = Database(f"sqlite:///{path}")
    tokens = TokenStore(database)
    with database.transaction(None):
        tokens.create_org("acme", "Acme")
        Database(f"sqlite:///{path}").close()
        elsewhere = "import sqlite3, sys; d = sqlite3.connect(sys.argv[1]); d.execute('select 1 from orgs').fetchall(); d.close()"
        subprocess.run([sys.executable, "-c", elsewhere, str(path)], check=True)
        assert path.with_name("store.db-wal").exists()
    assert [org.id for org in tokens.orgs()] == ["acme"]
    tokens.close()
    database.close()
