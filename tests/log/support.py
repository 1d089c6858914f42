"""What the tests of a partition's owner share: records, and a world whose writes become durable when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import numpy as np
import orjson

from cmis_stream.core.batch import Batch, Segment, leaf_path
from cmis_stream.core.engine import Engine
from cmis_stream.core.entities import LEVELS
from cmis_stream.core.time import HOUR_MS, WINDOWS
from cmis_stream.log import rollup
from cmis_stream.log.checkpoint import Write
from cmis_stream.log.envelope import Events, RuleSet, encode
from cmis_stream.log.owner import ROLLUPS, TRANSITIONS, Owner

NOW = 1_767_225_600_000
TOPIC, PARTITION = "cmis.metrics.v1", 3
RULES = [
    {"id": "spend", "org": "acme", "metric": "spend", "window": "5m", "op": "gt", "threshold": 10},
    {"id": "clicks", "org": "acme", "metric": "clicks", "window": "1m", "op": "gte", "threshold": 3},
]


def events(
    *given: tuple[str, int, float], first: int = 0, clicks: int = 0, stamp: int = NOW + HOUR_MS, org: str = "acme"
) -> bytes:
    """(campaign, ms after NOW, spend) each, numbered by their sender from `first`, with ids e0, e1, …"""
    paths = [leaf_path(org, "USD", "meta", "", campaign) for campaign, _, _ in given]
    values = np.zeros((5, len(given)), np.int64)
    values[1] = clicks
    values[2] = [round(spend * 1e6) for _, _, spend in given]
    batch = Batch(
        ts_ms=np.array([NOW + ms for _, ms, _ in given], np.int64), leaf=np.arange(len(given), dtype=np.int32), values=values,
        event=np.arange(len(given), dtype=np.int32), uid=np.arange(first, first + len(given), dtype=np.uint64), paths=paths,
        segments=[Segment(org, "feed", True, len(given))], ids=[f"e{first + i}" for i in range(len(given))],
    )  # fmt: skip
    return encode(Events(stamp, batch))


def rules(version: int = 1, given: list[dict[str, Any]] = RULES) -> bytes:
    return encode(RuleSet(NOW, "acme", version, given, "live"))


class World:
    """A log and a changelog whose writes become durable when the test says so; and what happened, in order."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any, asyncio.Future[None]]] = []
        self.stored: list[tuple[list[Write], list[asyncio.Future[None]]]] = []
        self.changelog: dict[bytes, bytes] = {}
        self.acked: list[int] = []
        self.prompt = True
        self.sending: asyncio.Event | None = None

    async def send(self, topic: str, partition: int, value: bytes) -> asyncio.Future[None]:
        assert partition == PARTITION
        if self.sending is not None:
            await self.sending.wait()
        future = self._future()
        self.sent.append((topic, rollup.decode(value) if topic == ROLLUPS else orjson.loads(value), future))
        return future

    async def store(self, partition: int, writes: Iterable[Write]) -> list[asyncio.Future[None]]:
        assert partition == PARTITION
        writes = list(writes)
        futures = [self._future() for _ in writes]
        self.stored.append((writes, futures))
        for key, value in writes:  # as compaction leaves it
            if value is None:
                self.changelog.pop(key, None)
            else:
                self.changelog[key] = value
        return futures

    def _future(self) -> asyncio.Future[None]:
        future = asyncio.get_running_loop().create_future()
        if self.prompt:
            future.set_result(None)
        return future

    def owner(self, generation: str = "g1", log: str = "") -> Owner:
        engine = Engine(LEVELS, live_windows=tuple(WINDOWS.values()))
        return Owner(TOPIC, PARTITION, engine, generation=generation, send=self.send, store=self.store, log=log)

    async def feed(self, owner: Owner, records: list[bytes], first: int = 0) -> None:
        for offset, value in enumerate(records, first):
            await owner.apply(offset, value, lambda offset=offset: self.acked.append(offset))

    def bodies(self, topic: str) -> list[Any]:
        return [body for name, body, _ in self.sent if name == topic]

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [line for body in self.bodies(TRANSITIONS) for line in body["transitions"]]


async def settled() -> None:
    """Lets everything happen that does not wait for the test."""
    for _ in range(20):
        await asyncio.sleep(0)
