"""Changes: the chain per org, its verification, and that nobody who follows misses one."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from cmis_stream.core.errors import Rejected
from cmis_stream.store.changes import Change, Changes
from cmis_stream.store.database import Database
from cmis_stream.store.decisions import Command
from cmis_stream.store.documents import Documents
from tests.store.support import ADA, BOB, NOW, Clock, act, create, kinds


def some(documents: Documents) -> None:
    first = create(documents, "campaign", name="A", tags=["ü"])
    act(documents, "patch", first, BOB, spend_micros=5)
    act(documents, "delete", first)
    act(documents, "restore", first)


def test_a_change_says_who_did_what_when_before_and_after(documents: Documents, database: Database) -> None:
    some(documents)
    found = Changes(database).after("acme", 0, 10)
    assert [(one.seq, one.version, one.command, one.actor) for one in found] == [
        (1, 1, "create", "ada"), (2, 2, "patch", "bob"), (3, 3, "delete", "ada"), (4, 4, "restore", "ada"),
    ]  # fmt: skip
    assert [one.at > NOW for one in found] == [True] * 4 and found == sorted(found, key=lambda one: one.at)
    shown = [
        tuple(side and json.loads(side)["spend_micros"] if side else side for side in (one.before, one.after)) for one in found
    ]
    assert shown == [(None, None), (None, 5), (5, None), (None, 5)]
    assert [one.before is None for one in found] == [True, False, False, True]
    assert [one.after is None for one in found] == [False, False, True, False]
    assert Changes(database).after("acme", 2, 1) == [found[2]]
    assert Changes(database).of("acme", "campaign", found[0].id) == found


def test_the_hash_is_what_the_page_says(documents: Documents, database: Database) -> None:
    """Worked out with nothing of ours: SHA-256 over the hash before and compact JSON."""
    some(documents)
    before = ""
    for one in Changes(database).after("acme", 0, 10):
        fields = [one.org, one.seq, one.kind, one.id, one.version, one.command, one.actor, one.at, one.before, one.after]
        plain = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
        assert one.prev_hash == before
        assert one.hash == (before := hashlib.sha256((before + plain).encode()).hexdigest())


def test_each_org_has_a_chain_of_its_own(documents: Documents, database: Database) -> None:
    some(documents)
    create(documents, "campaign", org="other", name="A")
    assert [one.seq for one in Changes(database).after("other", 0, 10)] == [1]
    assert (Changes(database).verify("acme").seq, Changes(database).verify("other").seq) == (4, 1)
    assert Changes(database).verify("nobody").broken is None


def test_a_rejected_command_leaves_no_gap(documents: Documents, database: Database) -> None:
    create(documents, "campaign", name="A", slug="a")
    for _ in range(2):
        with pytest.raises(Rejected):
            create(documents, "campaign", name="B", slug="a")
    create(documents, "campaign", name="B")
    assert [one.seq for one in Changes(database).after("acme", 0, 10)] == [1, 2]


@pytest.mark.parametrize(
    ("tampering", "seq", "said"),
    [
        ("update changes set after = replace(after, '5', '6') where seq = 2", 1, "change 2 is not what it was"),
        ("update changes set actor = 'ada' where seq = 2", 1, "change 2 is not what it was"),
        ("delete from changes where seq = 2", 1, "change 2 is missing"),
        ("delete from changes where seq = 1", 0, "change 1 is missing"),
        ("delete from changes where seq = 4", 3, "change 4 is missing, the last one was 4"),
        ("update changes set prev_hash = '' where seq = 3", 2, "change 3 does not follow on change 2"),
        ("update org_heads set hash = 'x'", 4, "change 4 is not the last one that was written"),
        ("delete from changes", 0, "change 1 is missing, the last one was 4"),
    ],
)
def test_what_was_tampered_with_is_found_and_where(tmp_path: Path, tampering: str, seq: int, said: str) -> None:
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    some(Documents(database, kinds(), Clock()))
    engine = create_engine(f"sqlite:///{tmp_path / 'store.db'}")
    with engine.begin() as connection:
        assert connection.execute(text(tampering)).rowcount
    found = Changes(database).verify("acme")
    assert found.seq == seq and found.broken is not None and said in found.broken
    engine.dispose()
    database.close()


Step = tuple[str, int, bool]
"""org, changes that the follower reads afterwards at most, whether the command is one that will be rejected"""


def test_a_follower_sees_every_change_once_and_in_order_whatever_the_schedule(documents: Documents, database: Database) -> None:
    run = iter(range(10_000))

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.booleans()), max_size=25))
    @settings(max_examples=30, deadline=None)
    def check(steps: list[Step]) -> None:
        name = next(run)
        seen: dict[str, list[Change]] = {f"{org}{name}": [] for org in "abc"}
        written = dict.fromkeys(seen, 0)

        def follow(org: str, limit: int) -> None:
            seen[org] += Changes(database).after(org, seen[org][-1].seq if seen[org] else 0, limit)

        for org, reads, bad in steps:
            org = f"{org}{name}"  # noqa: PLW2901
            try:
                documents.execute(org, ADA, Command("create", "campaign", body={"name": "" if bad else "A"}))
                written[org] += 1
            except Rejected:
                assert bad
            if reads:
                follow(org, reads)
        for org in written:
            follow(org, 1_000)
            assert [one.seq for one in seen[org]] == list(range(1, written[org] + 1))
            assert Changes(database).verify(org).broken is None

    check()


def test_a_follower_misses_nothing_of_writers_that_interleave(documents: Documents, database: Database) -> None:
    """Several writers and orgs at once; the follower looks all the time, and never finds a gap that is filled behind it."""
    orgs, each = ("acme", "other"), 25
    stop, seen = threading.Event(), {org: list[int]() for org in orgs}

    def write(org: str, number: int) -> None:
        for count in range(each):
            create(documents, "campaign", org, name=f"{number}/{count}")

    def follow() -> None:
        while True:
            last = stop.is_set()
            for org in orgs:
                seen[org] += [one.seq for one in Changes(database).after(org, seen[org][-1] if seen[org] else 0, 1_000)]
            if last:
                return
            stop.wait(0.001)  # a thread that never waits leaves writers the interpreter every 5 ms only

    follower = threading.Thread(target=follow)
    follower.start()
    writers = [threading.Thread(target=write, args=(org, number)) for org in orgs for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    stop.set()
    follower.join()
    assert seen == {org: list(range(1, 3 * each + 1)) for org in orgs}
    assert [Changes(database).verify(org).seq for org in orgs] == [3 * each] * 2
