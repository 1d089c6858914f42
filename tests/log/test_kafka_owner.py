"""The metrics agent on a real Apache Kafka: whatever is killed or stopped, sums and transitions equal an undisturbed run."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from yarl import URL

from cmis_stream.core.engine import end_of_panes
from cmis_stream.feeds.decode import decode_ndjson
from cmis_stream.live.projection import READER
from cmis_stream.log import envelope, kafka_topics
from cmis_stream.log.catalog import RULES, Catalog, write_catalog
from cmis_stream.log.envelope import RuleSet, Tick, encode
from cmis_stream.log.kafka import client_settings
from cmis_stream.log.packer import Packer
from cmis_stream.log.topics import load_topics, partition_for
from cmis_stream.runtime import CHANGES, METRICS, TRANSITIONS
from scripts.kafka import Kafka
from tests.e2e.support import (
    ROOT,
    Workload,
    as_answer,
    follow,
    make_workload,
    needs_workload,
    passed_transitions,
    undisturbed,
    window_sums,
)
from tests.log.backends import OnKafka
from tests.log.kafka_worker import Worker, running

pytestmark = [pytest.mark.slow, needs_workload]
PARTITIONS = 8
WORKERS = 3
CHUNKS = 300
ZOMBIE_S = 5.0
STALLED_S = 60


@pytest.fixture
def broker(own_kafka: Kafka) -> Kafka:
    """One of its own: the agents' topics have the same names in every test."""
    return own_kafka


class Processes:
    """Worker processes of one group."""

    def __init__(self, broker: Kafka, folder: Path) -> None:
        self._broker, self._folder = broker, folder
        self.running: list[subprocess.Popen[bytes]] = []
        self.outputs: list[Path] = []

    def start(self) -> None:
        output = self._folder / f"worker-{len(self.outputs)}.txt"
        self.outputs.append(output)
        with output.open("wb") as file:
            self.running.append(
                subprocess.Popen(
                    [sys.executable, str(ROOT / "tests/log/kafka_worker.py"), self._broker.url, str(self._folder / "data")],
                    stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(ROOT)},
                )
            )  # fmt: skip

    def kill(self, which: int) -> None:
        process = self.running.pop(which)
        assert process.poll() is None, f"ended by itself: {self.told()}"
        process.kill()
        process.wait()

    def stop_and_go_on(self, which: int) -> None:
        """SIGSTOP for longer than the session, then SIGCONT: a zombie that writes what it had begun."""
        process = self.running[which]
        process.send_signal(signal.SIGSTOP)
        time.sleep(ZOMBIE_S)  # how long is what matters: its partitions have to be another's by then
        process.send_signal(signal.SIGCONT)

    def told(self) -> str:
        return "\n".join(f"{output.name}: {output.read_text()[-2000:]}" for output in self.outputs)

    def end(self) -> None:
        for process in self.running:
            process.kill()
            process.wait()


@pytest.fixture
def processes(broker: Kafka, tmp_path: Path) -> Iterator[Processes]:
    started = Processes(broker, tmp_path)
    yield started
    started.end()


class Feed:
    """The workload on its way into the log, as the HTTP ingest would write it."""

    def __init__(self, broker: Kafka, workload: Workload) -> None:
        self._broker, self._workload = broker, workload
        self.sent = 0

    async def rules(self, producer: AIOKafkaProducer) -> None:
        by_org: dict[str, list[Any]] = {}
        for rule in self._workload.rules_given:
            by_org.setdefault(rule["org"], []).append(rule)
        for org, rules in by_org.items():
            catalog = Catalog(RULES, org, 1, [{"evaluate": "pane", **rule} for rule in rules])
            partition = partition_for(org.encode(), PARTITIONS)
            await producer.send_and_wait(CHANGES, write_catalog(catalog), key=catalog.key, partition=partition)
        log = OnKafka(self._broker.bootstrap)
        adopted: set[str] = set()
        async with asyncio.timeout(60):
            while adopted != set(by_org):
                records = [row for p in range(PARTITIONS) for row in await log.rows(METRICS, p)]
                decoded = [envelope.decode(row.value or b"") for row in records]
                adopted = {record.org for record in decoded if isinstance(record, RuleSet)}

    async def events(self, producer: AIOKafkaProducer, pause_s: float) -> None:
        async def append(partition: int, value: bytes) -> None:
            await producer.send_and_wait(METRICS, value, partition=partition)

        packer = Packer(append, PARTITIONS, lambda: time.time_ns() // 1_000_000)
        numbers: dict[str, int] = {}
        lines = self._workload.events.read_bytes().splitlines(keepends=True)
        size = len(lines) // CHUNKS
        for start in range(0, len(lines), size):
            by_org: dict[str, list[bytes]] = {}
            for line in lines[start : start + size]:
                by_org.setdefault(orjson.loads(line)["org"], []).append(line)
            for org, own in by_org.items():
                decoded = decode_ndjson(
                    b"".join(own), org=None, source=f"file-{org}", now_ms=None, sequence=numbers.get(org, 0)
                )  # fmt: skip
                numbers[org] = numbers.get(org, 0) + decoded.events
                assert decoded.batch is not None and not decoded.refused
                await packer.publish(org, decoded.batch)
            self.sent = start + size
            await asyncio.sleep(pause_s)
        await packer.drain()


async def finished(worker: Worker) -> None:
    """Everything in the log is applied and, as at the end of a replay, final."""
    worker.ticking = False
    for last in (False, True):
        if last:
            newest = max(int(owner.engine.windows.newest.max()) for owner in worker.owners.values())
            tick = encode(Tick(worker.clock(), end_of_panes(newest)))
            for partition in range(PARTITIONS):
                await (await worker.send(METRICS, partition, tick))
        ends = {tp.partition: end for tp, end in (await worker.app.consumer.highwaters(*sources(worker))).items()}
        behind, give_up_at = -1, 0.0
        while left := sum(max(0, end - 1 - worker.owners[p].position) for p, end in ends.items()):
            if left != behind:
                behind, give_up_at = left, time.monotonic() + STALLED_S
            assert time.monotonic() < give_up_at, f"nothing applied for {STALLED_S} s, {left} records left"
            if worker.failed.done():
                worker.failed.result()
            await asyncio.sleep(0.02)
    for owner in worker.owners.values():
        await owner.checkpoint(wait=True)
        await owner.checkpoint(wait=True)


def sources(worker: Worker) -> list[Any]:
    return [tp for tp in worker.app.consumer.assignment() if tp.topic == METRICS]


async def equals_an_undisturbed_run(broker: Kafka, workload: Workload, folder: Path) -> None:
    async with running(broker.url, folder / "data") as worker:
        await worker.alone()
        await finished(worker)
        log = OnKafka(broker.bootstrap)
        rows = [(p, row) for p in range(PARTITIONS) for row in await log.rows(TRANSITIONS, p)]
        lines = passed_transitions(rows)
        follow(lines)
        assert as_answer(lines) == workload.answer
        engines = [owner.engine for owner in worker.owners.values()]
        assert sum(engine.events for engine in engines) == workload.count
        sums = {key: value for engine in engines for key, value in window_sums(engine).items()}
        assert sums == window_sums(undisturbed(workload))
        states = {line["incident"]: line["state"] for line in lines}
        last = {p: orjson.loads(row.value or b"")["source"][2] for p, row in rows}
        async with asyncio.timeout(STALLED_S):
            while not all(worker.facts.positions(READER, worker.log.epoch).get((METRICS, p), -1) >= last[p] for p in last):
                await asyncio.sleep(0.05)
        assert {fact.id: fact.body["state"] for fact in worker.facts.everywhere("incident")} == states


async def committed_later(log: OnKafka, before: int) -> int:
    """Waits until the workers have committed more (a tick at least, if no event): a kill is to hit those at work."""
    async with asyncio.timeout(STALLED_S):
        while (now := sum((await log.committed("cmis", METRICS)).values())) <= before:
            await asyncio.sleep(0.05)
    return now


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("events", "kills", "pause_s"), [(1_000_000, 10, 0.2) if "CMIS_MILLION" in os.environ else (30_000, 5, 0.1)]
)
async def test_sums_and_pane_transitions_after_kills_and_zombies_among_three_workers_equal_an_undisturbed_run(
    broker: Kafka, processes: Processes, tmp_path: Path, events: int, kills: int, pause_s: float
) -> None:
    workload = make_workload(tmp_path / "workload", events=events, span_s=720)
    await kafka_topics.apply(client_settings([URL(broker.url)]), load_topics().values())
    dice, feed = random.Random(7), Feed(broker, workload)
    for _ in range(WORKERS):
        processes.start()
    producer = AIOKafkaProducer(
        bootstrap_servers=broker.bootstrap, enable_idempotence=True, max_request_size=kafka_topics.MESSAGE_BYTES
    )  # fmt: skip
    await producer.start()
    try:
        await feed.rules(producer)
        feeding = asyncio.create_task(feed.events(producer, pause_s))
        log, done = OnKafka(broker.bootstrap), 0
        for kill in range(kills):
            share = (kill + dice.random()) / kills
            while feed.sent < share * events and not feeding.done():
                await asyncio.sleep(0.02)
            done = await committed_later(log, done)
            if kill % 3 == 1:
                await asyncio.to_thread(processes.stop_and_go_on, dice.randrange(WORKERS))
            processes.kill(dice.randrange(WORKERS))
            processes.start()
            if kill % 3 == 2:  # the one that has just begun, at any point from its first line to the end of its recovery
                await asyncio.sleep(dice.uniform(0, 6))
                processes.kill(-1)
                processes.start()
        await feeding
    finally:
        await producer.stop()
    processes.end()
    await equals_an_undisturbed_run(broker, workload, tmp_path)
