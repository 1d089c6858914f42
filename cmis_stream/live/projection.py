"""What the agent `project` does with transitions: incidents in the store, each transition once, whatever is repeated."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import orjson

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
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
log = logging.getLogger("cmis")


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
        self._passed = Passed()
        self._waiting: list[_Record] = []
        self._writing: asyncio.Task[None] | None = None
        self._not_before = 0.0  # of the loop's clock

    async def begin(self) -> None:
        """Before the first record: finds where the last one was."""
        await asyncio.to_thread(self._begin)

    def _begin(self) -> None:
        if self._store.has_other_logs(READER, self._epoch):
            # The engines that would resolve them are gone with their log.
            now_ms = self._clock()
            self._store.write(
                [
                    Change(org, KIND, incident["id"], now_ms, partial(_ended_with_its_log, now_ms))
                    for org, incident in self._store.everywhere_in_state(KIND, FIRING)
                ],
                READER, self._epoch, {},
            )  # fmt: skip
            self._store.forget_other_logs(READER, self._epoch)
        self._passed.highest = self._store.positions(READER, self._epoch)

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
                await self._write(*self._changes(records))
                self._not_before = loop.time() + PAUSE_S
                for record in records:
                    record.done()

    def _changes(self, records: Sequence[_Record]) -> tuple[list[Change], dict[Place, int]]:
        changes: list[Change] = []
        positions: dict[Place, int] = {}
        for partition, offset, value, _ in records:
            body = orjson.loads(value)
            topic, source_partition, source_offset = body["source"]
            positions[TRANSITIONS, partition] = max(offset, self._passed.highest.get((TRANSITIONS, partition), -1))
            if self._passed.is_new(topic, source_partition, source_offset):
                positions[topic, source_partition] = source_offset
                changes.extend(_change(line) for line in body["transitions"])
        return changes, positions

    async def _write(self, changes: list[Change], positions: dict[Place, int]) -> None:
        while True:
            try:
                await asyncio.to_thread(self._store.write, changes, READER, self._epoch, positions)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in _BUSY:
                    raise
                log.warning("the store is busy; incidents wait: %s", error)
                await asyncio.sleep(BUSY_RETRY_S)
            else:
                return


def _change(line: dict[str, Any]) -> Change:
    return Change(line["org"], KIND, line["incident"], line["at"], partial(incident_after, line=line))


def _ended_with_its_log(now_ms: int, incident: Doc | None) -> Doc:
    assert incident is not None
    return ended(incident, now_ms, "log_replaced")
