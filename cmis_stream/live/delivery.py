"""What the agent `deliver` does with results: to the backplane, each once, and to whoever listens in this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from cmis_stream.backplane.contract import Backplane, Forgotten
from cmis_stream.core.errors import Rejected
from cmis_stream.live.jobs import JOBS
from cmis_stream.live.results import Result, read_result
from cmis_stream.live.tail import LogTail
from cmis_stream.log.owner import ROLLUPS, TRANSITIONS
from cmis_stream.log.positions import Passed
from cmis_stream.log.reader import LogAway

log = logging.getLogger("cmis.deliver")

REMEMBERED = {TRANSITIONS: (1_500, 4 << 20), ROLLUPS: (240, 2 << 20), JOBS: (500, 1 << 20)}
"""Results topic -> records and bytes that are read of each partition when it begins: about a minute of rollups."""
BEGIN_S = 2.0
"""How long an assignment waits for the backplane; when that is away the other agents go on, and results wait."""
LOOK_S = 2.0
_RETRY_S = 0.5


class _Line:
    """A partition of a results topic. filled: the log was read up to this record, and it has been published. told: up to this
    record listeners here have been told. at: the last record that was published, or is on its way."""

    def __init__(self, topic: str, partition: int) -> None:
        self.topic, self.partition = topic, partition
        self.lock = asyncio.Lock()
        """Held while it is filled; who waits for it goes on in the order of coming."""
        self.passed = Passed()
        self.wanted, self.fills = 1, 0
        self.filled = self.told = self.at = -1

    @property
    def stale(self) -> bool:
        """It has to be filled (again) before anything else is published."""
        return self.fills < self.wanted


class Delivery:
    """heard: told of the transitions of each record. Callers may take several records before the first is published: what
    matters is the order in which the calls begin."""

    def __init__(self, backplane: Backplane, tail: LogTail, heard: Callable[[list[dict[str, Any]]], None]) -> None:
        self._backplane, self._tail, self._heard = backplane, tail, heard
        self._lines: dict[tuple[str, int], _Line] = {}
        self._assigned: set[int] = set()
        self._filling: set[asyncio.Task[None]] = set()

    async def begin(self, partitions: Iterable[int]) -> None:
        """Before the first record of an assignment, which has these partitions: the backplane is as if it had been there when
        the log's newest records came. When it is away for longer than a moment, `take` goes on waiting for that."""
        self._assigned = set(partitions)
        lines = [self._line(topic, partition) for partition in sorted(self._assigned) for topic in REMEMBERED]
        for line in lines:
            line.wanted += 1
        filling = [asyncio.create_task(self._fill(line)) for line in lines]
        self._filling.update(filling)
        for task in filling:
            task.add_done_callback(self._filling.discard)
        done, _ = await asyncio.wait(filling, timeout=BEGIN_S) if filling else (set(), set())
        for task in done:
            task.result()

    async def close(self) -> None:
        """What waits for the backplane is given up."""
        for task in self._filling:
            task.cancel()
        await asyncio.gather(*self._filling, return_exceptions=True)

    async def take(self, topic: str, partition: int, offset: int, value: bytes) -> Rejected | None:
        """The record at `offset` of a results topic; returns when gateways can have it. What is wrong with it, if it is none of
        ours: then it is passed over."""
        line = self._line(topic, partition)
        result = _read(topic, offset, value)
        wrong = result if isinstance(result, Rejected) else None
        while True:
            async with line.lock:  # and no other wait before the record is on its way, so that they stay in order
                pass
            fills = line.fills
            if not line.stale:
                try:
                    if offset > line.filled:
                        await self._publish(line, offset, result)
                    return wrong
                except Forgotten:
                    line.wanted = max(line.wanted, fills + 1)
            await self._fill(line)

    def passed(self, topic: str, partition: int) -> int:
        """The newest position of the metrics log whose results of this topic have been published; -1 before the first."""
        passed = self._line(topic, partition).passed.highest
        return max((offset for (_, source), offset in passed.items() if source == partition), default=-1)

    async def watch(self) -> None:
        """For ever: what the backplane has forgotten of a quiet partition is brought back before its next record."""
        looked: dict[_Line, int] = {}
        while True:
            await asyncio.sleep(LOOK_S)
            quiet = []
            for line in [self._line(topic, partition) for partition in self._assigned for topic in REMEMBERED]:
                if looked.get(line) == line.at and not line.lock.locked():
                    quiet.append(self._look(line))
                looked[line] = line.at
            await asyncio.gather(*quiet)

    async def _look(self, line: _Line) -> None:
        fills = line.fills
        try:
            if not line.stale:
                await self._backplane.reached(line.topic, line.partition, line.at)
        except Forgotten:
            line.wanted = max(line.wanted, fills + 1)
        await self._fill(line)

    def _line(self, topic: str, partition: int) -> _Line:
        line = self._lines.get((topic, partition))
        if line is None:
            line = self._lines[topic, partition] = _Line(topic, partition)
        return line

    async def _fill(self, line: _Line) -> None:
        async with line.lock:
            while line.stale:
                wanted = line.wanted
                try:
                    await self._bring_up_to_date(line)
                except Forgotten:
                    continue
                except LogAway as error:
                    log.warning("%s, partition %d cannot be read yet: %s", line.topic, line.partition, error)
                    await asyncio.sleep(_RETRY_S)
                    continue
                line.fills = wanted

    async def _bring_up_to_date(self, line: _Line) -> None:
        before, records = await self._tail.newest(line.topic, line.partition, *REMEMBERED[line.topic])
        reached = await self._backplane.begin(line.topic, line.partition, before)
        line.passed, line.at = Passed(), max(before, reached)
        coming = []
        for record in records:
            result = _read(line.topic, record.offset, record.value or b"")
            if record.offset > reached:
                coming.append(self._publish(line, record.offset, result))
            elif isinstance(result, Result) and line.passed.is_new(*result.source):
                self._tell(line, record.offset, result)
        for outcome in await asyncio.gather(*coming, return_exceptions=True):
            if outcome is not None:
                raise outcome
        line.filled = records[-1].offset if records else before

    def _tell(self, line: _Line, offset: int, result: Result) -> None:
        if result.lines and offset > line.told:
            self._heard(list(result.lines))
        line.told = max(offset, line.told)

    async def _publish(self, line: _Line, offset: int, result: Result | Rejected) -> None:
        if isinstance(result, Result) and line.passed.is_new(*result.source):
            for channel, publication in result.publications.items():
                await self._backplane.publish(channel, publication)
            self._tell(line, offset, result)
        line.at = max(offset, line.at)
        await self._backplane.reached(line.topic, line.partition, offset)


def _read(topic: str, offset: int, value: bytes) -> Result | Rejected:
    try:
        return read_result(topic, offset, value)
    except Rejected as error:
        return error
