"""Backplanes to try, the writer and the readers that use them."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import os
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeServer

from cmis_stream.backplane.contract import Backplane, Forgotten, Item, Publication, Unready
from cmis_stream.backplane.memory import MemoryBackplane
from cmis_stream.backplane.redis import RedisBackplane
from tests.gateway.world import INCIDENTS, TOPICS, Log, incident, place

EPOCH = "epoch-1"
TOPIC = TOPICS["incidents"]
OTHER = "org:globex:incidents"  # of the same partition

IMPLEMENTATIONS = ["memory", "fakeredis", pytest.param("redis", marks=pytest.mark.slow)]
Make = Callable[..., Awaitable[Backplane]]


@dataclass
class Opener:
    """Opens backplanes of an implementation, each with a life of its own. url: of the server, if it needs one."""

    name: str
    url: str = ""

    @property
    def examples(self) -> int:
        """For hypothesis."""
        return {"memory": 300, "fakeredis": 50, "redis": 300}[self.name]

    @classmethod
    def of(cls, name: str, request: pytest.FixtureRequest) -> Opener:
        if name == "fakeredis" and importlib.util.find_spec("lupa") is None:
            if os.environ.get("CI"):
                raise RuntimeError("lupa is needed to run scripts in fakeredis")
            pytest.skip("lupa is needed to run scripts in fakeredis: pip install 'fakeredis[lua]'")
        return cls(name, request.getfixturevalue("redis").url if name == "redis" else "")

    async def open(self, opened: AsyncExitStack, log: Log, **options: Any) -> Backplane:
        options = {"patience_s": 0.02, **options}
        if self.name == "memory":
            return MemoryBackplane(EPOCH, place, log.read, log.moment, **options)
        if self.name == "fakeredis":
            server = FakeServer()
            options["connect"] = lambda _: FakeAsyncRedis(server=server, protocol=2)
        return await redis_backplane(opened, self.url, log, **options)


async def redis_backplane(opened: AsyncExitStack, url: str, log: Log, epoch: str = EPOCH, **options: Any) -> RedisBackplane:
    """prefix: one that nobody has used, if not given."""
    options = {"prefix": f"test-{uuid.uuid4().hex[:12]}", "patience_s": 10.0, "look_s": 0.05, **options}
    made = RedisBackplane(url, epoch, place, log.read, log.moment, **options)
    await made.open()
    opened.push_async_callback(made.close)
    return made


class Writer:
    """What the agent deliver does: a record into the log, its publications, and that it has been reached."""

    def __init__(self, backplane: Backplane, log: Log) -> None:
        self.backplane, self.log = backplane, log

    async def begin(self, topic: str = TOPIC) -> None:
        await self.backplane.begin(topic, 0, self.log.next_offset[topic] - 1)

    def append(self, *channels: str, stamp_ms: int = 0, item: Item | None = None) -> int:
        topic = place(channels[0])[0] if channels else TOPIC
        offset = self.log.next_offset[topic]
        self.log.next_offset[topic] += 1
        for channel in channels:
            publication = Publication(offset, [item or incident(offset)])
            self.log.records[topic].append((stamp_ms, channel, publication))
        return offset

    async def deliver(self, offset: int, topic: str = TOPIC) -> None:
        for _, channel, publication in [entry for entry in self.log.records[topic] if entry[2].offset == offset]:
            await self.backplane.publish(channel, Publication(offset, publication.items))
        await self.backplane.reached(topic, 0, offset)

    async def write(self, *channels: str) -> int:
        offset = self.append(*channels)
        await self.deliver(offset, place(channels[0])[0] if channels else TOPIC)
        return offset


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.publications: list[Publication] = []

    def __call__(self, _: str, publication: Publication) -> None:
        self.publications.append(publication)

    @property
    def offsets(self) -> list[int]:
        return offsets(self.publications)

    async def until(self, offset: int, limit_s: float = 60) -> list[int]:
        """All offsets, when this one has come."""
        async with asyncio.timeout(limit_s):
            while offset not in self.offsets[-50:]:
                await asyncio.sleep(0.002)
        return self.offsets


class Client:
    """What a gateway does for a client: listens, recovers what it missed, and ignores what it has seen by its offset; as often
    as it is told to ask again. Then it must have had everything after `after`, each once, in order."""

    def __init__(self, backplane: Backplane, channel: str = INCIDENTS, after: int = -1) -> None:
        self.backplane, self.channel, self.got = backplane, channel, [after]
        self.gaps = 0
        self._live = False
        self._held: list[Publication] = []

    def _hear(self, _: str, publication: Publication) -> None:
        if publication.gap:
            self.gaps += 1
        elif not self._live:
            self._held.append(publication)
        else:
            assert publication.offset > self.got[-1], f"{publication.offset} comes after {self.got[-1]}"
            self.got.append(publication.offset)

    async def join(self) -> None:
        async with asyncio.timeout(60):
            for _ in itertools.count():
                try:
                    await self.backplane.listen(self.channel, self._hear)
                    position, found = await self.backplane.recover(self.channel, self.got[-1], EPOCH, 100_000)
                    break
                except Unready:
                    await asyncio.sleep(0.01)
        assert found is not None, "it cannot recover"
        self.got += offsets(found)
        self.got += [held.offset for held in self._held if held.offset > position.offset]
        self._live = True

    async def until(self, offset: int, limit_s: float = 60) -> list[int]:
        async with asyncio.timeout(limit_s):
            while self.got[-1] < offset:
                await asyncio.sleep(0.002)
        return self.got[1:]


def offsets(publications: Sequence[Publication] | None) -> list[int]:
    assert publications is not None, "unrecoverable"
    return [publication.offset for publication in publications]


class Worker(Writer):
    """A writer that goes on whatever Redis forgets, as `live.delivery` does."""

    async def deliver(self, offset: int, topic: str = TOPIC) -> None:
        try:
            await super().deliver(offset, topic)
        except Forgotten:
            await self.begin_again(40, topic)

    async def begin_again(self, newest: int, topic: str = TOPIC) -> None:
        while True:
            end = self.log.next_offset[topic]
            before = max(-1, end - 1 - newest)
            try:
                await self.backplane.begin(topic, 0, before)
                await asyncio.gather(*(super(Worker, self).deliver(offset, topic) for offset in range(before + 1, end)))
                return
            except Forgotten:
                continue

    async def flow(self, records: int) -> int:
        """So many records, every other one for INCIDENTS, the last one, too; its offset."""
        offset = -1
        for number in range(records, 0, -1):
            offset = await self.write(INCIDENTS if number % 2 else OTHER)
        return offset
