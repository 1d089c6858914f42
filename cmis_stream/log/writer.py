"""The writer thread of the embedded log: group commit, and upkeep between commits.

Everything handed in goes to one list. Whenever the thread is free it takes the whole list and writes it in one
transaction, records and group offsets together: there is no linger to tune, a lone record is committed at once and a
flood shares commits. The event loop never waits for SQLite; it hears of the outcome by ``call_soon_threadsafe``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cmis_stream.core.errors import CmisError
from cmis_stream.log.storage import Append, State, TopicInfo, transact, write_appends
from cmis_stream.log.upkeep import COMPACTED_EVERY_S, RETENTION_EVERY_S, Upkeep

logger = logging.getLogger(__name__)
FULL_RETRY_S = 0.25


class LogError(CmisError):
    """The embedded log cannot do what was asked."""


class LogClosed(LogError):
    """The log was closed, or its writer has ended."""


class LogWriteFailed(LogError):
    """A transaction failed, such as on a full disk. Nothing of it is in the log; the same may be tried again."""


@dataclass(slots=True)
class _Entry:
    """One thing handed in: a record, group offsets, or neither (a barrier)."""

    future: asyncio.Future[Any]
    append: Append | None = None
    group: str = ""
    offsets: dict[tuple[str, int], int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return self.append.size if self.append is not None else 0

    @property
    def outcome(self) -> int | None:
        return self.append.offset if self.append is not None else None


class LogWriter:
    """Owns the writing connection and its thread. All methods may be called from any thread."""

    def __init__(self, db: sqlite3.Connection, state: State, topics: dict[str, TopicInfo], name: str) -> None:
        self.state = state
        self.patient = False
        """On a full disk what is handed in waits for room, in its order; else it fails."""
        self.full = False
        """It waits for room now."""
        self._db = db
        self._upkeep = Upkeep(db, state, topics)
        self._wake = threading.Condition()
        # Guarded by _wake:
        self._entries: list[_Entry] = []
        self._pending_bytes = 0
        self._unsaved_topics: dict[str, TopicInfo] = {}
        self._unsaved_generations: dict[str, int] = {}
        self._retry_unsaved = False
        self._sweeps: list[tuple[int, concurrent.futures.Future[int]]] = []
        self._closing = False
        self._ended = False
        self._on_ended: list[Callable[[], object]] = []
        self._listeners: dict[Callable[[], None], asyncio.AbstractEventLoop] = {}

        now = time.monotonic()
        self._compacted_due, self._retention_due = now + COMPACTED_EVERY_S, now + RETENTION_EVERY_S
        self._waiting: list[concurrent.futures.Future[int]] = []  # of sweeps under way; the thread's own
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def pending_bytes(self) -> int:
        """Bytes of records handed in whose outcome is not yet known."""
        return self._pending_bytes

    def append(self, append: Append) -> asyncio.Future[int]:
        """Hand in one record; the future holds its offset once it is durable."""
        return self._submit(_Entry(asyncio.get_running_loop().create_future(), append))

    def commit(self, group: str, offsets: dict[tuple[str, int], int]) -> asyncio.Future[None]:
        """Hand in the next offsets of a group; written with the records handed in around it."""
        return self._submit(_Entry(asyncio.get_running_loop().create_future(), group=group, offsets=offsets))

    def barrier(self) -> asyncio.Future[None]:
        """Return a future that is done when everything handed in before it is."""
        return self._submit(_Entry(asyncio.get_running_loop().create_future()))

    def save_topic(self, topic: TopicInfo) -> None:
        """Write a topic with the next transaction, before its records; kept until one succeeds."""
        with self._wake:
            self._require_open()
            self._unsaved_topics[topic.name] = topic
            self._retry_unsaved = True
            self._wake.notify()

    def save_generation(self, group: str, generation: int) -> None:
        """Write a group's generation like ``save_topic``: no later than whatever carries that number."""
        with self._wake:
            self._require_open()
            self._unsaved_generations[group] = generation
            self._retry_unsaved = True
            self._wake.notify()

    def sweep(self, now_ms: int) -> concurrent.futures.Future[int]:
        """Run retention and compaction as of ``now_ms``; the future holds how many records were removed."""
        done: concurrent.futures.Future[int] = concurrent.futures.Future()
        with self._wake:
            self._require_open()
            self._sweeps.append((now_ms, done))
            self._wake.notify()
        return done

    def listen(self, callback: Callable[[], None]) -> None:
        """Call back on the running loop after each commit that made records durable."""
        self._listeners = {**self._listeners, callback: asyncio.get_running_loop()}

    def unlisten(self, callback: Callable[[], None]) -> None:
        """Stop calling back."""
        self._listeners = {each: loop for each, loop in self._listeners.items() if each != callback}

    def close(self, on_ended: Callable[[], object] | None = None) -> None:
        """Ask the thread to write what it has and end; ``on_ended`` is called in that thread, last of all."""
        with self._wake:
            self._closing = True
            if on_ended is not None and not self._ended:
                self._on_ended.append(on_ended)
                on_ended = None
            self._wake.notify()
        if on_ended is not None:
            on_ended()

    def join(self) -> None:
        """Wait for the thread to end after ``close``."""
        self._thread.join()

    # -- handing in ---------------------------------------------------------------------------------------------------

    def _submit(self, entry: _Entry) -> asyncio.Future[Any]:
        with self._wake:
            self._require_open()
            self._entries.append(entry)
            self._pending_bytes += entry.size
            self._retry_unsaved = bool(self._unsaved_topics or self._unsaved_generations)
            self._wake.notify()
        return entry.future

    def _require_open(self) -> None:
        if self._closing or self._ended:
            raise LogClosed("the log is closed: open it again before writing to it")

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                entries = self._take()
                if entries is None:
                    break
                if entries or self._retry_unsaved:
                    self._write(entries)
                self._keep_up()
        finally:  # also after a bug here: nobody may wait for a thread that is gone
            self._end()

    def _take(self) -> list[_Entry] | None:
        """Wait for work; return what was handed in (perhaps nothing), or None at the end."""
        with self._wake:
            while not (self._entries or self._retry_unsaved or self._sweeps or not self._upkeep.idle):
                if self._closing:
                    return None
                left = min(self._compacted_due, self._retention_due) - time.monotonic()
                if left <= 0:
                    break
                self._wake.wait(left)
            if self._closing and not self._entries and not self._retry_unsaved:
                return None  # retention may wait for the next start
            entries, self._entries = self._entries, []
            return entries

    def _write(self, entries: list[_Entry]) -> None:
        with self._wake:
            topics, generations = dict(self._unsaved_topics), dict(self._unsaved_generations)
            self._retry_unsaved = False
        appends = [entry.append for entry in entries if entry.append is not None]
        offsets = {
            (entry.group, topic, partition): offset for entry in entries for (topic, partition), offset in entry.offsets.items()
        }
        changed = State()

        def work() -> None:
            nonlocal changed
            self._db.executemany(
                "insert or replace into topics values (?, ?, ?, ?, ?, ?, ?)",
                [(t.id, t.name, t.partitions, t.first_tp, t.compact, t.retention_ms, t.retention_bytes) for t in topics.values()],
            )
            self._db.executemany("insert or replace into generations values (?, ?)", list(generations.items()))
            if appends:
                changed = write_appends(self._db, self.state, appends)
            self._db.executemany(
                "insert or replace into committed values (?, ?, ?, ?)",
                [(*position, offset) for position, offset in offsets.items()],
            )

        error: LogWriteFailed | None = None
        try:
            transact(self._db, work)
        except sqlite3.Error as cause:
            if cause.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL and self._put_back(entries):
                return
            error = LogWriteFailed(f"the log could not write {len(appends)} records: {cause}")
            error.__cause__ = cause
            logger.error("%s", error)
        else:
            if self.full:
                self.full = False
                logger.warning("there is room on the disk again; the log goes on")
            self.state.next_offset.update(changed.next_offset)
            self.state.bytes.update(changed.bytes)
            self.state.committed.update(offsets)
            with self._wake:
                self._unsaved_topics = {n: t for n, t in self._unsaved_topics.items() if topics.get(n) is not t}
                self._unsaved_generations = {
                    group: generation
                    for group, generation in self._unsaved_generations.items()
                    if generations.get(group) != generation
                }
        self._announce(entries, error, wake=bool(appends) and error is None)

    def _put_back(self, entries: list[_Entry]) -> bool:
        """The disk is full: they are tried again in a moment, before what comes meanwhile. False: they fail."""
        with self._wake:
            if self._closing or not self.patient:
                return False
            if not self.full:
                self.full = True
                logger.error("the disk is full; the log waits for room")
            self._entries[:0] = entries
            self._wake.wait_for(lambda: self._closing, FULL_RETRY_S)
        return True

    def _announce(self, entries: list[_Entry], error: LogError | None, *, wake: bool) -> None:
        with self._wake:
            self._pending_bytes -= sum(entry.size for entry in entries)
        by_loop: dict[asyncio.AbstractEventLoop, list[_Entry]] = defaultdict(list)
        for entry in entries:
            by_loop[entry.future.get_loop()].append(entry)
        for loop, told in by_loop.items():
            _call_soon(loop, _settle, told, error)
        for callback, loop in self._listeners.items() if wake else ():
            _call_soon(loop, callback)

    def _keep_up(self) -> None:
        """Do at most one short step of retention, so that appends never wait for more than that."""
        now = time.monotonic()
        if now >= min(self._compacted_due, self._retention_due):
            compacted, retained = now >= self._compacted_due, now >= self._retention_due
            if self._upkeep.idle:
                self._upkeep.sweep(time.time_ns() // 1_000_000, compacted=compacted, retained=retained)
            if compacted:
                self._compacted_due = now + COMPACTED_EVERY_S
            if retained:
                self._retention_due = now + RETENTION_EVERY_S
        with self._wake:
            asked, self._sweeps = self._sweeps, []
        for now_ms, done in asked:
            self._upkeep.sweep(now_ms, compacted=True, retained=True)
            self._waiting.append(done)
        if not self._upkeep.idle:
            try:
                self._upkeep.step()
            except sqlite3.Error as error:
                logger.warning("retention of the log failed, the next sweep tries again: %s", error)
                self._upkeep.drop()
        if self._upkeep.idle:
            for done in self._waiting:
                done.set_result(self._upkeep.removed)
            self._waiting.clear()
            self._upkeep.removed = 0

    def _end(self) -> None:
        self._db.close()  # the last connection to close moves the WAL into the file
        with self._wake:
            self._ended = True
            entries, self._entries = self._entries, []
            sweeps, self._sweeps = self._sweeps, []
            on_ended, self._on_ended = self._on_ended, []
        self._announce(entries, LogClosed("the log's writer has ended"), wake=False)
        for done in [*self._waiting, *(done for _, done in sweeps)]:
            done.set_result(self._upkeep.removed)
        for callback in on_ended:
            callback()


def _settle(entries: list[_Entry], error: LogError | None) -> None:
    """On the loop: resolve all futures of one transaction at once."""
    for entry in entries:
        if entry.future.done():  # cancelled by whoever waited
            continue
        if error is None:
            entry.future.set_result(entry.outcome)
        else:
            entry.future.set_exception(error)


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *args: Any) -> None:
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:  # the loop is closed: nobody is left to tell, and the records are safe
        logger.debug("a loop was closed before it heard of its records")
