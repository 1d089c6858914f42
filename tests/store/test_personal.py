"""Personal fields: gone everywhere once their subject is erased, while the chain of changes still holds; on both databases."""

from __future__ import annotations

import base64
import os
import threading
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import pytest
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select, update

from cmis_stream.core.errors import ConfigError, Rejected
from cmis_stream.store import primitive_tables, tables
from cmis_stream.store.changes import Changes
from cmis_stream.store.database import Database
from cmis_stream.store.decisions import Command
from cmis_stream.store.documents import Documents
from cmis_stream.store.keyring import Damaged, Keyring
from cmis_stream.store.kinds import Kind, Kinds, Manifest
from cmis_stream.store.personal import PersonalData, Place
from cmis_stream.store.personal_fields import Fields, Personal
from tests.store.support import ADA, Clock, made

OLD, NEW = os.urandom(32), os.urandom(32)
_table = primitive_tables.subject_keys
Text = Annotated[str | None, Personal(subject="author_id")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Reply(_Model):
    author_id: str
    text: Text = None


class Mention(_Model):
    author_id: str | None = None
    author_name: Text = None
    platform: Literal["x", "y"] = "x"
    replies: list[Reply] = []
    best: Reply | None = None


FIELDS, HERE = Fields(Mention), Place("mention", "1")
BODY: dict[str, Any] = {
    "author_id": "p1", "author_name": "Grace Hopper", "platform": "x",
    "replies": [{"author_id": "p2", "text": "from Alan"}, {"author_id": "p1", "text": None}],
    "best": {"author_id": "p1", "text": "from Grace"},
}  # fmt: skip
PLAIN = (b"Grace Hopper", b"from Alan", b"from Grace", base64.b64encode(b"Grace Hopper")[:-2])


@pytest.fixture
def personal(database: Database, clock: Clock) -> PersonalData:
    return PersonalData(database, Keyring([OLD]), clock)


def seal(
    database: Database, personal: PersonalData, body: dict[str, Any], place: Place = HERE, org: str = "acme"
) -> dict[str, Any]:
    with database.transaction(org, writes=True) as tx:
        return personal.seal(tx, FIELDS, place, body)


def read(database: Database, personal: PersonalData, body: dict[str, Any], place: Place = HERE, org: str = "acme") -> Any:
    with database.transaction(org) as tx:
        return personal.open(tx, FIELDS, [(place, body)])[0]


def test_fields_are_sealed_wherever_they_are_in_a_body_and_open_again(database: Database, personal: PersonalData) -> None:
    sealed = seal(database, personal, BODY)
    text = orjson.dumps(sealed)
    assert not any(plain in text for plain in PLAIN)
    assert sealed["author_id"] == "p1" and sealed["replies"][1] == BODY["replies"][1] and BODY["author_name"] == "Grace Hopper"
    assert read(database, personal, sealed) == BODY
    assert Mention.model_validate(sealed)  # a text stays a text
    assert seal(database, personal, BODY) == sealed  # what did not change does not look changed
    assert seal(database, personal, BODY, Place("mention", "2"))["author_name"] != sealed["author_name"]


def test_an_erased_subject_is_null_everywhere_and_no_other_one_is(database: Database, personal: PersonalData) -> None:
    sealed, theirs = seal(database, personal, BODY), seal(database, personal, BODY, org="other")
    assert personal.erase("acme", "p1") and not personal.erase("acme", "p1") and not personal.erase("acme", "nobody")
    left = {**BODY, "author_name": None, "best": {"author_id": "p1", "text": None}}
    assert read(database, personal, sealed) == left
    assert read(database, personal, theirs, org="other") == BODY
    again = seal(database, personal, BODY)  # the same person comes back
    assert read(database, personal, again) == BODY and read(database, personal, sealed) == left
    assert personal.erase("acme", "p1") and read(database, personal, again) == left


def mentions(database: Database, clock: Clock, personal: PersonalData) -> Documents:
    return Documents(database, Kinds([Manifest("social", (Kind("mention", Mention),))]), clock, personal)


def files_of(folder: Path) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in folder.rglob("*") if path.is_file()]


def rows_of(database: Database) -> str:
    with database.transaction("acme") as tx:
        return "\n".join(repr(row) for table in (tables.documents, tables.changes, _table) for row in tx.rows(select(table)))


def test_after_erasing_the_chain_verifies_and_no_copy_can_be_read(
    database: Database, personal: PersonalData, clock: Clock, tmp_path: Path
) -> None:
    documents = mentions(database, clock, personal)
    document = made(documents.execute("acme", ADA, Command("create", "mention", body=BODY)))
    place, changed = Place("mention", document.id), {**BODY, "author_name": "Rear Admiral Hopper"}
    documents.execute("acme", ADA, Command("update", "mention", document.id, changed))
    changes = Changes(database).after("acme", 0, 10)
    head = changes[-1].hash
    copies = [orjson.loads(text) for one in changes for text in (one.before, one.after) if text]
    assert {read(database, personal, one, place)["author_name"] for one in copies} == {"Grace Hopper", "Rear Admiral Hopper"}
    with database.transaction("acme") as tx:
        (key,) = tx.rows(select(_table.c.sealed).where(tx.own(_table), _table.c.subject == "p1"))
    personal.erase("acme", "p1")
    assert Changes(database).verify("acme").broken is None and Changes(database).after("acme", 0, 10)[-1].hash == head
    assert {read(database, personal, one, place)["author_name"] for one in copies} == {None}
    found = documents.get("acme", ADA, "mention", document.id)
    assert found is not None and found.body["replies"][0]["text"] == "from Alan" and found.body["author_name"] is None
    written = rows_of(database)
    assert not any(plain.decode() in written for plain in (*PLAIN, b"Admiral")) and repr(key[0]) not in written
    for name, content in files_of(tmp_path):
        assert not any(plain in content for plain in (*PLAIN, b"Admiral")), name


def test_a_subject_erased_while_it_is_written_leaves_nothing_readable_of_before(
    database: Database, personal: PersonalData, clock: Clock, tmp_path: Path
) -> None:
    documents, stop = mentions(database, clock, personal), threading.Event()
    written: list[tuple[int, str]] = []  # (number, id) of what was committed
    failed: list[BaseException] = []

    def write() -> None:
        try:
            number = 0
            while not stop.is_set():
                body = {**BODY, "author_name": f"Grace Hopper {number}"}
                one = made(documents.execute("acme", ADA, Command("create", "mention", body=body)))
                written.append((number, one.id))
                number += 1
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(10):
            count = len(written)
            while len(written) < count + 3 and not failed:
                stop.wait(0.001)
            before = len(written)
            personal.erase("acme", "p1")
            for _, identity in written[:before]:
                found = documents.get("acme", ADA, "mention", identity)
                assert found is not None and found.body["author_name"] is None
    finally:
        stop.set()
        thread.join()
    assert failed == [] and Changes(database).verify("acme").broken is None
    assert not any(plain.decode() in rows_of(database) for plain in PLAIN)
    assert not any(plain in content for _, content in files_of(tmp_path) for plain in PLAIN)


def test_many_that_write_about_a_new_subject_use_one_key(database: Database, personal: PersonalData) -> None:
    together, found = threading.Barrier(6), list[Any]()

    def write(number: int) -> None:
        together.wait()
        found.append((Place("mention", str(number)), seal(database, personal, BODY, Place("mention", str(number)))))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.transaction("acme") as tx:
        assert len(tx.rows(select(_table.c.id).where(tx.own(_table)))) == 2
        assert personal.open(tx, FIELDS, found) == [BODY] * 6


def test_what_was_sealed_for_another_place_or_is_not_sealed_is_noticed(database: Database, personal: PersonalData) -> None:
    sealed = seal(database, personal, BODY)
    for wrong in (
        {**sealed, "author_name": sealed["best"]["text"]},
        {**sealed, "author_name": "Grace Hopper"},
        {**sealed, "author_name": sealed["author_name"][:-8] + "AAAAAAA="},
    ):
        with pytest.raises(Damaged):
            read(database, personal, wrong)
    for place in (Place("mention", "2"), Place("other", "1")):
        with pytest.raises(Damaged):
            read(database, personal, sealed, place)
    assert read(database, personal, sealed, org="other")["author_name"] is None  # its key is another org's


@pytest.mark.parametrize("subject", [None, "", "x" * 201])
def test_a_value_without_its_subject_is_refused(database: Database, personal: PersonalData, subject: str | None) -> None:
    with pytest.raises(Rejected) as caught:
        seal(database, personal, {"author_id": subject, "author_name": "Grace"})
    assert caught.value.field == "/author_name" and "Grace" not in str(caught.value)
    assert seal(database, personal, {"author_id": subject, "author_name": None})["author_name"] is None


def test_subjects_keys_move_under_a_new_key(database: Database, personal: PersonalData, clock: Clock) -> None:
    sealed = seal(database, personal, BODY)
    personal.erase("acme", "p2")
    both = PersonalData(database, Keyring([NEW, OLD]), clock)
    assert (both.rotate("acme"), both.rotate("acme")) == (1, 0)
    after = PersonalData(database, Keyring([NEW]), clock)
    assert read(database, after, sealed)["author_name"] == "Grace Hopper"
    assert read(database, after, sealed)["replies"][0]["text"] is None
    with pytest.raises(ConfigError):
        read(database, personal, sealed)


def test_another_orgs_key_is_not_taken_even_when_its_row_is_copied(database: Database, personal: PersonalData) -> None:
    sealed = seal(database, personal, BODY)
    with database.transaction("acme") as tx:
        rows = [dict(row._mapping) for row in tx.rows(select(_table).where(tx.own(_table)))]
    with database.transaction("other", writes=True) as tx:
        for row in rows:
            tx.insert_new(_table, {**row, "org_id": "other"})
    with pytest.raises(Damaged):
        read(database, personal, sealed, org="other")
    with database.transaction("acme", writes=True) as tx:
        tx.run(update(_table).where(tx.own(_table)).values(sealed=b"\0" * 92))
    with pytest.raises(Damaged):
        read(database, personal, sealed)


class Tree(_Model):
    author_id: str
    text: Text = None
    below: list[Tree] = []


class Hidden(_Model):
    by_name: dict[str, Hidden] = {}
    author_id: str
    text: Text = None


class Filed(_Model):
    by_name: dict[str, Reply] = {}


class Required(_Model):
    author_id: str
    text: Annotated[str, Personal(subject="author_id")]


class Nobody(_Model):
    text: Text = None


class Parts(_Model):
    author_id: str
    texts: list[Text] = []


class Either(_Model):
    one: Reply | Mention | None = None


def test_models_within_themselves_are_sealed_at_every_depth(database: Database, personal: PersonalData) -> None:
    tree = {
        "author_id": "p1",
        "text": "a",
        "below": [{"author_id": "p2", "text": "b", "below": [{"author_id": "p1", "text": "c"}]}],
    }
    with database.transaction("acme", writes=True) as tx:
        sealed = personal.seal(tx, Fields(Tree), HERE, tree)
        assert sealed["below"][0]["below"][0]["text"].startswith("sealed:") and sealed["below"][0]["text"].startswith("sealed:")
        assert personal.open(tx, Fields(Tree), [(HERE, sealed)]) == [tree]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Hidden, "Hidden.by_name: expected what has personal fields alone"),
        (Filed, "Filed.by_name: expected what has personal fields alone"),
        (Required, "Required.text: expected a personal field to be str | None"),
        (Nobody, "Nobody.text: expected a field of Nobody as subject, got 'author_id'"),
        (Parts, "Parts.texts: expected Annotated"),
        (Either, "Either.one: expected what has personal fields alone"),
    ],
)
def test_a_field_that_could_be_missed_is_refused_when_it_is_declared(model: type[BaseModel], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Fields(model)
    assert said in str(caught.value)


def test_models_without_personal_fields_have_none() -> None:
    class Loop(_Model):
        next: Loop | None = None

    assert not Fields(Loop) and Fields(Mention) and Fields(Mention).names == {"author_name"}
