"""A gateway on a loopback port, over a backplane in memory and a log that is a list; who may connect is a dict of tokens."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from cmis_stream.backplane.contract import Item, Publication
from cmis_stream.backplane.items import MetricItem
from cmis_stream.backplane.memory import MemoryBackplane
from cmis_stream.core.channels import Channel
from cmis_stream.gateway.limits import Limits
from cmis_stream.gateway.ports import Grant, Refused, Snapshot
from cmis_stream.gateway.server import PATH, Gateway
from cmis_stream.serving import listening_socket

METRICS, INCIDENTS = "org:acme:metrics", "org:acme:incidents"
TOPICS = {"metrics": "cmis.rollups.v1", "incidents": "cmis.transitions.v1"}
DAY_MS = 86_400_000


def metric(entity: str = "USD", at: int = 0, events: int = 1) -> Item:
    return MetricItem(entity, at, 10_000, False, (events, 0, 0, 0, 0, 0)).item()


def incident(number: int, entity: str = "USD/meta", text: str = "") -> Item:
    body = {"id": f"i{number}", "entity": entity, "text": text}
    return Item(entity, f"i{number}", json.dumps(body, separators=(",", ":")).encode())


def place(channel: str) -> tuple[str, int]:
    return TOPICS[channel.split(":")[2]], 0


class Log:
    """A topic's partition 0 each: publications with stamps, of which those from `earliest` on are still there."""

    def __init__(self) -> None:
        self.records: dict[str, list[tuple[int, str, Publication]]] = {topic: [] for topic in TOPICS.values()}
        self.next_offset = dict.fromkeys(TOPICS.values(), 0)
        self.earliest = dict.fromkeys(TOPICS.values(), 0)

    async def read(self, channel: str, after: int, limit: int) -> Sequence[Publication] | None:
        topic, _ = place(channel)
        if after + 1 < self.earliest[topic]:
            return None
        found = [entry for _, name, entry in self.records[topic] if name == channel and entry.offset > after]
        return [Publication(entry.offset, entry.items) for entry in found[:limit]]

    async def moment(self, channel: str, at_ms: int) -> int | None:
        topic, _ = place(channel)
        stamps = [(stamp, entry.offset) for stamp, _, entry in self.records[topic] if entry.offset >= self.earliest[topic]]
        if not stamps or stamps[0][0] > at_ms:
            return None
        return next((offset - 1 for stamp, offset in stamps if stamp >= at_ms), self.next_offset[topic] - 1)


class Doors:
    """`ports.Access`: what tokens open; closing one is seen at the next look."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self.grants: dict[str, Grant] = {}
        self.changes: dict[str, Grant | None] = {}
        self.numbers = itertools.count(1)
        self.asked, self.broken = 0, False

    def open(
        self, *orgs: str, subject: str = "ann", topics: Collection[str] | None = None, expires_at_ms: int | None = None
    ) -> str:
        """A token."""
        number = next(self.numbers)
        limited = None if topics is None else frozenset(topics)
        self.grants[f"token-{number}"] = Grant(f"session-{number}", subject, frozenset(orgs), limited, expires_at_ms)
        return f"token-{number}"

    def revoke(self, token: str) -> None:
        self.changes[self.grants.pop(token).id] = None

    def move(self, token: str, *orgs: str) -> None:
        """The token's session may see these orgs from now on."""
        grant = self.grants[token] = replace(self.grants[token], orgs=frozenset(orgs))
        self.changes[grant.id] = grant

    async def verify(self, token: str) -> Grant:
        grant = self.grants.get(token)
        if grant is None or (grant.expires_at_ms is not None and grant.expires_at_ms <= self._now_ms()):
            raise Refused(expired=grant is not None)
        return grant

    async def changed(self, grants: Collection[Grant]) -> dict[str, Grant | None]:
        self.asked += 1
        if self.broken:
            raise OSError("database is locked")
        now = {grant: self.changes[grant.id] for grant in grants if grant.id in self.changes}
        return {before.id: after for before, after in now.items() if after is None or after.orgs != before.orgs}


class Pictures:
    """`ports.Snapshots`: what is set. late_s: how long it takes."""

    def __init__(self) -> None:
        self.held: dict[str, Snapshot] = {}
        self.late_s = 0.0
        self.broken = False

    async def snapshot(self, channel: Channel) -> Snapshot | None:
        await asyncio.sleep(self.late_s)
        if self.broken:
            raise OSError("database is locked")
        return self.held.get(channel.whole)


class World:
    def __init__(self, limits: Limits, **options: Any) -> None:
        """memory: options of the backplane. delivered False: the agent deliver has not begun yet. The rest is the gateway's."""
        self.skew_ms = 0
        self.limits = limits
        self.log, self.doors, self.pictures = Log(), Doors(self.now_ms), Pictures()
        self.backplane = MemoryBackplane("epoch-1", place, self.log.read, self.log.moment, **options.pop("memory", {}))
        self._delivered = options.pop("delivered", True)
        self.options = options
        self.gateway = self._gateway()
        self.port = 0

    def _gateway(self) -> Gateway:
        return Gateway(self.backplane, self.doors, self.pictures, self.limits, clock=self.now_ms, **self.options)

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.skew_ms

    async def start(self) -> None:
        for topic in TOPICS.values() if self._delivered else ():
            await self.backplane.reached(topic, 0, self.log.next_offset[topic] - 1)
        self.port = await self.gateway.start(listening_socket("127.0.0.1", self.port))

    async def restart(self) -> None:
        """Another gateway process on the same port: memory is empty, the log is there."""
        await self.gateway.stop()
        self.backplane = MemoryBackplane("epoch-1", place, self.log.read, self.log.moment)
        self.gateway = self._gateway()
        await self.start()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}{PATH}"

    async def publish(self, channel: str, *items: Item, stamp_ms: int | None = None) -> int:
        """One record; returns its offset in the protocol."""
        topic, partition = place(channel)
        offset = self.log.next_offset[topic]
        self.log.next_offset[topic] += 1
        publication = Publication(offset, items)
        self.log.records[topic].append((self.now_ms() if stamp_ms is None else stamp_ms, channel, publication))
        await self.backplane.publish(channel, publication)
        await self.backplane.reached(topic, partition, offset)
        return offset + 1

    @asynccontextmanager
    async def client(self, token: str | None = None, *, path: str = "", **options: Any) -> AsyncIterator[Program]:
        """A connection that has not said anything yet, or with a token, one that is connected."""
        async with connect(self.url + path, compression=options.pop("compression", None), **options) as websocket:
            program = Program(websocket)
            if token is not None:
                assert "connect" in await program.ask(connect={"token": token})
            yield program


class Program:
    """A client of the protocol: sends commands, and keeps replies and pushes apart."""

    def __init__(self, websocket: ClientConnection) -> None:
        self.websocket = websocket
        self.pushes: list[dict[str, Any]] = []
        self.replies: dict[int, dict[str, Any]] = {}
        self.pings = 0
        self.order: list[dict[str, Any]] = []
        self._numbers = itertools.count(1)

    async def send(self, *commands: dict[str, Any]) -> None:
        await self.websocket.send("\n".join(json.dumps(command) for command in commands))

    async def ask(self, **command: Any) -> dict[str, Any]:
        """The reply to one command."""
        number = next(self._numbers)
        await self.send({"id": number, **command})
        return await self.reply(number)

    async def reply(self, number: int) -> dict[str, Any]:
        while number not in self.replies:
            await self._read()
        return self.replies.pop(number)

    async def push(self) -> dict[str, Any]:
        """The next one."""
        while not self.pushes:
            await self._read()
        return self.pushes.pop(0)

    async def ping(self) -> None:
        pings = self.pings
        while self.pings == pings:
            await self._read()

    async def _read(self) -> None:
        async with asyncio.timeout(20):
            message = await self.websocket.recv()
        for line in str(message).strip().split("\n"):
            said = json.loads(line)
            self.order.append(said)
            if not said:
                self.pings += 1
            elif "push" in said:
                self.pushes.append(said["push"])
            else:
                self.replies[said["id"]] = said

    async def closed(self) -> tuple[int, str]:
        """The close code and reason, when it comes."""
        with suppress(ConnectionClosed):
            while True:
                await self._read()
        return self.websocket.close_code or 1006, self.websocket.close_reason or ""


async def until(condition: Callable[[], bool], limit_s: float = 20) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)
