"""Retention of the embedded log, in steps short enough to run between two appends.

A *sweep* looks at every topic once: records older than ``retention_ms``, then the oldest records of a topic over its
``retention_bytes``, then tombstones of compacted topics. Superseded records need no sweep (see storage.py). A step is
one transaction over one partition and removes at most ``STEP_ROWS`` records or about ``STEP_BYTES``: some milliseconds.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterable, Mapping

from cmis_stream.log.storage import OFFSET_BITS, State, TopicInfo, transact

STEP_ROWS = 256
STEP_BYTES = 8 << 20
# A deleted key stays visible as a tombstone for as long as a reader may lag and still learn of the deletion; Kafka's
# default for delete.retention.ms.
TOMBSTONE_KEEP_MS = 24 * 3_600_000
COMPACTED_EVERY_S = 10.0
RETENTION_EVERY_S = 60.0


class Upkeep:
    """The steps of running sweeps. Used by the writer thread alone."""

    def __init__(self, db: sqlite3.Connection, state: State, topics: Mapping[str, TopicInfo]) -> None:
        self._db, self._state, self._topics = db, state, topics
        self._due: deque[tuple[str, int, int]] = deque()  # topic, tp, now_ms
        self.removed = 0

    @property
    def idle(self) -> bool:
        """Whether no step is left to do."""
        return not self._due

    def sweep(self, now_ms: int, *, compacted: bool, retained: bool) -> None:
        """Plan the steps over all compacted topics, all others, or both."""
        for topic in list(self._topics.values()):
            if compacted if topic.compact else retained:
                self._due.extend((topic.name, tp, now_ms) for tp in topic.tps)

    def drop(self) -> None:
        """Forget what is planned; the next sweep finds it again."""
        self._due.clear()

    def step(self) -> None:
        """Do one step. A failed step changes nothing, and raises ``sqlite3.Error``."""
        name, tp, now_ms = self._due[0]
        topic = self._topics[name]
        more = self._step_compacted(tp, now_ms) if topic.compact else self._step_retained(topic, tp, now_ms)
        if not more:
            self._due.popleft()

    def _step_retained(self, topic: TopicInfo, tp: int, now_ms: int) -> bool:
        if topic.retention_ms is not None and self._drop_head(tp, older_than_ms=now_ms - topic.retention_ms):
            return True
        if topic.retention_bytes is None:
            return False
        excess = sum(self._state.bytes.get(each, 0) for each in topic.tps) - topic.retention_bytes
        if excess <= 0:
            return False
        # The limit is the topic's: the partition whose oldest record is oldest gives way, whichever was planned.
        oldest = self._oldest(topic.tps)
        return oldest is not None and self._drop_head(oldest, at_least_bytes=excess)

    def _oldest(self, tps: Iterable[int]) -> int | None:
        heads = []
        for tp in tps:
            head = self._db.execute(
                "select ts_ms from records where id >= ? and id < ? order by id limit 1", _id_range(tp)
            ).fetchone()
            if head is not None:
                heads.append((head[0], tp))
        return min(heads)[1] if heads else None

    def _drop_head(self, tp: int, *, older_than_ms: int | None = None, at_least_bytes: int = 0) -> bool:
        """Delete from the oldest record on, until one is young enough or enough bytes are gone. Whether any went."""
        first, end = _id_range(tp)
        rows = self._db.execute(
            "select id, ts_ms, size from records where id >= ? and id < ? order by id limit ?", (first, end, STEP_ROWS)
        ).fetchall()
        last, count, size = -1, 0, 0
        for row_id, ts_ms, row_size in rows:
            done = ts_ms >= older_than_ms if older_than_ms is not None else size >= at_least_bytes
            if done or size > STEP_BYTES:
                break
            last, count, size = row_id, count + 1, size + row_size
        if not count:
            return False
        left = self._state.bytes.get(tp, 0) - size

        def delete() -> None:
            self._db.execute("delete from records where id >= ? and id <= ?", (first, last))
            self._db.execute("update partitions set bytes = ? where tp = ?", (left, tp))

        transact(self._db, delete)
        self._state.bytes[tp] = left
        self.removed += count
        return True

    def _step_compacted(self, tp: int, now_ms: int) -> bool:
        """Delete old tombstones, except the partition's last record: recovery waits for highwater - 1."""
        last_offset = self._state.next_offset.get(tp, 0) - 1
        rows = self._db.execute(
            "select l.key, r.id, r.size from latest as l join records as r on r.id = (l.tp << ?) | l.last_offset "
            "where l.tp = ? and l.tombstone_ms < ? and l.last_offset < ? limit ?",
            (OFFSET_BITS, tp, now_ms - TOMBSTONE_KEEP_MS, last_offset, STEP_ROWS),
        ).fetchall()
        if not rows:
            return False
        left = self._state.bytes.get(tp, 0) - sum(size for _, _, size in rows)

        def delete() -> None:
            marks = ",".join("?" * len(rows))
            keys, ids = [key for key, _, _ in rows], [row_id for _, row_id, _ in rows]
            self._db.execute(f"delete from records where id in ({marks})", ids)
            self._db.execute(f"delete from latest where tp = ? and key in ({marks})", [tp, *keys])
            self._db.execute("update partitions set bytes = ? where tp = ?", (left, tp))

        transact(self._db, delete)
        self._state.bytes[tp] = left
        self.removed += len(rows)
        return True


def _id_range(tp: int) -> tuple[int, int]:
    return tp << OFFSET_BITS, (tp + 1) << OFFSET_BITS
