"""Secrets: what was written is searched for their values; on both databases."""

from __future__ import annotations

import base64
import json
import logging
import os
import pickle
from pathlib import Path

import orjson
import pytest
from sqlalchemy import select, update

from cmis_stream.core.errors import ConfigError, Rejected
from cmis_stream.store import primitive_tables
from cmis_stream.store.changes import Changes
from cmis_stream.store.database import Database, Unavailable
from cmis_stream.store.documents import Documents
from cmis_stream.store.keyring import Damaged, Keyring, keyring
from cmis_stream.store.secrets import LONGEST, Secret, Secrets, Status
from tests.store.conftest import Places
from tests.store.support import Clock, create

OLD, NEW = os.urandom(32), os.urandom(32)
VALUE = "hunter2-7f3a-very-secret"
_table = primitive_tables.secrets


@pytest.fixture
def secrets(database: Database, clock: Clock) -> Secrets:
    return Secrets(database, Keyring([OLD]), clock)


def test_it_shows_that_it_is_set_and_since_when(secrets: Secrets, clock: Clock) -> None:
    assert secrets.status("acme", "meta/token") == Status(False, None)
    first = secrets.set("acme", "meta/token", VALUE, "ada")
    second = secrets.set("acme", "meta/token", VALUE + "2", "bob")
    assert first.set and first.updated_at is not None and second.updated_at is not None and second.updated_at > first.updated_at
    assert secrets.list("acme") == {"meta/token": second} and secrets.list("other") == {}
    found = secrets.reveal("acme", "meta/token")
    assert found is not None and found.text() == VALUE + "2" and secrets.reveal("other", "meta/token") is None
    assert not secrets.remove("other", "meta/token") and secrets.remove("acme", "meta/token")
    assert secrets.reveal("acme", "meta/token") is None


@pytest.mark.spec("TEN-E05")
def test_nothing_that_is_written_logged_or_answered_has_the_value(
    places: Places, secrets: Secrets, documents: Documents, database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("sqlalchemy.engine").setLevel(logging.DEBUG)  # statements with their parameters
    try:
        said = [repr(secrets.set("acme", "meta/token", VALUE, "ada")), repr(secrets.list("acme"))]
        revealed = secrets.reveal("acme", "meta/token")
        said += [repr(revealed), str(revealed), f"{revealed}", repr({"token": revealed}), repr(Keyring([OLD])), repr(secrets)]
        create(documents, "campaign", name="A")
        for bad in (VALUE + "\udc80", VALUE * 1000):
            with pytest.raises(Rejected) as caught:
                secrets.set("acme", "meta/token", bad, "ada")
            said += [str(caught.value), json.dumps(caught.value.as_dict())]
        for names in ({}, {"name": "x" * 300}):
            with pytest.raises(Rejected):
                secrets.set("acme", names.get("name", "Not A Name"), VALUE, "ada")
        said += [repr(change) for change in Changes(database).after("acme", 0, 100)]
    finally:
        logging.getLogger("sqlalchemy.engine").setLevel(logging.NOTSET)
    assert "INSERT INTO secrets" in caplog.text
    for form in (VALUE, base64.b64encode(VALUE.encode()).decode().rstrip("=")[:-1], VALUE.encode().hex()):
        assert form not in caplog.text and not any(form in text for text in said)
        assert not any(form.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    with database.transaction("acme") as tx:
        assert all(VALUE not in repr(row) for row in tx.rows(select(_table)))


def test_a_revealed_value_cannot_be_written_by_accident(secrets: Secrets) -> None:
    secrets.set("acme", "a", Secret(VALUE), "ada")
    found = secrets.reveal("acme", "a")
    for write in (json.dumps, orjson.dumps, pickle.dumps):
        with pytest.raises(TypeError):
            write(found)  # type: ignore[operator]


def test_a_new_key_takes_over_and_the_old_one_may_go(database: Database, secrets: Secrets, clock: Clock) -> None:
    for number in range(3):
        secrets.set("acme", f"s{number}", f"{VALUE}{number}", "ada")
    both = Secrets(database, Keyring([NEW, OLD]), clock)
    both.set("acme", "s0", "newer", "ada")
    assert (both.rotate("acme"), both.rotate("acme")) == (2, 0)
    after = Secrets(database, Keyring([NEW]), clock)
    revealed = [after.reveal("acme", f"s{number}") for number in range(3)]
    assert [one.text() for one in revealed if one] == ["newer", VALUE + "1", VALUE + "2"]
    with pytest.raises(ConfigError, match="not among this process's"):
        secrets.reveal("acme", "s1")


def test_a_row_that_was_changed_or_moved_is_noticed(database: Database, secrets: Secrets) -> None:
    secrets.set("acme", "a", VALUE, "ada")
    secrets.set("acme", "b", "other", "ada")
    with database.transaction("acme", writes=True) as tx:
        (row,) = tx.rows(select(_table).where(tx.own(_table), _table.c.name == "a"))
        tx.run(update(_table).where(tx.own(_table), _table.c.name == "b").values(sealed=row.sealed))
        tx.run(update(_table).where(tx.own(_table), _table.c.name == "a").values(sealed=row.sealed[:-1] + b"\0"))
    for name in ("a", "b"):
        with pytest.raises(Damaged):
            secrets.reveal("acme", name)


@pytest.mark.parametrize("value", ["", "x" * (LONGEST + 1), "é" * (LONGEST // 2 + 1)])
def test_values_have_a_length(secrets: Secrets, value: str) -> None:
    with pytest.raises(Rejected) as caught:
        secrets.set("acme", "a", value, "ada")
    assert caught.value.field == "value"


def test_keys_come_from_a_setting_or_a_file_that_its_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "secrets.key"
    made = keyring(None, path)
    assert path.stat().st_mode & 0o777 == 0o600 and made.open(keyring(None, path).seal(b"x", b""), b"") == b"x"
    setting = ", ".join(base64.b64encode(key).decode() for key in (NEW, OLD))
    assert keyring(setting, path).open(Keyring([OLD]).seal(b"x", b""), b"") == b"x"
    assert keyring(setting, path).current == Keyring([NEW]).current
    for bad in ("", "short", setting + ",", base64.b64encode(b"x" * 31).decode()):
        with pytest.raises(ConfigError) as caught:
            keyring(bad, path)
        assert bad == "" or bad not in str(caught.value)


def test_a_database_that_is_away_says_so_without_the_value(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    database = Database(f"sqlite:///{folder / 'store.db'}")
    kept = Secrets(database, Keyring([OLD]))
    kept.set("acme", "a", VALUE, "ada")
    database.close()
    (folder / "store.db").chmod(0o400)
    if os.geteuid() == 0:
        for name in ("store.db", "store.db-wal", "store.db-shm"):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
    with pytest.raises(Unavailable) as caught:
        kept.set("acme", "a", VALUE, "ada")
    assert VALUE not in str(caught.value)
