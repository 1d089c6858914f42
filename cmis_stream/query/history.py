"""The dataset `history`: the measures of `panes`, as far back as there are files (docs/design/history.md)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import msgspec
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from cmis_stream.core.batch import Int64
from cmis_stream.core.errors import Rejected, shown
from cmis_stream.core.metrics import CUSTOM_PREFIX
from cmis_stream.core.time import DAY_MS, HOUR_MS, MINUTE_MS
from cmis_stream.core.windows import PANE_MS
from cmis_stream.history import figures
from cmis_stream.history.events import by_epoch
from cmis_stream.history.layout import ROLLUPS, Snapshot, day_of, org_folder, read_all_reached, snapshot, start_of
from cmis_stream.history.merging import base_of, closed_until, connected, has_derived
from cmis_stream.log.topics import partition_for
from cmis_stream.query import times
from cmis_stream.query.answers import listed
from cmis_stream.query.calendar import CALENDAR, FIXED, Step, borders
from cmis_stream.query.datasets import Turns, dimension, measure, raw_rows
from cmis_stream.query.model import MONEY, MOST_ROWS, Fault, Faulty, HistoryQuery, fault_of, parsed
from cmis_stream.query.panes import Rows

SOURCE_TOPIC = "cmis.metrics.v1"
LONGEST_S = 10.0
MEMORY = "512MB"
MOST_STEPS = 1_000_000
"""Between from and to: 2 years of minutes."""
HOURS_AT_ONCE = 4
"""For which rows as told are in memory."""
_TRIES = 20
"""Files that were listed may be merged before they are opened."""


@dataclass(frozen=True, slots=True)
class Limits:
    rows: int = MOST_ROWS
    seconds: float = LONGEST_S
    memory: str = MEMORY


class HistoryFigures:
    """root: the folder of history. epoch: of the log; its position is told. clock: epoch ms."""

    def __init__(
        self, root: Path, partitions: int, epoch: str, clock: Callable[[], int], *, keep_days: int | None = None,
        limits: Limits | None = None,
    ) -> None:  # fmt: skip
        self._root, self._partitions, self._epoch, self._clock = root, partitions, epoch, clock
        self._keep_days, self._limits = keep_days, limits or Limits()
        self._turns = Turns()

    async def answer(self, org: str, raw: Any) -> bytes:
        query = parsed(HistoryQuery, raw)
        plan = Plan(query, self._clock(), self._keep_days)
        async with self._turns:
            return await asyncio.to_thread(self._answered, org, query, plan)

    def _answered(self, org: str, query: HistoryQuery, plan: Plan) -> bytes:
        """In a thread."""
        for tries in range(1, _TRIES + 1):
            try:
                found, closed_ms, partition = self._found(org, plan)
                rows, coarsest = self._summed(org, query, plan, found)
                break
            except duckdb.Error:  # most likely a file that was listed, or half read, and has been merged or replaced since
                if tries == _TRIES:
                    raise
        reached = found.reached.get(self._epoch)
        columns = [*map(dimension, plan.dimensions), *map(measure, query.measures)]
        found_rows = raw_rows(rows, plan.dimensions, query.measures)
        return msgspec.json.encode(
            {
                "columns": [column.as_json() for column in columns],
                "rows": listed(found_rows, columns, plan.zone, query.sort, query.limit),
                "watermark": times.shown(closed_ms, plan.zone) if closed_ms else None,
                "provisional": plan.end_ms > closed_ms,
                "position": {"topic": SOURCE_TOPIC, "partition": partition, "offset": reached.source if reached else -1},
                "from": times.shown(plan.start_ms, plan.zone),
                "to": times.shown(plan.end_ms, plan.zone),
                "step": plan.step,
                "coarsest": next((name for name, size in FIXED.items() if size == coarsest), None),
            }
        )

    def _summed(self, org: str, query: HistoryQuery, plan: Plan, found: Snapshot) -> tuple[Rows, int]:
        limits = self._limits
        with (
            connected(org_folder(self._root, ROLLUPS, org), limits.memory) as con,
            _limited(con, limits.seconds, limits.memory),
        ):
            return _summed(con, query, plan, found, limits.rows)

    def _found(self, org: str, plan: Plan) -> tuple[Snapshot, int, int]:
        """Files, the end of the last closed pane (0: none), the org's partition."""
        partition = partition_for(org.encode(), self._partitions)
        # The watermark first: files that are newer than it are no harm.
        epochs = read_all_reached(self._root, ROLLUPS, partition)
        closed_ms = max((closed_until(self._root, org, partition, epoch) for epoch in epochs), default=0)
        found = snapshot(self._root, ROLLUPS, org, partition, day_of(plan.start_ms), day_of(plan.end_ms - 1))
        return found, closed_ms, partition


class Plan:
    """A query's times and steps. borders: where steps begin, int64[k + 1] epoch ms, the last is the end. Faulty."""

    def __init__(self, query: HistoryQuery, now_ms: int, keep_days: int | None) -> None:
        try:
            start_ms, end_ms = times.moment(query.from_, now_ms, "from"), times.moment(query.to, now_ms, "to")
            self.zone = times.zone(query.timezone, "timezone")
        except Rejected as error:
            raise Faulty([fault_of(error)]) from None
        if end_ms <= start_ms:
            raise Faulty([Fault("/to", "invalid", shown(query.to), f"a time after from, {shown(query.from_)}")])
        if query.step is None and "time" in query.dimensions:
            expected = f"{', '.join([*FIXED, *CALENDAR])}, since time is among the dimensions"
            raise Faulty([Fault("/step", "missing", "nothing", expected)])
        if keep_days is not None and start_ms < now_ms - keep_days * DAY_MS:
            kept = times.shown(now_ms - keep_days * DAY_MS, self.zone)
            raise Faulty(
                [Fault("/from", "out_of_range", shown(query.from_), f"a time after {kept}: so long history is kept")], "not_kept"
            )
        self.step: Step = query.step or _finest(start_ms, end_ms)
        if (end_ms - start_ms) // FIXED.get(self.step, DAY_MS) > MOST_STEPS:
            raise Faulty([Fault("/step", "too_long", shown(self.step), f"{MOST_STEPS:,} steps or fewer")], "too_many_rows")
        self.borders = borders(self.step, start_ms, end_ms, self.zone)
        self.start_ms, self.end_ms = int(self.borders[0]), int(self.borders[-1])
        fits = [kind for kind, size in figures.LEVELS.items() if not (self.borders % size).any()]
        self.kind = max(fits, key=lambda kind: figures.LEVELS[kind], default=None)
        """Of the derived files whose rows cross no border; None: minutes have to do."""
        self.unit_ms = figures.LEVELS[self.kind] if self.kind else MINUTE_MS
        self.dimensions = list(query.dimensions)
        money = any(name in MONEY or name.startswith(CUSTOM_PREFIX) for name in query.measures)
        if money and "currency" not in self.dimensions:
            self.dimensions.append("currency")


def _finest(start_ms: int, end_ms: int) -> Step:
    """The largest step that moves neither border, or minutes."""
    fits: list[Step] = [step for step in ("1h", "15m", "1m") if start_ms % FIXED[step] == end_ms % FIXED[step] == 0]
    return fits[0] if fits else "1m"


# --- where the sums come from -----------------------------------------------------------------------------------------


class _DirtyDay(NamedTuple):
    """Hours (their beginnings, epoch ms) to be computed from rows as told: a base, and files that tell of what came later."""

    hours: list[int]
    base: list[str]
    newer: list[str]


class _Sources(NamedTuple):
    """Of one epoch: derived files, which do not count in the hours of the dirty days."""

    derived: list[str]
    dirty: list[_DirtyDay]


def _sources(con: duckdb.DuckDBPyConnection, found: Snapshot, plan: Plan) -> list[_Sources]:
    """By epoch. Panes told behind a base make their hours dirty; without derived files of the right kind all hours are."""
    sources: dict[str, _Sources] = {}
    for day in found.days:
        for parts in by_epoch(found, day):
            own = sources.setdefault(parts[0].epoch, _Sources([], []))
            base, newer = base_of([part for part in parts if part.kind == ROLLUPS])
            files = [part.path for part in newer]
            derived = [part for part in parts if part.kind != ROLLUPS]
            if plan.kind is not None and base is not None and has_derived(base, derived):
                own.derived.extend(part.path for part in derived if (part.kind, part.end) == (plan.kind, base.end))
                changed = figures.hours_of(con, files)
            else:
                changed = set(range(start_of(day), start_of(day) + DAY_MS, HOUR_MS))
            hours = sorted(hour for hour in changed if hour < plan.end_ms and hour + HOUR_MS > plan.start_ms)
            if hours:
                own.dirty.append(_DirtyDay(hours, [base.path] if base else [], files))
    return list(sources.values())


_NEEDED = {
    "ctr": ("clicks", "impressions"), "cpc": ("spend_micros", "clicks"), "cpm": ("spend_micros", "impressions"),
    "cpa": ("spend_micros", "conversions_micros"), "roas": ("revenue_micros", "spend_micros"),
    "cvr": ("conversions_micros", "clicks"),
}  # fmt: skip
"""Ratio -> the sums that it is made of; the others are not read."""


class _Sums:
    """Adds up rows by steps and path into the table `sums`. Names are parameters only."""

    def __init__(self, con: duckdb.DuckDBPyConnection, query: HistoryQuery, plan: Plan) -> None:
        self._con, self._plan = con, plan
        self.path = [name for name in plan.dimensions if name != "time"]
        self.custom = [name.removeprefix(CUSTOM_PREFIX) for name in query.measures if name.startswith(CUSTOM_PREFIX)]
        self._given: dict[str, Any] = {"first": plan.start_ms, "last": plan.end_ms, "customs": ["", *self.custom]}
        self._wanted = ["start_ms >= $first", "start_ms < $last", "custom IN (SELECT unnest($customs))"]
        for part, condition in query.filters.items():
            self._given[f"only_{part}"] = sorted(condition.values)
            self._wanted.append(f"{part} IN (SELECT unnest($only_{part}))")
        self._needed = {field for name in query.measures for field in _NEEDED.get(name, (name,))}
        if self.custom:
            self._needed.add("spend_micros")
        told_apart = {*self.path, *query.filters}
        self.depth = (
            figures.CAMPAIGNS if told_apart & {"account", "campaign"}
            else figures.PLATFORMS if "platform" in told_apart
            else figures.CURRENCIES
        )  # fmt: skip
        steps = plan.borders if "time" in plan.dimensions else plan.borders[[0, -1]]
        con.register("steps", _steps_table(steps, plan.unit_ms))
        texts = ", ".join(f"{name} VARCHAR" for name in [*self.path, "custom"])
        con.execute(f"CREATE TEMP TABLE sums (begins BIGINT, {texts}, {_each('{0} BIGINT')}, crossing INTEGER)")

    def add(self, rows: str, without: str = "true", **given: Any) -> None:
        names = "".join(f"{name}, " for name in [*self.path, "custom"])
        sums = ", ".join(f"sum({name})" if name in self._needed else "0" for name in figures.SUMS)
        # No pane is longer than an hour.
        crossing = "max(CASE WHEN start_ms + pane_ms > ends THEN pane_ms END)" if self._plan.unit_ms < HOUR_MS else "NULL"
        self._con.execute(
            f"""INSERT INTO sums
            SELECT begins, {names} {sums}, {crossing}
            FROM {rows} JOIN steps ON start_ms // {self._plan.unit_ms} * {self._plan.unit_ms} = unit
            WHERE {" AND ".join([*self._wanted, without])} GROUP BY ALL""",
            {**self._given, **given},
        )

    def rows(self, limit: int) -> tuple[Rows, int]:
        """The rows, and the size of the largest pane that crosses borders of steps, ms; 0: none does."""
        sums = [f"coalesce(sum({name}) FILTER (custom = ''), 0)::BIGINT" for name in figures.SUMS]
        sums += [f"coalesce(sum(spend_micros) FILTER (custom = $custom{i}), 0)::BIGINT" for i in range(len(self.custom))]
        by = ", ".join(["begins", *self.path])
        found = self._con.execute(
            f"SELECT {by}, {', '.join(sums)}, max(crossing) FROM sums GROUP BY {by} ORDER BY {by} LIMIT {limit + 1}",
            {f"custom{i}": name for i, name in enumerate(self.custom)},
        ).fetchall()
        if len(found) > limit:
            less = "fewer dimensions, a larger step, a shorter time or more filters"
            raise Faulty([Fault("", "too_long", f"more than {limit:,} rows", less)], "too_many_rows")
        depth, six = 1 + len(self.path), len(figures.SUMS)
        numbers = np.array([row[depth:-1] for row in found], np.int64).reshape(len(found), six + len(self.custom)).T
        return Rows(
            np.array([row[0] for row in found], np.int64) // PANE_MS,
            [row[1:depth] for row in found],
            numbers[:six],
            dict(zip(self.custom, numbers[six:], strict=True)),
        ), max((row[-1] for row in found if row[-1]), default=0)


def _summed(con: duckdb.DuckDBPyConnection, query: HistoryQuery, plan: Plan, found: Snapshot, limit: int) -> tuple[Rows, int]:
    sums = _Sums(con, query, plan)
    for own in _sources(con, found, plan):
        hours = [hour for day in own.dirty for hour in day.hours]
        if own.derived and hours:
            without = f"start_ms // {HOUR_MS} * {HOUR_MS} NOT IN (SELECT unnest($dirty))"
            sums.add("read_parquet($files, hive_partitioning = false)", without, files=own.derived, dirty=hours)
        elif own.derived:
            sums.add("read_parquet($files, hive_partitioning = false)", files=own.derived)
        for day in own.dirty:
            for first in range(0, len(day.hours), HOURS_AT_ONCE):
                figures.make_newest(con, day.base, day.newer, day.hours[first : first + HOURS_AT_ONCE], sums.depth)
                figures.make_additive(con)
                sums.add("additive")
    return sums.rows(limit)


def _each(form: str) -> str:
    return ", ".join(form.format(name) for name in figures.SUMS)


def _steps_table(steps: Int64, unit_ms: int) -> pa.Table:
    """To which step each unit of time belongs: unit, begins and ends of its step."""
    unit = np.arange(steps[0], steps[-1], unit_ms, dtype=np.int64)
    step = np.searchsorted(steps, unit, side="right")
    return pa.table({"unit": unit, "begins": steps[step - 1], "ends": steps[step]})


@contextmanager
def _limited(con: duckdb.DuckDBPyConnection, seconds: float, memory: str) -> Iterator[None]:
    """Faulty when it takes longer or more."""
    done, over = threading.Event(), threading.Event()

    def watch() -> None:
        if not done.wait(seconds):
            over.set()
            while not done.wait(0.05):  # an interruption between two statements is without effect
                con.interrupt()

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    less = "fewer dimensions, a shorter time, or times at full hours with steps of 1h or more"
    slow = Faulty([Fault("", "too_long", f"more than {seconds:g} s of work", less)], "too_expensive")
    try:
        yield
        if over.is_set():
            raise slow
    except duckdb.InterruptException:
        raise slow from None
    except duckdb.OutOfMemoryException:
        raise Faulty([Fault("", "too_long", f"more than {memory} of memory", less)], "too_expensive") from None
    finally:
        done.set()
        watching.join()
