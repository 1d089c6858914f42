"""Events in history: the rows of cmis.metrics.v1 as they were sent, by the day of their arrival."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from cmis_stream.core.batch import PATH_SEPARATOR, VALUE_FIELDS, Batch
from cmis_stream.core.time import DAY_MS
from cmis_stream.history.layout import EVENTS, Part, Snapshot, cover, day_of, days_of, snapshot
from cmis_stream.log import envelope

_PATH = ("currency", "platform", "account", "campaign", "ad_set", "ad", "custom")
_MICROS = {"spend": "spend_micros", "conversions": "conversions_micros", "revenue": "revenue_micros"}


class Segment:
    """The events of consecutive records of a partition.

    Rows: offset of the record, place of the row in it, ts_ms (event time), stamp_ms (arrival), source, id and uid of the event,
    the parts of its path, its values. Of an event with custom metrics each has a row of its own, its micros in spend_micros.
    """

    def __init__(self) -> None:
        self.size, self.source = 0, -1
        self._tables: dict[tuple[str, str], list[pa.Table]] = defaultdict(list)

    def add(self, offset: int, stamp_ms: int, value: bytes) -> None:
        """Rejected when it is none of ours; then nothing has been added. stamp_ms: not used, envelopes have their own."""
        record = envelope.decode(value)
        self.size += len(value)
        self.source = offset
        if isinstance(record, envelope.Events):
            orgs = [path.partition(PATH_SEPARATOR)[0] for path in record.batch.paths]
            table = _table(offset, record.stamp_ms, record.batch)
            day = day_of(record.stamp_ms // DAY_MS * DAY_MS)
            for org in set(orgs):
                own = np.array([name == org for name in orgs], bool)[record.batch.leaf]
                self._tables[org, day].append(table if own.all() else table.filter(pa.array(own)))

    def tables(self) -> Iterator[tuple[str, str, pa.Table]]:
        """(org, day, rows) in the order of offset and row."""
        for (org, day), tables in self._tables.items():
            yield org, day, pa.concat_tables(tables).unify_dictionaries()


def _table(offset: int, stamp_ms: int, batch: Batch) -> pa.Table:
    n, leaf = len(batch), pa.array(batch.leaf)
    parts = list(zip(*(path.split(PATH_SEPARATOR)[1:] for path in batch.paths), strict=True))
    counts = [segment.count for segment in batch.segments]
    source = np.repeat(np.arange(len(counts), dtype=np.int32), counts)[batch.event]
    sources = pa.array([segment.source for segment in batch.segments], pa.string())
    names = [_MICROS.get(name, name) for name in VALUE_FIELDS]
    return pa.table({
        "offset": np.full(n, offset, np.int64), "row": np.arange(n, dtype=np.int32),
        "ts_ms": batch.ts_ms, "stamp_ms": np.full(n, stamp_ms, np.int64),
        "source": pa.DictionaryArray.from_arrays(pa.array(source), sources).dictionary_encode(),
        "id": pa.array(batch.ids, pa.string()).take(pa.array(batch.event)), "uid": batch.uid[batch.event],
        **{name: _encoded(leaf, values) for name, values in zip(_PATH, parts, strict=True)},
        **dict(zip(names, batch.values, strict=True)),
    })  # fmt: skip


def _encoded(leaf: pa.Array, values: Sequence[str]) -> pa.Array:
    """Column of texts, by the leaf of each row; every text stands once in the dictionary."""
    distinct = list(dict.fromkeys(values))
    place = {value: i for i, value in enumerate(distinct)}
    numbers = pa.array([place[value] for value in values], pa.int32()).take(leaf)
    return pa.DictionaryArray.from_arrays(numbers, pa.array(distinct, pa.string()))


def read_events(root: Path, org: str, partition: int, start_ms: int, end_ms: int) -> Iterator[pa.Table]:
    """The events that arrived from start to before end, each row once, a day at a time, by epoch, offset and row."""
    first, last = day_of(start_ms), day_of(end_ms - 1)
    for day in [day for day in days_of(root, EVENTS, org) if first <= day <= last]:
        for parts in by_epoch(snapshot(root, EVENTS, org, partition, day, day), day):
            table = joined(parts)
            yield table.filter(pc.and_(pc.greater_equal(table["stamp_ms"], start_ms), pc.less(table["stamp_ms"], end_ms)))


def by_epoch(found: Snapshot, day: str) -> list[list[Part]]:
    own: dict[str, list[Part]] = defaultdict(list)
    for part in found.days.get(day, ()):
        own[part.epoch].append(part)
    return [own[epoch] for epoch in sorted(own)]


def joined(parts: Sequence[Part]) -> pa.Table:
    """What files of one epoch, org and day say, everything once. FileNotFoundError when they have been merged meanwhile."""
    tables = []
    for part, first in cover(parts):
        table = pq.read_table(part.path, partitioning=None)
        tables.append(table if first == part.start else table.filter(pc.greater_equal(table["offset"], first)))
    return pa.concat_tables(tables)
