"""A worker that was stopped with a checkpoint or results in its hands, and goes on when others have passed them.

Each scene is told once with all fences, and then everything equals an undisturbed run; and once without one of them, and then it
does not: that is how we know that it is the fence that holds. docs/design/checkpoints.md, "Fencing".
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
from yarl import URL

from cmis_stream.core.engine import Engine
from cmis_stream.core.entities import LEVELS
from cmis_stream.core.time import WINDOWS
from cmis_stream.live.projection import READER
from cmis_stream.log import kafka_topics
from cmis_stream.log import owner as owner_module
from cmis_stream.log.codec import unpack
from cmis_stream.log.kafka import client_settings
from cmis_stream.log.topics import load_topics, partition_for
from cmis_stream.runtime import METRICS, TRANSITIONS
from scripts.kafka import Kafka
from tests.e2e.support import ROOT, evaluated, firing_of, follow, passed_transitions, window_sums, without_identity
from tests.log.backends import OnKafka, Row
from tests.log.kafka_worker import RECOVERIES, Scene, Worker, running
from tests.log.support import RULES, events, rules

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
PARTITION = partition_for(b"acme", 8)
CHANGELOG = "cmis-state-changelog"
WORKER = ROOT / "tests/log/kafka_worker.py"
PATIENCE_S = 60

BEFORE = [rules(1, [{**RULES[0], "window": "1m"}, RULES[1]]), events(("c1", 0, 4.0)), events(("c2", 500, 4.0), first=1)]
IN_HAND = [
    events(("c1", 1_000, 20.0), first=2),
    events(("c2", 1_500, 3.0), first=3, clicks=3),
    events(("c3", 2_000, 30.0), first=4),
]
PASSED = [
    events(("c1", 70_000, 1.0), ("c4", 70_100, 25.0), first=5),  # what fired for c1 and c3 ends, c4 begins
    events(("c1", 71_000, 20.0), first=7),
    events(("c2", 72_000, 40.0), first=8, clicks=1),
]
AFTER = [events(("c5", 73_000, 50.0), first=9), events(("c4", 150_000, 0.5), first=10)]
"""What the log gets: applied before the zombie stops, what it has in hand, what its successor applies, what comes in the end."""


@pytest.fixture
def broker(own_kafka: Kafka) -> Kafka:
    """One of its own: the agents' topics have the same names in every test."""
    return own_kafka


class Stage:
    """A log, its worker processes, and what is in its topics."""

    def __init__(self, broker: Kafka, folder: Path) -> None:
        self.broker, self.folder, self.log = broker, folder, OnKafka(broker.bootstrap)
        self.processes: list[subprocess.Popen[bytes]] = []

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        give_up_at = time.monotonic() + PATIENCE_S
        while not (await result if asyncio.iscoroutine(result := condition()) else result):
            assert time.monotonic() < give_up_at, f"waited {PATIENCE_S} s for {what}; processes said:\n{self.told}"
            await asyncio.sleep(0.02)

    async def rows(self, topic: str) -> list[Row]:
        return await self.log.rows(topic, PARTITION)

    async def append(self, values: list[bytes]) -> None:
        await self.log.append(METRICS, PARTITION, [(None, value) for value in values])

    async def applied_and_committed(self, records: int) -> None:
        async def reached() -> bool:
            return (await self.log.committed("cmis", METRICS)).get(PARTITION, 0) >= records

        await self.until(reached, f"{records} records to be committed")

    async def worker(self, scene: Scene) -> subprocess.Popen[bytes]:
        """A process that has all partitions."""
        output = self.folder / f"worker-{len(self.processes)}.txt"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, str(WORKER), self.broker.url, str(self.folder / "data"), scene.as_argument],
                stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        self.processes.append(process)
        await self.until(lambda: b"recovered" in output.read_bytes() or process.poll() is not None, "a worker to begin")
        assert process.poll() is None, self.told
        return process

    @property
    def told(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in sorted(self.folder.glob("worker-*.txt")))

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture
def stage(broker: Kafka, tmp_path: Path) -> Iterator[Stage]:
    made = Stage(broker, tmp_path)
    yield made
    made.end()


async def play(stage: Stage, *, hold: str, nth: int, in_hand_from: int, without: str = "", wakes: bool = True) -> None:
    """A worker stops with something in hand, another passes it and dies; then the first goes on until what it had is written."""
    points = stage.folder / "points"
    points.mkdir()
    await kafka_topics.apply(client_settings([URL(stage.broker.url)]), load_topics().values())
    both = len(BEFORE) + len(IN_HAND)
    zombie = await stage.worker(Scene(both - in_hand_from, str(points), hold, nth, without))
    await stage.append(BEFORE)
    if in_hand_from:
        await stage.applied_and_committed(in_hand_from)
    await stage.append(IN_HAND)
    await stage.until((points / "held").exists, "the worker to come to its point")
    zombie.send_signal(signal.SIGSTOP)
    await stage.append(PASSED)
    successor = await stage.worker(Scene(both + len(PASSED) - in_hand_from, without=without))
    await stage.applied_and_committed(both + len(PASSED))
    successor.kill()
    successor.wait()
    topic = CHANGELOG if hold == "checkpoint" else TRANSITIONS
    rows = len(await stage.rows(topic))
    if wakes:
        (points / "go").touch()
        zombie.send_signal(signal.SIGCONT)

        async def written() -> bool:
            return len(await stage.rows(topic)) > rows

        await stage.until(written, "the zombie to write")
    zombie.kill()
    zombie.wait()


class Outcome(NamedTuple):
    events: int
    sums: Any
    firing: Any


def outcome(engine: Engine) -> Outcome:
    return Outcome(engine.events, window_sums(engine), firing_of(engine))


@asynccontextmanager
async def last_worker(stage: Stage) -> AsyncIterator[Worker]:
    """Recovers, and applies what comes in the end."""
    async with running(stage.broker.url, stage.folder / "data") as worker:
        worker.ticking = False
        await worker.alone()
        await stage.append(AFTER)
        end = (await stage.rows(METRICS))[-1].offset
        await stage.until(lambda: worker.failed.done() or worker.owners[PARTITION].position >= end, "the last records")
        if worker.failed.done():
            worker.failed.result()
        yield worker


async def undisturbed(stage: Stage) -> tuple[list[dict[str, Any]], Outcome]:
    """What one engine makes of the log: its transitions, and where it ends."""
    engine = Engine(LEVELS, live_windows=tuple(WINDOWS.values()))
    rows: list[Any] = await stage.rows(METRICS)
    return without_identity(evaluated(rows, engine)), outcome(engine)


# --- with all fences ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hold", "nth", "in_hand_from"), [
    ("checkpoint", 1, 0),  # its first, which holds the whole state
    ("checkpoint", 2, 3),  # one that refers to another, whose keys the successor has deleted
    ("results", 1, 3),
])  # fmt: skip
async def test_a_zombie_that_wakes_up_changes_nothing(stage: Stage, hold: str, nth: int, in_hand_from: int) -> None:
    await play(stage, hold=hold, nth=nth, in_hand_from=in_hand_from)
    async with last_worker(stage) as worker:
        lines, expected = await undisturbed(stage)
        assert outcome(worker.owners[PARTITION].engine) == expected
        assert {line["state"] for line in lines} == {"firing", "resolved"} and len(lines) >= 8 and expected.firing
        told = passed_transitions([(PARTITION, row) for row in await stage.rows(TRANSITIONS)])
        follow(told)
        assert without_identity(told) == lines
        place, last = (METRICS, PARTITION), int(told[-1]["id"].split("/")[2])
        await stage.until(
            lambda: worker.facts.positions(READER, worker.log.epoch).get(place, -1) >= last, "the last incident in the store"
        )
        states = {line["incident"]: line["state"] for line in told}
        assert {fact.id: fact.body["state"] for fact in worker.facts.everywhere("incident")} == states


# --- and without ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("without", ["generations", "highest"])
@pytest.mark.parametrize("wakes", [False, True])
async def test_without_generations_or_the_highest_position_a_zombie_takes_events_away(
    stage: Stage, without: str, wakes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And as long as it does not wake up nothing is missing: it is the zombie that the fence is for."""
    await play(stage, hold="checkpoint", nth=1, in_hand_from=0, without=without, wakes=wakes)
    monkeypatch.setattr(owner_module, "recover", RECOVERIES[without])
    async with last_worker(stage) as worker:
        _, expected = await undisturbed(stage)
        found = outcome(worker.owners[PARTITION].engine)
        if not wakes:
            assert found == expected
        else:
            assert found.events == expected.events - 4, "what the successor had applied and committed"
            assert found.sums != expected.sums and found.firing != expected.firing


async def test_to_a_consumer_without_positions_a_zombie_s_results_come_twice(stage: Stage) -> None:
    await play(stage, hold="results", nth=1, in_hand_from=3)
    told = [line for row in await stage.rows(TRANSITIONS) for line in orjson.loads(row.value or b"")["transitions"]]
    with pytest.raises(AssertionError, match="twice"):
        follow(told)
    follow(passed_transitions([(PARTITION, row) for row in await stage.rows(TRANSITIONS)]))


async def test_a_zombie_s_checkpoint_is_the_last_one_in_the_changelog(stage: Stage) -> None:
    """The scene is what it says: what was written last is older than what was written before it."""
    await play(stage, hold="checkpoint", nth=1, in_hand_from=0)
    found = [
        (row.key.split(b"/")[0], unpack(row.value)["position"]) for row in await stage.rows(CHANGELOG) if row.key and row.value
    ]
    (*_, (successor, passed), (zombie, position)) = found
    assert zombie != successor and position == len(BEFORE + IN_HAND) - 1 < passed == len(BEFORE + IN_HAND + PASSED) - 1
