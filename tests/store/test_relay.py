"""The relay: every change at least once, in order, whatever fails or is killed; on both databases."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmis_stream.store.changes import Change, Changes
from cmis_stream.store.database import Database, Unavailable
from cmis_stream.store.documents import Documents
from cmis_stream.store.relay import AT_ONCE, Relay, SendFailed
from tests.store.conftest import Places
from tests.store.support import create, kinds

ROOT = Path(__file__).parents[2]


@pytest.fixture
def following(places: Places) -> Iterator[Database]:
    opened = Database(places.relay)
    yield opened
    opened.close()


class Receiver:
    """Keeps what it is sent as a follower does: what is not newer than what it has is ignored; a gap is a mistake."""

    def __init__(self) -> None:
        self.last: dict[str, int] = defaultdict(int)
        self.sent = 0
        self.fails: Iterator[bool] = iter(())
        """Of each send: whether it fails, having taken what it was sent or not."""

    def __call__(self, org: str, changes: Sequence[Change]) -> None:
        self.sent += len(changes)
        failing = next(self.fails, None)
        if failing is not True:
            for one in changes:
                assert one.org == org and one.seq <= self.last[org] + 1
                self.last[org] = max(self.last[org], one.seq)
        if failing is not None:
            raise SendFailed("the receiver is away")


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    give_up_at = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def test_changes_are_sent_once_org_by_org_and_in_order(documents: Documents, following: Database) -> None:
    receiver = Receiver()
    relay = Relay(following, receiver)
    for number in range(3):
        create(documents, "campaign", "acme", name=str(number))
    create(documents, "campaign", "other", name="a")
    assert (relay.once(), relay.once()) == (4, 0)
    create(documents, "campaign", "other", name="b")
    assert Relay(following, receiver).once() == 1  # another one goes on where this one was
    assert dict(receiver.last) == {"acme": 3, "other": 2} and receiver.sent == 5


def test_an_org_with_much_to_send_does_not_hold_up_the_others(documents: Documents, following: Database) -> None:
    from cmis_stream.store.decisions import Command
    from cmis_stream.store.documents import Item
    from tests.store.support import ADA

    items = [Item(Command("create", "campaign", body={"name": str(n)})) for n in range(AT_ONCE + 1)]
    documents.bulk("acme", ADA, items)
    create(documents, "campaign", "other", name="a")
    order = list[str]()
    Relay(following, lambda org, changes: order.append(f"{org} {len(changes)}")).once()
    assert order == [f"acme {AT_ONCE}", "other 1", "acme 1"]


def test_an_org_whose_changes_cannot_be_sent_does_not_hold_up_the_others(documents: Documents, following: Database) -> None:
    for org in ("acme", "bad", "other"):
        create(documents, "campaign", org, name="a")
    sent = list[str]()

    def send(org: str, changes: Sequence[Change]) -> None:
        if org == "bad":
            raise SendFailed("too large")
        sent.append(org)

    relay = Relay(following, send)
    for _ in range(2):
        with pytest.raises(SendFailed, match="bad: too large"):
            relay.once()
    assert sent == ["acme", "other"]


def test_whatever_sends_fail_a_follower_misses_nothing(documents: Documents, following: Database) -> None:
    run = iter(range(10_000))
    steps = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([None, None, True, False])), min_size=1, max_size=15)

    @given(steps)
    @settings(max_examples=30, deadline=None)
    def check(steps: list[tuple[str, bool | None]]) -> None:
        name, receiver, written = next(run), Receiver(), dict[str, int]()
        relay = Relay(following, receiver)
        for letter, fails in steps:
            org = f"{letter}{name}"
            create(documents, "campaign", org, name="A")
            written[org] = written.get(org, 0) + 1
            receiver.fails = iter([] if fails is None else [fails])
            try:
                relay.once()
            except SendFailed:
                assert fails is not None
        receiver.fails = iter(())
        relay.once()
        assert dict(receiver.last) == written

    check()


def test_it_runs_until_it_is_stopped_and_waits_out_a_receiver_that_is_away(
    documents: Documents, following: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmis_stream.store.relay.RETRY_S", 0.05)
    receiver, stop = Receiver(), threading.Event()
    receiver.fails = iter([True, False, True])
    thread = threading.Thread(target=Relay(following, receiver).run, args=(stop,))
    thread.start()
    for number in range(3):
        create(documents, "campaign", name=str(number))
    until(lambda: receiver.last["acme"] == 3)
    stop.set()
    thread.join(30)
    assert not thread.is_alive()


def test_one_relays_at_a_time_and_the_next_takes_its_place(documents: Documents, following: Database, places: Places) -> None:
    with following.following() as first:
        assert first is not None
        second = Database(places.relay)
        with second.following() as refused:
            assert refused is None
        receiver, stop = Receiver(), threading.Event()
        thread = threading.Thread(target=Relay(second, receiver).run, args=(stop,))
        thread.start()
        create(documents, "campaign", name="a")
    until(lambda: receiver.last["acme"] == 1)
    stop.set()
    thread.join(30)
    second.close()


def test_a_commit_wakes_it(documents: Documents, database: Database, places: Places) -> None:
    """In the same process on SQLite, from any process on PostgreSQL: without it, the wait would take its ten minutes."""
    following = database if places.app == places.relay else Database(places.relay)
    with following.following() as watch:
        assert watch is not None
        watch.wait(0.01)
        woken = threading.Event()
        thread = threading.Thread(target=lambda: (watch.wait(600), woken.set()), daemon=True)
        thread.start()
        while not woken.wait(0.05):  # the first commits may come before the thread waits
            create(documents, "campaign", name="a")
            assert thread.is_alive() or woken.is_set()
    if following is not database:
        following.close()


@pytest.mark.slow
def test_kills_of_writers_and_relays_lose_nothing_that_was_answered(places: Places, tmp_path: Path) -> None:
    """kill -9 at random moments: every answered document is in its org's chain, and was sent on, in order and without gaps."""
    sent, orgs, chance = tmp_path / "sent", ("acme", "other", "third"), random.Random(5)
    sent.touch()
    Documents(Database(places.app), kinds())
    running: dict[str, subprocess.Popen[bytes]] = {}
    starts = iter(range(1_000))

    def start(role: str) -> None:
        name = f"{role}-{next(starts)}"
        more = [places.relay, str(sent)] if role.startswith("relay") else [places.app, name, *orgs]
        with (tmp_path / name).open("wb") as out:
            command = [sys.executable, "-m", "tests.store.worker", "relay" if role.startswith("relay") else "write", *more]
            running[role] = subprocess.Popen(command, cwd=ROOT, stdout=out)

    def lines(path: Path) -> list[list[str]]:
        return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]

    try:
        for role in ("writer 1", "writer 2", "writer 3", "relay 1", "relay 2"):
            start(role)
        for _ in range(8):
            enough = len(lines(sent)) + 40
            until(lambda: len(lines(sent)) >= enough)  # noqa: B023
            time.sleep(chance.random() * 0.1)
            role = chance.choice(sorted(running))
            assert running[role].poll() is None
            running[role].kill()
            running[role].wait()
            start(role)
        for role in ("writer 1", "writer 2", "writer 3"):
            running[role].kill()
            running[role].wait()
        database = Database(places.app)
        heads = {org: Changes(database).verify(org) for org in orgs}
        assert all(one.broken is None for one in heads.values())
        until(lambda: {org: max((int(seq) for name, seq, _ in lines(sent) if name == org), default=0) for org in orgs}
              == {org: one.seq for org, one in heads.items()})  # fmt: skip
    finally:
        for process in running.values():
            process.kill()
            process.wait()

    hashes: dict[str, list[str]] = defaultdict(list)
    for org, seq, digest in lines(sent):
        assert int(seq) <= len(hashes[org]) + 1, "a change was sent before the one before it"
        if int(seq) == len(hashes[org]) + 1:
            hashes[org].append(digest)
        assert hashes[org][int(seq) - 1] == digest
    answered = [line for path in tmp_path.glob("writer*") for line in lines(path)]
    assert len(answered) > 200
    for org in orgs:
        chain = Changes(database).after(org, 0, 100_000)
        assert [one.hash for one in chain] == hashes[org]
        names = [json.loads(one.after or "")["name"] for one in chain]
        assert len(set(names)) == len(names), "a key was carried out twice"
        assert {identity for name, _, identity in answered if name == org} <= {one.id for one in chain}
    database.close()


@pytest.mark.slow
def test_the_relay_waits_out_a_database_that_is_killed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmis_stream.store.relay.RETRY_S", 0.1)
    urls = request.getfixturevalue("postgres_urls")
    database, following = Database(urls.app), Database(urls.relay)
    documents, receiver, stop = Documents(database, kinds()), Receiver(), threading.Event()
    thread = threading.Thread(target=Relay(following, receiver).run, args=(stop,))
    thread.start()
    create(documents, "campaign", name="before")
    until(lambda: receiver.last["acme"] == 1)
    urls.server.kill()
    try:
        with pytest.raises(Unavailable):
            create(documents, "campaign", name="meanwhile")
    finally:
        urls.server.start()
    create(documents, "campaign", name="after")
    until(lambda: receiver.last["acme"] == 2)
    assert Changes(database).verify("acme").broken is None
    stop.set()
    thread.join(30)
    database.close()
    following.close()
