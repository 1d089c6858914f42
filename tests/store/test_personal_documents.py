"""Personal fields in documents: given and read as they are, written sealed, null once their subject is erased."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import orjson
import pytest
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select

from cmis_stream.core.errors import ConfigError
from cmis_stream.store import tables
from cmis_stream.store.changes import Changes
from cmis_stream.store.database import Database
from cmis_stream.store.decisions import Command
from cmis_stream.store.documents import Documents, Idempotency
from cmis_stream.store.keyring import Keyring
from cmis_stream.store.kinds import Kind, Kinds, Manifest
from cmis_stream.store.personal import PersonalData
from cmis_stream.store.personal_fields import Personal
from tests.store.support import ADA, Clock, made


class Creator(BaseModel):
    model_config = ConfigDict(extra="forbid")
    handle_id: str
    email: Annotated[str | None, Personal(subject="handle_id")] = None
    note: str = ""


KIND = Kind("creator", Creator, filters={"handle_id": "text"})
EMAIL = "grace.hopper@navy.example"
OF_THE_RELAY = ("relayed", "catalogs")
"""Tables that the app's role may not read; they hold numbers only."""


@pytest.fixture
def personal(database: Database, clock: Clock) -> PersonalData:
    return PersonalData(database, Keyring([os.urandom(32)]), clock)


@pytest.fixture
def documents(database: Database, clock: Clock, personal: PersonalData) -> Documents:
    return Documents(database, Kinds([Manifest("people", (KIND,))]), clock, personal)


def test_a_personal_field_is_read_as_it_was_given_until_its_subject_is_erased(
    database: Database, documents: Documents, personal: PersonalData, tmp_path: Path
) -> None:
    key = Idempotency("/creators", "k")
    command = Command("create", "creator", body={"handle_id": "p1", "email": EMAIL})
    one = made(documents.execute("acme", ADA, command, idempotency=key))
    other = made(documents.execute("acme", ADA, Command("create", "creator", body={"handle_id": "p2", "email": "b@c.example"})))
    assert one.body["email"] == EMAIL and made(documents.execute("acme", ADA, command, idempotency=key)).body["email"] == EMAIL
    changed = made(documents.execute("acme", ADA, Command("patch", "creator", one.id, {"note": "met"})))
    assert changed.body["email"] == EMAIL and changed.version == 2
    assert made(documents.execute("acme", ADA, Command("patch", "creator", one.id, {"email": EMAIL}))).version == 2
    found = documents.get("acme", ADA, "creator", one.id)
    assert found == changed and {item.body["email"] for item in documents.list("acme", ADA, "creator").items} == {
        EMAIL,
        "b@c.example",
    }

    def told() -> list[str | None]:
        """The field before and after each change of the document, as people are shown it."""
        shown = documents.opened("acme", "creator", Changes(database).of("acme", "creator", one.id))
        texts = [text for change in shown for text in (change.before, change.after) if text is not None]
        return [orjson.loads(text)["email"] for text in texts]

    assert told() == [EMAIL] * 3
    head = Changes(database).after("acme", 0, 10)[-1].hash
    assert personal.erase("acme", "p1")
    found = documents.get("acme", ADA, "creator", one.id)
    assert found is not None and found.body == {**changed.body, "email": None}
    assert told() == [None] * 3
    assert made(documents.execute("acme", ADA, command, idempotency=key)).body["email"] is None  # nor by asking again
    assert {item.body["email"] for item in documents.list("acme", ADA, "creator").items} == {None, "b@c.example"}
    assert Changes(database).verify("acme").broken is None and Changes(database).after("acme", 0, 10)[-1].hash == head
    made(documents.execute("acme", ADA, Command("patch", "creator", one.id, {"note": "left"})))
    assert Changes(database).verify("acme").broken is None and documents.get("acme", ADA, "creator", other.id) == other

    readable = [table for table in tables.metadata.sorted_tables if table.name not in OF_THE_RELAY]
    with database.transaction("acme") as tx:
        everything = "".join(repr(row) for table in readable for row in tx.rows(select(table)))
    assert EMAIL not in everything
    assert not any(EMAIL.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_where_a_value_would_stand_readable_it_cannot_be_declared() -> None:
    for kind in (
        Kind("creator", Creator, filters={"email": "text"}),
        Kind("creator", Creator, unique=(("email",),)),
        Kind("creator", Creator, unique=(("handle_id", "email"),)),
    ):
        with pytest.raises(ConfigError, match=r"people\.creator\.email: a personal field cannot be"):
            Kinds([Manifest("people", (kind,))])


def test_without_keys_a_kind_with_personal_fields_is_refused(database: Database) -> None:
    with pytest.raises(ConfigError, match="need the keys of subjects: creator"):
        Documents(database, Kinds([Manifest("people", (KIND,))]))
