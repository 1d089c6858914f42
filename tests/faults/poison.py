"""Records that are none of ours, written into every topic by a foreign producer while events flow."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import msgspec
import orjson
from aiokafka import AIOKafkaProducer

from cmis_stream.live.jobs import JOBS
from cmis_stream.log.envelope import Tick, encode
from cmis_stream.log.kafka_topics import MESSAGE_BYTES
from cmis_stream.runtime import CHANGES, DEAD_LETTERS, METRICS, RAW, ROLLUPS, TRANSITIONS
from tests.faults.cluster import PATIENCE_S, Cluster
from tests.faults.stage import Stage
from tests.log.backends import PARTITIONS, Embedded

HUGE = 4 << 20
"""Bytes: four times what Kafka takes by default."""

_TICK = encode(Tick(1))
EVERYWHERE: list[bytes | None] = [
    None, b"", b"\xff\x00garbage\xfe", b"null", b"[]", b"7", b'"text"', b"{}", b'{"v": 99}', _TICK[: len(_TICK) // 2],
    b"x" * HUGE, b'{"source": "here", "transitions": {}}', b"[" * 100_000,
]  # fmt: skip
"""Nothing, noise, other JSON, a truncated record, a huge one."""
OF_ITS_OWN: dict[str, list[bytes | None]] = {
    METRICS: [
        msgspec.msgpack.encode({"k": "events", "v": 1, "t": "now"}),
        msgspec.msgpack.encode({"k": "tick", "v": 2, "t": 1, "w": None}),
        msgspec.msgpack.encode({"k": "tick", "v": 1, "t": "noon", "w": "later"}),
        msgspec.msgpack.encode({"k": "rules", "v": 1, "t": 1, "org": 7, "version": "x", "rules": 3, "evaluate": None}),
    ],
    CHANGES: [
        b'{"kind": "alert_rule"}', b'{"kind": "alert_rule", "org": 7, "version": "x", "items": 3}',
        b'{"kind": "something else"}',
    ],
    JOBS: [b'{"org": "a:b", "jobs": []}', b'{"org": "acme", "jobs": [7]}'],
    TRANSITIONS: [
        b'{"source": ["cmis.metrics.v1", 0, 0]}', b'{"source": ["cmis.metrics.v1", 0, 999999999, 1], "transitions": []}',
        b'{"source": ["elsewhere", 0, 0], "transitions": [{"state": "firing"}]}',
        b'{"source": ["elsewhere", "0", null], "transitions": [7]}',
    ],
    ROLLUPS: [
        msgspec.msgpack.encode({"v": 1, "source": ["elsewhere", 0, 0], "t": 1}),
        msgspec.msgpack.encode({
            "v": 1, "source": ["elsewhere", 0, 1], "t": 1, "orgs": ["org_000"], "bounds": [0, 5], "keys": 7, "entity": [],
            "first": 0, "start": [], "panes": [], "closed": [], "sums": [],
        }),
    ],
    RAW: [
        b'{"specversion": "1.0", "id": "p", "source": "/p", "type": "cmis.ads.metrics.v1", "orgid": "nobody"}',
        b'{"specversion": "7", "data": {"impressions": -1}}',
    ],
}  # fmt: skip
OTHER_KINDS: list[bytes | None] = [
    None,
    b"{}",
    b'{"v": 99}',
    b'{"source": "here", "transitions": {}}',
    b'{"kind": "something else"}',
]
"""In cmis.changes.v1 no poison: it carries records of kinds that this version does not know, and deletions."""
ROUNDS = 2


async def poisoned(stage: Stage) -> None:
    """Twice, into every partition; on the embedded log, which has one writer, while the instance is down for a moment."""
    for number in range(ROUNDS):
        await stage.load.comes_to(0.25 + 0.25 * number)
        up = stage.cluster.api
        assert up is not None
        if stage.cluster.shape.embedded:
            code = await up.end()
            assert code == 0, f"up ended with {code}:\n{up.text}"
        await _write(stage.cluster, number)
        written = time.monotonic()
        if stage.cluster.shape.embedded:
            up.start()
            await up.ready()
        await stage.recovered(written)
    await _all_told(stage)


def _poison(topic: str) -> list[bytes | None]:
    return [*EVERYWHERE, *OF_ITS_OWN[topic]]


async def _write(cluster: Cluster, number: int) -> None:
    # A compacted topic takes no record without a key.
    rows = {topic: [(b"poison-%d-%d" % (number, n), value) for n, value in enumerate(_poison(topic))] for topic in OF_ITS_OWN}
    if cluster.kafka is None:
        log = Embedded(cluster.data_dir)
        for topic, own in rows.items():
            for partition in range(PARTITIONS):
                await log.append(topic, partition, own)
        return
    async with AIOKafkaProducer(bootstrap_servers=cluster.kafka.bootstrap, max_request_size=MESSAGE_BYTES) as producer:
        for topic, own in rows.items():
            for partition in range(PARTITIONS):
                for key, value in own:
                    await producer.send_and_wait(topic, value, key=key, partition=partition)


async def _all_told(stage: Stage) -> None:
    """A dead letter for each, with its position and the reason; not one about anything else."""
    expected = {topic: ROUNDS * PARTITIONS * len(_poison(topic)) for topic in OF_ITS_OWN}
    expected[CHANGES] -= ROUNDS * PARTITIONS * len(OTHER_KINDS)
    give_up_at = time.monotonic() + PATIENCE_S
    while (found := Counter(topic for topic, _, _ in await _told(stage.cluster))) != expected:
        if time.monotonic() > give_up_at:
            raise AssertionError(f"dead letters of {dict(found)}, expected {expected}")
        await asyncio.sleep(0.2)
    stage.remarks.append(f"{found.total():,} dead letters")


async def _told(cluster: Cluster) -> set[tuple[str, int, int]]:
    """The positions that dead letters name."""
    letters = [orjson.loads(value) for _, value in await cluster.records(DEAD_LETTERS)]
    for letter in letters:
        assert all(reason["code"] and reason["expected"] for reason in letter["reasons"]), letter
    return {tuple(letter["source"]) for letter in letters}
