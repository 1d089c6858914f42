"""Lists against a plain Python reference: every filter, sort and page, on both databases."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmis_stream.core.errors import Rejected
from cmis_stream.store.decisions import Command, Document
from cmis_stream.store.documents import Documents, Item
from cmis_stream.store.kinds import COMMON_SORTS
from cmis_stream.store.listing import asked
from tests.store.support import ADA, BOARD, BOB, CAMPAIGN, NOW, act, create

Doc = dict[str, Any]
Pair = tuple[str, str]
Asking = tuple[Pair, Callable[[Doc], bool]]
"""A parameter and what it means."""

# Texts whose order differs between languages and code points, cases and lengths; numbers at the edges of their types.
NAMES = ["a", "B", "b", "Ä", "ä", "z", "zz", "Z", "é", "e\u0301", "日本", "🚀", "a b", "a%b", "a_b", "\\", "'", "ǅ", "ı", "I"]
WHOLES = [None, 0, 1, -1, 5, 5, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 10**15, 10**15 + 1]
REALS = [None, 0.0, -0.5, 0.1, 0.1 + 0.2, 0.3, 1e300, -1e300, 5e-324, 1.5, 1.5]
TAGS = ["q1", "q", "1", "q1 eu", "eu"]


def some_campaigns(documents: Documents, many: int, seed: int = 1) -> list[Doc]:
    """Stored in the org acme, a fifth of them deleted; answers them flat."""
    chance = random.Random(seed)
    items = [
        Item(
            Command(
                "create",
                "campaign",
                body={
                    "name": chance.choice(NAMES),
                    "spend_micros": chance.choice(WHOLES),
                    "ctr_ratio": chance.choice(REALS),
                    "active": chance.choice([None, True, False]),
                    "starts_at": chance.choice([None, NOW + 5, NOW, -5]),
                    "tags": chance.sample(TAGS, chance.randrange(3)),
                    "slug": f"s{number}",
                    # A name alone may be there often: it is unique only together with a time.
                },
            )
        )
        for number in range(many)
    ]
    made = [one.result.document for one in documents.bulk("acme", ADA, items) if one.result and one.result.document]
    gone = [act(documents, "delete", one) for one in made if chance.random() < 0.2]
    kept = {one.id: one for one in made} | {one.id: one for one in gone}
    return [flat(one) for one in kept.values()]


def flat(document: Document) -> Doc:
    times = {"created_at": document.created_at, "updated_at": document.updated_at, "deleted_at": document.deleted_at}
    return {**document.body, **times, "id": document.id}


def pages(documents: Documents, parameters: Sequence[Pair], limit: int) -> tuple[list[str], int]:
    """(ids, total_estimate) over all pages."""
    found, cursor, total = list[str](), None, None
    while True:
        more = [("cursor", cursor)] if cursor else []
        page = documents.list("acme", ADA, "campaign", [*parameters, ("limit", str(limit)), *more])
        assert len(page.items) <= limit and total in (None, page.total_estimate)
        found += [one.id for one in page.items]
        cursor, total = page.next, page.total_estimate
        if cursor is None:
            return found, page.total_estimate


def reference(docs: list[Doc], filters: list[Asking], sorts: list[str], deleted: str | None) -> list[str]:
    kept = [doc for doc in docs if deleted == "with" or (doc["deleted_at"] is None) == (deleted is None)]
    kept = [doc for doc in kept if all(means(doc) for _, means in filters)]
    names = [*sorts, *([] if any(name.lstrip("-") == "id" for name in sorts) else ["-id" if sorts[0].startswith("-") else "id"])]
    for sort in reversed(names):
        name = sort.removeprefix("-")
        kept.sort(key=lambda doc: doc[name] if doc[name] is not None else 0, reverse=sort.startswith("-"))
        kept.sort(key=lambda doc: doc[name] is None)
    return [doc["id"] for doc in kept]


COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda a, b: a is not None and a == b,
    "ne": lambda a, b: a != b,
    "gt": lambda a, b: a is not None and a > b,
    "gte": lambda a, b: a is not None and a >= b,
    "lt": lambda a, b: a is not None and a < b,
    "lte": lambda a, b: a is not None and a <= b,
}


def lower(text: str) -> str:
    return "".join(sign.lower() if sign.isascii() else sign for sign in text)


def compared(field: str, values: st.SearchStrategy[Any], shown: Callable[[Any], str] = str) -> st.SearchStrategy[Asking]:
    ops = sorted(COMPARE) if field != "active" else ["eq", "ne"]
    one = st.tuples(st.sampled_from(ops), values).map(
        lambda of: ((f"filter[{field}][{of[0]}]", shown(of[1])), lambda doc: COMPARE[of[0]](doc[field], of[1]))
    )
    some = st.lists(values.filter(lambda value: "," not in shown(value)), min_size=1, max_size=4).map(
        lambda of: ((f"filter[{field}][in]", ",".join(map(shown, of))), lambda doc: doc[field] is not None and doc[field] in of)
    )
    return one | some


there = st.sampled_from
wholes = there([one for one in WHOLES if one is not None]) | there([0.5, -0.5, 4.5, 5.0])
filters = st.one_of(
    compared("name", there(NAMES) | st.text(alphabet="abzZÄ,", max_size=2)),
    compared("spend_micros", wholes),
    compared("ctr_ratio", there([one for one in REALS if one is not None]), repr),
    compared("active", st.booleans(), lambda value: str(value).lower()),
    compared("starts_at", there([NOW, NOW + 5, -5, 0])),
    compared("created_at", st.integers(NOW, NOW + 400)),
    there([*NAMES, "A", "", "É", "%"]).map(
        lambda part: (("filter[name][contains]", part), lambda doc: lower(part) in lower(doc["name"]))
    ),
    there(TAGS).map(lambda tag: (("filter[tags][contains]", tag), lambda doc: tag in doc["tags"])),
)
sorts = st.lists(there([*COMMON_SORTS, *CAMPAIGN.sorts]), unique=True, min_size=1, max_size=3).flatmap(
    lambda names: st.tuples(*(there([name, f"-{name}"]) for name in names)).map(list)
)


def test_filters_sorts_and_pages_are_those_of_a_plain_python_reference(documents: Documents) -> None:
    docs = some_campaigns(documents, 150)
    assert {doc["name"] for doc in docs} >= {"a", "Ä", "🚀"} and any(doc["deleted_at"] for doc in docs)

    @given(st.lists(filters, max_size=2), sorts, there([None, "only", "with"]), there([1, 7, 50, 500]))
    @settings(max_examples=150, deadline=None)
    def check(asking: list[Asking], by: list[str], deleted: str | None, limit: int) -> None:
        parameters = [pair for pair, _ in asking] + [("sort", ",".join(by))] + ([("deleted", deleted)] if deleted else [])
        expected = reference(docs, asking, by, deleted)
        assert pages(documents, parameters, max(limit, len(expected) // 8, 1)) == (expected, len(expected))

    check()


@pytest.mark.parametrize("sort", ["-id", "name", "-spend_micros", "spend_micros,-name", "ctr_ratio", "-active,created_at"])
def test_what_is_written_meanwhile_moves_nothing_to_another_page(documents: Documents, sort: str) -> None:
    docs = some_campaigns(documents, 60)
    expected = reference(docs, [], sort.split(","), None)
    chance, found, cursor = random.Random(sort), list[str](), None
    mine, gone = set(expected), set[str]()
    while True:
        more = [("cursor", cursor)] if cursor else []
        page = documents.list("acme", ADA, "campaign", [("sort", sort), ("limit", "7"), *more])
        found += [one.id for one in page.items if one.id in mine]
        cursor = page.next
        if cursor is None:
            break
        for _ in range(3):
            create(documents, "campaign", name=chance.choice(NAMES), spend_micros=chance.choice(WHOLES))
        left = [one for one in expected if one not in gone and one not in found]
        if left:
            victim = documents.get("acme", ADA, "campaign", chance.choice(left))
            assert victim is not None
            act(documents, "delete", victim)
            gone.add(victim.id)
    assert found == [one for one in expected if one not in gone]


def test_the_newest_come_first_when_nothing_is_said(documents: Documents) -> None:
    made = [create(documents, "campaign", name=name).id for name in "abc"]
    assert [one.id for one in documents.list("acme", ADA, "campaign").items] == made[::-1]


def test_lists_are_of_one_org_and_one_kind(documents: Documents) -> None:
    mine = create(documents, "campaign", name="a")
    create(documents, "campaign", org="other", name="a")
    create(documents, "note", campaign=mine.id)
    assert [one.id for one in documents.list("acme", ADA, "campaign").items] == [mine.id]


def test_owner_and_visibility_can_be_filtered_where_the_kind_has_them(documents: Documents) -> None:
    shared = create(documents, "board", title="shared", visibility="org")
    create(documents, "board", title="mine")
    page = documents.list("acme", BOB, "board", [("filter[owner_id]", "ada")])
    assert [one.id for one in page.items] == [shared.id] and page.total_estimate == 1
    assert len(documents.list("acme", ADA, "board", [("filter[visibility]", "private")]).items) == 1


@pytest.mark.parametrize(
    ("parameter", "field"),
    [
        (("colour", "red"), "colour"),
        (("filter[colour]", "red"), "filter[colour]"),
        (("filter[name][like]", "red"), "filter[name][like]"),
        (("filter[name", "red"), "filter[name"),
        (("filter[active][gt]", "true"), "filter[active][gt]"),
        (("filter[active]", "1"), "filter[active]"),
        (("filter[spend_micros][contains]", "1"), "filter[spend_micros][contains]"),
        (("filter[spend_micros]", "1_000"), "filter[spend_micros]"),
        (("filter[spend_micros]", "٣"), "filter[spend_micros]"),
        (("filter[spend_micros]", "9223372036854775808"), "filter[spend_micros]"),
        (("filter[spend_micros]", "1e999"), "filter[spend_micros]"),
        (("filter[ctr_ratio]", "1e999"), "filter[ctr_ratio]"),
        (("filter[ctr_ratio]", "nan"), "filter[ctr_ratio]"),
        (("filter[starts_at]", "yesterday"), "filter[starts_at]"),
        (("filter[starts_at]", "2026-01-01T00:00:00"), "filter[starts_at]"),
        (("filter[name]", "a\0"), "filter[name]"),
        (("filter[name]", "x" * 501), "filter[name]"),
        (("filter[name][in]", "a," * 101), "filter[name][in]"),
        (("filter[tags]", "a"), "filter[tags]"),
        (("filter[tags][contains]", "a\x1fb"), "filter[tags][contains]"),
        (("filter[owner_id]", "ada"), "filter[owner_id]"),
        (("sort", "slug"), "sort"),
        (("sort", "name,-name"), "sort"),
        (("sort", ""), "sort"),
        (("limit", "0"), "limit"),
        (("limit", "501"), "limit"),
        (("limit", "１"), "limit"),
        (("deleted", "without"), "deleted"),
    ],
)
def test_a_parameter_that_is_wrong_is_named(parameter: Pair, field: str) -> None:
    with pytest.raises(Rejected) as caught:
        asked(CAMPAIGN, [parameter])
    assert caught.value.field == field


def test_a_parameter_given_twice_is_rejected_but_not_two_filters_on_one_field(documents: Documents) -> None:
    create(documents, "campaign", name="b")
    page = documents.list("acme", ADA, "campaign", [("filter[name][gt]", "a"), ("filter[name][lt]", "c")])
    assert len(page.items) == 1
    with pytest.raises(Rejected, match="limit"):
        documents.list("acme", ADA, "campaign", [("limit", "5"), ("limit", "6")])


def test_a_cursor_that_somebody_made_up_is_rejected(documents: Documents) -> None:
    sort = "-spend_micros,-id"
    made_up: list[Any] = [[], [sort, 1], ["id", "x"], [sort, "1", "x"], [sort, 2**63, "x"], [sort, True, "x"], [sort, 1, None]]
    made_up += [[sort, 1, "a\0"], {"a": 1}, 5]
    for cursor in ("x", "ä", "", *(base64.urlsafe_b64encode(json.dumps(keys).encode()).decode() for keys in made_up)):
        with pytest.raises(Rejected) as caught:
            documents.list("acme", ADA, "campaign", [("sort", "-spend_micros"), ("cursor", cursor)])
        assert caught.value.field == "cursor"


def test_a_time_may_be_given_in_rfc_3339(documents: Documents) -> None:
    made = create(documents, "campaign", name="a", starts_at=NOW)
    for text in ("2026-01-01T00:00:00Z", "2026-01-01T01:00:00+01:00", str(NOW)):
        assert [one.id for one in documents.list("acme", ADA, "campaign", [("filter[starts_at]", text)]).items] == [made.id]


@pytest.mark.parametrize(
    ("op", "value", "found"),
    [
        ("gt", "4.5", [5]), ("gte", "4.5", [5]), ("lt", "4.5", [3, 4]), ("lte", "4.5", [3, 4]), ("eq", "4.5", []),
        ("ne", "4.5", [3, 4, 5, None]), ("in", "4.5,5", [5]), ("in", "4.5", []), ("gte", "4.0", [4, 5]), ("eq", "4e0", [4]),
        ("ne", "4", [3, 5, None]), ("lt", "-4.5", []), ("gt", "-4.5", [3, 4, 5]), ("lte", "-9223372036854775808", []),
    ],
)  # fmt: skip
def test_a_fraction_can_be_asked_about_whole_numbers(documents: Documents, op: str, value: str, found: list[int | None]) -> None:
    for number in (3, 4, 5, None):
        create(documents, "campaign", name="a", spend_micros=number)
    page = documents.list("acme", ADA, "campaign", [(f"filter[spend_micros][{op}]", value), ("sort", "spend_micros")])
    assert [one.body["spend_micros"] for one in page.items] == found


def test_a_kind_that_is_owned_has_a_filter_on_owners() -> None:
    assert asked(BOARD, [("filter[owner_id]", "ada")]).filters[0].value == "ada"
