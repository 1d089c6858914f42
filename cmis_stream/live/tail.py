"""Results read back from the embedded log, for those who were away longer than the backplane remembers.

A connection of its own, in a thread, one reading at a time. Repeats of results (after a crash of the metrics agent) are
dropped by position; so that their originals are seen, reading begins LOOK_BACK records earlier.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

from cmis_stream.backplane.contract import Publication
from cmis_stream.core.channels import parse_channel
from cmis_stream.live.results import TOPIC_OF, read_result
from cmis_stream.log.embedded import EmbeddedLog, Record
from cmis_stream.log.positions import Passed
from cmis_stream.log.topics import partition_for

LOOK_BACK = 1_000
"""An owner holds at most 400 records applied and as many in saving: no repeat is further from its original."""
MOST_RECORDS, MOST_BYTES = 100_000, 512 << 20
"""Of one reading; who needs more begins anew."""
_STEP_RECORDS, _STEP_BYTES, _STEP_BACK = 200, 4 << 20, 50


class LogTail:
    def __init__(self, path: Path, partitions: int) -> None:
        self._partitions = partitions
        self._log = EmbeddedLog.open(path, read_only=True)
        self._reading = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Waits for a reading that is under way."""
        self._closed = True
        with self._reading:
            self._log.close()

    def place(self, channel: str) -> tuple[str, int]:
        """The results topic and partition that an org's channel comes from."""
        org, topic, _ = parse_channel(channel)
        return TOPIC_OF[topic], partition_for(org.encode(), self._partitions)

    async def read(self, channel: str, after: int, limit: int) -> Sequence[Publication] | None:
        """The channel's first `limit` publications after an offset. None: the log does not hold all of them any more, or they
        lie among more records than one reading may take."""
        return await asyncio.to_thread(self._read, channel, after, limit)

    async def moment(self, channel: str, at_ms: int) -> int | None:
        """The offset before the first result of that time (epoch ms) or later; None: the log does not reach back so far."""
        return await asyncio.to_thread(self._moment, *self.place(channel), at_ms)

    async def newest(self, topic: str, partition: int, most: int, most_bytes: int) -> tuple[int, list[Record]]:
        """The newest records, about so many at most, oldest first, and the offset before them."""
        return await asyncio.to_thread(self._newest, topic, partition, most, most_bytes)

    def _newest(self, topic: str, partition: int, most: int, most_bytes: int) -> tuple[int, list[Record]]:
        found: list[Record] = []
        with self._reading:
            if self._closed or topic not in self._log.topics:
                return -1, found
            first, end, size = self._log.earliest(topic, partition), self._log.highwater(topic, partition), 0
            while end > first and len(found) < most and size < most_bytes:
                start = max(first, end - _STEP_BACK)
                step = self._log.read(topic, partition, start, end - start, 256 << 20)
                size += sum(len(record.value or b"") for record in step)
                found, end = step + found, start
        return end - 1, found

    def _read(self, channel: str, after: int, limit: int) -> list[Publication] | None:
        topic, partition = self.place(channel)
        offset = max(0, after + 1 - LOOK_BACK)
        passed, found, records, size = Passed(), list[Publication](), 0, 0
        if not self._holds(topic, partition, offset):
            return None
        while len(found) < limit:
            with self._reading:
                if self._closed:
                    return None
                step = self._log.read(topic, partition, offset, _STEP_RECORDS, _STEP_BYTES)
            if not step:
                break
            if step[0].offset > offset:
                return None  # retention has come meanwhile
            for record in step:
                result = read_result(topic, record.offset, record.value or b"")
                publication = result.publications.get(channel)
                if passed.is_new(*result.source) and publication is not None and record.offset > after:
                    found.append(publication)
            offset = step[-1].offset + 1
            records, size = records + len(step), size + sum(len(record.value or b"") for record in step)
            if len(found) < limit and (records > MOST_RECORDS or size > MOST_BYTES):
                return None
        return found[:limit]

    def _holds(self, topic: str, partition: int, offset: int) -> bool:
        with self._reading:
            return not self._closed and topic in self._log.topics and self._log.earliest(topic, partition) <= offset

    def _moment(self, topic: str, partition: int, at_ms: int) -> int | None:
        with self._reading:
            if self._closed or topic not in self._log.topics:
                return None
            first, end = self._log.earliest(topic, partition), self._log.highwater(topic, partition)
            low, high = first, end
            while low < high:  # the first record of that time or later; records stand in the order of their times
                middle = (low + high) // 2
                record = next(iter(self._log.read(topic, partition, middle, 1, 1)), None)
                if record is None:
                    return None  # retention has come meanwhile
                if record.ts_ms < at_ms:
                    low = middle + 1
                else:
                    high = middle
        return None if low == first and first > 0 else low - 1
