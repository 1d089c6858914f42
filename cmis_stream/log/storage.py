"""The embedded log's SQLite file: schema, connections, and one transaction's worth of statements. No threads here.

A partition of a topic has a number (``tp``), and a record's rowid is ``tp << 40 | offset``: reading a partition from an
offset is one rowid range scan, and appending to it touches the rightmost leaf of its range. 40 bits are 10^12 records
a partition; the 22 bits above are 4 million partitions.

**Pages.** 16 KiB: a 100 kB envelope takes 7 overflow pages instead of the 25 of 4 KiB pages, while small records still
share a leaf. The large columns stand last in the row, so scans over ``ts_ms`` and ``size`` never touch overflow pages.

**Space** is reused, not returned: deleted records put their pages on the free list and later appends take them, so the
file stays at its high-water mark, which retention and compaction bound. Auto-vacuum would return it, at the price of
moving pages in every commit and a pointer map to write for every overflow page.

**Compaction happens on append.** ``latest`` maps (tp, key) of compacted topics to the newest offset. The transaction
that appends a newer record deletes the one it supersedes, found through that index, without scanning blobs. So a
compacted topic never holds more than one record a key, however fast keys are rewritten (the checkpoint changelog
rewrites MBs every second), and there is no backlog to catch up with. It needs no other guard: the record that
supersedes is by definition newer than the deleted one, so the partition's last record stays (recovery waits for
highwater - 1), and a reader that has not come that far meets the newer value further on, which is what compaction
promises.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
OFFSET_BITS = 40
PAGE_BYTES = 16_384
# Rows written by one statement. Each statement lets go of the GIL once; with one row a statement a busy event loop
# makes the writer wait up to a switch interval (5 ms) for every row. The byte limit is for the GIL too: values are
# copied into SQLite while it is held.
CHUNK_ROWS = 64
CHUNK_BYTES = 2 << 20

_SCHEMA = """
create table meta(name text primary key, value text not null) without rowid;
create table topics(id integer primary key, name text not null unique, partitions integer not null,
    first_tp integer not null, compact integer not null, retention_ms integer, retention_bytes integer);
create table partitions(tp integer primary key, next_offset integer not null, bytes integer not null);
create table records(id integer primary key, ts_ms integer not null, size integer not null,
    key blob, headers blob, value blob);
create table latest(tp integer not null, key blob not null, last_offset integer not null, tombstone_ms integer,
    primary key (tp, key)) without rowid;
create index tombstones on latest(tp, tombstone_ms) where tombstone_ms is not null;
create table committed(grp text not null, topic text not null, partition integer not null, next_offset integer not null,
    primary key (grp, topic, partition)) without rowid;
create table generations(grp text primary key, generation integer not null) without rowid;
"""

Row = tuple[int, int, int, bytes | None, bytes | None, bytes | None]  # id, ts_ms, size, key, headers, value


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic that exists in the log. ``retention_bytes`` counts all its partitions together."""

    id: int
    name: str
    partitions: int
    first_tp: int
    compact: bool
    retention_ms: int | None
    retention_bytes: int | None

    @property
    def tps(self) -> range:
        """The numbers of its partitions, in order."""
        return range(self.first_tp, self.first_tp + self.partitions)


@dataclass(slots=True)
class Append:
    """One record on its way. ``size`` counts key, headers and value in bytes."""

    tp: int
    ts_ms: int
    key: bytes | None
    headers: bytes | None
    value: bytes | None
    size: int
    compact: bool
    offset: int = -1


@dataclass(slots=True)
class State:
    """What is durable. Changed only after a commit; each entry is replaced whole, so any thread may read it."""

    next_offset: dict[int, int] = field(default_factory=dict)  # tp -> offset of the next record
    bytes: dict[int, int] = field(default_factory=dict)  # tp -> bytes held
    committed: dict[tuple[str, str, int], int] = field(default_factory=dict)  # (group, topic, partition) -> offset


def connect_writer(path: Path, sync: str) -> sqlite3.Connection:
    """Open the file for writing, creating it if needed. ``sync`` is 'normal' or 'full'."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=512, timeout=5.0)
    db.execute(f"pragma page_size = {PAGE_BYTES}")
    db.execute("pragma journal_mode = wal")
    db.execute(f"pragma synchronous = {sync}")
    db.execute("pragma wal_autocheckpoint = 2048")  # 32 MiB: a checkpoint copies each page once, and syncs twice
    db.execute(f"pragma journal_size_limit = {64 << 20}")
    db.execute("pragma cache_size = -32768")
    db.execute("pragma secure_delete = off")  # some builds overwrite deleted pages with zeros by default
    if db.execute("pragma user_version").fetchone()[0] == 0:
        db.execute("begin immediate")
        for statement in filter(None, map(str.strip, _SCHEMA.split(";"))):
            db.execute(statement)
        db.execute("insert into meta values ('epoch', ?)", (uuid.uuid4().hex,))
        db.execute(f"pragma user_version = {SCHEMA_VERSION}")
        db.execute("commit")
    return db


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open an existing file read only; WAL lets it read beside a writer in this or another process."""
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False, timeout=5.0
    )
    db.execute("pragma cache_size = -32768")
    return db


def load_topics(db: sqlite3.Connection) -> dict[str, TopicInfo]:
    """Return the topics that exist, by name."""
    query = "select id, name, partitions, first_tp, compact, retention_ms, retention_bytes from topics order by name"
    return {
        name: TopicInfo(number, name, partitions, first_tp, bool(compact), retention_ms, retention_bytes)
        for number, name, partitions, first_tp, compact, retention_ms, retention_bytes in db.execute(query)
    }


def load_state(db: sqlite3.Connection) -> State:
    """Return what is durable: next offsets, bytes held, committed offsets."""
    state = State()
    for tp, next_offset, size in db.execute("select tp, next_offset, bytes from partitions"):
        state.next_offset[tp], state.bytes[tp] = next_offset, size
    for group, topic, partition, offset in db.execute("select grp, topic, partition, next_offset from committed"):
        state.committed[group, topic, partition] = offset
    return state


def load_generations(db: sqlite3.Connection) -> dict[str, int]:
    """Return the last generation given to each group."""
    return dict(db.execute("select grp, generation from generations").fetchall())


def transact(db: sqlite3.Connection, work: Callable[[], Any]) -> None:
    """Run ``work`` in one transaction. On any ``sqlite3.Error`` nothing of it stays and the error is raised."""
    try:
        db.execute("begin immediate")
        work()
        db.execute("commit")
    except sqlite3.Error:
        if db.in_transaction:  # some errors (disk full) have already rolled back
            db.execute("rollback")
        raise


def write_appends(db: sqlite3.Connection, state: State, appends: Sequence[Append]) -> State:
    """Insert records inside a running transaction; return the changed offsets and bytes for after the commit.

    Sets ``offset`` of each append. Offsets are given here, inside the transaction, and not when the record is handed
    in: a transaction that fails uses none up, so there are no gaps and no offset is ever seen that did not last.
    """
    changed = State()
    rows: dict[int, Row] = {}
    newest: dict[tuple[int, bytes], Append] = {}
    for append in appends:
        tp = append.tp
        append.offset = changed.next_offset.get(tp, state.next_offset.get(tp, 0))
        changed.next_offset[tp] = append.offset + 1
        rows[tp << OFFSET_BITS | append.offset] = (
            tp << OFFSET_BITS | append.offset, append.ts_ms, append.size, append.key, append.headers, append.value
        )  # fmt: skip
        if append.compact and append.key is not None:
            before = newest.get((tp, append.key))
            if before is not None:  # superseded within this transaction: never needs to reach the file
                del rows[tp << OFFSET_BITS | before.offset]
            newest[tp, append.key] = append
    for tp in changed.next_offset:
        changed.bytes[tp] = state.bytes.get(tp, 0)
    for row in rows.values():
        changed.bytes[row[0] >> OFFSET_BITS] += row[2]
    _supersede(db, changed, list(newest.values()))
    for chunk in _chunks(list(rows.values())):
        db.execute(_insert_records(len(chunk)), [column for row in chunk for column in row])
    db.executemany(
        "insert or replace into partitions values (?, ?, ?)",
        [(tp, offset, changed.bytes[tp]) for tp, offset in changed.next_offset.items()],
    )
    return changed


def _supersede(db: sqlite3.Connection, changed: State, newest: Sequence[Append]) -> None:
    for start in range(0, len(newest), CHUNK_ROWS):
        chunk = newest[start : start + CHUNK_ROWS]
        keys = [column for append in chunk for column in (append.tp, append.key)]
        for tp, size in db.execute(_delete_superseded(len(chunk)), keys).fetchall():
            changed.bytes[tp] -= size
        db.execute(
            _insert_latest(len(chunk)),
            [c for a in chunk for c in (a.tp, a.key, a.offset, a.ts_ms if a.value is None else None)],
        )


def _chunks(rows: Sequence[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    size = 0
    for row in rows:
        if chunk and (len(chunk) == CHUNK_ROWS or size + row[2] > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += row[2]
    if chunk:
        yield chunk


@lru_cache(maxsize=CHUNK_ROWS)
def _insert_records(n: int) -> str:
    return f"insert into records(id, ts_ms, size, key, headers, value) values {','.join(['(?,?,?,?,?,?)'] * n)}"


@lru_cache(maxsize=CHUNK_ROWS)
def _insert_latest(n: int) -> str:
    return f"insert or replace into latest(tp, key, last_offset, tombstone_ms) values {','.join(['(?,?,?,?)'] * n)}"


@lru_cache(maxsize=CHUNK_ROWS)
def _delete_superseded(n: int) -> str:
    values = ",".join(["(?,?)"] * n)
    return (
        f"delete from records where id in (select l.tp << {OFFSET_BITS} | l.last_offset "
        f"from (values {values}) as v cross join latest as l on l.tp = v.column1 and l.key = v.column2) "
        f"returning id >> {OFFSET_BITS}, size"
    )
