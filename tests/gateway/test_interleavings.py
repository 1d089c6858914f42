"""The hardest case of docs/design/live.md: subscribing, publishing, losing the connection and falling behind, in any order.

The hub with a real backplane and log over sockets that are lists; the client does what the SDKs do: it keeps its offset,
subscribes again with it, and takes what comes.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cmis_stream.backplane.contract import Item, Publication
from cmis_stream.backplane.memory import MemoryBackplane
from cmis_stream.gateway.frames import payloads
from cmis_stream.gateway.hub import Hub
from cmis_stream.gateway.limits import Limits
from tests.gateway.world import INCIDENTS, METRICS, TOPICS, Doors, Log, Pictures, place

CHANNELS = {"lossless": INCIDENTS, "conflated": METRICS}


class SlowLog(Log):
    async def read(self, channel: str, after: int, limit: int) -> Any:
        await asyncio.sleep(0)
        found = await super().read(channel, after, limit)
        await asyncio.sleep(0)
        return found


MANY = 1_000_000


class Wire:
    """A socket that takes `takes` writes, then is full."""

    def __init__(self, takes: int) -> None:
        self.takes = takes
        self.received: list[dict[str, Any]] = []
        self.client: Any = None

    def write(self, frames: bytes) -> None:
        for payload in payloads(frames):
            self.received.append(json.loads(payload))
        self.takes -= 1
        if self.takes <= 0:
            self.client.outbox.pause()

    def close(self, code: int, reason: str) -> None:
        raise AssertionError(f"closed with {code} {reason}")


class Sdk:
    def __init__(self, hub: Hub, token: str, channel: str) -> None:
        self.hub, self.token, self.channel = hub, token, channel
        self.offset: int | None = None
        self.first: int | None = None
        self.got: list[tuple[int, dict[str, Any]]] = []
        self.wire: Wire | None = None
        self.subscribing = self.subscribed = False
        self.takes = MANY
        self._number = 1

    async def connect(self) -> None:
        if self.wire is None:
            self.wire = Wire(self.takes)
            self.wire.client = self.hub.opened(self.wire)
            await self._say({"connect": {"token": self.token}})
        self.read()
        if not (self.subscribing or self.subscribed):  # as SDKs do, not before an unsubscribe has been answered
            self.subscribing = True
            recover = {"recover": True, "epoch": "epoch-1", "offset": self.offset} if self.offset is not None else {}
            await self._say({"subscribe": {"channel": self.channel, **recover}})

    async def unsubscribe(self) -> None:
        self.read()
        if self.wire is not None and self.subscribed:
            self.subscribing = False
            await self._say({"unsubscribe": {"channel": self.channel}})

    async def _say(self, command: dict[str, Any]) -> None:
        assert self.wire is not None
        self._number += 1
        await self.hub.receive(self.wire.client, json.dumps({"id": self._number, **command}))

    def lose(self) -> None:
        """The network goes: what has been received counts."""
        self.read()
        if self.wire is not None:
            self.hub.closed(self.wire.client, 1006)
            self.wire = None
        self.subscribing = self.subscribed = False

    def pause(self, after: int) -> None:
        self.takes = after
        if self.wire is not None:
            self.wire.takes = after

    def resume(self) -> None:
        self.takes = MANY
        if self.wire is not None:
            self.wire.takes = MANY
            self.wire.client.outbox.resume()

    def read(self) -> None:
        for said in self.wire.received if self.wire is not None else ():
            assert "error" not in said
            if "subscribe" in said:
                self.subscribed = True
                self._subscribed(said["subscribe"])
            elif "unsubscribe" in said:
                self.subscribed = False
            elif "push" in said:
                assert self.subscribed, "nothing comes before or behind"
                self._take(said["push"]["pub"])
        if self.wire is not None:
            self.wire.received.clear()

    def _subscribed(self, result: dict[str, Any]) -> None:
        assert self.offset is None or (result["recovered"] and result["offset"] >= self.offset), "never a gap"
        if self.first is None:
            self.first = result["offset"]
        self.offset = result["offset"]
        for publication in result.get("publications", ()):
            self._take(publication)

    def _take(self, publication: dict[str, Any]) -> None:
        assert self.offset is not None and publication["offset"] > self.offset, "once, in order"
        self.offset = publication["offset"]
        self.got += [(publication["offset"], item) for item in publication["data"]["items"]]


CLIENT = st.integers(0, 2)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.sets(st.integers(0, 3), max_size=3)),
        st.tuples(st.just("append"), st.sets(st.integers(0, 3), max_size=3)),
        st.tuples(st.just("deliver"), st.integers(1, 4)),
        st.tuples(st.just("deliver"), st.integers(1, 4)),
        st.tuples(st.just("connect"), CLIENT),
        st.tuples(st.just("unsubscribe"), CLIENT),
        st.tuples(st.just("lose"), CLIENT),
        st.tuples(st.just("pause"), CLIENT),
        st.tuples(st.just("resume"), CLIENT),
        st.tuples(st.just("turns"), st.integers(1, 5)),
    ),
    min_size=10,
    max_size=60,
)


ONE_MORE: list[tuple[str, Any]] = [("append", {0}), ("deliver", 1)]
# More is published than is held, while the last page waits for the socket.
OVERTAKEN = [("pause", 2), ("connect", 2), ("turns", 5), *ONE_MORE * 4, ("resume", 2)]
# Something is published in each turn in which the log is read.
CHASING = [("connect", 0), *ONE_MORE * 12]


@pytest.mark.spec("GTW-M06")
@pytest.mark.spec("GTW-M07")
@pytest.mark.parametrize("kind", CHANNELS)
@example(steps=OVERTAKEN, missed=5, per_channel=20, page=3, held=1)
@example(steps=CHASING, missed=8, per_channel=3, page=4, held=9)
@given(STEPS, st.integers(0, 12), st.integers(1, 5), st.integers(2, 5), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_clients_have_everything_once_and_in_order_whatever_happens_when(
    kind: str, steps: list[tuple[str, Any]], missed: int, per_channel: int, page: int, held: int
) -> None:
    asyncio.run(happen(CHANNELS[kind], steps, missed, per_channel, Limits(slice=2, page=page, held=held)))


async def happen(channel: str, steps: list[tuple[str, Any]], missed: int, per_channel: int, limits: Limits) -> None:
    """All have been there once; `missed` publications later the steps begin."""
    log, topic = SlowLog(), TOPICS[channel.split(":")[2]]
    backplane = MemoryBackplane("epoch-1", place, log.read, per_channel=per_channel)
    doors = Doors(lambda: 0)
    hub = Hub(backplane, doors, Pictures(), limits, node="n", version="v", clock=lambda: 0, methods={})
    sdks = [Sdk(hub, doors.open("acme"), channel) for _ in range(3)]
    delivered = 0

    async def deliver() -> None:
        nonlocal delivered
        if delivered < log.next_offset[topic]:
            for _, name, entry in [record for record in log.records[topic] if record[2].offset == delivered]:
                await backplane.publish(name, Publication(entry.offset, entry.items))
            await backplane.reached(topic, 0, delivered)
            delivered += 1

    async def step(what: str, value: Any) -> None:
        match what:
            case "append":
                offset = log.next_offset[topic]
                log.next_offset[topic] += 1
                if value:
                    items = [Item("USD", f"k{key}", b'{"k":%d,"v":%d}' % (key, offset)) for key in sorted(value)]
                    log.records[topic].append((0, channel, Publication(offset, items)))
            case "deliver":
                for _ in range(value):
                    await deliver()
            case "connect":
                await sdks[value].connect()
            case "unsubscribe":
                await sdks[value].unsubscribe()
            case "lose":
                sdks[value].lose()
            case "pause":
                sdks[value].pause(after=value)
            case "resume":
                sdks[value].resume()
            case "turns":
                for _ in range(value):
                    await asyncio.sleep(0)

    await backplane.reached(topic, 0, -1)
    before = [("connect", number) for number in range(3)] + [("turns", 5)] + [("lose", number) for number in range(3)]
    for what, value in [*before, *[("append", {number % 4}) for number in range(missed)], ("deliver", missed), *steps]:
        await step(what, value)
        if what != "deliver":  # several records within one turn, too
            await asyncio.sleep(0)
    for number, sdk in enumerate(sdks):
        await step("resume", number)
        await step("turns", 100)
        sdk.read()
        await sdk.connect()
        await step("turns", 100)
    for what, value in (("append", {0}), ("deliver", 1_000), ("turns", 400)):
        await step(what, value)
    for sdk in sdks:
        sdk.resume()
        sdk.read()
        check(sdk, log, topic, in_full=channel == INCIDENTS)


def check(sdk: Sdk, log: Log, topic: str, *, in_full: bool) -> None:
    assert sdk.first is not None
    expected = [
        (entry.offset + 1, json.loads(item.json)) for _, _, entry in log.records[topic] if entry.offset + 1 > sdk.first
        for item in entry.items
    ]  # fmt: skip
    if in_full:
        assert sdk.got == expected
        return
    assert {item["k"]: item["v"] for _, item in sdk.got} == {item["k"]: item["v"] for _, item in expected}
    newest: dict[int, int] = {}
    for _, item in sdk.got:
        assert newest.get(item["k"], -1) < item["v"]
        newest[item["k"]] = item["v"]
