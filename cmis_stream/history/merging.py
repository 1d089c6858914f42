"""Many small files become few, and coarser ones are derived. What replaces is durable before what it replaces goes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import duckdb
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from cmis_stream.history import figures
from cmis_stream.history.events import by_epoch, joined
from cmis_stream.history.layout import (
    EVENTS,
    ROLLUPS,
    Part,
    Place,
    cover,
    day_folder,
    days_of,
    org_folder,
    part_name,
    remove,
    snapshot,
    write_durably,
)  # fmt: skip
from cmis_stream.store.turns import file_lock

FEW = 8
"""Files beside the base that are left alone while it is much larger than they."""
MANY = 64
SHARE = 4
"""Files are merged when the base is less than so many times as large."""
LOCK = ".merging"
LARGEST_ROWS = 1_000_000
"""Of a merged file of events."""
MEMORY = "512MB"


class Day(NamedTuple):
    dataset: str
    org: str
    partition: int
    day: str


class Stopped(Exception):
    """Not all was merged; nothing is lost."""


def merge(root: Path, day: Day, *, quiet: bool = False, stop: threading.Event | None = None) -> bool:
    """Merges the day's files if that is due. quiet: nothing more is expected, so whatever there is. Whether anything was done.

    stop: looked at now and then; Stopped when it is set. BlockingIOError: another process is merging files of the same org.
    """
    folder = org_folder(root, day.dataset, day.org)
    if not folder.exists():
        return False
    # Alone: a listing that misses a file because others replace files meanwhile, and a merged file would say that there is
    # nothing in between. Who is stopped here only keeps others from merging, until it goes on or dies.
    with file_lock(folder / LOCK) as alone:
        if not alone:
            raise BlockingIOError(f"another process merges in {folder}")
        return _merge(root, day, quiet, stop or threading.Event())


def _merge(root: Path, day: Day, quiet: bool, stop: threading.Event) -> bool:
    found = snapshot(root, day.dataset, day.org, day.partition, day.day, day.day)
    done = False
    for parts in by_epoch(found, day.day):
        if day.dataset == EVENTS:
            done |= _merge_events(root, day, parts, quiet)
        else:
            done |= _merge_rollups(root, day, parts, quiet, stop)
    return done


def _merge_events(root: Path, day: Day, parts: Sequence[Part], quiet: bool) -> bool:
    """Runs of neighbours, up to the largest size. In between nothing is missing: all files below `reached` are there."""
    used = [part for part, _ in cover(parts)]
    remove(part for part in parts if part not in used)
    done, run, rows = False, list[Part](), 0
    runs: list[list[Part]] = []
    for part in used:
        own = int(pq.read_metadata(part.path).num_rows)
        if run and rows + own > LARGEST_ROWS:
            runs.append(run)
            run, rows = [], 0
        run.append(part)
        rows += own
    full = len(runs)
    for number, own_run in enumerate([*runs, run]):
        if len(own_run) > (1 if quiet or number < full else FEW):
            folder = day_folder(root, EVENTS, day.org, day.day)
            name = part_name(Place(own_run[0].epoch, day.partition), own_run[0].start, own_run[-1].end, EVENTS)
            merged = write_durably(folder, name, partial(write_table, joined(own_run)))
            remove(part for part in own_run if part.path != str(merged))
            done = True
    return done


def _merge_rollups(root: Path, day: Day, parts: Sequence[Part], quiet: bool, stop: threading.Event) -> bool:
    told = [part for part in parts if part.kind == ROLLUPS]
    base, newer = base_of(told)
    derived = [part for part in parts if part.kind in figures.LEVELS]
    if not newer and base is not None and has_derived(base, derived):
        superfluous = [part for part in told if part != base] + [part for part in derived if part.end != base.end]
        remove(superfluous)
        return False
    if not (quiet or len(newer) >= MANY or (len(newer) >= FEW and (base is None or SHARE * _bytes(newer) >= _bytes([base])))):
        return False
    end = max(part.end for part in [*([base] if base else []), *newer])
    folder, place = day_folder(root, ROLLUPS, day.org, day.day), Place(parts[0].epoch, day.partition)
    before = closed_until(root, day.org, day.partition, place.epoch) - figures.KEPT_FINE_MS
    with connected(folder.parent) as con:
        files = _Files(con, [base.path] if base else [], [part.path for part in newer], before, stop)
        # The base comes last: derived files count only with the base of their name, which may be that of a first segment.
        write = partial(write_durably, folder, replace=True)
        merged = write(part_name(place, 0, end, ROLLUPS), lambda rows: (
            write(part_name(place, 0, end, "quarters"), lambda quarters: (
                write(part_name(place, 0, end, "hours"), lambda hours: files.write(rows, quarters, hours))
            ))
        ))  # fmt: skip
    remove(part for part in told if part.path != str(merged))
    remove(part for part in derived if part.end != end)
    return True


class _Files:
    """A new base with what is derived from it, hour by hour: no pane is larger, and a large day does not fit into memory."""

    def __init__(
        self, con: duckdb.DuckDBPyConnection, base: list[str], newer: list[str], before: int, stop: threading.Event
    ) -> None:
        self._con, self._base, self._newer, self._before, self._stop = con, base, newer, before, stop

    def write(self, rows: IO[bytes], quarters: IO[bytes], hours: IO[bytes]) -> None:
        with ExitStack() as opened:

            def writer(file: IO[bytes], schema: pa.Schema) -> Any:
                return opened.enter_context(pq.ParquetWriter(file, schema, compression="zstd"))

            base = writer(rows, figures.SCHEMA)
            coarse = {kind: writer(file, figures.ADDED_SCHEMA) for kind, file in (("quarters", quarters), ("hours", hours))}
            for hour in sorted(figures.hours_of(self._con, [*self._base, *self._newer])):
                if self._stop.is_set():
                    raise Stopped
                figures.make_newest(self._con, self._base, self._newer, [hour])
                self._con.execute(f"CREATE OR REPLACE TEMP TABLE folded AS {figures.FOLDED}", {"before": self._before})
                self._con.execute("DROP TABLE newest; ALTER TABLE folded RENAME TO newest")
                figures.make_additive(self._con)
                base.write_table(self._con.sql("SELECT * FROM newest ORDER BY start_ms, entity").to_arrow_table())
                for kind, file in coarse.items():
                    file.write_table(self._con.sql(figures.ADDED, params={"step": figures.LEVELS[kind]}).to_arrow_table())


def base_of(told: Sequence[Part]) -> tuple[Part | None, list[Part]]:
    """Of the files of one epoch with rows as told: the longest from the beginning, and those that tell of what comes behind."""
    base = max((part for part in told if part.start == 0), key=lambda part: part.end, default=None)
    return base, [part for part, _ in cover(part for part in told if base is None or part.end > base.end)]


def has_derived(base: Part, derived: Sequence[Part]) -> bool:
    return {part.kind for part in derived if (part.start, part.end) == (0, base.end)} == set(figures.LEVELS)


def closed_until(root: Path, org: str, partition: int, epoch: str) -> int:
    """The end of the last pane that was closed in this log, epoch ms; 0 when none was."""
    for day in reversed(days_of(root, ROLLUPS, org)):
        found = snapshot(root, ROLLUPS, org, partition, day, day).days.get(day, ())
        files = [part.path for part in found if (part.epoch, part.kind) == (epoch, ROLLUPS)]
        if files:
            with connected(org_folder(root, ROLLUPS, org)) as con:
                query = "SELECT max(start_ms + pane_ms) FROM read_parquet($files, hive_partitioning = false) WHERE closed"
                (closed,) = con.execute(query, {"files": files}).fetchall()[0]
            if closed is not None:
                return int(closed)
    return 0


@contextmanager
def connected(folder: Path, memory: str = MEMORY, threads: int = 2) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory that can reach this folder only. To be used in a thread."""
    con = duckdb.connect(config={"threads": threads, "memory_limit": memory, "autoinstall_known_extensions": "false"})
    try:
        con.execute("SET allowed_directories = $1", [[str(folder)]])
        con.execute("SET temp_directory = ''")
        con.execute("SET enable_external_access = false")
        con.execute("SET lock_configuration = true")
        yield con
    finally:
        con.close()


def write_table(table: pa.Table, file: IO[bytes]) -> None:
    pq.write_table(table, file, compression="zstd", row_group_size=122_880)


def _bytes(parts: Sequence[Part]) -> int:
    return sum(Path(part.path).stat().st_size for part in parts)
