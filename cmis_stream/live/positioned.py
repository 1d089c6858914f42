"""What an agent reads, written into the store with how far it has read: each record once, whatever is repeated.

Several processes may write for the same partition, one of them not knowing that it has lost it. Each write says which positions
it rests on; where others have moved them, nothing is written and what they have passed is dropped. So positions never go back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeVar

from cmis_stream.core.errors import CmisError
from cmis_stream.store.database import Unavailable
from cmis_stream.store.facts import Facts, Place

MOST_WAITING = 2_000
"""Records read and not yet written; beyond this reading waits."""
RETRY_S = 0.5
log = logging.getLogger("cmis")
T = TypeVar("T")


class Record(NamedTuple):
    partition: int
    offset: int
    value: bytes
    done: Callable[[], Any]


def behind(topic: str, records: Sequence[Record], known: Mapping[Place, int]) -> tuple[list[bytes], dict[Place, int]]:
    """(values of the topic's records behind the known positions, each once; the positions that they move)"""
    values, positions = list[bytes](), dict[Place, int]()
    for partition, offset, value, _ in records:
        place = (topic, partition)
        if offset > positions.get(place, known.get(place, -1)):
            positions[place] = offset
            values.append(value)
    return values, positions


class PositionedWriter:
    """Writes what has come since the last write in one transaction, in a thread. A subclass says what: `_what_is_new`.

    topic: of which it is given records. reader: the name that positions stand under. epoch: identity of the log. guard: around
    each write; what it raises ends the process. pause_s: between two writes; what comes meanwhile shares a transaction.
    """

    def __init__(
        self,
        facts: Facts,
        topic: str,
        reader: str,
        epoch: str,
        guard: Callable[[], AbstractContextManager[None]],
        pause_s: float,
    ) -> None:
        self._store, self._topic, self._reader, self._epoch = facts, topic, reader, epoch
        self._guard, self._pause_s = guard, pause_s
        self._known: dict[Place, int] = {}  # positions as they stand in the store, unless others have moved them meanwhile
        self._waiting: list[Record] = []
        self._writing: asyncio.Task[None] | None = None
        self._not_before = 0.0  # of the loop's clock

    def _begin(self) -> dict[Place, int]:
        """Before an assignment, in a thread: what is left of other logs; then the positions."""
        return self._store.positions(self._reader, self._epoch)

    def _what_is_new(self, records: Sequence[Record], known: Mapping[Place, int]) -> tuple[Any, dict[Place, int]]:
        """(what follows from records behind the known positions, the positions that they move)"""
        raise NotImplementedError

    def _written(self, new: Any, positions: Mapping[Place, int], before: Mapping[Place, int]) -> bool:
        """In a thread, in one transaction. False: others have moved the positions."""
        raise NotImplementedError

    async def begin(self, partitions: set[int]) -> None:
        """Before the first record of an assignment: finds where the last ones were, here or in another process.

        What was put before stays: it is as true as ever, and the records that follow it in the log may be on their way here.
        """
        known = await self._patiently(self._begin)
        self._known = {place: position for place, position in known.items() if place[1] in partitions}

    @property
    def reached(self) -> dict[int, int]:
        """Partition of the topic -> the offset that is in the store."""
        return {partition: position for (topic, partition), position in self._known.items() if topic == self._topic}

    async def put(self, partition: int, offset: int, value: bytes, done: Callable[[], Any]) -> None:
        """Takes the record at `offset` of the topic; `done` is called once it is in the store."""
        self._waiting.append(Record(partition, offset, value, done))
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
                self._not_before = loop.time() + self._pause_s
                for record in records:
                    record.done()

    async def _write(self, records: Sequence[Record]) -> None:
        while True:
            before = self._known
            new, positions = self._what_is_new(records, before)
            if not positions:
                return
            if await self._patiently(self._written, new, positions, before):
                self._known = {**self._known, **positions}
                return
            await self._learn(before)

    async def _patiently(self, call: Callable[..., T], *given: Any) -> T:
        """In a thread; waits as long as the store cannot be used: another process was stopped while it held its lock, the disk is
        full, the database is away."""
        while True:
            try:
                return await asyncio.to_thread(call, *given)
            except Unavailable as error:
                log.warning("%s waits: %s", self._reader, error)
                await asyncio.sleep(RETRY_S)

    async def _learn(self, before: Mapping[Place, int]) -> None:
        """Someone else writes for our partitions, too: we may have lost them without knowing, or they have."""
        self._known = await self._patiently(self._store.positions, self._reader, self._epoch)
        for place, position in before.items():
            if (got := self._known.get(place, -1)) < position:
                raise CmisError(f"positions of {place} in the store: got {got}, expected {position} or more: it was replaced")
