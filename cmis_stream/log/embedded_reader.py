"""`LogReader` over the embedded log: a read-only connection of its own, beside the writer in this or another process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self, TypeVar

from cmis_stream.log.embedded import EmbeddedLog
from cmis_stream.log.reader import LogAway, Record

T = TypeVar("T")


class EmbeddedReader:
    """Readings take turns in a thread of their own: never on the event loop, nor in the way of the loop's other threads."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raises `LogError` when there is no log at the path, or one of another version."""
        return cls(EmbeddedLog.open(path, read_only=True))

    def __init__(self, log: EmbeddedLog) -> None:
        """Use `open`."""
        self._log = log
        self._thread = ThreadPoolExecutor(1, f"log-reader:{log.path.name}")
        self._closed = False

    @property
    def epoch(self) -> str:
        return self._log.epoch

    async def topics(self) -> dict[str, int]:
        return await self._run(lambda: {name: info.partitions for name, info in self._log.topics.items()})

    async def ends(self, topic: str) -> dict[int, int]:
        return await self._run(lambda: {p: self._log.highwater(topic, p) for p in self._partitions(topic)})

    async def starts(self, topic: str) -> dict[int, int]:
        return await self._run(lambda: {p: self._log.earliest(topic, p) for p in self._partitions(topic)})

    async def read(self, topic: str, partition: int, offset: int, records: int, max_bytes: int) -> list[Record]:
        return await self._run(lambda: self._read(topic, partition, offset, records, max_bytes))

    async def offset_at(self, topic: str, partition: int, at_ms: int) -> int:
        return await self._run(lambda: self._offset_at(topic, partition, at_ms))

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        offsets = await self._run(self._log.groups)
        return {partition: offset for (name, partition), offset in offsets.get(group, {}).items() if name == topic}

    async def bytes_held(self, topic: str) -> int:
        """Bytes of all records of a topic that is there. Only this log can tell."""
        return await self._run(lambda: self._log.bytes_held(topic))

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await asyncio.get_running_loop().run_in_executor(self._thread, self._log.close)
            self._thread.shutdown(wait=False)  # it has nothing left to do

    async def _run(self, reading: Callable[[], T]) -> T:
        if self._closed:
            raise LogAway(f"{self._log.path}: this reader of the log has been closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, reading)

    def _partitions(self, topic: str) -> range:
        info = self._log.topics.get(topic)
        return range(info.partitions if info is not None else 0)

    def _read(self, topic: str, partition: int, offset: int, records: int, max_bytes: int) -> list[Record]:
        if partition not in self._partitions(topic):
            return []
        return self._log.read(topic, partition, max(0, offset), records, max_bytes)

    def _offset_at(self, topic: str, partition: int, at_ms: int) -> int:
        """By halves: the log has no index over stamps. Each look is at one record, the next one behind a hole."""
        if partition not in self._partitions(topic):
            return 0
        found = end = self._log.highwater(topic, partition)  # before looking: what comes later does not count
        low, high = self._log.earliest(topic, partition), end
        while low < high:
            middle = (low + high) // 2
            record = next(iter(self._log.read(topic, partition, middle, 1, 1)), None)
            if record is None or record.offset >= high:
                high = middle
            elif record.ts_ms < at_ms:
                low = record.offset + 1
            else:
                found, high = record.offset, middle
        return found
