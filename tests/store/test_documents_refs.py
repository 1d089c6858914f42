"""References: restrict, cascade, detach, restore, cycles; by example and against a plain Python reference, on both databases."""

from __future__ import annotations

import random
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select

from cmis_stream.core.errors import Rejected
from cmis_stream.store import tables
from cmis_stream.store.changes import Changes
from cmis_stream.store.database import Database
from cmis_stream.store.decisions import Command
from cmis_stream.store.documents import Documents
from cmis_stream.store.kinds import Kind, Ref
from tests.store.support import ADA, BOB, act, create, kinds

UNKNOWN = "01890000-0000-7000-8000-000000000000"


def rejection(call: Any, *args: Any, **named: Any) -> Rejected:
    with pytest.raises(Rejected) as caught:
        call(*args, **named)
    return caught.value


def alive(documents: Documents, kind: str) -> set[str]:
    return {one.id for one in documents.list("acme", ADA, kind, [("limit", "500")]).items}


def test_a_target_that_is_not_there_is_rejected_in_the_same_words_wherever_it_is(documents: Documents) -> None:
    foreign = create(documents, "campaign", org="other", name="theirs").id
    deleted = create(documents, "campaign", name="gone")
    act(documents, "delete", deleted)
    note = create(documents, "note", campaign=create(documents, "campaign", name="a").id).id
    said = set()
    for target in (UNKNOWN, foreign, deleted.id, note, "no id"):
        error = rejection(create, documents, "note", campaign=target)
        assert (error.code, error.field, error.got) == ("unknown_ref", "/campaign", target)
        said.add(error.expected)
    assert len(said) == 1
    error = rejection(create, documents, "board", title="b", campaigns=[UNKNOWN])
    assert (error.code, error.field) == ("unknown_ref", "/campaigns/0")


class Pin(BaseModel):
    """Goes with its campaign, outlives another one, and holds a board."""

    model_config = ConfigDict(extra="forbid")
    board: str | None = None
    campaign: str | None = None
    other: str | None = None


PIN = Kind("pin", Pin, refs={"board": Ref("board"), "campaign": Ref("campaign", "cascade"), "other": Ref("campaign", "detach")})


def test_what_goes_with_a_target_is_not_detached_from_it_first(database: Database) -> None:
    documents = Documents(database, kinds(PIN))
    campaign = create(documents, "campaign", name="a")
    pin = create(documents, "pin", campaign=campaign.id, other=campaign.id)
    act(documents, "delete", campaign)
    gone = documents.get("acme", ADA, "pin", pin.id, deleted=True)
    assert gone is not None and (gone.version, gone.body["other"]) == (2, campaign.id)


def test_what_is_private_to_somebody_else_cannot_be_pointed_at(database: Database) -> None:
    documents = Documents(database, kinds(PIN))
    board = create(documents, "board", title="mine")
    assert rejection(create, documents, "pin", "acme", BOB, board=board.id).code == "unknown_ref"
    pin = create(documents, "pin", board=board.id)
    assert act(documents, "patch", pin, BOB, tags=["x"]).version == 2  # what it points at already is left alone


def test_a_target_that_is_held_is_not_deleted(documents: Documents) -> None:
    campaign = create(documents, "campaign", name="a")
    budgets = [create(documents, "budget", campaign=campaign.id) for _ in range(2)]
    error = rejection(act, documents, "delete", campaign)
    assert error.code == "restricted" and "2 budget point at it" in error.expected
    for budget in budgets:
        act(documents, "delete", budget)
    assert act(documents, "delete", campaign).deleted_at is not None
    assert rejection(act, documents, "restore", budgets[0]).code == "unknown_ref"
    act(documents, "restore", campaign)
    act(documents, "restore", budgets[0])


def test_what_belongs_to_a_target_goes_with_it_all_the_way(documents: Documents, database: Database) -> None:
    top = create(documents, "campaign", name="top")
    below = create(documents, "campaign", name="below", parent=top.id)
    note = create(documents, "note", campaign=below.id)
    other = create(documents, "note", campaign=create(documents, "campaign", name="other").id)
    result = documents.execute("acme", ADA, Command("delete", "campaign", top.id))
    assert set(result.touched) == {("campaign", top.id, 2), ("campaign", below.id, 2), ("note", note.id, 2)}
    assert result.document is not None and result.document.id == top.id
    assert alive(documents, "note") == {other.id}
    assert [one.after for one in Changes(database).after("acme", 5, 10)] == [None] * 3
    act(documents, "restore", top)
    assert alive(documents, "note") == {other.id}  # what went with it stays deleted until it is asked for


def test_what_is_held_below_a_target_holds_all_of_it(documents: Documents) -> None:
    top = create(documents, "campaign", name="top")
    below = create(documents, "campaign", name="below", parent=top.id)
    create(documents, "budget", campaign=below.id)
    assert rejection(act, documents, "delete", top).code == "restricted"
    assert alive(documents, "campaign") == {top.id, below.id}


def test_what_holds_a_target_but_goes_with_it_does_not_keep_it(documents: Documents) -> None:
    campaign = create(documents, "campaign", name="a")
    note = create(documents, "note", campaign=campaign.id)
    budget = create(documents, "budget", campaign=campaign.id, note=note.id)
    result = documents.execute("acme", ADA, Command("delete", "campaign", campaign.id))
    assert {identity for _, identity, _ in result.touched} == {campaign.id, note.id, budget.id}


def test_what_only_shows_a_target_lets_go_of_it(documents: Documents, database: Database) -> None:
    one, two = create(documents, "campaign", name="a"), create(documents, "campaign", name="b", parent=None)
    under = create(documents, "campaign", name="c", parent=one.id)
    board = create(documents, "board", title="b", campaigns=[one.id, two.id, under.id], main=one.id)
    act(documents, "delete", one, BOB)  # the board is Ada's and private: it loses them all the same
    now = documents.get("acme", ADA, "board", board.id)
    assert now is not None and (now.body["campaigns"], now.body["main"]) == ([two.id], None)
    with database.transaction("acme") as tx:
        assert [tuple(row) for row in tx.rows(select(tables.refs.c.field, tables.refs.c.target_id))] == [("campaigns", two.id)]
    assert act(documents, "patch", board, title="still mine").body["owner_id"] == "ada"


def test_parts_of_one_decision_may_point_at_later_ones(documents: Documents) -> None:
    result = documents.execute("acme", ADA, Command("open_with_note", "campaign", body={"name": "a"}))
    assert [kind for kind, _, _ in result.touched] == ["note", "campaign"]
    assert result.created and result.document is not None and result.document.kind == "campaign"
    bad = Command("open_with_note", "campaign", body={"name": ""})
    assert rejection(documents.execute, "acme", ADA, bad).code == "invalid"
    assert len(alive(documents, "note")) == 1


def test_a_way_that_leads_back_is_rejected_with_the_way(documents: Documents) -> None:
    one = create(documents, "campaign", name="1")
    two = create(documents, "campaign", name="2", parent=one.id)
    three = create(documents, "campaign", name="3", parent=two.id)
    error = rejection(act, documents, "patch", one, parent=three.id)
    assert (error.code, error.field, error.got) == ("cycle", "/parent", f"{one.id} → {three.id} → {two.id} → {one.id}")
    assert rejection(act, documents, "patch", one, parent=one.id).code == "cycle"
    act(documents, "patch", three, parent=one.id)
    act(documents, "patch", two, parent=three.id)


def test_a_way_back_over_a_restored_document_is_found(documents: Documents) -> None:
    one = create(documents, "campaign", name="1")
    two = create(documents, "campaign", name="2", parent=one.id)
    act(documents, "delete", two)
    assert rejection(act, documents, "patch", one, parent=two.id).code == "unknown_ref"
    act(documents, "restore", two)
    assert rejection(act, documents, "patch", one, parent=two.id).code == "cycle"


def test_a_decision_that_deletes_the_same_document_twice_changes_it_once(documents: Documents) -> None:
    top = create(documents, "campaign", name="top")
    below = create(documents, "campaign", name="below", parent=top.id)
    command = Command("delete_both", "campaign", top.id, {"with": below.id})
    result = documents.execute("acme", ADA, command)
    assert set(result.touched) == {("campaign", top.id, 2), ("campaign", below.id, 2)}


@pytest.mark.parametrize("seed", range(3))
def test_random_commands_leave_what_a_plain_python_reference_says(documents: Documents, database: Database, seed: int) -> None:
    """The reference knows the documents and what their fields point at, and nothing of tables."""
    chance = random.Random(seed)
    model: dict[str, tuple[str, dict[str, Any]]] = {}  # id -> (kind, fields that point), of what is not deleted

    def of(kind: str) -> list[str]:
        return [identity for identity, (has, _) in model.items() if has == kind] + [UNKNOWN]

    def closure(first: str) -> set[str]:
        going = {first}
        while True:
            more = {
                one for one, (kind, body) in model.items()
                if (kind == "note" and body["campaign"] in going)
                or (kind == "campaign" and body["parent"] in going)
                or (kind == "budget" and body["note"] in going)
            }  # fmt: skip
            if more <= going:
                return going
            going |= more

    def leads_back(start: str, parent: str | None) -> bool:
        while parent is not None and parent != start:
            parent = model[parent][1]["parent"]
        return parent == start

    def targets(body: dict[str, Any]) -> list[str]:
        return [one for value in body.values() for one in (value if isinstance(value, list) else [value]) if one is not None]

    for step in range(120):
        kind = chance.choice(["campaign", "campaign", "note", "budget", "board"])
        body: dict[str, Any] = {
            "campaign": lambda: {"parent": chance.choice([None, *of("campaign")[-4:]])},
            "note": lambda: {"campaign": chance.choice(of("campaign"))},
            "budget": lambda: {"campaign": chance.choice(of("campaign")), "note": chance.choice([None, *of("note")])},
            "board": lambda: {"campaigns": chance.sample(of("campaign"), chance.randrange(len(of("campaign")))), "main": None},
        }[kind]()
        extra = {"campaign": {"name": str(step)}, "board": {"title": "b"}}.get(kind, {})
        existing = [one for one in of(kind) if one != UNKNOWN]
        what = chance.choice(["create", "create", "update", "delete"]) if existing else "create"
        identity = None if what == "create" else chance.choice(existing)
        command = Command(what, kind, identity, {} if what == "delete" else {**body, **extra})
        try:
            result = documents.execute("acme", ADA, command)
        except Rejected as error:
            if what == "delete":
                going = closure(identity or "")
                held = any(k == "budget" and b["campaign"] in going and one not in going for one, (k, b) in model.items())
                assert error.code == "restricted" and held
            elif error.code == "cycle":
                assert kind == "campaign" and leads_back(identity or "", body["parent"])
            else:
                assert error.code == "unknown_ref" and any(one not in model for one in targets(body))
            continue
        assert result.document is not None
        if what == "delete":
            going = closure(identity or "")
            assert not any(k == "budget" and b["campaign"] in going and one not in going for one, (k, b) in model.items())
            for one in going:
                del model[one]
            for _, fields in model.values():
                if "campaigns" in fields:
                    fields["campaigns"] = [one for one in fields["campaigns"] if one not in going]
        else:
            assert all(one in model for one in targets(body))
            assert kind != "campaign" or identity is None or not leads_back(identity, body["parent"])
            model[result.document.id] = (kind, body)

    for kind in ("campaign", "note", "budget", "board"):
        found = documents.list("acme", ADA, kind, [("limit", "500")]).items
        assert {one.id: {name: one.body[name] for name in model[one.id][1]} for one in found} == {
            identity: fields for identity, (has, fields) in model.items() if has == kind
        }
    with database.transaction("acme") as tx:
        edges = {tuple(row) for row in tx.rows(select(tables.refs.c.id, tables.refs.c.target_id))}
    assert edges == {(identity, target) for identity, (_, fields) in model.items() for target in targets(fields)}
    assert Changes(database).verify("acme").broken is None
