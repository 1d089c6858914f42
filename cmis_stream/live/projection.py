"""What the agent `project` does with transitions: incidents in the store, each transition once, whatever is repeated.

Several processes may write for the same partition, one of them not knowing that it has lost it. Each write says which positions
it rests on; where others have moved them, nothing is written and what they have passed is dropped. So positions never go back.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple, TypeVar

from cmis_stream.core.errors import CmisError, Rejected
from cmis_stream.log import transitions
from cmis_stream.log.owner import TRANSITIONS
from cmis_stream.log.positions import Passed
from cmis_stream.modules.alerts.incidents import FIRING, KIND, ended, incident_after
from cmis_stream.store.facts import Change, Doc, FactStore, Place

READER = "project"
MOST_WAITING = 2_000
"""Records read and not yet written; beyond this reading waits."""
PAUSE_S = 0.1
"""Between two writes: what comes meanwhile shares a transaction."""
BUSY_RETRY_S = 0.5
STOP_WITHIN_S = 5.0
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL)
"""Temporary: locked by another process, or no room on the disk."""
log = logging.getLogger("cmis")
T = TypeVar("T")


class _Record(NamedTuple):
    partition: int
    offset: int
    value: bytes
    done: Callable[[], Any]


class Projection:
    """Writes what has come since the last write in one transaction, in a thread.

    epoch: identity of the log. guard: around each write; what it raises ends the process. clock: epoch ms.
    """

    def __init__(
        self, store: FactStore, epoch: str, guard: Callable[[], AbstractContextManager[None]], clock: Callable[[], int]
    ) -> None:
        self._store, self._epoch, self._guard, self._clock = store, epoch, guard, clock
        self._known: dict[Place, int] = {}  # positions as they stand in the store, unless others have moved them meanwhile
        self._waiting: list[_Record] = []
        self._writing: asyncio.Task[None] | None = None
        self._not_before = 0.0  # of the loop's clock

    async def begin(self, partitions: set[int]) -> None:
        """Before the first record of an assignment: finds where the last ones were, here or in another process.

        What was put before stays: it is as true as ever, and the records that follow it in the log may be on their way here.
        """
        known = await self._patiently(self._begin)
        self._known = {place: position for place, position in known.items() if place[1] in partitions}

    def _begin(self) -> dict[Place, int]:
        now_ms = self._clock()

        def end(org: str, incident: Doc) -> Change:
            """The engines that would resolve it are gone with their log."""
            return Change(org, KIND, incident["id"], now_ms, partial(_ended_with_its_log, now_ms))

        self._store.leave_other_logs(READER, self._epoch, KIND, FIRING, end)
        return self._store.positions(READER, self._epoch)

    @property
    def reached(self) -> dict[int, int]:
        """Partition of the transitions topic -> the offset that is in the store."""
        return {partition: position for (topic, partition), position in self._known.items() if topic == TRANSITIONS}

    async def put(self, partition: int, offset: int, value: bytes, done: Callable[[], Any]) -> None:
        """Takes the record at `offset` of the transitions topic; `done` is called once it is in the store."""
        self._waiting.append(_Record(partition, offset, value, done))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all())
        if len(self._waiting) >= MOST_WAITING:
            await asyncio.wait([self._writing])

    async def settled(self, within_s: float | None = None) -> None:
        """Returns when everything put is written, or could not be; what is not by then is given up, and comes again at the
        next start."""
        if self._writing is not None:
            done, _ = await asyncio.wait([self._writing], timeout=within_s)
            if not done:
                self._writing.cancel()
            elif not self._writing.cancelled():
                self._writing.exception()  # the guard has told it

    async def _write_all(self) -> None:
        with self._guard():
            loop = asyncio.get_running_loop()
            while self._waiting:
                await asyncio.sleep(max(0.0, self._not_before - loop.time()))
                records, self._waiting = self._waiting, []
                await self._write(records)
                self._not_before = loop.time() + PAUSE_S
                for record in records:
                    record.done()

    async def _write(self, records: Sequence[_Record]) -> None:
        while True:
            before = self._known
            changes, positions = _what_is_new(records, before)
            if not positions:
                return
            if await self._patiently(self._store.write, changes, READER, self._epoch, positions, before):
                self._known = {**self._known, **positions}
                return
            await self._learn(before)

    async def _patiently(self, call: Callable[..., T], *given: Any) -> T:
        """In a thread; waits as long as another process holds the store's lock: it may have been stopped just there."""
        while True:
            try:
                return await asyncio.to_thread(call, *given)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in _BUSY:
                    raise
                log.warning("the store is busy; incidents wait: %s", error)
                await asyncio.sleep(BUSY_RETRY_S)

    async def _learn(self, before: Mapping[Place, int]) -> None:
        """Someone else writes for our partitions, too: we may have lost them without knowing, or they have."""
        self._known = await asyncio.to_thread(self._store.positions, READER, self._epoch)
        for place, position in before.items():
            if (got := self._known.get(place, -1)) < position:
                raise CmisError(f"positions of {place} in the store: got {got}, expected {position} or more: it was replaced")


def _what_is_new(records: Sequence[_Record], known: Mapping[Place, int]) -> tuple[list[Change], dict[Place, int]]:
    """The changes that follow from records behind the known positions, and the positions that they move."""
    passed, changes = Passed(), list[Change]()
    passed.highest = dict(known)
    for partition, offset, value, _ in records:
        passed.is_new(TRANSITIONS, partition, offset)
        try:
            source, lines = transitions.decode(value)
        except Rejected:
            continue  # a foreign record, which `deliver` makes a dead letter
        if passed.is_new(*source):
            changes.extend(_change(line) for line in lines)
    return changes, {place: position for place, position in passed.highest.items() if position > known.get(place, -1)}


def _change(line: dict[str, Any]) -> Change:
    return Change(line["org"], KIND, line["incident"], line["at"], partial(incident_after, line=line))


def _ended_with_its_log(now_ms: int, incident: Doc | None) -> Doc:
    assert incident is not None
    return ended(incident, now_ms, "log_replaced")
