"""What the agent `deliver` does with results: to the backplane, each once, and to whoever listens in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cmis_stream.backplane.contract import Backplane
from cmis_stream.live.results import read_result
from cmis_stream.live.tail import LogTail
from cmis_stream.log.owner import ROLLUPS, TRANSITIONS
from cmis_stream.log.positions import Passed

REMEMBERED = {TRANSITIONS: (1_500, 4 << 20), ROLLUPS: (240, 2 << 20)}
"""Results topic -> records and bytes that are read of each partition at the start: about a minute of rollups."""


class Delivery:
    """heard: told of the transitions of each record."""

    def __init__(self, backplane: Backplane, heard: Callable[[list[dict[str, Any]]], None]) -> None:
        self._backplane, self._heard = backplane, heard
        self._passed = {topic: Passed() for topic in REMEMBERED}

    async def begin(self, tail: LogTail, partitions: int) -> None:
        """Before the first record is taken: the backplane is as if it had been there when the log's newest records came."""
        for topic, (most, most_bytes) in REMEMBERED.items():
            for partition in range(partitions):
                before, records = await tail.newest(topic, partition, most, most_bytes)
                await self._backplane.reached(topic, partition, before)
                for record in records:
                    await self.take(topic, partition, record.offset, record.value or b"")

    async def take(self, topic: str, partition: int, offset: int, value: bytes) -> None:
        """The record at `offset` of a results topic."""
        result = read_result(topic, offset, value)
        if self._passed[topic].is_new(*result.source):
            for channel, publication in result.publications.items():
                await self._backplane.publish(channel, publication)
            if result.lines:
                self._heard(list(result.lines))
        await self._backplane.reached(topic, partition, offset)
