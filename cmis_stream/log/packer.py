"""Packs batches of events into envelopes: one log record for many events, written as soon as the writer is idle.

A partition has at most one envelope on its way; what arrives meanwhile is packed into the next one, which leaves when the
first is durable, when 2,000 events are waiting, or after 20 ms. So a quiet feed is not held back and a busy one gets
large envelopes. Order within a partition is the order of `publish`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from cmis_stream.core.batch import Batch, concatenate, cut
from cmis_stream.core.errors import CmisError
from cmis_stream.log.envelope import Events, encode
from cmis_stream.log.topics import partition_for

EVENTS_PER_ENVELOPE = 2_000
LINGER_S = 0.020
MOST_WAITING = 400_000
"""Events that may wait to become durable, over all partitions; beyond this publishers are turned away."""

Append = Callable[[int, bytes], Coroutine[Any, Any, Any]]
"""(partition, value): completes when the record is durable."""


class Pressure(CmisError):
    """More arrives than can be written: try again after `retry_after_s`."""

    retry_after_s = 1


class Packer:
    def __init__(self, append: Append, partitions: int, clock: Callable[[], int]) -> None:
        self._append, self._clock = append, clock
        self._lanes = [_Lane() for _ in range(partitions)]
        self.waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def publish(self, org: str, batch: Batch) -> None:
        """Returns when the org's events are durable in the log; Pressure when too much is waiting already."""
        events = len(batch.uid)
        if self.waiting and self.waiting + events > MOST_WAITING:
            raise Pressure(f"{self.waiting} events are waiting to be written; try again in a second")
        lane = self._lanes[partition := partition_for(org.encode(), len(self._lanes))]
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting += events
        lane.batches.append((batch, done))
        lane.events += events
        if not lane.on_their_way or lane.events >= EVENTS_PER_ENVELOPE:
            self._send(partition)
        elif lane.timer is None:
            lane.timer = asyncio.get_running_loop().call_later(LINGER_S, self._send, partition)
        await done

    def _send(self, partition: int) -> None:
        lane = self._lanes[partition]
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        if not lane.batches:
            return
        taken, lane.batches, events, lane.events = lane.batches, [], lane.events, 0
        stamp = self._clock()
        pieces = cut(concatenate([batch for batch, _ in taken]), 4 * EVENTS_PER_ENVELOPE)
        # Tasks begin in the order of their creation: the order of envelopes is the order of publishing.
        appended = [asyncio.ensure_future(self._append(partition, encode(Events(stamp, piece)))) for piece in pieces]
        lane.on_their_way += 1
        self._tasks.add(task := asyncio.create_task(self._settle(partition, appended, [done for _, done in taken], events)))
        task.add_done_callback(self._tasks.discard)

    async def _settle(
        self, partition: int, appended: Sequence[asyncio.Future[Any]], waiting: list[asyncio.Future[None]], events: int
    ) -> None:
        lane = self._lanes[partition]
        results = await asyncio.gather(*appended, return_exceptions=True)
        failed = next((result for result in results if isinstance(result, BaseException)), None)
        self.waiting -= events
        lane.on_their_way -= 1
        for done in waiting:
            if done.done():
                continue
            if failed is None:
                done.set_result(None)
            else:
                done.set_exception(failed)
        if not lane.on_their_way and lane.batches:
            self._send(partition)

    async def drain(self) -> None:
        """Sends what is waiting and returns when all is durable."""
        for partition in range(len(self._lanes)):
            self._send(partition)
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)


class _Lane:
    """What waits for one partition."""

    def __init__(self) -> None:
        self.batches: list[tuple[Batch, asyncio.Future[None]]] = []
        self.events = 0
        self.on_their_way = 0
        self.timer: asyncio.TimerHandle | None = None
