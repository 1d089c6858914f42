"""What it takes to make documents be as a file says, worked out without doing it."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmis_stream.core.errors import ConfigError
from cmis_stream.modules import apply_file
from cmis_stream.modules.apply_file import read_file
from cmis_stream.modules.applying import (
    ABSENT,
    Change,
    Conflict,
    Create,
    Difference,
    Existing,
    Remove,
    Same,
    Step,
    Wanted,
    operations,
    plan,
)
from cmis_stream.modules.applying_steps import NOT_REMOVED, Operation, carry_out
from cmis_stream.modules.discovery import all_kinds
from cmis_stream.store.bodies import checked
from cmis_stream.store.documents import MOST_ITEMS
from tests.contracts.toy.manifest import MANIFEST
from tests.core.support import examples

KINDS = all_kinds([MANIFEST])
SET = "toys"
A, B, C = (f"01890000-0000-7000-8000-00000000000{digit}" for digit in "abc")
Body = dict[str, Any]


_numbers = itertools.count(1)


def new_id() -> str:
    return f"01890000-0000-7000-8000-{next(_numbers):012d}"


def planned(
    wanted: list[Wanted], existing: list[Existing] | None = None, *, prune: bool = False, kept: Collection[tuple[str, str]] = ()
) -> list[Step]:
    return plan(KINDS, wanted, existing or [], SET, new_id=new_id, prune=prune, kept=kept)


def toy(slug: str, place: str = "", **more: Any) -> Wanted:
    return Wanted("toy", slug, {"name": slug.title(), "slug": slug, **more}, place or f"toys[{slug}]")


def box(identity: str, label: str = "Attic") -> Wanted:
    return Wanted("box", identity, {"label": label}, "boxes[0]", identity)


def there(kind: str, identity: str, body: Body, *, of: str | None = SET, version: int = 3, deleted: bool = False) -> Existing:
    """As the store keeps it."""
    metadata = {**body.get("metadata", {}), **({} if of is None else {"applied_from": of})}
    return Existing(kind, identity, version, checked(KINDS[kind], {**body, "metadata": metadata}, None, "ann"), deleted)


def after(steps: list[Step], existing: list[Existing]) -> list[Existing]:
    """What is there when a plan was carried out."""
    found = {(one.kind, one.id): one for one in existing}
    for step in steps:
        if isinstance(step, Create | Change):
            body = checked(KINDS[step.kind], step.body, None, "ann")
            found[step.kind, step.id] = Existing(step.kind, step.id, 1, body)
        elif isinstance(step, Remove):
            del found[step.kind, step.id]
    return list(found.values())


def shape(steps: list[Step]) -> list[tuple[str, str]]:
    return [(type(step).__name__, step.key) for step in steps]


# --- create, change, same -----------------------------------------------------------------------------------------------


def test_what_is_not_there_is_created_with_the_name_of_its_set() -> None:
    (step,) = planned([toy("train", tags=["wood", "wood"], metadata={"team": "a"})])
    assert isinstance(step, Create)
    assert step.body["metadata"] == {"team": "a", "applied_from": SET} and step.body["tags"] == ["wood"]
    assert step.body["state"] == "new" and step.body["loud"] is None, "defaults are filled in"
    assert operations(step) == [Operation("create", "toy", step.id, None, step.body)]


def test_a_file_that_leaves_out_defaults_is_the_same_the_second_time() -> None:
    wanted = [toy("train", made_at="2026-01-01T00:00:00Z"), box(A)]
    first = planned(wanted)
    assert shape(planned(wanted, after(first, []), prune=True)) == [("Same", "train"), ("Same", A)]


def test_a_change_names_each_field_with_before_and_after() -> None:
    before = {"name": "Train", "slug": "train", "made_at": 0, "parts": [{"name": "wheel"}], "metadata": {"team": "a"}}
    wanted = toy("train", name="Engine", made_at="2026-01-01T00:00:00Z", parts=[{"name": "bell"}], metadata={"team": "b"})
    (step,) = planned([wanted], [there("toy", A, before)])
    assert isinstance(step, Change) and step.version == 3
    assert set(step.fields) == {
        Difference("name", "Train", "Engine"),
        Difference("made_at", "1970-01-01T00:00:00.000Z", "2026-01-01T00:00:00.000Z"),
        Difference("parts[0].name", "wheel", "bell"),
        Difference("metadata.team", "a", "b"),
    }
    assert operations(step) == [Operation("update", "toy", A, 3, step.body)]


def test_fields_that_a_file_no_longer_has_get_their_defaults_again() -> None:
    body = {"name": "Train", "slug": "train", "loud": True, "tags": ["wood"], "metadata": {"team": "a"}}
    (step,) = planned([toy("train")], [there("toy", A, body)])
    assert isinstance(step, Change)
    assert sorted(step.fields) == [
        Difference("loud", True, None), Difference("metadata.team", "a", ABSENT), Difference("tags", ["wood"], [])
    ]  # fmt: skip


def test_what_is_younger_than_a_document_counts_as_its_default() -> None:
    body = {name: value for name, value in there("box", A, {"label": "Attic"}).body.items() if name != "holds"}
    assert shape(planned([box(A)], [Existing("box", A, 1, body)])) == [("Same", A)]


def test_a_state_that_the_file_leaves_out_stays_where_commands_have_brought_it() -> None:
    used = there("toy", A, {"name": "Train", "slug": "train", "state": "used"})
    assert shape(planned([toy("train")], [used])) == [("Same", "train")]
    (step,) = planned([toy("train", state="broken")], [used])
    assert isinstance(step, Change) and step.fields == (Difference("state", "used", "broken"),)


def test_owner_and_visibility_stay_unless_the_file_says_which() -> None:
    wish = there("wish", A, {"text": "A red one", "visibility": "link"})
    assert shape(planned([Wanted("wish", A, {"text": "A red one"}, "w", A)], [wish])) == [("Same", A)]
    (step,) = planned([Wanted("wish", A, {"text": "A red one", "visibility": "org"}, "w", A)], [wish])
    assert isinstance(step, Change) and step.fields == (Difference("visibility", "link", "org"),)
    assert "owner_id" not in step.body
    (conflict,) = planned([Wanted("wish", A, {"text": "", "owner_id": "ben"}, "wishes[0]", A)], [wish])
    assert isinstance(conflict, Conflict) and conflict.error.field == "wishes[0].owner_id"


def test_a_document_that_nobody_manages_is_taken_over() -> None:
    (step,) = planned([toy("train")], [there("toy", A, {"name": "Train", "slug": "train"}, of=None)])
    assert isinstance(step, Change) and step.fields == (Difference("metadata.applied_from", ABSENT, SET),)


def test_a_document_with_an_id_of_its_own_can_get_another_key() -> None:
    moved = Wanted("toy", "engine", {"name": "Train", "slug": "engine"}, "toys[0]", A)
    (step,) = planned([moved], [there("toy", A, {"name": "Train", "slug": "train"})], prune=True)
    assert isinstance(step, Change) and step.fields == (Difference("slug", "train", "engine"),)


def test_what_was_deleted_by_its_id_comes_back() -> None:
    (step,) = planned([box(A)], [there("box", A, {"label": "Cellar"}, deleted=True, of="others")])
    assert isinstance(step, Change) and step.restored
    assert [one[:4] for one in operations(step)] == [("restore", "box", A, 3), ("update", "box", A, 4)]


# --- references -----------------------------------------------------------------------------------------------------------


def test_natural_keys_stand_for_ids_of_what_is_there_and_of_what_comes() -> None:
    loan = Wanted("loan", B, {"toy": "train", "child": C}, "loans[0]", B)
    (step,) = planned([loan], [there("toy", A, {"name": "Train", "slug": "train"}, of=None)])
    assert isinstance(step, Create) and step.body["toy"] == A
    first, second = planned([loan, toy("train")])
    assert isinstance(first, Create) and isinstance(second, Create)
    assert (first.kind, second.kind) == ("toy", "loan") and second.body["toy"] == first.id


def test_a_key_that_is_nowhere_is_named_by_document_and_field() -> None:
    (step,) = planned([Wanted("loan", B, {"toy": "tarin", "child": C}, "loans[0]", B)])
    assert isinstance(step, Conflict) and (step.error.code, step.error.field) == ("unknown_ref", "loans[0].toy")
    (step,) = planned([toy("train", "toys[0]", box="Attic")])
    assert isinstance(step, Conflict) and "no natural key" in step.error.expected


def test_what_others_point_at_is_created_first_and_removed_last() -> None:
    loan = Wanted("loan", B, {"toy": "train", "child": C}, "loans[0]", B)
    child = Wanted("child", C, {"name": "Ada"}, "children[0]", C)
    wanted = [loan, toy("wheel", inside="train"), toy("train", box=A), child, box(A)]
    created = planned(wanted)
    order = [step.key for step in created]
    assert all(isinstance(step, Create) for step in created)
    for earlier, later in ((A, "train"), ("train", "wheel"), ("train", B), (C, B)):
        assert order.index(earlier) < order.index(later), order
    removed = planned([], after(created, []), prune=True)
    order = [step.key for step in removed]
    assert all(isinstance(step, Remove) for step in removed) and len(order) == 5
    for later, earlier in ((A, "train"), ("train", "wheel"), ("train", B), (C, B)):
        assert order.index(earlier) < order.index(later), order


def test_new_documents_in_a_circle_are_a_conflict() -> None:
    steps = planned([toy("a", inside="b"), toy("b", inside="a"), toy("c")])
    assert shape(steps) == [("Conflict", "a"), ("Conflict", "b"), ("Create", "c")]


# --- removal ----------------------------------------------------------------------------------------------------------------


def test_only_what_this_set_made_is_removed_and_only_when_asked() -> None:
    existing = [
        there("toy", A, {"name": "Mine", "slug": "mine"}),
        there("toy", B, {"name": "Theirs", "slug": "theirs"}, of="others"),
        there("toy", C, {"name": "Free", "slug": "free"}, of=None),
    ]
    assert planned([], existing) == []
    assert planned([], existing, prune=True) == [Remove("toy", "mine", A, 3)]
    assert planned([], existing, prune=True, kept={("toy", "mine")}) == []


def test_what_is_in_conflict_is_not_removed() -> None:
    mine = there("toy", A, {"name": "Mine", "slug": "mine"})
    steps = planned([toy("mine", loud="very"), toy("mine")], [mine], prune=True)
    assert {type(step) for step in steps} == {Conflict}


def test_pointing_at_what_would_be_removed_is_a_conflict() -> None:
    (conflict, removed) = planned([toy("train", "toys[0]", box=A)], [there("box", A, {"label": "Attic"})], prune=True)
    assert isinstance(conflict, Conflict) and conflict.error.field == "toys[0].box" and isinstance(removed, Remove)


# --- conflicts ----------------------------------------------------------------------------------------------------------------


def test_two_of_the_same_key_and_a_document_of_another_set_are_conflicts() -> None:
    steps = planned([toy("train", "toys[0]"), toy("train", "toys[1]")])
    assert shape(steps) == [("Conflict", "train"), ("Create", "train")]
    assert isinstance(steps[0], Conflict) and "toys[0]" in steps[0].error.expected and steps[0].error.field == "toys[1]"
    (step,) = planned([toy("train")], [there("toy", A, {"name": "Train", "slug": "train"}, of="others")])
    assert isinstance(step, Conflict) and step.error.got == "others"


def test_a_key_that_another_document_holds_is_a_conflict() -> None:
    held = there("toy", A, {"name": "Train", "slug": "train"})
    (step,) = planned([Wanted("toy", "train", {"name": "Train", "slug": "train"}, "toys[0]", B)], [held])
    assert isinstance(step, Conflict) and step.error.field == "toys[0].id"


# --- as a whole ----------------------------------------------------------------------------------------------------------------

_toys = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]),
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.sampled_from(["One", "Two"]), "loud": st.booleans(), "inside": st.sampled_from(["a", "b", "c", "d"]),
            "price_micros": st.sampled_from([None, 1]), "weight_ratio": st.sampled_from([0.5, 1]),
            "metadata": st.sampled_from([{}, {"x": None}, {"x": 1}, {"x": True}, {"x": 1.0}]),
            "made_at": st.sampled_from([0, "1970-01-01T00:00:00Z", "2026-01-01T00:00:00Z"]),
        },
    ),
)  # fmt: skip


@examples(300)
@given(_toys, _toys)
def test_from_any_file_to_any_other_in_one_step_and_then_all_is_the_same(one: dict[str, Body], other: dict[str, Body]) -> None:
    existing: list[Existing] = []
    for file in (one, other):
        wanted = [toy(slug, **{**body, "inside": body.get("inside") if body.get("inside") in file else None})
                  for slug, body in file.items()]  # fmt: skip
        steps = planned(wanted, existing, prune=True)
        if any(isinstance(step, Conflict) for step in steps):
            assert {step.error.code for step in steps if isinstance(step, Conflict)} == {"cycle"}, steps
            return
        known = {one.id for one in existing}
        for step in steps:
            if isinstance(step, Create | Change):
                assert step.body["inside"] in {None, step.id} | known, "it is there before it is pointed at"
                known.add(step.id)
            if isinstance(step, Change):
                assert step.fields
        existing = after(steps, existing)
        assert sorted(one.body["slug"] for one in existing) == sorted(file)
        assert all(isinstance(step, Same) for step in planned(wanted, existing, prune=True))


# --- carrying out ---------------------------------------------------------------------------------------------------


class Store:
    """Remembers what it is sent and refuses some keys. No part of ours stands behind it: the contract is that of a bulk."""

    def __init__(self, refused: Collection[str] = ()) -> None:
        self.refused, self.sent = refused, list[list[Operation]]()

    def __call__(self, kind: str, sent: Any) -> list[str | None]:
        assert {one.kind for one in sent} == {kind} and len(sent) <= MOST_ITEMS
        self.sent.append(list(sent))
        return ["no" if one.id in self.refused else None for one in sent]


def test_a_plan_is_sent_in_bulks_of_one_kind_that_are_not_too_long() -> None:
    created = planned([toy(f"t{number}") for number in range(MOST_ITEMS + 1)] + [box(A)])
    store = Store()
    assert all(one.problem is None for one in carry_out(created, store))
    assert [(batch[0].kind, len(batch)) for batch in store.sent] == [("box", 1), ("toy", MOST_ITEMS), ("toy", 1)]


def test_a_step_of_two_operations_fails_when_one_of_them_does() -> None:
    back = planned([box(A), box(B)], [there("box", one, {"label": "Cellar"}, deleted=True) for one in (A, B)])
    done = list(carry_out(back, Store({B})))
    assert [one.problem for one in done] == [None, "no"]


def test_nothing_is_removed_once_something_else_has_failed() -> None:
    mine, gone = there("toy", A, {"name": "Mine", "slug": "mine"}), there("box", B, {"label": "Attic"})
    steps = planned([toy("mine", loud=True), toy("other")], [mine, gone], prune=True)
    store = Store({A})
    assert [one.problem for one in carry_out(steps, store)] == ["no", None, NOT_REMOVED]
    assert [[one.op for one in batch] for batch in store.sent] == [["update", "create"]]


# --- the file ----------------------------------------------------------------------------------------------------------------


def read(folder: Path, text: str, name: str = "file.yaml") -> apply_file.ApplyFile:
    (folder / name).write_text(text)
    return read_file(folder / name, KINDS)


def test_both_forms_and_both_languages_say_the_same(tmp_path: Path) -> None:
    grouped = read(tmp_path, "org: acme\ntoys:\n  - {name: Train, slug: train}\n")
    listed = read(tmp_path, "org: acme\nset: mine\ndocuments:\n- kind: toy\n  name: Train\n  slug: train\n")
    parts = read(tmp_path, "org: acme\n---\ntoys: []\n---\ntoys:\n- {name: Train, slug: train}\n")
    as_json = read(tmp_path, '{"org": "acme",\n\t"toys": [{"name": "Train", "slug": "train"}]}', "file.json")
    assert grouped == as_json == parts
    assert grouped.wanted == [Wanted("toy", "train", {"name": "Train", "slug": "train"}, "toys[0]")]
    assert (listed.org, listed.set_name) == ("acme", "mine")
    assert listed.wanted == [grouped.wanted[0]._replace(place="documents[0]")]


def test_plain_values_are_those_of_json(tmp_path: Path) -> None:
    text = "toys:\n- name: no\n  slug: off\n  made_at: 2026-01-01T00:00:00Z\n  weight_ratio: 1e-3\n  loud: true\n  box: ~\n"
    (wanted,) = read(tmp_path, text).wanted
    assert wanted.body == {
        "name": "no", "slug": "off", "made_at": "2026-01-01T00:00:00Z", "weight_ratio": 0.001, "loud": True, "box": None
    }  # fmt: skip


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    text = "toys:\n- &a {name: Train, slug: train, tags: [wood]}\n- {<<: *a, slug: duck}\n"
    assert [dict(one.body) for one in read(tmp_path, text).wanted] == [
        {"name": "Train", "slug": slug, "tags": ["wood"]} for slug in ("train", "duck")
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("toys:\n- {name: T, slug: t, parts: [{name: a}, {nam: b}]}", "toys[0].parts[1].nam: expected no such field"),
        ("documents:\n- {kind: tow}", "documents[0].kind: expected one of "),
        ("documents:\n- {name: T}", "documents[0].kind: expected one of "),
        ("documents:\n- train", "documents[0]: expected a document: an object"),
        ("toys:\n- {name: T}", "toys[0].slug: expected a value"),
        ("toys:\n- {name: T, slug: null}", "toys[0].slug: "),
        ("toys:\n- {kind: box, name: T, slug: t}", "toys[0].kind: expected toy"),
        ("boxes:\n- {label: Attic}", "boxes[0].id: expected a UUID: a box has no other name"),
        ("toys:\n- {name: T, slug: t, id: 7}", "toys[0].id: expected a UUID, got 7"),
        ("toys:\n- {name: T, slug: t}\n- {name: U, slug: t}", "toys[1].slug: expected another one than toys[0]"),
        ("toys:\n- {name: T, slug: t, metadata: {applied_from: x}}", "toys[0].metadata.applied_from: expected nothing here"),
        ("toys: {name: T}", "toys: expected a list of documents"),
        ("tows: []", "tows: expected one of org, set, documents, "),
        ("org: acme\n---\norg: globex", "part 2: org: expected 'acme' as before"),
        ('org: acme\nset: "a\\nb"', "set: expected 1 to 100 printable characters"),
        ("- kind: toy", "expected an object with documents"),
        ("", "got nothing"),
        ("toys:\n- {name: T, slug: t, slug: u}", "line 2, column 22: 'slug' is given twice"),
        ("toys:\n- {name: T", "not YAML: line "),
        ("toys: &a [*a]", "not YAML"),
        ("toys:\n- {1: T}", "expected a text as name"),
        ("toys:\n- {name: T, slug: t, price_micros: 99999999999999999999}", "toys[0].price_micros: expected a whole number"),
        ("toys:\n- {name: T, slug: t, weight_ratio: !!float .inf}", "toys[0].weight_ratio: expected a finite number"),
    ],
)
def test_what_is_wrong_is_named_by_file_place_and_field(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert str(error.value).startswith("file.yaml: ") and said in str(error.value)


@pytest.mark.parametrize("text", ["{", '{"toys": [{"slug": "a", "slug": "b"}]}', "[" * 100_000])
def test_json_that_is_none_is_a_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"file.json: not JSON: "):
        read(tmp_path, text, "file.json")


def test_all_mistakes_are_told_at_once_with_the_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, "toys:\n- {name: T, slug: t, loud: very, lod: 1}\n- {name: U, slug: u, state: lost}\nchildren:\n- {}")
    lines = str(error.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        "toys[0].loud", "toys[0].lod", "toys[1].state", "children[0].id", "children[0].name"
    ]  # fmt: skip
    assert lines[2].endswith("(toy u)")


def test_a_file_that_is_not_there_or_not_text_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_file(tmp_path / "no.yaml", KINDS)
    (tmp_path / "file.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_file(tmp_path / "file.yaml", KINDS)
