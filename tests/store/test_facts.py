"""The store of facts: versions, positions in the same transaction, lists."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cmis_stream.core.errors import Rejected
from cmis_stream.core.ids import fact_id
from cmis_stream.core.rules import SEVERITIES
from cmis_stream.modules.alerts.history import HISTORY
from cmis_stream.store import facts as facts_module
from cmis_stream.store.facts import Change, FactStore, Place

NOW = 1_767_225_600_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FactStore]:
    opened = FactStore(tmp_path / "store.db")
    yield opened
    opened.close()


def incident(number: int, **more: Any) -> dict[str, Any]:
    made = {"id": fact_id(NOW + number, f"i{number}"), "state": "firing", "severity": "medium", "rule": "r", "campaign": "c"}
    return {**made, "started_at": NOW + number, "version": 1, **more}


def put(store: FactStore, *docs: dict[str, Any], org: str = "acme") -> None:
    store.write([Change(org, "incident", doc["id"], NOW, partial(_instead, doc)) for doc in docs], "r", "e", {})


def _instead(doc: dict[str, Any], _: dict[str, Any] | None) -> dict[str, Any]:
    return doc


def numbers(docs: list[dict[str, Any]]) -> list[int]:
    return [doc["started_at"] - NOW for doc in docs]


def test_only_a_higher_version_replaces_a_fact(store: FactStore) -> None:
    first = incident(1)
    put(store, first)
    put(store, {**first, "rule": "same version"}, {**first, "version": 0})
    assert store.get("acme", "incident", first["id"]) == first
    put(store, second := {**first, "version": 2})
    assert store.get("acme", "incident", first["id"]) == second


def test_a_change_sees_what_the_one_before_it_in_the_same_write_made(store: FactStore) -> None:
    doc = incident(1)
    later: Callable[[Any], Any] = lambda before: {**before, "state": "resolved", "version": before["version"] + 1}  # noqa: E731
    changes = [Change("acme", "incident", doc["id"], NOW, make) for make in (lambda _: doc, later, later)]
    store.write(changes, "r", "e", {})
    found = store.get("acme", "incident", doc["id"])
    assert found is not None and (found["state"], found["version"]) == ("resolved", 3)


def test_facts_and_positions_are_written_together_or_not_at_all(store: FactStore) -> None:
    doc = incident(1)

    def fails(_: dict[str, Any] | None) -> dict[str, Any]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.write(
            [Change("acme", "incident", doc["id"], NOW, lambda _: doc), Change("acme", "incident", "x", NOW, fails)],
            "r", "e", {("t", 0): 7},
        )  # fmt: skip
    assert store.get("acme", "incident", doc["id"]) is None and store.positions("r", "e") == {}
    store.write([Change("acme", "incident", doc["id"], NOW, lambda _: doc)], "r", "e", {("t", 0): 7})
    assert store.get("acme", "incident", doc["id"]) == doc and store.positions("r", "e") == {("t", 0): 7}


def test_positions_count_in_one_log_for_one_reader(store: FactStore) -> None:
    store.write([], "r", "old", {("t", 0): 7, ("t", 1): 9})
    store.write([], "r", "old", {("t", 0): 8})
    store.write([], "other", "old", {("t", 0): 3})
    assert store.positions("r", "old") == {("t", 0): 8, ("t", 1): 9}
    assert store.positions("r", "new") == {} and store.positions("other", "old") == {("t", 0): 3}


def test_nothing_is_written_on_positions_that_others_have_moved(store: FactStore) -> None:
    made = [incident(n) for n in range(4)]

    def write(doc: dict[str, Any], positions: dict[Place, int], before: dict[Place, int]) -> bool:
        return store.write([Change("acme", "incident", doc["id"], NOW, partial(_instead, doc))], "r", "e", positions, before)

    assert write(made[0], {("t", 0): 4, ("s", 0): 9}, {})
    assert not write(made[1], {("t", 0): 5}, {}), "there is one already"
    assert not write(made[1], {("t", 0): 5}, {("t", 0): 3})
    assert not write(made[1], {("t", 0): 5, ("s", 0): 10}, {("t", 0): 4, ("s", 0): 8})
    assert not write(made[1], {("t", 0): 5, ("t", 1): 2}, {("t", 0): 4, ("t", 1): 1}), "there was one"
    assert numbers(store.in_state("acme", "incident", "firing", 9)) == [0]
    assert store.positions("r", "e") == {("t", 0): 4, ("s", 0): 9}
    assert write(made[2], {("t", 0): 5}, {("t", 0): 4, ("s", 0): 8}), "what does not move does not matter"
    assert write(made[3], {("t", 1): 0}, {("t", 0): 4}), "another partition"
    assert store.positions("r", "e") == {("t", 0): 5, ("s", 0): 9, ("t", 1): 0}


def test_a_process_begins_while_another_one_was_stopped_in_the_middle_of_a_write(store: FactStore, tmp_path: Path) -> None:
    store.write([], "r", "e", {("t", 0): 7})
    store._writer.execute("begin immediate")
    beginning = FactStore(tmp_path / "store.db")
    beginning.leave_other_logs("r", "e", "incident", "firing", lambda _org, _doc: pytest.fail("none is another's"))
    assert beginning.positions("r", "e") == {("t", 0): 7}
    beginning.close()
    store._writer.execute("rollback")


def test_leaving_other_logs_changes_their_facts_once_and_forgets_how_far_they_were_read(store: FactStore) -> None:
    def end(org: str, doc: dict[str, Any]) -> Change:
        return Change(org, "incident", doc["id"], NOW, lambda _: {**doc, "state": "resolved", "version": 2})

    put(store, incident(1), incident(2, state="resolved"))
    put(store, incident(3), org="beta")
    store.write([], "r", "old", {("t", 0): 7})
    store.write([], "other", "old", {("t", 0): 3})
    store.leave_other_logs("r", "old", "incident", "firing", end)
    assert [org for org, _ in store.everywhere_in_state("incident", "firing")] == ["acme", "beta"]
    store.leave_other_logs("r", "new", "incident", "firing", end)
    assert store.everywhere_in_state("incident", "firing") == []
    assert store.positions("r", "old") == {} and store.positions("other", "old") == {("t", 0): 3}
    put(store, incident(4))  # of the new log, by a process that began before this one
    store.leave_other_logs("r", "new", "incident", "firing", end)
    assert [doc["started_at"] for _, doc in store.everywhere_in_state("incident", "firing")] == [NOW + 4]


def test_what_is_in_a_state_comes_the_newest_first_and_is_of_one_org(store: FactStore) -> None:
    put(store, *(incident(n, state="resolved" if n % 3 == 0 else "firing") for n in range(10)))
    put(store, incident(50), org="beta")
    assert numbers(store.in_state("acme", "incident", "firing", 4)) == [8, 7, 5, 4]
    assert [(org, doc["id"]) for org, doc in store.everywhere_in_state("incident", "firing") if org == "beta"] == [
        ("beta", incident(50)["id"])
    ]
    assert store.get("beta", "incident", incident(1)["id"]) is None


def all_pages(store: FactStore, filters: dict[str, list[str]], sort: str, limit: int) -> list[int]:
    found, cursor = [], None
    while True:
        page = store.page("acme", HISTORY, filters, sort, limit, cursor)
        assert len(page.items) <= limit
        found += numbers(page.items)
        cursor = page.next
        if cursor is None:
            return found
        assert len(page.items) == limit


@pytest.mark.spec("ALR-M07", partial="in lists; notifications do not exist yet")
@pytest.mark.parametrize("limit", [1, 3, 7, 40])
def test_pages_hold_each_fact_once_in_the_order_asked_for(store: FactStore, limit: int) -> None:
    dice = random.Random(3)
    docs = [incident(n, severity=dice.choice(SEVERITIES), state=dice.choice(["firing", "resolved"])) for n in range(30)]
    put(store, *docs)
    put(store, *(incident(n) for n in range(5)), org="beta")
    newest = [29 - n for n in range(30)]
    rank = {n: SEVERITIES.index(doc["severity"]) for n, doc in enumerate(docs)}
    assert all_pages(store, {}, "-started_at", limit) == newest
    assert all_pages(store, {}, "started_at", limit) == newest[::-1]
    assert all_pages(store, {}, "severity", limit) == sorted(newest, key=lambda n: rank[n])
    assert all_pages(store, {}, "-severity", limit) == sorted(newest, key=lambda n: -rank[n])
    firing = [n for n in newest if docs[n]["state"] == "firing"]
    assert all_pages(store, {"state": ["firing"]}, "-started_at", limit) == firing
    chosen = [n for n in newest if docs[n]["severity"] in ("critical", "low")]
    assert all_pages(store, {"severity": ["critical", "low"]}, "-started_at", limit) == chosen


def test_a_fact_that_appears_between_two_pages_moves_no_other(store: FactStore) -> None:
    put(store, *(incident(n) for n in range(6)))
    first = store.page("acme", HISTORY, {}, "-started_at", 3, None)
    put(store, incident(100), incident(4, version=2))
    assert numbers(store.page("acme", HISTORY, {}, "-started_at", 3, first.next).items) == [2, 1, 0]


def test_a_page_says_how_many_there_are_up_to_a_bound(store: FactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, *(incident(n, rule=f"r{n % 2}") for n in range(9)))
    assert store.page("acme", HISTORY, {"rule": ["r0"]}, "-started_at", 2, None).total == 5
    monkeypatch.setattr(facts_module, "COUNTED", 4)
    assert store.page("acme", HISTORY, {}, "-started_at", 2, None).total == 4


@pytest.mark.parametrize(
    ("filters", "sort", "cursor", "field"),
    [
        ({"nothing": ["x"]}, "-started_at", None, "filter[nothing]"),
        ({"doc') or 1=1 --": ["x"]}, "-started_at", None, "filter[doc') or 1=1 --]"),
        ({}, "id; drop table facts", None, "sort"),
        ({}, "-started_at", "%%%", "cursor"),
        ({}, "-started_at", "bm90IGpzb24", "cursor"),
        ({}, "severity", "WyItc3RhcnRlZF9hdCIsICJ4Il0", "cursor"),
        ({}, "-started_at", "WyItc3RhcnRlZF9hdCIsIFsxXV0", "cursor"),
        ({}, "-started_at", "é", "cursor"),
    ],
)
def test_what_cannot_be_listed_by_is_refused_with_its_parameter(
    store: FactStore, filters: dict[str, list[str]], sort: str, cursor: str | None, field: str
) -> None:
    with pytest.raises(Rejected) as refused:
        store.page("acme", HISTORY, filters, sort, 10, cursor)
    assert refused.value.field == field


def test_values_are_values_whatever_they_look_like(store: FactStore) -> None:
    put(store, incident(1, rule="' or '1'='1"), incident(2))
    assert numbers(store.page("acme", HISTORY, {"rule": ["' or '1'='1"]}, "-started_at", 10, None).items) == [1]


def test_the_list_of_what_fires_is_found_by_an_index(store: FactStore) -> None:
    plan = store._rows(
        "explain query plan select doc from facts where org_id = ? and kind = ? and json_extract(doc, '$.state') = ? "
        "order by id desc limit 5",
        ("a", "incident", "firing"),
    )
    assert any("facts_by_state" in row[3] for row in plan) and not any("TEMP B-TREE" in row[3] for row in plan)


def test_reading_does_not_wait_for_another_writer(tmp_path: Path) -> None:
    store = FactStore(tmp_path / "store.db")
    put(store, incident(1))
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("begin immediate")
    other.execute("delete from facts")
    assert len(store.in_state("acme", "incident", "firing", 10)) == 1
    other.execute("rollback")
    other.close()
    store.close()


def test_threads_may_write_and_read_at_once(store: FactStore) -> None:
    def write(first: int) -> None:
        for n in range(first, first + 30):
            put(store, incident(n))
            store.page("acme", HISTORY, {}, "-started_at", 5, None)

    threads = [threading.Thread(target=write, args=(100 * i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.page("acme", HISTORY, {}, "-started_at", 5, None).total == 90
