"""The log as everybody sees it who is no member of a group: live queries, gateways, the command line.

One port over both logs (`EmbeddedReader`, `KafkaReader`); tests/log/test_reader.py holds them to what is said here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol

from cmis_stream.core.errors import CmisError

STEP_RECORDS, STEP_BYTES = 2_000, 4 << 20


class LogAway(CmisError):
    """The log does not answer (any more): temporary as long as its reader is open."""


class Record(NamedTuple):
    """One durable record. ``ts_ms`` is milliseconds since 1970 as given by the writer."""

    offset: int
    ts_ms: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


class LogReader(Protocol):
    """Reads partitions of a log from outside any group, beside whoever writes it; any number of readings at a time.

    Offsets of a partition grow in the order of its records and are never given twice. They have holes: compaction, retention
    and marks that nobody sees take some away, so look at offsets, do not count. Only durable records are seen. A topic or
    partition that is not there is one without records, which ends at 0; it may appear.

    Readings raise `LogAway` when the log does not answer within the reader's patience, or has been closed.
    """

    @property
    def epoch(self) -> str:
        """The identity of the log: offsets of another epoch mean other records."""

    async def topics(self) -> dict[str, int]:
        """Name -> partition count of all topics that are there, by name; without those the log keeps for itself."""

    async def ends(self, topic: str) -> dict[int, int]:
        """Partition -> the offset that its next record will get, for all partitions; {} when the topic is not there."""

    async def starts(self, topic: str) -> dict[int, int]:
        """Partition -> an offset that no record is below, as high as retention has come; {} when the topic is not there.

        The end if there is no record; otherwise compaction may have made a hole behind it.
        """

    async def read(self, topic: str, partition: int, offset: int, records: int, max_bytes: int) -> list[Record]:
        """The next records from `offset` on, in order: at most so many, and about `max_bytes` of keys and values.

        At least one if there is one, however large; fewer than asked for says nothing about the end. Begins with the first
        record that is there when older ones have gone. [] only when there is none at or behind `offset`.
        """

    async def offset_at(self, topic: str, partition: int, at_ms: int) -> int:
        """The offset of the first record that is there and has a stamp (epoch ms) of this time or later; the end if none has.

        The stamps of a partition are taken to grow with its offsets.
        """

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        """Partition -> the next offset of a group, for the partitions where it has committed one."""

    async def close(self) -> None:
        """Waits for readings under way, but not for a log that is away. Those that come later raise `LogAway`."""


async def read_all(log: LogReader, topic: str, partition: int, start: int | None = None) -> AsyncIterator[Record]:
    """All records from an offset (None: the first that is there) up to the end that the partition has when reading begins."""
    end = (await log.ends(topic)).get(partition, 0)
    offset = start or 0
    while offset < end:
        step = await log.read(topic, partition, offset, STEP_RECORDS, STEP_BYTES)
        for record in step:
            if record.offset >= end:
                return
            yield record
        if not step:
            return
        offset = step[-1].offset + 1
