"""How far behind: where the topics of the group end, what it has committed, since when its oldest record waits.

Asked every few seconds by the watch and not more than once a second by whoever scrapes; in between the last answer counts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

from cmis_stream.health.decisions import Reading
from cmis_stream.health.ports import GROUP, Parts
from cmis_stream.log.reader import LogAway

ANSWERS_WITHIN_S = 5.0
MOST_READ = 64
"""Waiting records whose stamps are read in one look."""

Place = tuple[str, int]


class Lag(NamedTuple):
    """records: offsets between what is applied and the end. seconds: how old the newest applied or the oldest waiting record
    is; 0 when nothing waits, None when that could not be read."""

    records: int
    seconds: float | None


class LogView:
    """away_since: moment (of `monotonic`) of the first of the looks in a row that the log did not answer; None: it answers."""

    def __init__(self, parts: Parts, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._parts, self._monotonic = parts, monotonic
        self._asking = asyncio.Lock()
        self._asked_at: float | None = None
        self._ends: dict[Place, int] = {}
        self._committed: dict[Place, int] = {}
        self._oldest_ms: dict[Place, int] = {}
        self.away_since: float | None = None
        self.away_because = ""

    async def refresh(self, max_age_s: float) -> bool:
        """Asks the log, unless it was asked less than `max_age_s` ago. Whether it answers."""
        if self._parts.log is None:
            return True
        async with self._asking:
            if self.away_since is not None:  # whoever scrapes need not wait for it each time
                max_age_s = max(max_age_s, ANSWERS_WITHIN_S)
            if self._asked_at is None or self._monotonic() - self._asked_at >= max_age_s:
                try:
                    async with asyncio.timeout(ANSWERS_WITHIN_S):
                        await self._ask()
                    self.away_since = None
                except (LogAway, TimeoutError) as error:
                    if self.away_since is None:
                        self.away_since = self._monotonic()
                    self.away_because = str(error) or f"no answer within {ANSWERS_WITHIN_S:.0f} s"
                self._asked_at = self._monotonic()
        return self.away_since is None

    async def _ask(self) -> None:
        log = self._parts.log
        assert log is not None
        ends: dict[Place, int] = {}
        committed: dict[Place, int] = {}
        for topic in self._parts.topics:
            done = await log.committed(GROUP, topic)  # first: an end is never below what was committed before
            found = await log.ends(topic)
            reached = {partition: done.get(partition, 0) for partition in found}
            if any(end > reached[partition] for partition, end in found.items()):
                # Retention takes records that nobody has read; nobody waits for them any more.
                for partition, start in (await log.starts(topic)).items():
                    reached[partition] = max(start, reached.get(partition, 0))
            ends |= {(topic, partition): end for partition, end in found.items()}
            committed |= {(topic, partition): offset for partition, offset in reached.items()}
        moved = {place for place, offset in committed.items() if self._committed.get(place) != offset}
        self._ends, self._committed = ends, committed
        self._oldest_ms = {place: at for place, at in self._oldest_ms.items() if place not in moved}
        await self._read_oldest()

    async def _read_oldest(self) -> None:
        """The stamps of what stands at the committed offsets; a partition of ours knows its newest applied stamp itself."""
        log = self._parts.log
        assert log is not None
        own = {(p.topic, p.partition) for p in self._parts.partitions()}
        lags = {place: end - self._committed[place] for place, end in self._ends.items() if place not in own}
        unknown = [place for place, lag in lags.items() if lag > 0 and place not in self._oldest_ms and self._tells(place)]
        for topic, partition in sorted(unknown, key=lags.__getitem__, reverse=True)[:MOST_READ]:
            records = await log.read(topic, partition, self._committed[topic, partition], 1, 1)
            if records:
                self._oldest_ms[topic, partition] = records[0].ts_ms

    def _tells(self, place: Place) -> bool:
        return self._parts.group_lag or place[1] in {p.partition for p in self._parts.partitions()}

    def lags(self) -> dict[Place, Lag]:
        """Of the partitions that this process holds, of all topics; with `group_lag` of all partitions."""
        now_ms = self._parts.clock()
        own = {(p.topic, p.partition): p for p in self._parts.partitions()}
        found = {}
        for place, end in sorted(self._ends.items()):
            if (partition := own.get(place)) is not None:
                reached, stamp_ms = max(partition.position + 1, self._committed[place]), partition.engine.now_ms
            elif self._tells(place):
                reached, stamp_ms = self._committed[place], self._oldest_ms.get(place, 0)
            else:
                continue
            records = max(0, end - reached)
            seconds = max(0.0, (now_ms - stamp_ms) / 1000) if stamp_ms else None
            found[place] = Lag(records, seconds if records else 0.0)
        return found

    def end(self, topic: str, partition: int) -> int | None:
        return self._ends.get((topic, partition))

    def history_lags(self) -> dict[Place, int]:
        """Records that are not in files yet: normally those of half a minute."""
        done = {} if self._parts.history is None else self._parts.history()
        return {place: max(0, self._ends[place] - offset) for place, offset in sorted(done.items()) if place in self._ends}

    def readings(self, without: frozenset[str] = frozenset()) -> list[Reading]:
        """For the watchdogs: of the partitions held, by the last answer. without: topics whose readers wait for something."""
        held = self._parts.partitions()
        found = []
        for partition in held:
            place = (partition.topic, partition.partition)
            if place in self._ends:
                done = self._committed[place]  # beyond our position where retention took what nobody had read
                begun, reached = max(partition.begun + 1, done), max(partition.position + 1, done)
                generation = partition.generation
                found.append(Reading(*place, generation, self._ends[place], begun, reached, partition.acked + 1, done))
        for partition in held:
            for topic in self._parts.topics:
                place = (topic, partition.partition)
                if topic != partition.topic and topic not in without and place in self._ends:
                    done = self._committed[place]
                    found.append(Reading(*place, partition.generation, self._ends[place], done, done, done, done))
        return found
