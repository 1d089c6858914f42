"""Documents: commands, versions, uniques, states, idempotency, bulk; on both databases."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from sqlalchemy import select

from cmis_stream.core.errors import Rejected
from cmis_stream.store import tables
from cmis_stream.store.bodies import NotValid
from cmis_stream.store.changes import Changes
from cmis_stream.store.database import Database
from cmis_stream.store.decisions import Command
from cmis_stream.store.documents import KEYS_LAST_MS, Documents, Idempotency, Item
from cmis_stream.store.writing import Stale
from tests.store.support import ADA, ADMIN, BOB, Clock, act, create, kinds, made

UNKNOWN = "01890000-0000-7000-8000-000000000000"


def rejected(code: str, field: str, call: Any, *args: Any, **named: Any) -> Rejected:
    with pytest.raises(Rejected) as caught:
        call(*args, **named)
    assert (caught.value.code, caught.value.field) == (code, field), caught.value
    return caught.value


def test_a_document_is_created_read_changed_deleted_and_restored(documents: Documents) -> None:
    first = create(documents, "campaign", name="Spring", tags=["q1", "q1", "eu"], metadata={"ref": [1, 2.5, None]})
    assert (first.version, first.deleted_at, first.body["state"]) == (1, None, "draft")
    assert first.body["tags"] == ["q1", "eu"]
    assert documents.get("acme", ADA, "campaign", first.id) == first

    second = act(documents, "patch", first, spend_micros=5, metadata={"ref": None, "more": "x"})
    assert (second.version, second.body["spend_micros"], second.body["metadata"]) == (2, 5, {"more": "x"})
    assert second.body["tags"] == ["q1", "eu"]
    third = act(documents, "update", first, name="Summer")
    assert (third.version, third.body["spend_micros"], third.body["tags"]) == (3, None, [])
    assert third.created_at == first.created_at < third.updated_at

    gone = act(documents, "delete", first)
    assert gone.version == 4 and gone.deleted_at is not None
    assert documents.get("acme", ADA, "campaign", first.id) is None
    assert documents.get("acme", ADA, "campaign", first.id, deleted=True) == gone
    rejected("not_found", "id", act, documents, "patch", first, name="x")
    rejected("not_found", "id", act, documents, "delete", first)

    back = act(documents, "restore", first)
    assert (back.version, back.deleted_at, back.body) == (5, None, third.body)
    rejected("invalid", "id", act, documents, "restore", first)


def test_a_command_that_changes_nothing_makes_no_version(documents: Documents, database: Database) -> None:
    first = create(documents, "campaign", name="Spring", spend_micros=1)
    result = documents.execute("acme", ADA, Command("patch", "campaign", first.id, {"name": "Spring"}))
    assert result.document == first and result.touched == ()
    assert len(Changes(database).after("acme", 0, 10)) == 1


def test_a_stale_version_is_rejected_with_the_one_that_is_there(documents: Documents) -> None:
    first = create(documents, "campaign", name="Spring")
    act(documents, "patch", first, expected_version=1, name="Summer")
    error = rejected("stale", "version", act, documents, "patch", first, expected_version=1, name="Autumn")
    assert isinstance(error, Stale) and error.version == 2
    rejected("stale", "version", act, documents, "delete", first, expected_version=3)
    assert act(documents, "delete", first, expected_version=2).version == 3


def test_a_create_may_bring_its_own_id_once(documents: Documents) -> None:
    command = Command("create", "campaign", UNKNOWN.upper(), {"name": "Spring"})
    first = made(documents.execute("acme", ADA, command))
    assert first.id == UNKNOWN
    rejected("not_unique", "/id", documents.execute, "acme", ADA, command)
    act(documents, "delete", first)
    rejected("not_unique", "/id", documents.execute, "acme", ADA, command)
    assert made(documents.execute("other", ADA, command)).org == "other"
    rejected("invalid", "/id", documents.execute, "acme", ADA, Command("create", "campaign", "spring", {"name": "Spring"}))


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({}, "missing", "/name"),
        ({"name": ""}, "invalid", "/name"),
        ({"name": "x" * 401}, "too_long", "/name"),
        ({"name": 5}, "wrong_type", "/name"),
        ({"name": "a", "nmae": 1}, "invalid", "/nmae"),
        ({"name": "a", "spend_micros": 2**63}, "out_of_range", "/spend_micros"),
        ({"name": "a", "ctr_ratio": float("nan")}, "out_of_range", "/ctr_ratio"),
        ({"name": "a\0"}, "invalid", "/name"),
        ({"name": "\ud800"}, "invalid", "/name"),
        ({"name": "a", "state": "flying"}, "invalid", "/state"),
        ({"name": "a", "slug": "s" * 501, "parent": "p" * 501}, "too_long", "/parent"),
        ({"name": "a", "tags": "x"}, "wrong_type", "/tags"),
        ({"name": "a", "tags": ["ok", ""]}, "invalid", "/tags/1"),
        ({"name": "a", "tags": [f"t{n}" for n in range(51)]}, "too_long", "/tags"),
        ({"name": "a", "metadata": {"a/b": "x\0"}}, "invalid", "/metadata/a~1b"),
        ({"name": "a", "metadata": {"long": "x" * 16_400}}, "too_long", "/metadata"),
        ({"name": "a", "version": 3}, "invalid", "/version"),
        ({"name": "a", "visibility": "org"}, "invalid", "/visibility"),
    ],
)
def test_what_is_wrong_in_a_body_is_named_as_a_json_pointer(
    documents: Documents, database: Database, body: dict[str, Any], code: str, field: str
) -> None:
    rejected(code, field, create, documents, "campaign", **body)
    assert Changes(database).after("acme", 0, 1) == []
    assert documents.list("acme", ADA, "campaign", [("deleted", "with")]).items == []


def test_all_mistakes_of_a_body_are_told_at_once(documents: Documents) -> None:
    with pytest.raises(NotValid) as caught:
        create(documents, "campaign", name=1, spend_micros="x", colour="red")
    assert {error.field for error in caught.value.errors} == {"/name", "/spend_micros", "/colour"}


def test_unique_values_are_held_until_the_document_is_deleted(documents: Documents) -> None:
    first = create(documents, "campaign", name="A", slug="spring", starts_at=1)
    rejected("not_unique", "/slug", create, documents, "campaign", name="B", slug="spring")
    rejected("not_unique", "/name", create, documents, "campaign", name="A", starts_at=1)
    create(documents, "campaign", name="A", starts_at=2)
    create(documents, "campaign", name="A")
    create(documents, "campaign", name="A")  # null in the tuple holds nothing
    create(documents, "campaign", org="other", name="A", slug="spring", starts_at=1)

    act(documents, "delete", first)
    second = create(documents, "campaign", name="B", slug="spring")
    rejected("not_unique", "/slug", act, documents, "restore", first)
    act(documents, "patch", second, slug="autumn")
    assert act(documents, "restore", first).body["slug"] == "spring"


def test_two_documents_change_places_in_one_decision(documents: Documents) -> None:
    one, two = create(documents, "campaign", name="A", slug="a"), create(documents, "campaign", name="B", slug="b")
    result = documents.execute("acme", ADA, Command("trade", "campaign", one.id, {"with": two.id}))
    assert result.touched == (("campaign", one.id, 2), ("campaign", two.id, 2))
    found = documents.get("acme", ADA, "campaign", "a")
    assert found is not None and found.id == two.id


def test_a_natural_key_stands_for_the_id(documents: Documents) -> None:
    first = create(documents, "campaign", name="A", slug="spring")
    assert documents.get("acme", ADA, "campaign", "spring") == first
    changed = made(documents.execute("acme", ADA, Command("patch", "campaign", "spring", {"name": "B"})))
    assert (changed.id, changed.version) == (first.id, 2)
    assert documents.get("other", ADA, "campaign", "spring") is None
    assert documents.get("acme", ADA, "campaign", first.id.upper()) == changed


def test_states_change_only_along_transitions_and_by_whom_they_allow(documents: Documents) -> None:
    rejected("no_transition", "/state", create, documents, "campaign", name="A", state="running")
    first = create(documents, "campaign", name="A")
    assert "running" in rejected("no_transition", "/state", act, documents, "patch", first, state="ended").expected
    act(documents, "patch", first, state="running")
    assert "admin" in rejected("no_transition", "/state", act, documents, "patch", first, state="ended").expected
    assert act(documents, "patch", first, ADMIN, state="ended").body["state"] == "ended"
    rejected("no_transition", "/state", act, documents, "patch", first, ADMIN, state="draft")
    act(documents, "delete", first)
    assert act(documents, "restore", first).body["state"] == "ended"


def test_another_orgs_document_is_not_there(documents: Documents) -> None:
    theirs = create(documents, "campaign", org="other", name="A")
    assert documents.get("acme", ADA, "campaign", theirs.id) is None
    for name in ("patch", "delete", "restore", "copy"):
        rejected("not_found", "id", documents.execute, "acme", ADA, Command(name, "campaign", theirs.id, {"name": "x"}))
    assert documents.list("acme", ADA, "campaign", [("deleted", "with")]).items == []
    assert documents.get("other", ADA, "campaign", theirs.id) == theirs


def test_what_is_private_is_there_for_its_owner_only(documents: Documents) -> None:
    first = create(documents, "board", title="Mine")
    assert first.body["owner_id"] == "ada" and first.body["visibility"] == "private"
    assert documents.get("acme", BOB, "board", first.id) is None
    assert documents.list("acme", BOB, "board").items == [] and documents.list("acme", BOB, "board").total_estimate == 0
    rejected("not_found", "id", act, documents, "patch", first, BOB, title="Yours")
    act(documents, "patch", first, visibility="org")
    second = act(documents, "update", first, BOB, title="Ours")
    assert second.body["owner_id"] == "ada" and second.body["visibility"] == "org"
    rejected("invalid", "/owner_id", act, documents, "patch", first, BOB, owner_id="bob")
    rejected("invalid", "/visibility", act, documents, "patch", first, visibility="everybody")
    assert documents.list("acme", BOB, "board").items == [second]


def test_a_command_of_the_kind_decides_documents_and_effects(documents: Documents, database: Database) -> None:
    first = create(documents, "campaign", name="A", spend_micros=7)
    result = documents.execute("acme", ADA, Command("copy", "campaign", first.id, {"name": "B"}))
    ((kind, identity, version),) = result.touched
    assert (kind, version) == ("campaign", 1) and identity != first.id
    with database.transaction("acme") as tx:
        rows = tx.rows(select(tables.outbox.c.effect, tables.outbox.c.body, tables.outbox.c.done_at))
    assert [tuple(row) for row in rows] == [("copied", f'{{"from":"{first.id}","to":"{identity}"}}', None)]


def test_unknown_kinds_and_commands_are_named(documents: Documents) -> None:
    rejected("not_found", "kind", documents.execute, "acme", ADA, Command("create", "nothing"))
    rejected("not_found", "command", documents.execute, "acme", ADA, Command("fly", "campaign", UNKNOWN))
    rejected("not_found", "id", documents.execute, "acme", ADA, Command("patch", "campaign", None))


# --- idempotency ------------------------------------------------------------------------------------------------------


def test_the_same_key_does_it_once_and_answers_the_same(documents: Documents, database: Database) -> None:
    key = Idempotency("/campaigns", "k1")
    command = Command("create", "campaign", body={"name": "A"})
    first = documents.execute("acme", ADA, command, idempotency=key)
    again = documents.execute("acme", ADA, command, idempotency=key)
    assert not first.repeated and again.repeated
    assert (again.document, again.touched, again.seq) == (first.document, first.touched, first.seq)
    assert len(Changes(database).after("acme", 0, 10)) == 1

    other = Command("create", "campaign", body={"name": "B"})
    rejected("key_reused", "Idempotency-Key", documents.execute, "acme", ADA, other, idempotency=key)
    assert not documents.execute("acme", BOB, other, idempotency=key).repeated
    assert not documents.execute("other", ADA, other, idempotency=key).repeated
    assert not documents.execute("acme", ADA, other, idempotency=Idempotency("/elsewhere", "k1")).repeated


def test_a_rejected_command_leaves_its_key_free_and_keys_end_after_a_day(documents: Documents, clock: Clock) -> None:
    key = Idempotency("/campaigns", "k1")
    rejected("missing", "/name", documents.execute, "acme", ADA, Command("create", "campaign"), idempotency=key)
    command = Command("create", "campaign", body={"name": "A"})
    first = documents.execute("acme", ADA, command, idempotency=key)
    clock.now_ms += KEYS_LAST_MS - 100
    assert documents.execute("acme", ADA, command, idempotency=key).repeated
    clock.now_ms += 200
    second = documents.execute("acme", ADA, command, idempotency=key)
    assert not second.repeated and made(second).id != made(first).id


def test_one_key_sent_by_many_at_once_does_it_once(documents: Documents, database: Database) -> None:
    command, key = Command("create", "campaign", body={"name": "A"}), Idempotency("/campaigns", "k")
    found: list[tuple[str, bool]] = []

    def send() -> None:
        result = documents.execute("acme", ADA, command, idempotency=key)
        found.append((made(result).id, result.repeated))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({identity for identity, _ in found}) == 1
    assert sorted(repeated for _, repeated in found) == [False] + [True] * 7
    assert len(Changes(database).after("acme", 0, 10)) == 1


# --- bulk -------------------------------------------------------------------------------------------------------------


def test_items_of_a_bulk_stand_and_fall_alone_with_their_cascades(documents: Documents, database: Database) -> None:
    held = create(documents, "campaign", name="held")
    create(documents, "note", campaign=held.id)
    create(documents, "budget", campaign=held.id)
    free = create(documents, "campaign", name="free")
    note = create(documents, "note", campaign=free.id)
    before = len(Changes(database).after("acme", 0, 100))

    outcomes = documents.bulk(
        "acme",
        ADA,
        [
            Item(Command("create", "campaign", UNKNOWN, {"name": "new"})),
            Item(Command("delete", "campaign", held.id)),
            Item(Command("create", "note", body={"campaign": UNKNOWN})),
            Item(Command("delete", "campaign", free.id)),
            Item(Command("create", "note", body={"campaign": free.id})),
            Item(Command("patch", "campaign", held.id, {"name": "x"}), expected_version=9),
            Item(Command("copy", "campaign", held.id, {"name": ""})),
            Item(Command("patch", "campaign", held.id, {"name": "still held"}), expected_version=1),
        ],
    )
    codes = [None if one.rejected is None else one.rejected["code"] for one in outcomes]
    assert codes == [None, "restricted", None, None, "unknown_ref", "stale", "invalid", None]
    third = outcomes[3].result
    assert third is not None and set(third.touched) == {("campaign", free.id, 2), ("note", note.id, 2)}

    chain = Changes(database).after("acme", before, 100)
    assert [(one.command, one.kind) for one in chain] == [
        ("create", "campaign"), ("create", "note"), ("delete", "campaign"), ("delete", "note"), ("patch", "campaign"),
    ]  # fmt: skip
    assert Changes(database).verify("acme").broken is None
    with database.transaction("acme") as tx:
        assert tx.rows(select(tables.outbox.c.id)) == []  # the copy that was rejected published nothing
    assert documents.list("acme", ADA, "note").total_estimate == 2


def test_a_bulk_with_a_key_is_carried_out_once(documents: Documents) -> None:
    items = [Item(Command("create", "campaign", body={"name": name})) for name in ("A", "", "C")]
    first = documents.bulk("acme", ADA, items, idempotency=Idempotency("/bulk", "k"))
    again = documents.bulk("acme", ADA, items, idempotency=Idempotency("/bulk", "k"))
    assert [one.rejected for one in again] == [one.rejected for one in first]
    assert [one.result and made(one.result) for one in again] == [one.result and made(one.result) for one in first]
    assert documents.list("acme", ADA, "campaign").total_estimate == 2
    rejected("too_long", "items", documents.bulk, "acme", ADA, items * 400)


def test_writers_of_one_org_follow_each_other(documents: Documents, database: Database) -> None:
    """Without the lock, versions would be written over each other."""
    first = create(documents, "campaign", name="A", spend_micros=0)
    won: list[int] = []

    def add(number: int) -> None:
        for _ in range(10):
            while True:
                now = documents.get("acme", ADA, "campaign", first.id)
                assert now is not None
                try:
                    act(documents, "patch", now, expected_version=now.version, spend_micros=now.body["spend_micros"] + 1)
                except Stale:
                    continue
                won.append(number)
                break

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = documents.get("acme", ADA, "campaign", first.id)
    assert last is not None and last.body["spend_micros"] == len(won) == 40 and last.version == 41
    assert Changes(database).verify("acme").seq == 41


def test_a_second_documents_object_knows_the_same(database: Database, documents: Documents) -> None:
    first = create(documents, "campaign", name="A")
    assert Documents(database, kinds()).get("acme", ADA, "campaign", first.id) == first
