"""Rollups in history: from records to rows, from rows to sums that add up (docs/design/history.md).

Rows as told: entity (key), start_ms, pane_ms, closed, source (position in the metrics topic), six sums in the order of FIELDS. Of
the same entity, start and size the row with the highest source counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any
from urllib.parse import unquote

import duckdb
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from cmis_stream.core.batch import Int64
from cmis_stream.core.rollups import Rollup
from cmis_stream.core.time import DAY_MS, HOUR_MS
from cmis_stream.history.layout import day_of
from cmis_stream.log import rollup as rollups

SUMS = ("events", "impressions", "clicks", "spend_micros", "conversions_micros", "revenue_micros")
CURRENCIES, PLATFORMS, CAMPAIGNS = 0, 1, 3
"""Depths of entity keys: how many separators they have."""
PATH = ("currency", "platform", "account", "campaign", "custom")
KEPT_FINE_MS = 16 * 60_000
"""Behind the last closed pane; panes of 10 s are told for 15 minutes, and this is more."""
SCHEMA = pa.schema({
    "entity": pa.string(), "start_ms": pa.int64(), "pane_ms": pa.int32(), "closed": pa.bool_(), "source": pa.int64(),
    **dict.fromkeys(SUMS, pa.int64()),
})  # fmt: skip
"""Of rows as told."""
ADDED_SCHEMA = pa.schema({
    **dict.fromkeys(PATH, pa.string()), "start_ms": pa.int64(), "pane_ms": pa.int32(), **dict.fromkeys(SUMS, pa.int64()),
})  # fmt: skip
LEVELS = {"quarters": 900_000, "hours": 3_600_000}
"""Kind of a derived file -> its step in ms."""


class Segment:
    """The rollups of consecutive records of a partition."""

    def __init__(self) -> None:
        self.size, self.source = 0, -1
        self._orgs: dict[str, _Told] = {}

    def add(self, offset: int, stamp_ms: int, value: bytes) -> None:
        """Rejected when it is none of ours; then nothing has been added."""
        told = rollups.decode(value)
        rows = told.rollup
        self.size += len(value)
        self.source = max(self.source, told.source[2])
        for org, (first, last) in zip(rows.orgs, pairwise(rows.bounds), strict=True):
            self._orgs.setdefault(org, _Told()).add(told.source[2], rows, first, last)

    def tables(self) -> Iterator[tuple[str, str, pa.Table]]:
        """(org, day, rows): the newest of each pane."""
        for org, told in self._orgs.items():
            yield from ((org, day, table) for day, table in told.tables())


class _Told:
    """The rows of one org."""

    def __init__(self) -> None:
        self._number: dict[str, int] = {}
        self._columns: list[Int64] = []  # int64[5 + 6, n]: entity, start, pane, closed, source, sums

    def add(self, source: int, rows: Rollup, first: int, last: int) -> None:
        entities = rows.entity[first:last]
        used, place = np.unique(entities, return_inverse=True)
        number = np.array([self._number.setdefault(rows.keys[i], len(self._number)) for i in used.tolist()], np.int64)
        head = [number[place], rows.start_ms[first:last], rows.pane_ms[first:last], rows.closed[first:last].astype(np.int64)]
        self._columns.append(np.stack([*head, np.full(last - first, source), *rows.sums[:, first:last]]))

    def tables(self) -> Iterator[tuple[str, pa.Table]]:
        columns = np.concatenate(self._columns, axis=1)
        entity, start, pane, _, source = columns[:5]
        columns = columns[:, np.lexsort((source, pane, entity, start))]
        same = (columns[:3, 1:] == columns[:3, :-1]).all(axis=0)
        columns = columns[:, np.append(~same, True)]
        days = columns[1] // DAY_MS
        keys = pa.array(list(self._number), pa.string())
        for day in np.unique(days).tolist():
            entity, start, pane, closed, source, *sums = columns[:, days == day]
            yield day_of(day * DAY_MS), pa.table({
                "entity": pa.DictionaryArray.from_arrays(pa.array(entity.astype(np.int32)), keys),
                "start_ms": start, "pane_ms": pane.astype(np.int32), "closed": closed.astype(bool), "source": source,
                **dict(zip(SUMS, sums, strict=True)),
            })  # fmt: skip


# --- sums that add up -------------------------------------------------------------------------------------------------


def _each(form: str) -> str:
    return ", ".join(form.format(name) for name in SUMS)


_TOTALS = _each("sum({0})::BIGINT AS {0}")
_MINUTE = "CASE WHEN count(*) FILTER (pane_ms = 60000) > 0 THEN sum({0}) FILTER (pane_ms = 60000) ELSE sum({0}) END"
_MINUTES = _each(f"({_MINUTE})::BIGINT AS {{0}}")
"""A pane of a minute holds more than those of 10 s in it, or the same."""

_DEPTH = "length(entity) - length(replace(entity, '/', ''))"
_HOUR_OF = f"start_ms // {HOUR_MS} * {HOUR_MS}"
_WITHIN = f"start_ms >= $first AND start_ms < $last AND {_HOUR_OF} IN (SELECT unnest($hours)) AND {_DEPTH} <= $depth"
NEWEST = f"""
    WITH told AS (SELECT * FROM read_parquet($newer, hive_partitioning = false) WHERE {_WITHIN}),
    base AS (SELECT * FROM read_parquet($base, hive_partitioning = false) WHERE {_WITHIN}),
    -- The base has every pane once: only what was told again has to be compared.
    changed AS (
        SELECT * FROM told UNION ALL BY NAME
        SELECT * FROM base SEMI JOIN told USING (entity, start_ms, pane_ms))
    SELECT entity, start_ms, pane_ms, arg_max(closed, source) AS closed, max(source) AS source,
        {_each("arg_max({0}, source) AS {0}")}
    FROM changed GROUP BY entity, start_ms, pane_ms
    UNION ALL BY NAME
    SELECT * FROM base ANTI JOIN told USING (entity, start_ms, pane_ms)"""

FOLDED = f"""
    SELECT entity, start_ms // 60000 * 60000 AS start_ms, 60000::INTEGER AS pane_ms, true AS closed, max(source) AS source,
        {_MINUTES}
    FROM newest WHERE pane_ms <= 60000 AND start_ms // 60000 * 60000 + 60000 <= $before GROUP BY 1, 2
    UNION ALL BY NAME
    SELECT * FROM newest WHERE NOT (pane_ms <= 60000 AND start_ms // 60000 * 60000 + 60000 <= $before)
    ORDER BY start_ms, entity"""
"""From `newest`: panes of 10 s before a moment as the minutes that they make."""


def _more_than(rows: str, pane_ms: int) -> str:
    """What a coarse pane holds more than the rows in its time."""
    return f"""
    SELECT t.entity, t.start_ms, t.pane_ms, {_each("(any_value(t.{0}) - coalesce(sum(r.{0}), 0))::BIGINT AS {0}")}
    FROM newest t LEFT JOIN {rows} r ON r.entity = t.entity AND r.start_ms // {pane_ms} * {pane_ms} = t.start_ms
    WHERE t.pane_ms = {pane_ms} GROUP BY t.entity, t.start_ms, t.pane_ms"""


ADDITIVE = f"""
    WITH minutes AS (
        SELECT entity, start_ms // 60000 * 60000 AS start_ms, 60000::INTEGER AS pane_ms, {_MINUTES}
        FROM newest WHERE pane_ms <= 60000 GROUP BY 1, 2),
    quarters AS (SELECT * FROM minutes UNION ALL BY NAME {_more_than("minutes", 900_000)}),
    whole AS (SELECT * FROM quarters UNION ALL BY NAME {_more_than("quarters", 3_600_000)}),
    own AS (
        SELECT * FROM whole
        UNION ALL BY NAME
        SELECT k.parent AS entity, start_ms, pane_ms, {_each("-{0} AS {0}")} FROM whole
        JOIN keys k USING (entity) WHERE k.parent <> '')
    SELECT {", ".join(f"k.{name}" for name in PATH)}, start_ms, pane_ms, {_each("{0}")}
    FROM (SELECT entity, start_ms, pane_ms, {_TOTALS} FROM own GROUP BY ALL HAVING sum(events) <> 0) JOIN keys k USING (entity)"""
"""From `newest` and `keys`: path, start, size, sums."""

ADDED = f"""
    SELECT {", ".join(PATH)}, start_ms // $step * $step AS start_ms, max(pane_ms) AS pane_ms, {_TOTALS}
    FROM additive GROUP BY ALL ORDER BY start_ms, campaign"""
"""From `additive`: coarser rows. pane_ms: the largest pane in it."""


def hours_of(con: duckdb.DuckDBPyConnection, files: Sequence[str]) -> set[int]:
    """The hours (epoch ms of their beginnings) that have panes in files of rows as told."""
    if not files:
        return set()
    query = f"SELECT DISTINCT {_HOUR_OF} FROM read_parquet($files, hive_partitioning = false)"
    return {hour for (hour,) in con.execute(query, {"files": list(files)}).fetchall()}


def make_newest(
    con: duckdb.DuckDBPyConnection, base: Sequence[str], newer: Sequence[str], hours: Collection[int], depth: int = CAMPAIGNS
) -> None:
    """The table `newest` of the panes in these hours. base: files that have every pane once. depth: how far
    down entities matter; what lower ones hold is in those above them, too."""
    base, newer = base or newer[:1], newer or base[:1]  # reading no file at all is no query; the same twice changes nothing
    given: dict[str, Any] = {"base": list(base), "newer": list(newer), "hours": list(hours), "depth": depth}
    given |= {"first": min(hours), "last": max(hours) + HOUR_MS}
    con.execute(f"CREATE OR REPLACE TEMP TABLE newest AS {NEWEST}", given)


def make_additive(con: duckdb.DuckDBPyConnection) -> None:
    """The table `additive` from `newest`: rows of minutes and remainders that add up, each by what has no lower entity."""
    con.register("keys", keys_table(key for (key,) in con.execute("SELECT DISTINCT entity FROM newest").fetchall()))
    con.execute(f"CREATE OR REPLACE TEMP TABLE additive AS {ADDITIVE}")
    con.unregister("keys")


def keys_table(keys: Iterable[str]) -> pa.Table:
    """Entity keys with the key of the entity above and the parts of the path.

    >>> keys_table(["USD/meta/act_7/spring%2Fsale#views", "USD/meta", "USD"]).to_pylist()[0]
    {'entity': 'USD/meta/act_7/spring%2Fsale#views', 'parent': 'USD/meta#views', 'currency': 'USD', 'platform': 'meta', \
'account': 'act_7', 'campaign': 'spring/sale', 'custom': 'views'}
    """
    rows = []
    for key in keys:
        path, mark, custom = key.partition("#")
        parts = path.split("/")
        above = parts[:2] if len(parts) == 4 and parts[1] else parts[:1]
        parent = "" if len(parts) == 1 else "/".join(above) + mark + custom
        names = [unquote(part) for part in [*parts, "", "", ""][:4]]
        rows.append((key, parent, *names, unquote(custom)))
    names = ["entity", "parent", *PATH]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    return pa.table([pa.array(column, pa.string()) for column in columns], names)
