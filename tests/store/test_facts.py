"""The store of facts on both databases: versions, positions in the same transaction, several orgs, lists."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import ColumnElement, Table, exc, select, true

from cmis_stream.core.errors import ConfigError, Rejected
from cmis_stream.core.ids import fact_id
from cmis_stream.core.rules import SEVERITIES
from cmis_stream.store import listing
from cmis_stream.store.database import Database, Transaction
from cmis_stream.store.fact_kinds import Fact, FactKind
from cmis_stream.store.fact_tables import facts as facts_table
from cmis_stream.store.facts import Change, Facts, Place
from cmis_stream.store.kinds import Kinds, Manifest
from tests.store.conftest import Places
from tests.store.fact_support import FINDING, MANIFESTS, NOW, Body, Finding, Writer, incident, numbers, opened

FIRING = [("filter[state]", "firing")]


@pytest.fixture
def store(places: Places) -> Iterator[Facts]:
    with opened(places) as made:
        yield made


@pytest.fixture
def writer(store: Facts) -> Writer:
    return Writer(store)


def test_each_change_makes_a_new_version_and_one_that_changes_nothing_none(store: Facts, writer: Writer) -> None:
    identity, body = incident(1)
    writer.put((identity, body))
    writer(Change("acme", "incident", identity, NOW + 5, lambda before: before))
    writer(Change("acme", "incident", identity, NOW + 5, lambda _: None))
    assert store.get("acme", "incident", identity) == Fact("acme", "incident", identity, 1, NOW, body)
    writer(Change("acme", "incident", identity, NOW + 7, lambda before: {**(before or {}), "rule": "s"}))
    assert store.get("acme", "incident", identity) == Fact("acme", "incident", identity, 2, NOW + 7, {**body, "rule": "s"})


def test_a_version_may_be_said_to_be_higher_but_never_goes_back(store: Facts, writer: Writer) -> None:
    identity, body = incident(1)
    versions = []
    for number, least in enumerate([2, 2, 9, 1]):
        new = {**body, "rule": f"r{number}"}
        writer(Change("acme", "incident", identity, NOW, lambda _, new=new: new, least))
        found = store.get("acme", "incident", identity)
        assert found is not None
        versions.append(found.version)
    assert versions == [2, 3, 9, 10]


def test_a_change_sees_what_the_one_before_it_in_the_same_write_made(store: Facts, writer: Writer) -> None:
    identity, body = incident(1)

    def later(before: dict[str, Any] | None) -> dict[str, Any]:
        assert before is not None
        return {**before, "state": "resolved", "events": [*before["events"], "x"]}

    writer(*(Change("acme", "incident", identity, NOW, make) for make in (lambda _: body, later, later)))
    found = store.get("acme", "incident", identity)
    assert found is not None and (found.body["state"], found.body["events"], found.version) == ("resolved", ["x", "x"], 3)


def test_facts_and_positions_are_written_together_or_not_at_all(store: Facts) -> None:
    identity, body = incident(1)
    change = Change("acme", "incident", identity, NOW, lambda _: body)

    def fails(_: dict[str, Any] | None) -> dict[str, Any]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.write([change, Change("zeta", "incident", "x", NOW, fails)], "r", "e", {("t", 0): 7}, {})
    assert store.get("acme", "incident", identity) is None and store.positions("r", "e") == {} == dict(store.orgs("incident"))
    assert store.write([change], "r", "e", {("t", 0): 7}, {})
    assert store.get("acme", "incident", identity) is not None and store.positions("r", "e") == {("t", 0): 7}
    assert store.orgs("incident") == ["acme"]


def test_positions_count_in_one_log_for_one_reader(store: Facts) -> None:
    assert store.write([], "r", "old", {("t", 0): 7, ("t", 1): 9}, {})
    assert store.write([], "r", "old", {("t", 0): 8}, {("t", 0): 7})
    assert store.write([], "other", "old", {("t", 0): 3}, {})
    assert store.positions("r", "old") == {("t", 0): 8, ("t", 1): 9}
    assert store.positions("r", "new") == {} and store.positions("other", "old") == {("t", 0): 3}


def test_nothing_is_written_on_positions_that_others_have_moved(store: Facts) -> None:
    def write(number: int, positions: dict[Place, int], before: dict[Place, int]) -> bool:
        identity, body = incident(number)
        return store.write([Change("acme", "incident", identity, NOW, lambda _: body)], "r", "e", positions, before)

    assert write(0, {("t", 0): 4, ("s", 0): 9}, {})
    assert not write(1, {("t", 0): 5}, {}), "there is one already"
    assert not write(1, {("t", 0): 5}, {("t", 0): 3})
    assert not write(1, {("t", 0): 5, ("s", 0): 10}, {("t", 0): 4, ("s", 0): 8})
    assert not write(1, {("t", 0): 5, ("t", 1): 2}, {("t", 0): 4, ("t", 1): 1}), "there was one"
    assert numbers(store.list("acme", "incident", FIRING).items) == [0]
    assert store.positions("r", "e") == {("t", 0): 4, ("s", 0): 9}
    assert write(2, {("t", 0): 5}, {("t", 0): 4, ("s", 0): 8}), "what does not move does not matter"
    assert write(3, {("t", 1): 0}, {("t", 0): 4}), "another partition"
    assert store.positions("r", "e") == {("t", 0): 5, ("s", 0): 9, ("t", 1): 0}


def test_of_many_who_move_the_same_position_at_once_one_does(store: Facts, places: Places) -> None:
    """Whoever loses looks where it is now and goes on from there: a number that all add to is added to once per write."""
    identity, body = incident(0)

    def work(facts: Facts) -> None:
        done = 0
        while done < 10:
            at = facts.positions("r", "e")
            count = Change(
                "acme", "incident", identity, NOW, lambda b: {**(b or body), "started_at": (b or body)["started_at"] + 1}
            )
            done += facts.write([count], "r", "e", {("t", 0): at.get(("t", 0), -1) + 1}, at)

    with opened(places) as other:
        threads = [threading.Thread(target=work, args=(facts,)) for facts in (store, store, other, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = store.get("acme", "incident", identity)
    assert found is not None and (found.body["started_at"], found.version) == (NOW + 40, 40)
    assert store.positions("r", "e") == {("t", 0): 39}


def test_several_readers_that_change_the_same_facts_of_several_orgs_lose_nothing(store: Facts, places: Places) -> None:
    def one_more(before: Body | None) -> Body:
        return {"name": "a", "count": 1} if before is None else {**before, "count": before["count"] + 1}

    def work(facts: Facts, reader: str, orgs: list[str]) -> None:
        writer = Writer(facts, reader)
        for _ in range(10):
            writer(*(Change(org, "finding", "f", NOW, one_more) for org in orgs))

    with opened(places) as other:
        threads = [
            threading.Thread(target=work, args=(facts, f"r{number}", orgs))
            for number, (facts, orgs) in enumerate([(store, ["a", "b"]), (other, ["b", "a"]), (other, ["b", "c"])])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    counts = {fact.org: (fact.body["count"], fact.version) for fact in store.everywhere("finding")}
    assert counts == {"a": (20, 20), "b": (30, 30), "c": (10, 10)}


def test_leaving_other_logs_changes_their_facts_once_and_forgets_how_far_they_were_read(store: Facts, writer: Writer) -> None:
    def end(fact: Fact) -> Change:
        return Change(fact.org, "incident", fact.id, NOW, lambda before: {**(before or {}), "state": "resolved"})

    def leave(epoch: str) -> None:
        store.leave_other_logs("r", epoch, "incident", FIRING, end)

    writer.put(incident(1), incident(2, state="resolved"))
    writer.put(incident(3), org="beta")
    assert store.write([], "r", "old", {("t", 0): 7}, {}) and store.write([], "other", "old", {("t", 0): 3}, {})
    leave("old")
    assert [fact.org for fact in store.everywhere("incident", FIRING)] == ["acme", "beta"]
    leave("new")
    assert store.everywhere("incident", FIRING) == []
    assert [(fact.org, fact.version) for fact in store.everywhere("incident")] == [("acme", 2), ("acme", 1), ("beta", 2)]
    assert store.positions("r", "old") == {} and store.positions("other", "old") == {("t", 0): 3}
    writer.put(incident(4))  # of the new log, by a process that began before this one
    leave("new")
    assert numbers(store.everywhere("incident", FIRING)) == [4]


def test_more_facts_than_a_page_holds_are_found_everywhere(store: Facts, writer: Writer) -> None:
    writer.put(*(incident(number) for number in range(1203)))
    assert numbers(store.everywhere("incident", FIRING)) == list(range(1203))


def test_facts_are_of_one_org_and_one_kind(store: Facts, writer: Writer) -> None:
    writer.put(mine := incident(1))
    writer.put(incident(50), org="beta")
    assert store.get("beta", "incident", mine[0]) is None and store.get("acme", "finding", mine[0]) is None
    assert numbers(store.list("acme", "incident").items) == [1] and store.list("acme", "finding").items == []
    assert store.get("acme", "incident", "no such\0id") is None


def all_pages(store: Facts, limit: int, sort: str, *filters: tuple[str, str]) -> list[int]:
    found, cursor = [], None
    while True:
        more = [("cursor", cursor)] if cursor else []
        page = store.list("acme", "incident", [*filters, ("sort", sort), ("limit", str(limit)), *more])
        assert len(page.items) <= limit
        found += numbers(page.items)
        cursor = page.next
        if cursor is None:
            assert page.total_estimate == len(found)
            return found
        assert len(page.items) == limit


@pytest.mark.spec("ALR-M07", partial="in lists; notifications do not exist yet")
@pytest.mark.parametrize("limit", [1, 3, 7, 40])
def test_pages_hold_each_fact_once_in_the_order_asked_for(store: Facts, writer: Writer, limit: int) -> None:
    dice = random.Random(3)
    docs = [incident(n, severity=dice.choice(SEVERITIES), state=dice.choice(["firing", "resolved"])) for n in range(30)]
    writer.put(*docs)
    writer.put(*(incident(n) for n in range(5)), org="beta")
    newest = [29 - n for n in range(30)]
    rank = {n: SEVERITIES.index(body["severity"]) for n, (_, body) in enumerate(docs)}
    assert all_pages(store, limit, "-started_at") == all_pages(store, limit, "-id") == newest
    assert all_pages(store, limit, "started_at") == newest[::-1]
    assert all_pages(store, limit, "severity") == sorted(newest, key=lambda n: rank[n])
    assert all_pages(store, limit, "-severity") == sorted(newest, key=lambda n: -rank[n])
    assert all_pages(store, limit, "severity,started_at") == sorted(newest[::-1], key=lambda n: rank[n])
    firing = [n for n in newest if docs[n][1]["state"] == "firing"]
    assert all_pages(store, limit, "-started_at", *FIRING) == firing
    chosen = [n for n in newest if docs[n][1]["severity"] in ("critical", "low")]
    assert all_pages(store, limit, "-started_at", ("filter[severity][in]", "critical,low")) == chosen
    others = [n for n in newest if docs[n][1]["severity"] != "high" and n >= 10]
    since = ("filter[started_at][gte]", str(NOW + 10))
    assert all_pages(store, limit, "-started_at", ("filter[severity][ne]", "high"), since) == others


def test_a_fact_that_appears_between_two_pages_moves_no_other(store: Facts, writer: Writer) -> None:
    writer.put(*(incident(n) for n in range(6)))
    first = store.list("acme", "incident", [("limit", "3")])
    assert first.next is not None and numbers(first.items) == [5, 4, 3], "the newest first, when nothing is said"
    writer.put(incident(100), incident(4, rule="other"))
    assert numbers(store.list("acme", "incident", [("limit", "3"), ("cursor", first.next)]).items) == [2, 1, 0]


def test_a_page_says_how_many_there_are_up_to_a_bound(store: Facts, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    writer.put(*(incident(n, rule=f"r{n % 2}") for n in range(9)))
    assert store.list("acme", "incident", [("filter[rule]", "r0"), ("limit", "2")]).total_estimate == 5
    monkeypatch.setattr(listing, "COUNTED", 4)
    assert store.list("acme", "incident", [("limit", "2")]).total_estimate == 4


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("filter[nothing]", "x"), ("filter[doc') or 1=1 --]", "x"), ("sort", "id; drop table facts"), ("sort", "rule"),
        ("cursor", "%%%"), ("cursor", "WyItc3RhcnRlZF9hdCIsIFsxXV0"), ("deleted", "with"), ("filter[severity]", "urgent"),
        ("filter[severity][gt]", "high"), ("filter[state][contains]", "fir"), ("filter[created_at]", "0"),
    ],
)  # fmt: skip
def test_what_cannot_be_listed_by_is_refused_with_its_parameter(store: Facts, parameter: str, value: str) -> None:
    with pytest.raises(Rejected) as refused:
        store.list("acme", "incident", [(parameter, value)])
    assert refused.value.field == parameter


def test_values_are_values_whatever_they_look_like(store: Facts, writer: Writer) -> None:
    writer.put(incident(1, rule="' or '1'='1"), incident(2))
    assert numbers(store.list("acme", "incident", [("filter[rule]", "' or '1'='1")]).items) == [1]


def test_what_no_index_can_hold_is_kept_but_cannot_be_filtered_by(store: Facts, writer: Writer) -> None:
    odd = {"rule": "x" * 501, "campaign": "a\0b", "severity": "urgent"}
    writer.put(incident(1, **odd), incident(2))
    identity, body = incident(1, **odd)
    found = store.get("acme", "incident", identity)
    assert found is not None and found.body == body
    assert numbers(store.list("acme", "incident", [("filter[rule][ne]", "r")]).items) == [1]
    assert numbers(store.list("acme", "incident", [("sort", "severity")]).items) == [2, 1], "the last of all"


def test_facts_can_be_listed_by_when_they_changed_last(store: Facts, writer: Writer) -> None:
    for number, at in ((1, 50), (2, 40), (3, 60)):
        identity, body = incident(number)
        writer(Change("acme", "incident", identity, NOW + at, lambda _, body=body: body))
    assert numbers(store.list("acme", "incident", [("sort", "-at")]).items) == [3, 1, 2]
    assert numbers(store.list("acme", "incident", [("filter[at][gt]", str(NOW + 40))]).items) == [3, 1]


def test_fields_that_can_be_filtered_by_later_are_found_in_older_facts_once_they_are_filled(
    places: Places, database: Database
) -> None:
    """`size` is new."""
    before = FactKind("finding", Finding, filters={"name": "text"})
    old, overseer = Facts(database, Kinds([Manifest("trial", (), facts=(before,))])), Database(places.relay)
    ids = [fact_id(NOW, f"f{number}") for number in range(1200)]
    for org in ("acme", "beta"):
        Writer(old, org).put(*((one, {"name": "a", "size": "large"}) for one in ids), org=org, kind="finding")
    new = Facts(database, Kinds(MANIFESTS), overseer)
    large = [("filter[size]", "large"), ("limit", "1")]
    assert [new.list(org, "finding", large).total_estimate for org in ("acme", "beta")] == [0, 0]
    assert new.fill_slots() == 2400 and new.fill_slots() == 0
    assert [new.list(org, "finding", large).total_estimate for org in ("acme", "beta")] == [1200, 1200]
    overseer.close()


def test_reading_does_not_wait_for_a_writer(store: Facts, writer: Writer) -> None:
    writer.put(incident(1))
    held, go_on = threading.Event(), threading.Event()

    def hold(before: Any) -> Any:
        held.set()
        assert go_on.wait(60)
        return None

    thread = threading.Thread(target=writer, args=(Change("acme", "incident", "x", NOW, hold),))
    thread.start()
    assert held.wait(60)
    with_another = store.list("acme", "incident", FIRING)
    at = store.positions("w", "e")
    go_on.set()
    thread.join()
    assert numbers(with_another.items) == [1] and at == {("t", 0): 0}


def test_a_process_begins_while_another_one_was_stopped_in_the_middle_of_a_write(store: Facts, places: Places) -> None:
    held, go_on = threading.Event(), threading.Event()

    def hold(before: Any) -> Any:
        held.set()
        assert go_on.wait(60)
        return None

    assert store.write([], "r", "e", {("t", 0): 7}, {})
    change = Change("acme", "incident", "x", NOW, hold)
    thread = threading.Thread(target=store.write, args=([change], "r", "e", {("t", 0): 8}, {("t", 0): 7}))
    thread.start()
    assert held.wait(60)
    with opened(places) as beginning:
        beginning.leave_other_logs("r", "e", "incident", FIRING, lambda _: pytest.fail("none is another's"))
        found = beginning.positions("r", "e")
    go_on.set()
    thread.join()
    assert found == {("t", 0): 7}


@pytest.mark.parametrize(("kind", "mistake"), [
    (FactKind("Bad", Finding), "trial.Bad: expected a name"),
    (FactKind("bad", Finding, filters={"nothing": "text"}), "trial.bad.nothing: expected one of name"),
    (FactKind("bad", Finding, filters={"count": "text"}), "trial.bad.count: expected a field of str"),
    (FactKind("bad", Finding, sorts=("name",)), "trial.bad.name: expected sorts among the filters"),
    (FactKind("bad", Finding, default_sort="-name"), "trial.bad: expected a default_sort"),
    (FactKind("bad", Finding, filters={"size": "text"}, ranks={"size": ("large",)}), "trial.bad.size: expected a Literal"),
    (FactKind("bad", Finding, ranks={"size": ("large", "small")}), "trial.bad.size: expected ranks of a text"),
    (FactKind("bad", Finding, scopes={"add": "write"}), "trial.bad: expected scopes of its commands"),
    (FINDING, "trial.finding: module trial has a kind of this name"),
])  # fmt: skip
def test_a_declaration_that_does_not_hold_is_named(kind: FactKind, mistake: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Kinds([Manifest("trial", (), facts=(FINDING, kind))])
    assert str(caught.value).startswith(mistake), caught.value


@pytest.mark.slow
def test_row_security_binds_facts_and_the_relay_learns_their_orgs_only(
    postgres_urls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = Places(postgres_urls.app, postgres_urls.relay)
    with opened(places) as facts:
        writer = Writer(facts)
        writer.put(incident(1))
        writer.put(theirs := incident(2), org="beta")
        conditions: list[str] = []

        def forgotten(_: Transaction, table: Table) -> ColumnElement[bool]:
            conditions.append(table.name)
            return true()

        monkeypatch.setattr(Transaction, "own", forgotten)
        assert numbers(facts.list("acme", "incident").items) == [1] and facts.get("acme", "incident", theirs[0]) is None
        # What is written for one org does not touch the fact of another that has the same id.
        writer.put((theirs[0], {**theirs[1], "rule": "mine"}))
        found = facts.get("beta", "incident", theirs[0])
        assert found is not None and (found.body["rule"], found.version) == ("r", 1)
        assert "facts" in conditions
        with facts._database.transaction(None) as tx:
            assert tx.rows(select(facts_table.c.id)) == []
        with (
            pytest.raises(exc.ProgrammingError, match="row-level security"),
            facts._database.transaction("acme", writes=True) as tx,
        ):
            tx.put(
                facts_table, [{"org_id": "beta", "kind": "incident", "id": "x", "version": 1, "at": 0, "layout": 0, "doc": "{}"}]
            )
        overseer = Database(postgres_urls.relay)
        with pytest.raises(exc.ProgrammingError, match="permission denied"), overseer.transaction(None) as tx:
            tx.rows(select(facts_table.c.id))
        overseer.close()
