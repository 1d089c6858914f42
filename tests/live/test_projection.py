"""Transitions on their way into the store: no incident twice, none missing, whatever is repeated or killed."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmis_stream.live import projection as projection_module
from cmis_stream.live.projection import READER, Projection
from cmis_stream.log.owner import TRANSITIONS
from cmis_stream.store.facts import FactStore
from tests.live.support import ACME, METRICS, NOW, line, transitions


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection_module, "PAUSE_S", 0.0)


class Run:
    """One process's projection into a store, from its start to its end or kill."""

    def __init__(self, store: FactStore, epoch: str = "e") -> None:
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
        await self.projection.begin()
        await self.put(*records)
        await self.projection.settled()
        assert not self.errors


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FactStore]:
    opened = FactStore(tmp_path / "store.db")
    yield opened
    opened.close()


def held(store: FactStore) -> list[tuple[str, str, int]]:
    """(incident, state, version) of everything in the store."""
    both = [*store.everywhere_in_state("incident", "firing"), *store.everywhere_in_state("incident", "resolved")]
    return sorted((doc["id"], doc["state"], doc["version"]) for _, doc in both)


@pytest.mark.spec("ALR-M11")
async def test_an_incident_is_opened_and_closed_by_its_transitions(store: FactStore) -> None:
    opened = line(0)
    await Run(store).all((0, transitions(0, opened)), (1, transitions(5, line(5, state="resolved", opened=opened["id"]))))
    doc = store.get("acme", "incident", opened["incident"])
    assert doc is not None
    assert (doc["state"], doc["started_at"], doc["resolved_at"], doc["version"]) == ("resolved", NOW, NOW + 5000, 2)
    assert doc["events"] == ["e0"] and doc["sums"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.spec("ALR-O03", partial="window values and the newest events; the page that shows them is the page's")
async def test_two_episodes_of_a_rule_and_an_entity_are_two_incidents(store: FactStore) -> None:
    first, second = line(0), line(9)
    ends = line(5, state="resolved", opened=first["id"])
    await Run(store).all((0, transitions(0, first)), (1, transitions(5, ends)), (2, transitions(9, second)))
    assert first["key"] == second["key"]
    assert held(store) == sorted([(first["incident"], "resolved", 2), (second["incident"], "firing", 1)])


async def test_a_record_is_acked_once_it_is_in_the_store(store: FactStore) -> None:
    run = Run(store)
    await run.projection.begin()
    blocker = sqlite3.connect(store._writer.execute("pragma database_list").fetchone()[2], isolation_level=None)
    blocker.execute("begin immediate")
    await run.put((0, transitions(0)))
    await asyncio.sleep(0)
    assert run.acked == [] and held(store) == []
    blocker.execute("rollback")
    blocker.close()
    await run.projection.settled()
    assert run.acked == [0] and len(held(store)) == 1


async def test_a_store_that_is_locked_for_long_is_waited_for(store: FactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection_module, "BUSY_RETRY_S", 0.01)
    store._writer.execute("pragma busy_timeout = 0")
    run = Run(store)
    await run.projection.begin()
    path = store._writer.execute("pragma database_list").fetchone()[2]
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("begin immediate")
    refused = asyncio.Event()
    write = store.write

    def noticed(*given: Any) -> None:
        try:
            write(*given)
        except sqlite3.OperationalError:
            loop.call_soon_threadsafe(refused.set)
            raise

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(store, "write", noticed)
    await run.put((0, transitions(0)))
    await refused.wait()
    blocker.execute("rollback")
    blocker.close()
    await run.projection.settled()
    assert run.acked == [0] and not run.errors and len(held(store)) == 1


async def test_what_cannot_be_written_before_the_end_is_given_up_and_comes_again(
    store: FactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store._writer.execute("pragma busy_timeout = 0")
    blocker = sqlite3.connect(store._writer.execute("pragma database_list").fetchone()[2], isolation_level=None)
    run = Run(store)
    await run.projection.begin()
    blocker.execute("begin immediate")
    await run.put((0, transitions(0)))
    await run.projection.settled(0.05)
    assert run.acked == []
    blocker.execute("rollback")
    blocker.close()
    await Run(store).all((0, transitions(0)))
    assert len(held(store)) == 1


async def test_a_store_that_is_broken_ends_the_process_and_acks_nothing(store: FactStore) -> None:
    run = Run(store)
    await run.projection.begin()
    store._writer.execute("drop table facts")
    await run.put((0, transitions(0)))
    await run.projection.settled()
    assert len(run.errors) == 1 and run.acked == []


async def test_what_came_meanwhile_shares_a_transaction(store: FactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(store)
    await run.projection.begin()
    sizes: list[int] = []
    write = store.write
    monkeypatch.setattr(store, "write", lambda changes, *rest: (sizes.append(len(changes)), write(changes, *rest)))
    await run.put(*[(n, transitions(n)) for n in range(50)])
    await run.projection.settled()
    assert run.acked == list(range(50)) and sizes == [50]


async def test_reading_waits_when_too_much_is_not_written_yet(store: FactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection_module, "MOST_WAITING", 4)
    run = Run(store)
    await run.projection.begin()
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
    store = FactStore(tmp_path_factory.mktemp("store") / "store.db")

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


async def test_the_position_never_goes_back(store: FactStore) -> None:
    await Run(store).all(*[(n, transitions(n)) for n in range(5)])
    await Run(store).all((2, transitions(2)))
    assert store.positions(READER, "e")[TRANSITIONS, ACME] == 4


async def test_what_fired_in_a_log_that_was_replaced_is_resolved(store: FactStore) -> None:
    opened = line(0)
    await Run(store).all((0, transitions(0, opened)))
    await Run(store, epoch="another").all((0, transitions(0, again := line(1, campaign="d"))))
    doc = store.get("acme", "incident", opened["incident"])
    assert doc is not None and (doc["state"], doc["reason"], doc["resolved_at"]) == ("resolved", "log_replaced", NOW)
    assert [(i, state) for i, state, _ in held(store) if i == again["incident"]] == [(again["incident"], "firing")]
    assert not store.has_other_logs(READER, "another")
