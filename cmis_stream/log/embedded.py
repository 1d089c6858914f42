"""``EmbeddedLog``: a partitioned, durable log in one SQLite file, for one writing process and any number of readers.

What it promises: a future of ``append`` is done only when the record is durable (``sync='full'``: on the disk;
``sync='normal'``: it survives the process being killed, not a power cut); offsets of a partition count up from 0
without gaps as they are given, are never given twice, and survive retention; ``read`` returns only durable records.
Records and group offsets handed in together become durable together or not at all.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import msgspec

from cmis_stream.log.reader import Record
from cmis_stream.log.storage import (
    OFFSET_BITS,
    SCHEMA_VERSION,
    Append,
    TopicInfo,
    connect_reader,
    connect_writer,
    load_generations,
    load_state,
    load_topics,
)
from cmis_stream.log.writer import LogClosed, LogError, LogWriteFailed, LogWriter

__all__ = ["EmbeddedLog", "LogClosed", "LogError", "LogLocked", "LogWriteFailed", "Record", "TopicInfo"]

MAX_RECORD_BYTES = 256 << 20  # SQLite refuses rows near 1 GB; one such row would fail the records it shares a commit with

_headers_encoder = msgspec.msgpack.Encoder()
_headers_decoder = msgspec.msgpack.Decoder(list[tuple[str, bytes]])


class LogLocked(LogError):
    """Another process is writing to this log."""


class EmbeddedLog:
    """The log at one path. Get it from ``open``; writers of one process share it."""

    _open_logs: ClassVar[dict[Path, EmbeddedLog]] = {}
    _open_lock: ClassVar[threading.Lock] = threading.Lock()

    @classmethod
    def open(cls, path: str | Path, *, sync: str = "normal", read_only: bool = False) -> Self:
        """Open the log, creating it if needed; each ``open`` needs its ``close``.

        ``read_only`` takes no lock and works beside a writing process. Raises ``LogLocked`` if another process writes
        here, ``LogError`` if the file is missing (read only), is of another version or is no log at all.
        """
        path = Path(path).expanduser().resolve()
        if sync not in ("normal", "full"):
            raise LogError(f"{path}: sync: got {sync!r}, expected 'normal' or 'full'")
        if read_only:
            return cls(path, sync, read_only=True)
        with cls._open_lock:
            log = cls._open_logs.get(path)
            if log is None:
                log = cls._open_logs[path] = cls(path, sync, read_only=False)
            elif log._sync != sync:
                raise LogError(f"{path}: already open with sync={log._sync!r} in this process, got {sync!r}")
            log._references += 1
            assert isinstance(log, cls)
            return log

    def __init__(self, path: Path, sync: str, *, read_only: bool) -> None:
        """Use ``open``."""
        self.path = path
        self._sync = sync
        self._references = 0
        self._writer: LogWriter | None = None
        self._lock_fd: int | None = None
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock_fd = _lock(path)
        try:
            self._start(read_only)
        except BaseException:  # whatever it was, the lock must not stay; it is raised again
            self._unlock()
            raise

    def _start(self, read_only: bool) -> None:
        if read_only and not self.path.exists():
            raise LogError(f"{self.path}: no log here; it is created by the first process that writes")
        try:
            writing = None if read_only else connect_writer(self.path, self._sync)
            self._reader = connect_reader(self.path)
            version = self._reader.execute("pragma user_version").fetchone()[0]
            if version != SCHEMA_VERSION:
                raise LogError(f"{self.path}: got a log of version {version}, expected version {SCHEMA_VERSION}")
            self._epoch = str(self._reader.execute("select value from meta where name = 'epoch'").fetchone()[0])
            self._topics = load_topics(self._reader)
            self._state = load_state(self._reader)
            self._generations = load_generations(self._reader)
        except sqlite3.Error as error:
            raise LogError(f"{self.path}: cannot be opened as a log: {error}") from error
        if writing is not None:
            self._writer = LogWriter(writing, self._state, self._topics, name=f"log-writer:{self.path.name}")

    # -- closing ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give up one ``open``. The last one writes what is pending and frees the file; blocks until then."""
        if self._let_go():
            assert self._writer is not None
            self._writer.close(self._unlock)
            self._writer.join()

    async def aclose(self) -> None:
        """``close`` without blocking the event loop."""
        if not self._let_go():
            return
        assert self._writer is not None
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        self._writer.close(self._unlock)  # by the thread itself, so that a cancelled aclose leaves no lock behind
        self._writer.close(lambda: loop.call_soon_threadsafe(ended.set))
        await ended.wait()
        self._writer.join()  # it has nothing left to do

    def _let_go(self) -> bool:
        """Drop a reference; True if the writer has to end now."""
        with self._open_lock:
            self._references -= 1
            if self._references > 0:
                return False
            if self._references < 0 and self._writer is not None:
                raise LogClosed(f"{self.path}: closed more often than opened")
            self._open_logs.pop(self.path, None)
        # The reader goes first, so that the writer is the last connection and leaves a file without WAL behind.
        self._reader.close()
        return self._writer is not None

    def _unlock(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)  # which releases the lock; the file stays, unlinking it would race with an opener
            self._lock_fd = None

    # -- what there is ------------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> str:
        """The log's identity, made when the file was created. Offsets of another epoch mean nothing here."""
        return self._epoch

    @property
    def topics(self) -> Mapping[str, TopicInfo]:
        """The topics that exist, by name."""
        if self._writer is None:
            self._topics = load_topics(self._reader)
        return self._topics

    @property
    def full(self) -> bool:
        """The disk has no room, and what was appended waits for some."""
        return self._writer is not None and self._writer.full

    def wait_for_room(self) -> None:
        """From now on what is appended while the disk is full does not fail, but waits until there is room, or `close`."""
        if self._writer is not None:
            self._writer.patient = True

    @property
    def pending_bytes(self) -> int:
        """Bytes of appended records that are not yet durable; for back-pressure."""
        return self._writer.pending_bytes if self._writer is not None else 0

    def highwater(self, topic: str, partition: int) -> int:
        """Return the offset the next record will get: one past the last durable one."""
        tp = self._tp(topic, partition)
        if self._writer is not None:
            return self._state.next_offset.get(tp, 0)
        row = self._reader.execute("select next_offset from partitions where tp = ?", (tp,)).fetchone()
        return row[0] if row is not None else 0

    def earliest(self, topic: str, partition: int) -> int:
        """Return the lowest offset that is still there, or the highwater if none is."""
        tp = self._tp(topic, partition)
        row = self._reader.execute(
            "select id from records where id >= ? and id < ? order by id limit 1",
            (tp << OFFSET_BITS, (tp + 1) << OFFSET_BITS),
        ).fetchone()
        return row[0] - (tp << OFFSET_BITS) if row is not None else self.highwater(topic, partition)

    def bytes_held(self, topic: str) -> int:
        """Return the bytes of all records of a topic."""
        info = self._topic(topic)
        query = "select coalesce(sum(bytes), 0) from partitions where tp >= ? and tp < ?"
        return int(self._reader.execute(query, (info.tps.start, info.tps.stop)).fetchone()[0])

    def committed(self, group: str, topic: str, partition: int) -> int | None:
        """Return the next offset of a group, or None if it never committed one here."""
        return self.groups().get(group, {}).get((topic, partition)) if self._writer is None else (
            self._state.committed.get((group, topic, partition))
        )  # fmt: skip

    def groups(self) -> dict[str, dict[tuple[str, int], int]]:
        """Return the next offsets of every group: group -> (topic, partition) -> offset."""
        found: dict[str, dict[tuple[str, int], int]] = {}
        for group, topic, partition, offset in self._reader.execute("select * from committed"):
            found.setdefault(group, {})[topic, partition] = offset
        return found

    def read(self, topic: str, partition: int, offset: int, limit: int, max_bytes: int) -> list[Record]:
        """Return durable records from ``offset`` on, in order: at most ``limit`` and about ``max_bytes``.

        At least one record comes if there is one, however large. Compaction and retention leave gaps: look at the
        offsets, do not count.
        """
        base = self._tp(topic, partition) << OFFSET_BITS
        end = base | self.highwater(topic, partition)
        if limit <= 0 or base | offset >= end:
            return []
        cursor = self._reader.execute(
            "select id, ts_ms, size, key, headers, value from records where id >= ? and id < ? order by id limit ?",
            (base | offset, end, limit),
        )
        records: list[Record] = []
        size = 0
        for row_id, ts_ms, row_size, key, headers, value in cursor:
            size += row_size
            if records and size > max_bytes:
                break
            decoded = _headers_decoder.decode(headers) if headers is not None else []
            records.append(Record(row_id - base, ts_ms, key, value, decoded))
        cursor.close()  # ends the read transaction; an open one would keep the WAL from being reused
        return records

    # -- writing ------------------------------------------------------------------------------------------------------

    def append(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] | None = None,
        ts_ms: int | None = None,
    ) -> asyncio.Future[int]:
        """Append a record; the future holds its offset once it is durable, or raises ``LogWriteFailed``.

        To be called on an event loop; never blocks. Records of one partition keep the order of the calls. ``value``
        None is a tombstone in a compacted topic. Raises ``LogError`` for an unknown topic or partition, a compacted
        topic without a key, or a record over 256 MiB; ``TypeError`` for a key or value that is not bytes.
        """
        info = self._topic(topic)
        if not 0 <= partition < info.partitions:
            raise LogError(f"{topic}: got partition {partition}, expected 0 to {info.partitions - 1}")
        for name, content in (("key", key), ("value", value)):
            if content is not None and not isinstance(content, bytes):
                raise TypeError(f"{topic}: {name}: got {type(content).__name__}, expected bytes or None")
        if info.compact and key is None:
            raise LogError(f"{topic}: key: got nothing, expected a key, since the topic is compacted")
        encoded = _headers_encoder.encode(headers) if headers else None
        size = len(key or b"") + len(value or b"") + len(encoded or b"")
        if size > MAX_RECORD_BYTES:
            raise LogError(f"{topic}: got a record of {size} bytes, expected at most {MAX_RECORD_BYTES}")
        if ts_ms is None:
            ts_ms = time.time_ns() // 1_000_000
        return self._writing().append(
            Append(info.first_tp + partition, ts_ms, key, encoded, value, size, info.compact)
        )  # fmt: skip

    def commit_offsets(self, group: str, offsets: Mapping[tuple[str, int], int]) -> asyncio.Future[None]:
        """Record the next offsets of a group, (topic, partition) -> offset; done when durable. Never blocks."""
        for topic, partition in offsets:
            self._tp(topic, partition)
        return self._writing().commit(group, dict(offsets))

    def flush(self) -> asyncio.Future[None]:
        """Return a future that is done when everything handed in before is durable or has failed."""
        return self._writing().barrier()

    def create_topic(
        self,
        name: str,
        partitions: int,
        compact: bool = False,
        retention_ms: int | None = None,
        retention_bytes: int | None = None,
    ) -> TopicInfo:
        """Create a topic, or take over new retention for one that exists. Never blocks.

        Durable no later than its first record. Raises ``LogError`` if it exists with another partition count or kind
        of cleanup: both are fixed at creation, keys already lie where the old count put them.
        """
        old = self._topics.get(name)
        if old is None:
            first_tp = max((topic.tps.stop for topic in self._topics.values()), default=1)
            number = max((topic.id for topic in self._topics.values()), default=0) + 1
            info = TopicInfo(number, name, partitions, first_tp, compact, retention_ms, retention_bytes)
            if partitions < 1:
                raise LogError(f"{name}: got {partitions} partitions, expected at least 1")
        else:
            if (old.partitions, old.compact) != (partitions, compact):
                raise LogError(
                    f"{self.path}: topic {name} exists with {_shape(old.partitions, old.compact)}, "
                    f"got {_shape(partitions, compact)}; both are fixed when a topic is created"
                )
            info = TopicInfo(old.id, name, partitions, old.first_tp, compact, retention_ms, retention_bytes)
        if info != old:
            self._writing().save_topic(info)
            self._topics[name] = info
        return info

    def next_generation(self, group: str) -> int:
        """Return a number higher than any given to the group before, restarts included. Never blocks.

        Durable no later than any record or offset handed in afterwards, so what carries it never outlives it.
        """
        generation = self._generations.get(group, 0) + 1
        self._writing().save_generation(group, generation)
        self._generations[group] = generation
        return generation

    def maintain(self, now_ms: int) -> int:
        """Run retention and compaction as of ``now_ms`` to the end; return how many records were removed.

        Blocks the caller, but not appends. The writer thread does the same by itself in the background.
        """
        return self._writing().sweep(now_ms).result()

    def listen(self, callback: Callable[[], None]) -> None:
        """Call back on the running loop whenever records have become durable."""
        self._writing().listen(callback)

    def unlisten(self, callback: Callable[[], None]) -> None:
        """Stop calling back."""
        self._writing().unlisten(callback)

    # -- small things -------------------------------------------------------------------------------------------------

    def _writing(self) -> LogWriter:
        if self._writer is None:
            raise LogError(f"{self.path}: opened read only")
        return self._writer

    def _topic(self, name: str) -> TopicInfo:
        info = self._topics.get(name) or self.topics.get(name)
        if info is None:
            raise LogError(f"{self.path}: no topic {name}; there are: {', '.join(self._topics) or 'none'}")
        return info

    def _tp(self, topic: str, partition: int) -> int:
        info = self._topic(topic)
        if not 0 <= partition < info.partitions:
            raise LogError(f"{topic}: got partition {partition}, expected 0 to {info.partitions - 1}")
        return info.first_tp + partition


def _shape(partitions: int, compact: bool) -> str:
    return f"{partitions} partitions, cleanup {'compact' if compact else 'delete'}"


def _lock(path: Path) -> int:
    """Take the exclusive lock beside the log and return its descriptor; it holds until closed or the process dies."""
    lock_path = path.with_name(path.name + ".lock")
    fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        pid = os.read(fd, 32).decode().strip() or "unknown"
        os.close(fd)
        raise LogLocked(f"process {pid} is already writing to {path}: stop it, or choose another --data-dir") from error
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    return fd
