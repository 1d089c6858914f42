"""Transitions on their way into the store: no incident twice, none missing, whatever is repeated or killed."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cmis_stream.core.errors import CmisError
from cmis_stream.live import positioned
from cmis_stream.live import projection as projection_module
from cmis_stream.live.projection import READER, Projection
from cmis_stream.log.owner import TRANSITIONS
from cmis_stream.store import database as database_module
from cmis_stream.store.database import Unavailable
from cmis_stream.store.facts import Facts, Place
from tests.live.support import ACME, METRICS, NOW, ProcessFacts, line, transitions


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection_module, "PAUSE_S", 0.0)


class Run:
    """One process's projection into a store, from its start to its end or kill."""

    def __init__(self, store: Facts, epoch: str = "e") -> None:
        self.errors: list[BaseException] = []
        self.acked: list[int] = []
        self.projection = Projection(store, epoch, self._guard, lambda: NOW)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # what the process would end with
            self.errors.append(error)

    async def put(self, *records: tuple[int, bytes]) -> None:
        """(offset, value) each, as the agent reads them."""
        for offset, value in records:
            await self.projection.put(ACME, offset, value, lambda offset=offset: self.acked.append(offset))

    async def all(self, *records: tuple[int, bytes]) -> None:
        await self.projection.begin({ACME})
        await self.put(*records)
        await self.projection.settled()
        assert not self.errors


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Facts]:
    with closing(ProcessFacts(tmp_path / "store.db")) as opened:
        yield opened


def held(store: Facts) -> list[tuple[str, str, int]]:
    """(incident, state, version) of everything in the store."""
    return sorted((fact.id, fact.body["state"], fact.version) for fact in store.everywhere("incident"))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """By another process, as long as the block takes."""
    blocker = sqlite3.connect(folder / "store.db", isolation_level=None)
    blocker.execute("begin immediate")
    try:
        yield
    finally:
        blocker.execute("rollback")
        blocker.close()


@pytest.mark.spec("ALR-M11")
async def test_an_incident_is_opened_and_closed_by_its_transitions(store: Facts) -> None:
    opened = line(0)
    await Run(store).all((0, transitions(0, opened)), (1, transitions(5, line(5, state="resolved", opened=opened["id"]))))
    doc = store.get("acme", "incident", opened["incident"])
    assert doc is not None and (doc.version, doc.at) == (2, NOW + 5000)
    assert (doc.body["state"], doc.body["started_at"], doc.body["resolved_at"]) == ("resolved", NOW, NOW + 5000)
    assert doc.body["events"] == ["e0"] and doc.body["sums"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.spec("ALR-O03", partial="window values and the newest events; the page that shows them is the page's")
async def test_two_episodes_of_a_rule_and_an_entity_are_two_incidents(store: Facts) -> None:
    first, second = line(0), line(9)
    ends = line(5, state="resolved", opened=first["id"])
    await Run(store).all((0, transitions(0, first)), (1, transitions(5, ends)), (2, transitions(9, second)))
    assert first["key"] == second["key"]
    assert held(store) == sorted([(first["incident"], "resolved", 2), (second["incident"], "firing", 1)])


async def test_an_incident_of_which_only_the_end_is_known_has_the_version_that_is_told_of_it(store: Facts) -> None:
    ends = line(5, state="resolved", opened=f"{METRICS}/{ACME}/0/0")
    await Run(store).all((0, transitions(5, ends)))
    assert held(store) == [(ends["incident"], "resolved", 2)]


async def test_incidents_of_several_orgs_are_written_together(store: Facts) -> None:
    lines = [line(0, number, org=org) for number, org in enumerate(["beta", "acme", "beta", "", "a\0b", "x" * 300])]
    await Run(store).all((0, transitions(0, *lines)))
    assert [(fact.org, fact.id) for fact in store.everywhere("incident")] == [
        ("acme", lines[1]["incident"]),
        *sorted([("beta", lines[0]["incident"]), ("beta", lines[2]["incident"])]),
    ], "and what no org of ours is called is left out"


async def test_a_record_is_acked_once_it_is_in_the_store(store: Facts, tmp_path: Path) -> None:
    run = Run(store)
    await run.projection.begin({ACME})
    with locked(tmp_path):
        await run.put((0, transitions(0)))
        await asyncio.sleep(0)
        assert run.acked == [] and held(store) == []
    await run.projection.settled()
    assert run.acked == [0] and len(held(store)) == 1


@pytest.fixture
def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Facts]:
    """Waits for no lock."""
    ProcessFacts(tmp_path / "store.db").close()
    monkeypatch.setattr(database_module, "LOCK_S", 0)
    monkeypatch.setattr(positioned, "RETRY_S", 0.01)
    with closing(ProcessFacts(tmp_path / "store.db")) as opened:
        yield opened


async def test_a_store_that_is_locked_for_long_is_waited_for(
    impatient: Facts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(impatient)
    await run.projection.begin({ACME})
    refused = asyncio.Event()
    write = impatient.write

    def noticed(*given: Any) -> bool:
        try:
            return write(*given)
        except Unavailable:
            loop.call_soon_threadsafe(refused.set)
            raise

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(impatient, "write", noticed)
    with locked(tmp_path):
        await run.put((0, transitions(0)))
        await refused.wait()
    await run.projection.settled()
    assert run.acked == [0] and not run.errors and len(held(impatient)) == 1


async def test_what_cannot_be_written_before_the_end_is_given_up_and_comes_again(impatient: Facts, tmp_path: Path) -> None:
    run = Run(impatient)
    await run.projection.begin({ACME})
    with locked(tmp_path):
        await run.put((0, transitions(0)))
        await run.projection.settled(0.05)
        assert run.acked == []
    await Run(impatient).all((0, transitions(0)))
    assert len(held(impatient)) == 1


async def test_a_full_disk_is_waited_for(store: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positioned, "RETRY_S", 0.01)
    run = Run(store)
    await run.projection.begin({ACME})
    refused = asyncio.Event()
    write, room = store.write, threading.Event()

    def without_room(*given: Any) -> bool:
        with store._database._engine.connect() as connection:  # of this thread: the one that writes
            count = connection.exec_driver_sql("pragma page_count").scalar() or 0
            connection.exec_driver_sql(f"pragma max_page_count = {2**30 if room.is_set() else count}")
        try:
            return write(*given)
        except Unavailable as error:
            assert "full" in str(error)
            loop.call_soon_threadsafe(refused.set)
            raise

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(store, "write", without_room)
    await run.put(*[(n, transitions(n, line(n, campaign=f"{n}" * 300))) for n in range(100)])
    await refused.wait()
    assert run.acked == [] and held(store) == []
    room.set()
    await run.projection.settled()
    assert run.acked == list(range(100)) and not run.errors and len(held(store)) == 100


async def test_a_store_that_is_broken_ends_the_process_and_acks_nothing(store: Facts, tmp_path: Path) -> None:
    run = Run(store)
    await run.projection.begin({ACME})
    with closing(sqlite3.connect(tmp_path / "store.db")) as db:
        db.execute("drop table facts")
    await run.put((0, transitions(0)))
    await run.projection.settled()
    assert len(run.errors) == 1 and run.acked == []


async def test_what_came_meanwhile_shares_a_transaction(store: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(store)
    await run.projection.begin({ACME})
    sizes: list[int] = []
    write = store.write
    monkeypatch.setattr(store, "write", lambda changes, *rest: (sizes.append(len(changes)), write(changes, *rest)))
    await run.put(*[(n, transitions(n)) for n in range(50)])
    await run.projection.settled()
    assert run.acked == list(range(50)) and sizes == [50]


async def test_reading_waits_when_too_much_is_not_written_yet(store: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positioned, "MOST_WAITING", 4)
    run = Run(store)
    await run.projection.begin({ACME})
    await run.put(*[(n, transitions(n)) for n in range(4)])
    assert run.acked == [0, 1, 2, 3]


EPISODES = [
    (source, [line(source, campaign=c, state=state, opened=opened)])
    for source, c, state, opened in [
        (0, "a", "firing", ""), (1, "b", "firing", ""), (2, "a", "resolved", f"{METRICS}/{ACME}/0/0"), (3, "c", "firing", ""),
        (4, "a", "firing", ""), (5, "b", "resolved", f"{METRICS}/{ACME}/1/0"), (6, "a", "resolved", f"{METRICS}/{ACME}/4/0"),
    ]
]  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(0, 4)), max_size=4))
@settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_kills_of_the_metrics_agent_and_of_the_projection_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, kills: list[tuple[int, int, int]]
) -> None:
    """Each kill: so many records of the results topic are read and written, the agent had written so many source records, and
    tells so many of them again. What is read but not committed comes again."""
    told = [(source, transitions(source, *lines)) for source, lines in EPISODES]
    topic: list[bytes] = []
    store = ProcessFacts(tmp_path_factory.mktemp("store") / "store.db")

    async def run() -> None:
        written, committed = 0, 0
        for reads, writes, again in [*kills, (100, 7, 0)]:
            upto = min(len(told), written + writes)
            topic.extend(value for _, value in told[written:upto])
            written = max(0, upto - again)
            process = Run(store)
            await process.all(*list(enumerate(topic))[committed : committed + reads])
            committed = max(0, min(len(topic), committed + reads) - again)
        topic.extend(value for _, value in told[written:])
        await Run(store).all(*list(enumerate(topic))[committed:])

    asyncio.run(run())
    ids = {source: lines[0]["incident"] for source, lines in EPISODES}
    assert held(store) == sorted(
        [(ids[0], "resolved", 2), (ids[1], "resolved", 2), (ids[3], "firing", 1), (ids[4], "resolved", 2)]
    )
    assert store.positions(READER, "e") == {(TRANSITIONS, ACME): len(topic) - 1, (METRICS, ACME): 6}
    store.close()


async def test_the_position_never_goes_back(store: Facts) -> None:
    await Run(store).all(*[(n, transitions(n)) for n in range(5)])
    await Run(store).all((2, transitions(2)))
    assert store.positions(READER, "e")[TRANSITIONS, ACME] == 4


async def test_what_fired_in_a_log_that_was_replaced_is_resolved(store: Facts) -> None:
    opened = line(0)
    await Run(store).all((0, transitions(0, opened)))
    await Run(store, epoch="another").all((0, transitions(0, again := line(1, campaign="d"))))
    doc = store.get("acme", "incident", opened["incident"])
    assert doc is not None and doc.version == 2
    assert (doc.body["state"], doc.body["reason"], doc.body["resolved_at"]) == ("resolved", "log_replaced", NOW)
    assert [(i, state) for i, state, _ in held(store) if i == again["incident"]] == [(again["incident"], "firing")]
    assert store.positions(READER, "e") == {}


# --- several processes --------------------------------------------------------------------------------------------------


class Killed(Exception):
    """The end of a process at this point."""


class HeldStore(ProcessFacts):
    """Of one process: each write waits until the test lets it, or kills the process before or after it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.orders: queue.Queue[str] = queue.Queue()
        self.waiting, self.answered = threading.Event(), threading.Semaphore(0)

    def write(self, *given: Any) -> bool:
        self.waiting.set()
        order = self.orders.get()
        self.waiting.clear()
        try:
            if order == "killed before":
                raise Killed
            written = super().write(*given)
            if order == "killed after":
                raise Killed
            return written
        finally:
            self.answered.release()

    def close(self) -> None:
        self.orders.put("killed before")
        super().close()


class Worker:
    """A process that reads the topic from what is committed on, as after an assignment of the partition."""

    def __init__(self, path: Path, committed: int) -> None:
        self.store = HeldStore(path)
        self.run = Run(self.store)
        self.reads_next = committed

    async def assigned(self, committed: int) -> None:
        self.reads_next = committed
        await self.run.projection.begin({ACME})

    async def read(self, topic: list[bytes], count: int) -> None:
        records = list(enumerate(topic))[self.reads_next : self.reads_next + count]
        await self.run.put(*records)
        self.reads_next += len(records)

    async def write(self, order: str = "go on") -> None:
        """Lets one write happen, if there is one."""
        for _ in range(3):  # turns of the loop until the task that writes has asked its thread to
            await asyncio.sleep(0)
        writing = self.run.projection._writing
        if writing is None or writing.done():
            return
        await asyncio.to_thread(self.store.waiting.wait)
        self.store.orders.put(order)
        await asyncio.to_thread(self.store.answered.acquire)
        # It is told of the outcome, and waits for its next order or is done.
        while not writing.done() and not self.store.waiting.is_set():
            await asyncio.sleep(0.0005)

    async def end(self) -> None:
        while (writing := self.run.projection._writing) is not None and not writing.done():
            await self.write("killed before")
        self.store.close()


_moves = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.one_of(
            st.tuples(st.just("read"), st.integers(1, 5)),
            st.tuples(st.just("write"), st.just(0)),
            st.tuples(st.just("assigned"), st.integers(0, 3)),
            st.tuples(st.sampled_from(["killed before", "killed after"]), st.integers(0, 3)),
        ),
    ),
    max_size=25,
)
TOLD = [(source, transitions(source, *lines)) for source, lines in EPISODES]
REPEATED = [value for _, value in [*TOLD[:3], *TOLD[1:5], *TOLD[2:4], *TOLD[3:]]]
"""The topic as two metrics agents that know nothing of each other have written it."""


def documents(store: Facts) -> dict[str, Any]:
    return {fact.id: fact for fact in store.everywhere("incident")}


async def _alone(path: Path) -> dict[str, Any]:
    store = ProcessFacts(path)
    await Run(store).all(*enumerate(REPEATED))
    found = documents(store)
    store.close()
    return found


@given(_moves)
@example([(0, ("read", 3)), (1, ("read", 5)), (1, ("write", 0)), (1, ("read", 5)), (1, ("write", 0)), (0, ("write", 0))])
@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_two_processes_that_both_hold_a_partition_write_what_one_alone_would_and_positions_only_grow(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[int, tuple[str, int]]]
) -> None:
    """Either is the zombie: nobody tells a process that it has lost the partition. Every order of reading, writing, kills in
    the middle of a write and new assignments, which begin up to `back` records before what is written."""
    folder = tmp_path_factory.mktemp("two")

    async def run() -> None:
        outside = ProcessFacts(folder / "store.db")
        workers = [Worker(folder / "store.db", 0) for _ in range(2)]
        for worker in workers:
            await worker.assigned(0)
        highest: dict[Place, int] = {}
        for which, (action, back) in moves:
            worker, committed = workers[which], max(0, highest.get((TRANSITIONS, ACME), -1) + 1 - back)
            if action == "read":
                await worker.read(REPEATED, back)
            elif action == "write":
                await worker.write()
            elif action == "assigned":
                await worker.assigned(committed)
            else:
                await worker.write(action)
                await worker.end()
                assert all(isinstance(error, Killed) for error in worker.run.errors), worker.run.errors
                workers[which] = Worker(folder / "store.db", committed)
                await workers[which].assigned(committed)
            positions = outside.positions(READER, "e")
            assert all(positions.get(place, -1) >= position for place, position in highest.items()), (positions, highest)
            highest = positions
            passed = [
                body["transitions"]
                for body in map(orjson.loads, REPEATED)
                if body["source"][2] <= highest.get((METRICS, ACME), -1)
            ]
            assert {line["incident"] for lines in passed for line in lines} == documents(outside).keys()
        for worker in workers:
            assert not worker.run.errors
            await worker.end()
        await Run(outside).all(*enumerate(REPEATED))
        assert documents(outside) == await _alone(folder / "alone.db")
        assert outside.positions(READER, "e") == {(TRANSITIONS, ACME): len(REPEATED) - 1, (METRICS, ACME): 6}
        outside.close()

    asyncio.run(run())


async def test_a_zombie_s_write_of_what_others_have_passed_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    zombie, successor = Worker(path, 0), ProcessFacts(path)
    await zombie.assigned(0)
    await zombie.read(REPEATED, 5)
    await asyncio.to_thread(zombie.store.waiting.wait)
    await Run(successor).all(*enumerate(REPEATED))
    before, positions = documents(successor), successor.positions(READER, "e")
    for _ in range(2):
        await zombie.write()
    await zombie.run.projection.settled()
    assert not zombie.run.errors
    assert documents(successor) == before and successor.positions(READER, "e") == positions
    await zombie.end()
    successor.close()


async def test_a_store_whose_positions_went_back_ends_the_process(store: Facts, tmp_path: Path) -> None:
    run = Run(store)
    await run.all(*enumerate(REPEATED[:3]))
    with closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as db:
        db.execute("delete from positions")  # as a backup that is put back does
    await run.put(*list(enumerate(REPEATED))[3:5])
    await run.projection.settled()
    (error,) = run.errors
    assert isinstance(error, CmisError) and "expected 2 or more" in str(error)
    assert run.acked == [0, 1, 2]


async def test_processes_that_begin_in_a_new_log_one_after_the_other_end_nothing_of_it(store: Facts) -> None:
    await Run(store).all((0, transitions(0)))
    first, second = Run(store, epoch="another"), Run(store, epoch="another")
    await first.all((0, transitions(0, again := line(1, campaign="d"))))
    await second.projection.begin({ACME})
    assert documents(store)[again["incident"]].body["state"] == "firing"
