"""Results read back from the log, for those who were away longer than the backplane remembers.

Repeats of results (after a crash of the metrics agent) are dropped by position; so that their originals are seen, reading
begins LOOK_BACK records earlier.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cmis_stream.backplane.contract import Publication
from cmis_stream.core.channels import parse_channel
from cmis_stream.core.errors import Rejected
from cmis_stream.live.results import TOPIC_OF, read_result
from cmis_stream.log.positions import Passed
from cmis_stream.log.reader import LogReader, Record
from cmis_stream.log.topics import partition_for

LOOK_BACK = 1_000
"""An owner holds at most 400 records applied and as many in saving: no repeat is further from its original."""
MOST_RECORDS, MOST_BYTES = 100_000, 512 << 20
"""Of one reading; who needs more begins anew."""
_STEP_RECORDS, _STEP_BYTES = 2_000, 4 << 20
_STEP_BACK, _LONGEST_STEP_BACK = 50, 400
"""Records of the first step back, and of one at most: how large they are is known when they have been read."""


class LogTail:
    """Each method raises `LogAway` when the log does not answer. The reader is closed by whoever opened it."""

    def __init__(self, reader: LogReader, partitions: int) -> None:
        self._log, self._partitions = reader, partitions

    def place(self, channel: str) -> tuple[str, int]:
        """The results topic and partition that an org's channel comes from."""
        org, topic, _ = parse_channel(channel)
        return TOPIC_OF[topic], partition_for(org.encode(), self._partitions)

    async def read(self, channel: str, after: int, limit: int) -> Sequence[Publication] | None:
        """The channel's first `limit` publications after an offset. None: the log does not hold all of them any more, or they
        lie among more records than one reading may take."""
        topic, partition = self.place(channel)
        offset = max(0, after + 1 - LOOK_BACK)
        start = (await self._log.starts(topic)).get(partition)
        if start is None or start > offset:
            return None
        passed, found, records, size = Passed(), list[Publication](), 0, 0
        while len(found) < limit:
            step = await self._log.read(topic, partition, offset, _STEP_RECORDS, _STEP_BYTES)
            if not step:
                break
            if step[0].offset > offset and (await self._log.starts(topic)).get(partition, step[0].offset) > offset:
                return None  # retention has come meanwhile
            found += await asyncio.to_thread(_told, topic, step, channel, after, passed)
            offset = step[-1].offset + 1
            records, size = records + len(step), size + _size(step)
            if len(found) < limit and (records > MOST_RECORDS or size > MOST_BYTES):
                return None
        return found[:limit]

    async def moment(self, channel: str, at_ms: int) -> int | None:
        """The offset before the first result of that time (epoch ms) or later; None: the log does not reach back so far."""
        topic, partition = self.place(channel)
        offset = await self._log.offset_at(topic, partition, at_ms)
        start = (await self._log.starts(topic)).get(partition)  # afterwards: what retention has taken meanwhile counts, too
        return None if start is None or (start > 0 and offset <= start) else offset - 1

    async def newest(self, topic: str, partition: int, most: int, most_bytes: int) -> tuple[int, list[Record]]:
        """The newest records, about so many at most, oldest first, and the offset before them."""
        end = (await self._log.ends(topic)).get(partition, 0)
        first = (await self._log.starts(topic)).get(partition, 0)
        found: list[Record] = []
        size, back = 0, _STEP_BACK
        while end > first and len(found) < most and size < most_bytes:
            start = max(first, end - back)
            step = await self._stretch(topic, partition, start, end)
            found, end, size = step + found, start, size + _size(step)
            affordable = (most_bytes - size) * len(found) // max(1, size)
            back = min(2 * back, _LONGEST_STEP_BACK, *([max(1, most - len(found)), max(1, affordable)] if found else []))
        return end - 1, found

    async def _stretch(self, topic: str, partition: int, start: int, end: int) -> list[Record]:
        """All records from an offset up to another that has been reached."""
        found: list[Record] = []
        while start < end:
            step = await self._log.read(topic, partition, start, end - start, _STEP_BYTES)
            found += [record for record in step if record.offset < end]
            if not step:
                break
            start = step[-1].offset + 1
        return found


def _told(topic: str, step: list[Record], channel: str, after: int, passed: Passed) -> list[Publication]:
    """What these records told a channel after an offset, repeats left out."""
    found = []
    for record in step:
        try:
            result = read_result(topic, record.offset, record.value or b"")
        except Rejected:
            continue  # a foreign record, which `deliver` has made a dead letter
        publication = result.publications.get(channel)
        if passed.is_new(*result.source) and publication is not None and record.offset > after:
            found.append(publication)
    return found


def _size(records: list[Record]) -> int:
    return sum(len(record.value or b"") for record in records)
