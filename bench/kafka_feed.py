"""The workload in Apache Kafka before a clock starts: as envelopes, the way the HTTP ingest writes them, or as JSON messages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]

from bench.workloads import Transition, Workload, transition_of
from cmis_stream.core.batch import Batch, concatenate
from cmis_stream.feeds.decode import decode_ndjson
from cmis_stream.feeds.lines import WINDOW_BYTES, FileLines
from cmis_stream.log import kafka_topics
from cmis_stream.log.envelope import Events, RuleSet, Tick, decode, encode
from cmis_stream.log.kafka_reader import ends, read_to_end
from cmis_stream.log.packer import Packer
from cmis_stream.log.topics import load_topics, partition_for
from cmis_stream.runtime import METRICS, TRANSITIONS

PEER_TRANSITIONS, PEER_PARTITIONS = "quix.transitions", 8
"""As in `peer_quix.py`, which cannot be imported here."""
REQUEST_EVENTS, REQUESTS_AT_ONCE = 5_000, 4  # as `cmis ingest` sends them

ADOPTED_S = 60.0
LINE_BYTES = 230

Requests = list[tuple[str, list[tuple[int, bytes]]]]
"""Per org: bodies with the number of their first event."""


@dataclass(frozen=True, slots=True)
class Fed:
    """cpu_s: of decoding, packing and sending, all threads of this process. ends: of each partition, after its last record."""

    cpu_s: float
    bytes: int
    envelopes: int
    ends: dict[int, int]


class Feed:
    """Writes to one broker. bootstrap: host:port."""

    def __init__(self, bootstrap: str, workload: Workload) -> None:
        self._client = {"bootstrap_servers": bootstrap}
        self._workload = workload
        self._topics = load_topics()
        self.partitions = self._topics[METRICS].partitions
        self._bytes = self._envelopes = 0

    async def topics(self) -> None:
        await kafka_topics.apply(self._client, self._topics.values())

    async def fill(self, envelope_events: int | None = None) -> Fed:
        """Rules, all events, and the tick that ends a replay, in cmis.metrics.v1.

        envelope_events: about so many in each envelope, of all orgs as they come; None: as large as `cmis ingest` makes them.
        """
        window_bytes = envelope_events * self.partitions * LINE_BYTES if envelope_events else WINDOW_BYTES
        requests = list(self._requests(window_bytes))
        async with self._producing():
            await self._rules()
            began = time.process_time()
            await (self._mixed(requests) if envelope_events else self._events(requests))
            cpu_s = time.process_time() - began
        return Fed(cpu_s, self._bytes, self._envelopes, await self.end())

    async def end(self) -> dict[int, int]:
        """Appends the tick that makes every pane final, to all partitions; the offset after it in each."""
        last = encode(Tick(_now_ms(), self._workload.end_ms()))
        async with self._producing():
            for partition in range(self.partitions):
                await self._producer.send_and_wait(METRICS, last, partition=partition)
        return await ends(self._client, METRICS, range(self.partitions))

    async def rules_adopted(self) -> None:
        """Returns when the rule sets of all orgs have come through cmis.changes.v1."""
        wanted = {rule["org"] for rule in self._workload.rules()}
        async with asyncio.timeout(ADOPTED_S):
            while True:
                found: set[str] = set()
                for partition in range(self.partitions):
                    async for records in read_to_end(self._client, METRICS, partition):
                        decoded = [decode(record.value) for record in records]
                        found |= {record.org for record in decoded if isinstance(record, RuleSet)}
                if wanted <= found:
                    return
                await asyncio.sleep(0.1)

    @asynccontextmanager
    async def _producing(self) -> AsyncIterator[None]:
        self._producer = AIOKafkaProducer(
            **self._client, acks="all", enable_idempotence=True, max_request_size=kafka_topics.MESSAGE_BYTES,
            max_batch_size=1 << 20,
        )  # fmt: skip
        await self._producer.start()
        try:
            yield
        finally:
            await self._producer.stop()

    async def _rules(self) -> None:
        """As the agent `catalog` writes them when they reach it in cmis.changes.v1."""
        by_org: dict[str, list[Any]] = {}
        for rule in self._workload.rules():
            by_org.setdefault(rule["org"], []).append(rule)
        for org, rules in by_org.items():
            record = encode(RuleSet(_now_ms(), org, 1, rules, "pane"))
            await self._producer.send_and_wait(METRICS, record, partition=partition_for(org.encode(), self.partitions))

    def _requests(self, window_bytes: int) -> Iterator[Requests]:
        """Window by window of the file."""
        numbers: dict[str, int] = {}
        with self._workload.events_file.open("rb") as file:
            lines, offset, first_line = FileLines(file, None, window_bytes), 0, 0
            while (window := lines.read(offset, first_line)) is not None:
                shares = []
                for org, share in window.shares.items():
                    bodies = []
                    for start in range(0, len(share.lines), REQUEST_EVENTS):
                        body = share.lines[start : start + REQUEST_EVENTS]
                        bodies.append((numbers.get(org, 0), b"\n".join(body)))
                        numbers[org] = numbers.get(org, 0) + len(body)
                    shares.append((org, bodies))
                yield shares
                offset, first_line = window.end, window.next_line

    async def _events(self, windows: list[Requests]) -> None:
        packer = Packer(self._append, self.partitions, _now_ms)
        slots = asyncio.Semaphore(REQUESTS_AT_ONCE)

        async def one(org: str, bodies: list[tuple[int, bytes]]) -> None:
            for number, body in bodies:
                async with slots:
                    decoded = await asyncio.to_thread(
                        decode_ndjson, body, org=org, source="bench", now_ms=_now_ms(), sequence=number
                    )  # fmt: skip
                    if decoded.batch is None or decoded.refused:
                        raise ValueError(f"{org}: {len(decoded.refused)} events were refused")
                    await packer.publish(org, decoded.batch)

        for shares in windows:
            await asyncio.gather(*(one(org, bodies) for org, bodies in shares))
        await packer.drain()

    async def _mixed(self, windows: list[Requests]) -> None:
        """An envelope per window and partition."""
        for shares in windows:
            by_partition: dict[int, list[Batch]] = {}
            for org, bodies in shares:
                for number, body in bodies:
                    decoded = decode_ndjson(body, org=org, source="bench", now_ms=_now_ms(), sequence=number)
                    assert decoded.batch is not None and not decoded.refused
                    by_partition.setdefault(partition_for(org.encode(), self.partitions), []).append(decoded.batch)
            stamp = _now_ms()
            await asyncio.gather(
                *(self._append(p, encode(Events(stamp, concatenate(batches)))) for p, batches in by_partition.items())
            )

    async def _append(self, partition: int, value: bytes) -> None:
        self._bytes += len(value)
        self._envelopes += 1
        await self._producer.send_and_wait(METRICS, value, partition=partition)


async def transitions(bootstrap: str, end_ms: int) -> list[Transition]:
    """All transitions up to end_ms (workers go on, and idle orgs' windows empty); a record sent again counts once."""
    client, found = {"bootstrap_servers": bootstrap}, dict[tuple[object, ...], Transition]()
    for partition in range(load_topics()[TRANSITIONS].partitions):
        async for records in read_to_end(client, TRANSITIONS, partition):
            for record in records:
                body = msgspec.json.decode(record.value)
                for index, line in enumerate(body["transitions"]):
                    found[(*body["source"], index)] = transition_of(line)
    return [transition for transition in found.values() if transition[0] <= end_ms]


async def peer_transitions(bootstrap: str) -> list[Transition]:
    """Those of quixstreams: a JSON message each."""
    client, found = {"bootstrap_servers": bootstrap}, list[Transition]()
    for partition in range(PEER_PARTITIONS):
        async for records in read_to_end(client, PEER_TRANSITIONS, partition):
            found += [transition_of(msgspec.json.decode(record.value)) for record in records]
    return found


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
