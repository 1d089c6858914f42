"""Effects: with the decision or after it, at least once, in order, and none holds up another one; on both databases."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import exc, select, text, update

from cmis_stream.core.errors import ConfigError, Rejected
from cmis_stream.store import primitive_tables, tables
from cmis_stream.store.built_in_effects import NOBODY, commanding, publishing, starting
from cmis_stream.store.changes import Changes
from cmis_stream.store.database import Database, Unavailable
from cmis_stream.store.decisions import Carried, Command, Permanent, Temporary
from cmis_stream.store.documents import Documents, Item
from cmis_stream.store.due import Due
from cmis_stream.store.jobs import MOST_QUEUED, Job, JobKind, Jobs
from cmis_stream.store.kinds import Kinds, Manifest
from cmis_stream.store.outbox import KEPT_MS, LEASE_MS, MOST_ATTEMPTS, PAUSES_MS, Outbox
from cmis_stream.store.schedules import Schedule, Schedules
from tests.servers.postgres import Urls
from tests.store.conftest import Places
from tests.store.errands import ask, errand_kinds
from tests.store.primitives import JOB_KINDS, process
from tests.store.support import ADA
from tests.store.test_jobs import Steady
from tests.store.test_relay import until


class World:
    """An outbox whose own effects do what the test says. published: (org, topic, id, body)."""

    def __init__(self, database: Database, due: Due, at: Steady) -> None:
        self.database, self.due, self.at = database, due, at
        self.published: list[tuple[str, str, str, Any]] = []
        self.jobs_published: list[Job] = []
        self.own: Callable[[Carried], None] = lambda carried: None
        self.kinds = errand_kinds({"own": self._own})
        self.jobs = Jobs(database, self.kinds.jobs, at, self.jobs_published.append)
        self.documents = Documents(database, self.kinds, at, jobs=self.jobs)
        self.schedules = Schedules(database, at)
        self.outbox = self.made("here")

    def made(self, worker: str) -> Outbox:
        def publish(org: str, topic: str, identity: str, body: bytes) -> None:
            self.published.append((org, topic, identity, json.loads(body)))

        built_in = {"publish": publishing(publish), "command": commanding(self.documents, self.kinds)}
        return Outbox(
            self.database, self.due, {**built_in, **self.kinds.effects},
            in_transaction={"job": starting(self.jobs, self.at)}, worker=worker, clock=self.at,
        )  # fmt: skip

    def _own(self, carried: Carried) -> None:
        self.own(carried)

    def rows(self, org: str = "acme") -> list[Any]:
        return rows(self.database, org)

    def names(self, org: str = "acme") -> list[str]:
        return sorted(one.body["name"] for one in self.documents.list(org, ADA, "errand").items)

    def undo(self, *, died: bool = False) -> None:
        """As if the process had ended after it carried everything out, before it said so."""
        claim = {"claimed_by": "here", "claimed_until": self.at.now_ms + LEASE_MS} if died else {}
        with self.database.transaction("acme", writes=True) as tx:
            tx.run(update(tables.outbox).where(tx.own(tables.outbox)).values(done_at=None, **claim))


@pytest.fixture
def at() -> Steady:
    return Steady()


@pytest.fixture
def world(database: Database, places: Places, at: Steady) -> Iterator[World]:
    overseer = Database(places.relay)
    yield World(database, Due(overseer), at)
    overseer.close()


# --- in the decision's transaction ------------------------------------------------------------------------------------------


def do(world: World, name: str, **body: Any) -> None:
    world.documents.execute("acme", ADA, Command(name, "errand", body=body))


def test_a_command_starts_a_job_which_is_there_and_told_when_it_is_answered(world: World) -> None:
    do(world, "start", job={"kind": "count", "body": {"to": 3}})
    (job,) = world.jobs.list("acme")
    assert (job.kind, job.body, job.actor, job.state) == ("count", {"to": 3}, "ada", "queued")
    assert world.jobs_published == [job] and world.rows() == []


@pytest.mark.parametrize(
    ("job", "code", "pointer"),
    [
        ({"kind": "nothing"}, "invalid", "/job/kind"),
        ({"kind": "count", "body": {"to": 2**63}}, "out_of_range", "/job/body/to"),
    ],
)
def test_a_job_that_cannot_be_started_refuses_its_command(world: World, job: dict[str, Any], code: str, pointer: str) -> None:
    with pytest.raises(Rejected) as raised:
        do(world, "start", job=job)
    assert (raised.value.code, raised.value.field) == (code, pointer)
    assert world.names() == [] and world.jobs.list("acme") == [] and world.jobs_published == []


def test_a_command_is_refused_when_too_many_jobs_wait_and_a_bulk_goes_on_without_it(world: World) -> None:
    for number in range(MOST_QUEUED - 1):
        world.jobs.enqueue("acme", str(number), "count", {}, "ada")
    world.jobs_published.clear()
    commands = [Command("start", "errand", body={"job": {"kind": kind}}) for kind in ("count", "wait")]
    done = world.documents.bulk("acme", ADA, [*map(Item, commands), Item(Command("create", "errand", body={"name": "last"}))])
    assert [one.rejected and (one.rejected["code"], one.rejected["field"]) for one in done] == [None, ("too_many", "/job"), None]
    assert world.names() == ["count", "last"] and len(world.jobs.list("acme", 1_000)) == MOST_QUEUED
    assert [job.kind for job in world.jobs_published] == ["count"]


def test_a_job_whose_bulk_item_is_rejected_is_not_there_and_not_told(world: World) -> None:
    when = {"id": "s", "zone": "UTC", "rule": "never", "effect": "own"}
    bodies = [{"job": {"kind": "count"}}, {"job": {"kind": "wait"}, "when": when}, {"job": {"kind": "deaf"}}]
    done = world.documents.bulk("acme", ADA, [Item(Command("start", "errand", body=body)) for body in bodies])
    assert [one.rejected and one.rejected["field"] for one in done] == [None, "/when/rule", None]
    assert [job.kind for job in world.jobs_published] == ["count", "deaf"]
    assert sorted(job.kind for job in world.jobs.list("acme")) == ["count", "deaf"]


def test_a_command_sets_and_removes_a_schedule_whose_effects_are_its_actors(world: World, at: Steady) -> None:
    when = {"id": "s", "zone": "UTC", "rule": "* * * * *", "effect": "job", "body": {"kind": "count", "body": {"to": 1}}}
    do(world, "plan", when=when)
    found = world.schedules.get("acme", "s")
    assert found is not None and found.due_at is not None and world.names() == ["planned"]
    at.now_ms = found.due_at
    assert (world.schedules.fire("acme"), world.outbox.once()) == (1, 1)
    (row,), (job,) = world.rows(), world.jobs.list("acme")
    assert (row.actor, row.done_at, job.id, job.actor) == ("ada", at.now_ms, row.id, "ada")
    assert job.body == {"to": 1, "schedule": "s", "occurrence": found.due_at, "late": False}
    do(world, "unplan", id="s")
    assert world.schedules.get("acme", "s") is None


@pytest.mark.parametrize(
    ("wrong", "pointer"),
    [({"rule": "FREQ=OFTEN"}, "/when/rule"), ({"zone": "Mars/North"}, "/when/zone"), ({"missed": "x"}, "/when/missed")],
)
def test_a_schedule_that_cannot_be_read_refuses_its_command(world: World, wrong: dict[str, str], pointer: str) -> None:
    when = {"id": "s", "zone": "UTC", "rule": "* * * * *", "effect": "own", **wrong}
    with pytest.raises(Rejected) as raised:
        do(world, "plan", when=when)
    assert raised.value.field == pointer and world.names() == [] and world.schedules.list("acme") == []


# --- afterwards -------------------------------------------------------------------------------------------------------------


def test_effects_are_published_in_the_order_of_their_times_and_not_before(world: World, at: Steady) -> None:
    late = at.now_ms + 1_000
    at_once = [("publish", {"topic": "t", "body": number}) for number in range(10)]
    ask(world.documents, ("publish", {"topic": "t", "body": "late"}, late), *at_once[:5])
    ask(world.documents, *at_once[5:])
    assert world.outbox.once() == 10
    at.now_ms = late
    assert (world.outbox.once(), world.outbox.once()) == (1, 0)
    assert world.published == [("acme", "t", row.id, json.loads(row.body)["body"]) for row in world.rows()]
    assert [body for _, _, _, body in world.published] == [*range(10), "late"]
    assert all(row.done_at is not None and row.claimed_by is None for row in world.rows())


def test_a_command_is_carried_out_once_for_whoever_decided_it(world: World) -> None:
    ask(world.documents, ("command", {"kind": "errand", "name": "create", "body": {"name": "made"}}))
    world.outbox.once()
    world.undo()
    assert world.outbox.once() == 1 and world.names() == ["made"]
    (change,) = Changes(world.database).after("acme", 0, 10)
    assert (change.command, change.actor) == ("create", "ada")


def test_a_job_is_started_once_and_what_nobody_decided_is_nobodys(world: World, at: Steady) -> None:
    world.schedules.put("acme", Schedule("s", "UTC", "* * * * *", "job", {"kind": "count"}))
    at.now_ms += 60_000
    world.schedules.fire("acme")
    world.outbox.once()
    world.undo()
    assert world.outbox.once() == 1
    (job,) = world.jobs.list("acme")
    assert job.actor == NOBODY and len(world.jobs_published) == 1


def test_what_fails_for_a_time_is_tried_again_later_and_later_and_holds_up_nothing(world: World, at: Steady) -> None:
    tried = list[tuple[int, int]]()

    def own(carried: Carried) -> None:
        tried.append((carried.attempt, at.now_ms))
        raise Temporary("the platform is away")

    world.own = own
    ask(world.documents, ("own", {}), ("publish", {"topic": "t", "body": 1}))
    ask(world.documents, ("publish", {"topic": "t", "body": 2}), org="other")
    began = at.now_ms
    assert world.outbox.once() == 3 and len(world.published) == 2
    while not world.outbox.failed("acme"):
        at.now_ms += 1_000
        world.outbox.once()
    pauses = [*PAUSES_MS, *[PAUSES_MS[-1]] * (MOST_ATTEMPTS - 1 - len(PAUSES_MS))]
    assert tried == [(number + 1, began + sum(pauses[:number])) for number in range(MOST_ATTEMPTS)]
    at.now_ms += 100 * PAUSES_MS[-1]
    assert world.outbox.once() == 0 and world.due.failed_effects() == {"acme": 1}
    (failed,) = world.outbox.failed("acme")
    assert (failed.effect, failed.attempts, failed.problem, failed.actor) == ("own", 10, "the platform is away", "ada")

    assert not world.outbox.retry("other", failed.id) and world.outbox.failed("other") == []
    world.own = lambda carried: tried.append((carried.attempt, 0))
    assert world.outbox.retry("acme", failed.id) and not world.outbox.retry("acme", failed.id)
    assert world.outbox.once() == 1 and tried[-1] == (1, 0)
    assert world.outbox.failed("acme") == [] and world.due.failed_effects() == {}


@pytest.mark.parametrize(
    ("effect", "body", "says"),
    [
        ("unheard_of", {}, "no module carries out effects called 'unheard_of'"),
        ("own", {}, "never"),
        ("publish", {"body": 1}, "topic: expected a text"),
        ("command", {"kind": "errand", "name": "create", "body": []}, "body: expected an object"),
        ("command", {"kind": "errand", "name": "create", "body": {}, "expected_version": "1"}, "a number as expected_version"),
        ("command", {"kind": "errand", "name": "create", "body": {"name": 7}}, "/name: expected"),
        ("command", {"kind": "nothing", "name": "create", "body": {}}, "kind: expected errand"),
        ("job", {"kind": "nothing"}, "kind: expected count"),
    ],
)
def test_what_can_never_work_is_given_up_at_once(world: World, effect: str, body: dict[str, Any], says: str) -> None:
    def own(carried: Carried) -> None:
        raise Permanent("never")

    world.own = own
    ask(world.documents, (effect, body), ("publish", {"topic": "t", "body": 1}))
    assert world.outbox.once() == 2 and len(world.published) == 1
    (failed,) = world.outbox.failed("acme")
    assert says in failed.problem and failed.attempts == 1


def test_a_job_waits_while_too_many_others_do(world: World, at: Steady) -> None:
    for number in range(MOST_QUEUED):
        world.jobs.enqueue("acme", str(number), "count", {}, "ada")
    ask(world.documents, ("job", {"kind": "wait"}))
    assert world.outbox.once() == 1 and world.outbox.failed("acme") == []
    world.jobs.cancel("acme", "0")
    at.now_ms += PAUSES_MS[0]
    assert world.outbox.once() == 1 and "wait" in {job.kind for job in world.jobs.list("acme", 1_000)}


def test_a_mistake_in_a_modules_code_is_logged_and_tried_again(
    world: World, at: Steady, caplog: pytest.LogCaptureFixture
) -> None:
    def own(carried: Carried) -> None:
        if carried.attempt == 1:
            raise ZeroDivisionError("a password: hunter2")

    world.own = own
    ask(world.documents, ("own", {}))
    assert world.outbox.once() == 1 and "Traceback" in caplog.text
    at.now_ms += PAUSES_MS[0]
    assert world.outbox.once() == 1 and world.rows()[0].done_at is not None


def test_one_that_ends_its_process_each_time_is_given_up(world: World) -> None:
    ask(world.documents, ("publish", {"topic": "t", "body": 1}))
    with world.database.transaction("acme", writes=True) as tx:
        tx.run(update(tables.outbox).where(tx.own(tables.outbox)).values(attempts=MOST_ATTEMPTS))
    assert world.outbox.once() == 0 and world.published == []
    assert "its process ended each time" in world.outbox.failed("acme")[0].problem


def test_what_was_done_is_forgotten_after_a_week_and_what_waits_or_failed_is_not(world: World, at: Steady) -> None:
    later = at.now_ms + 100 * KEPT_MS
    ask(world.documents, ("publish", {"topic": "t"}), ("unheard_of", {}), ("publish", {"topic": "t"}, later))
    world.outbox.once()
    assert world.due.done_effects(at.now_ms) == [] and world.due.done_effects(at.now_ms + 1) == ["acme"]
    assert world.outbox.forget("other", at.now_ms + 1) == 0 and world.outbox.forget("acme", at.now_ms + 1) == 1
    assert sorted(row.effect for row in world.rows()) == ["publish", "unheard_of"]


# --- several workers --------------------------------------------------------------------------------------------------------


def test_an_orgs_effects_are_one_workers_until_its_lease_is_over(world: World, at: Steady) -> None:
    begun, go_on, attempts = threading.Event(), threading.Event(), list[int]()

    def own(carried: Carried) -> None:
        attempts.append(carried.attempt)
        if carried.attempt == 1:
            begun.set()
            assert go_on.wait(60)
            raise Permanent("said by one that has no say any more")
        if carried.attempt == 2:
            raise Temporary("later")

    world.own = own
    ask(world.documents, ("own", {}), ("publish", {"topic": "t", "body": 1}))
    first, second = threading.Thread(target=world.outbox.once), world.made("there")
    first.start()
    try:
        assert begun.wait(60)
        at.now_ms += LEASE_MS - 1
        assert second.once() == 0 and world.due.effects(at.now_ms, "there") == []
        at.now_ms += 1
        assert second.once() == 2 and attempts == [1, 2] and len(world.published) == 1
    finally:
        go_on.set()
        first.join(60)
    assert world.outbox.failed("acme") == []
    at.now_ms += PAUSES_MS[1]
    assert second.once() == 1 and attempts == [1, 2, 3] and all(row.done_at is not None for row in world.rows())


def test_of_workers_that_look_at_the_same_time_one_carries_out_an_orgs_effects(world: World) -> None:
    inside, most, order = list[int](), list[int](), list[int]()

    def own(carried: Carried) -> None:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.001)
        order.append(carried.body["number"])
        inside.pop()

    world.own = own
    for first in range(0, 60, 3):
        ask(world.documents, *(("own", {"number": number}) for number in range(first, first + 3)))
    workers = [world.made(str(number)) for number in range(3)]

    def work(outbox: Outbox) -> None:
        while len(order) < 60:
            outbox.once()

    threads = [threading.Thread(target=work, args=(outbox,)) for outbox in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert max(most) == 1 and order == list(range(60))


def test_who_is_started_again_goes_on_at_once_with_what_it_had_begun(world: World) -> None:
    ask(world.documents, ("publish", {"topic": "t", "body": 1}))
    world.outbox.once()
    world.undo(died=True)
    assert world.made("there").once() == 0
    assert world.made("here").once() == 1 and len({identity for _, _, identity, _ in world.published}) == 1


@pytest.fixture
def running(world: World) -> Iterator[Outbox]:
    stop = threading.Event()
    thread = threading.Thread(target=world.outbox.run, args=(stop,))
    thread.start()
    yield world.outbox
    stop.set()
    thread.join(60)
    assert not thread.is_alive()


def test_a_slow_effect_of_one_org_does_not_hold_up_another_org(world: World, running: Outbox) -> None:
    go_on = threading.Event()

    def own(carried: Carried) -> None:
        assert go_on.wait(60)

    world.own = own
    ask(world.documents, ("own", {}))
    ask(world.documents, ("publish", {"topic": "t", "body": 1}), org="other")
    until(lambda: len(world.published) == 1)
    assert world.rows()[0].done_at is None
    go_on.set()
    until(lambda: world.rows()[0].done_at is not None)


def test_it_waits_out_a_database_that_is_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmis_stream.store.outbox.RETRY_S", 0.05)
    fails, whole = iter(range(3)), world.database.transaction

    def transaction(org: str | None, *, writes: bool = False) -> Any:
        if writes and threading.current_thread().name.startswith("outbox") and next(fails, None) is not None:
            raise Unavailable("away")
        return whole(org, writes=writes)

    ask(world.documents, ("publish", {"topic": "t", "body": 1}))
    monkeypatch.setattr(world.database, "transaction", transaction)
    stop = threading.Event()
    thread = threading.Thread(target=world.outbox.run, args=(stop,))
    thread.start()
    until(lambda: world.rows()[0].done_at is not None)
    stop.set()
    thread.join(60)
    assert not thread.is_alive() and next(fails, None) is None


@pytest.mark.slow
def test_kills_repeat_no_command_and_lose_no_publication(places: Places, tmp_path: Path) -> None:
    """kill -9 of two workers at random moments, each started again under its name; a lease is two seconds here."""
    file, chance, count = tmp_path / "published", random.Random(7), 120
    file.touch()
    with ExitStack() as opened:
        database = Database(places.app)
        opened.callback(database.close)
        documents, orgs = Documents(database, errand_kinds()), ("acme", "other", "third")

        def begun(name: str) -> Any:
            started = opened.enter_context(process("outbox", places.app, places.relay, name, "2000", str(file)))
            return started

        def done() -> int:
            return sum(row.done_at is not None for org in orgs for row in rows(database, org))

        workers = {name: begun(name) for name in ("one", "two")}
        for number in range(count):
            create = {"kind": "errand", "name": "create", "body": {"name": str(number)}}
            ask(documents, ("command", create), ("publish", {"topic": "t", "body": number}), org=orgs[number % 3])
            if number % 20 == 19:
                enough = done() + 4
                until(lambda: done() >= enough)  # noqa: B023
                time.sleep(chance.random() * 0.05)
                name = chance.choice(sorted(workers))
                assert workers[name].poll() is None
                workers[name].kill()
                workers[name].wait()
                workers[name] = begun(name)
        until(lambda: done() == 2 * count, 120)
        for org in orgs:
            made = [one.body["name"] for one in documents.everything(org, ADA, "errand")]
            assert sorted(made, key=int) == [str(number) for number in range(count) if orgs[number % 3] == org]
            assert Changes(database).verify(org).seq == len(made), "a command was carried out twice"
        found: dict[str, set[tuple[str, int]]] = defaultdict(set)
        for line in file.read_text().splitlines():
            org, _, identity, body = line.split(" ")
            found[identity].add((org, int(body)))
        there = [row for org in orgs for row in rows(database, org) if row.effect == "publish"]
        assert {row.id: {(row.org_id, json.loads(row.body)["body"])} for row in there} == found


def rows(database: Database, org: str) -> list[Any]:
    table = tables.outbox
    with database.transaction(org) as tx:
        return list(tx.rows(select(table).where(tx.own(table)).order_by(table.c.due_at, table.c.placed_ns)))


# --- declarations, rights ---------------------------------------------------------------------------------------------------


def test_declarations_of_effects_and_jobs_have_names_of_their_own() -> None:
    def handler(carried: Carried) -> None: ...

    manifests = [Manifest("a", (), effects={"own": handler, "publish": handler}), Manifest("b", (), effects={"own": handler})]
    with pytest.raises(ConfigError) as raised:
        Kinds(manifests)
    assert str(raised.value).splitlines() == [
        "a: expected an effect of another name than 'publish', which is of the store itself",
        "b: expected an effect of another name than 'own', which is of another module",
    ]
    with pytest.raises(ConfigError, match="job kinds: expected different names, got count, count"):
        Kinds([Manifest(name, (), jobs=(JobKind("count", "a:b"),)) for name in ("a", "b")])
    assert dict(errand_kinds().jobs) == dict(JOB_KINDS)


@pytest.mark.slow
def test_who_looks_over_all_orgs_sees_no_effect_only_when_there_is_one(postgres_urls: Urls) -> None:
    database, relay = Database(postgres_urls.app), Database(postgres_urls.relay)
    documents = Documents(database, errand_kinds())
    for org in ("acme", "other"):
        ask(documents, ("publish", {"topic": "t"}), org=org)
    assert Due(relay).effects(2**60, "here") == ["acme", "other"]
    for column in ("body", "effect", "actor", "problem", "attempts"):
        with pytest.raises(exc.ProgrammingError, match="permission denied"), relay.transaction(None) as tx:
            tx.run(text(f"select {column} from outbox"))
    for statement in ("update outbox set due_at = 0", "delete from outbox", "select body from jobs"):
        with pytest.raises(exc.ProgrammingError, match="permission denied"), relay.transaction(None) as tx:
            tx.run(text(statement))
    with database.transaction(None) as tx:
        assert tx.rows(select(tables.outbox.c.id)) == []
        assert tx.rows(select(primitive_tables.jobs.c.id)) == []
    database.close()
    relay.close()


@pytest.mark.slow
def test_a_transaction_that_froze_lets_go_of_its_org(postgres_urls: Urls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmis_stream.store.database.IDLE_S", 1)
    database = Database(postgres_urls.app)
    documents = Documents(database, errand_kinds())
    got = list[bool]()
    with pytest.raises(Unavailable), database.transaction("acme", writes=True) as tx:
        tx.lock_head(tables.org_heads)
        ask(documents)  # waits for the lock, at most 5 s
        got.append(True)
        tx.rows(select(tables.outbox.c.id))
    assert got == [True]
    ask(documents)
    database.close()
