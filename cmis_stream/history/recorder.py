"""Follows the log into files: events and rollups of the partitions that this process is assigned. See docs/design/history.md."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import NamedTuple, Protocol

import duckdb
import pyarrow as pa  # type: ignore[import-untyped]

from cmis_stream.core.errors import ConfigError, Rejected
from cmis_stream.core.time import DAY_MS, RETENTION_MS
from cmis_stream.history import events, figures, layout, merging
from cmis_stream.history.layout import EVENTS, ROLLUPS, Place, Reached
from cmis_stream.history.merging import Day
from cmis_stream.log.owner import ROLLUPS as ROLLUPS_TOPIC
from cmis_stream.log.reader import LogAway, LogReader, Record
from cmis_stream.log.topics import partition_for

TOPICS = {EVENTS: "cmis.metrics.v1", ROLLUPS: ROLLUPS_TOPIC}
SEGMENT_S, SEGMENT_BYTES = 30.0, 16 << 20
STEP_RECORDS, STEP_BYTES = 500, 4 << 20
LOOK_S, RETRY_S, MERGE_S = 0.5, 5.0, 5.0
QUIET_S = 600.0
"""After the last write of a day: whatever files it has are merged."""
FEWEST_DAYS = RETENTION_MS // DAY_MS + 2
"""As long as late events may still change a day."""
log = logging.getLogger("cmis.history")


class Segment(Protocol):
    size: int
    source: int

    def add(self, offset: int, stamp_ms: int, value: bytes) -> None: ...

    def tables(self) -> Iterable[tuple[str, str, pa.Table]]: ...


MADE: dict[str, Callable[[], Segment]] = {EVENTS: events.Segment, ROLLUPS: figures.Segment}


class Wrote(NamedTuple):
    """Files of a segment: its end, the days that it has changed."""

    reached: Reached
    days: list[Day]


class Line:
    """A partition of a dataset: everything below `begun` is in files, from there to `position` in the segment. All but the
    attributes in a thread."""

    def __init__(self, root: Path, dataset: str, place: Place) -> None:
        self.root, self.dataset, self.place = root, dataset, place
        self.reached = layout.read_reached(root, dataset, place)
        self.position = self.reached.end
        self.segment, self.since_s = MADE[dataset](), time.monotonic()

    def add(self, records: Sequence[Record]) -> None:
        if self.segment.size == 0:
            self.since_s = time.monotonic()
        for record in records:
            try:
                self.segment.add(record.offset, record.ts_ms, record.value or b"")
            except Rejected as error:  # whoever applies it makes a dead letter of it
                log.debug("%s %s at %d is left out: %s", self.dataset, self.place, record.offset, error)
            self.position = record.offset + 1

    def lost(self, start: int) -> None:
        """The log begins at `start` only."""
        if 0 < self.position < start:
            log.error("history of %s, partition %d: the log dropped %d to %d before they were read",
                      TOPICS[self.dataset], self.place.partition, self.position, start - 1)  # fmt: skip
            self.reached = self.reached._replace(lost=(*self.reached.lost, (self.position, start)))
        self.position = max(self.position, start)

    def write(self) -> Wrote:
        """The segment's files, then how far they reach. May be repeated, by anyone, with other cuts."""
        days = []
        for org, day, table in self.segment.tables():
            try:
                folder = layout.day_folder(self.root, self.dataset, org, day)
            except Rejected as error:
                log.warning("history leaves events out: %s", error)
                continue
            name = layout.part_name(self.place, self.reached.end, self.position, self.dataset)
            layout.write_durably(folder, name, partial(merging.write_table, table))
            days.append(Day(self.dataset, org, self.place.partition, day))
        reached = self.reached._replace(end=self.position, source=max(self.reached.source, self.segment.source))
        layout.write_reached(self.root, self.dataset, self.place, reached)
        self.reached, self.segment = reached, MADE[self.dataset]()
        return Wrote(reached, days)


class History:
    """The agent's work. root: the folder of history. partitions: of every topic. clock: epoch ms. keep_days: None for ever.

    ConfigError for fewer days than late events reach back.
    """

    def __init__(
        self, reader: LogReader, root: Path, partitions: int, clock: Callable[[], int], *,
        keep_days: int | None = None, segment_s: float = SEGMENT_S, segment_bytes: int = SEGMENT_BYTES, quiet_s: float = QUIET_S,
    ) -> None:  # fmt: skip
        if keep_days is not None and keep_days < FEWEST_DAYS:
            raise ConfigError(f"history_days: got {keep_days}, expected {FEWEST_DAYS} or more: so far back late events reach")
        self._log, self.root, self._partitions, self._clock, self._keep_days = reader, root, partitions, clock, keep_days
        self.segment_s, self._segment_bytes, self._quiet_s = segment_s, segment_bytes, quiet_s
        self._held: set[int] = set()
        self._stop = threading.Event()
        """A merge under way is given up: as with a kill, nothing is lost."""
        self._lines: dict[tuple[str, int], Line] = {}
        self._touched: dict[Day, float] = {}
        """Days that have more than they need, and when they were written last (monotonic)."""

    async def begin(self, partitions: Iterable[int]) -> None:
        """Before the first record of an assignment, which has these partitions."""
        self._held = set(partitions)
        self._lines = {name: line for name, line in self._lines.items() if name[1] in self._held}

    def end(self, partitions: Iterable[int]) -> None:
        """They are someone else's. What is just being written is true all the same."""
        self._held -= set(partitions)
        self._lines = {name: line for name, line in self._lines.items() if name[1] in self._held}

    @property
    def reached(self) -> dict[tuple[str, int], int]:
        """(topic, partition) -> the offset below which everything is in files."""
        return {(TOPICS[dataset], partition): line.reached.end for (dataset, partition), line in self._lines.items()}

    @property
    def lost(self) -> int:
        """Offsets that the log dropped before they were read, of the partitions held."""
        return sum(end - start for line in self._lines.values() for start, end in line.reached.lost)

    async def run(self) -> None:
        """For ever. A log that is away or a full disk make it wait. Cancelled, it is over as soon as its threads are."""
        self._stop.clear()
        try:
            async with asyncio.TaskGroup() as group:
                for dataset in TOPICS:
                    group.create_task(self._follow(dataset))
                group.create_task(self._tend())
        finally:
            self._stop.set()

    # --- following ----------------------------------------------------------------------------------------------------

    async def _follow(self, dataset: str) -> None:
        while True:
            try:
                if not await self.follow_once(dataset):
                    await asyncio.sleep(LOOK_S)
            except (LogAway, OSError) as error:
                log.warning("history of %s waits: %s", TOPICS[dataset], error)
                await asyncio.sleep(RETRY_S)

    async def follow_once(self, dataset: str, *, flush: bool = False) -> bool:
        """Reads a step of each partition and writes the segments that are due (flush: all). Whether there is more to read."""
        topic, more = TOPICS[dataset], False
        ends = await self._log.ends(topic)
        for partition in sorted(self._held):
            line = self._lines.get((dataset, partition))
            if line is None:
                line = await self._opened(dataset, partition)
            if line.position < ends.get(partition, 0) and line.segment.size < self._segment_bytes:
                records = await self._log.read(topic, partition, line.position, STEP_RECORDS, STEP_BYTES)
                if records and records[0].offset > line.position:  # a hole, or retention was faster
                    line.lost((await self._log.starts(topic)).get(partition, 0))
                if records:
                    await asyncio.to_thread(line.add, records)
                    more = more or line.position < ends[partition]
            old = time.monotonic() - line.since_s >= self.segment_s
            if line.position > line.reached.end and (flush or old or line.segment.size >= self._segment_bytes):
                wrote = await asyncio.to_thread(line.write)
                self._touched |= dict.fromkeys(wrote.days, time.monotonic())
        return more

    async def _opened(self, dataset: str, partition: int) -> Line:
        line = await asyncio.to_thread(Line, self.root, dataset, Place(self._log.epoch, partition))
        line.lost((await self._log.starts(TOPICS[dataset])).get(partition, 0))
        if partition in self._held:
            self._lines[dataset, partition] = line
            for day in await asyncio.to_thread(self._unsettled, dataset, partition):
                self._touched.setdefault(day, time.monotonic())
        return line

    def _unsettled(self, dataset: str, partition: int) -> list[Day]:
        """Days that another run may have left with many files, or half written ones."""
        found, now_s = [], time.time()
        for org in layout.orgs_of(self.root, dataset):
            if partition_for(org.encode(), self._partitions) == partition:
                for day in layout.days_of(self.root, dataset, org)[-FEWEST_DAYS:]:
                    layout.clear_temporary(layout.day_folder(self.root, dataset, org, day), now_s)
                    found.append(Day(dataset, org, partition, day))
        return found

    # --- merging ------------------------------------------------------------------------------------------------------

    async def _tend(self) -> None:
        retained_s = -1e9
        while True:
            await asyncio.sleep(MERGE_S)
            await self.merge_due()
            if self._keep_days is not None and time.monotonic() - retained_s >= 3600:
                retained_s = time.monotonic()
                await asyncio.to_thread(self._drop_old, self._keep_days)

    async def merge_due(self, *, all_quiet: bool = False) -> None:
        """Merges what is due among the days that were written. all_quiet: as if nothing more came."""
        for day, written_s in list(self._touched.items()):
            if day.partition not in self._held:
                del self._touched[day]
                continue
            quiet = all_quiet or time.monotonic() - written_s >= self._quiet_s
            try:
                await asyncio.to_thread(merging.merge, self.root, day, quiet=quiet, stop=self._stop)
            except (OSError, duckdb.Error) as error:  # another owner merges the same; or the disk is full
                log.warning("%s of %s, %s is merged later: %s", day.dataset, day.org, day.day, error)
                continue
            if quiet and self._touched.get(day) == written_s:
                del self._touched[day]

    def _drop_old(self, keep_days: int) -> None:
        first = layout.day_of(self._clock() - keep_days * DAY_MS)
        for dataset in TOPICS:
            for org in layout.orgs_of(self.root, dataset):
                if partition_for(org.encode(), self._partitions) in self._held:
                    for day in layout.days_of(self.root, dataset, org):
                        if day < first:
                            rmtree(layout.day_folder(self.root, dataset, org, day), ignore_errors=True)
