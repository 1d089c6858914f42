"""The panes of one org, added up by time, path and metric.

`freeze` takes what a query needs on the event loop, by reference or small copies; `grouped` adds it up in any thread. Coarse
panes exist once they are closed, so the newest stretch comes from finer ones, as in `Windows.window_sums`: at every moment
the answer holds exactly the events that the engine has taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cmis_stream.core.batch import PATH_SEPARATOR, Int32, Int64
from cmis_stream.core.engine import Engine
from cmis_stream.core.entities import SINK, Entities
from cmis_stream.core.metrics import EVENTS, FIELDS
from cmis_stream.core.rollups import distinct, summed
from cmis_stream.core.time import LATENESS_MS, PANE_SIZES_MS
from cmis_stream.core.windows import KEPT, NEVER, UNITS

STEPS = dict(zip(("10s", "1m", "15m", "1h"), range(len(UNITS)), strict=True))
"""Name of a step -> its resolution."""
PATH = ("currency", "platform", "account", "campaign", "ad_set", "ad")
_LEVEL_OF = {"currency": "org", "custom": "org", "account": "campaign"}
"""Where a part of the path is told apart, if its level does not have its name."""


class TooManyRows(Exception):
    """The answer has more rows than `limit`."""


@dataclass(frozen=True, slots=True)
class Horizon:
    """How far an org's panes reach. head: its last closed pane of 10 s, NEVER without events. newest_ms: event time."""

    head: int
    newest_ms: int

    @property
    def watermark_ms(self) -> int | None:
        """Up to here everything is final, late events aside."""
        return None if self.newest_ms == NEVER else self.newest_ms - LATENESS_MS

    def first_ms(self, level: int) -> int | None:
        """The start of the first pane of a resolution that is kept; None without events: then everything is known."""
        return None if self.head == NEVER else (self.head // UNITS[level] - KEPT[level] + 1) * PANE_SIZES_MS[level]


class _Part(NamedTuple):
    start: int
    """In panes of 10 s."""
    leaves: Int32
    fields: Int64 | Sequence[npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class FrozenPanes:
    """What the panes from `first` to before `last` (of 10 s) held at one moment; other orgs' leaves are still in them."""

    entities: Entities
    org: int
    leaf_org: Int32
    rows: Int32
    parts: list[_Part]


class Rows(NamedTuple):
    """r rows: start (panes of 10 s), the values of the dimensions, sums int64[6, r], micros int64[r] of each custom metric."""

    start: Int64
    values: list[tuple[str, ...]]
    sums: Int64
    custom: Mapping[str, Int64]


def horizon(engine: Engine, org: str) -> Horizon:
    number = engine.entities.org_number.get(org)
    windows = engine.windows
    if number is None or number >= len(windows.newest):
        return Horizon(NEVER, NEVER)
    return Horizon(int(windows.closed.head[number]), int(windows.newest[number]))


def freeze(engine: Engine, org: str, first: int, last: int, level: int) -> FrozenPanes | None:
    """The org's panes from `first` to before `last` (of 10 s, at borders of this resolution), in it as far as they are closed.

    None: the org has had no events. To be called where the engine runs; a millisecond or few.
    """
    entities, windows = engine.entities, engine.windows
    head = horizon(engine, org).head
    if head == NEVER:
        return None
    parts, start = [], first
    for resolution in range(level, -1, -1):
        unit = UNITS[resolution]
        end = min(last, (head + 1) // unit * unit) if resolution else last
        for number, pane in windows.panes[resolution].items():
            if start <= number * unit < end:
                parts.append(_Part(number * unit, *pane.frozen()))
        start = max(start, end)
    parts.sort(key=lambda part: part.start)
    return FrozenPanes(entities, entities.org_number[org], entities.leaf_org, entities.rows, parts)


def grouped(
    panes: FrozenPanes,
    step: int | None,
    dimensions: Sequence[str],
    filters: Mapping[str, Collection[str]],
    custom: Sequence[str],
    limit: int,
) -> Rows:
    """Sums by start (every `step` panes of 10 s; None: all time together) and by these parts of the path, in their order.

    filters: part of the path -> the values that count. custom: names of custom metrics. Rows without events are left out.
    The dimension `custom` puts the standard metrics ("") and each custom metric into rows of their own.
    """
    groups = _Groups(panes, dimensions, filters, custom, limit)
    starts, places, sums, rows = [], [], [], 0
    for start, parts in _by_step(panes.parts, step):
        held = np.zeros((len(FIELDS), groups.size), np.int64)
        for part in parts:
            own, group = groups.of(part.leaves)
            if len(own):
                fields = part.fields
                values = (
                    fields[:, own] if isinstance(fields, np.ndarray) else np.array([column[own] for column in fields], np.int64)
                )
                held += summed(group, values, groups.size)
        by_metric = held.reshape(len(FIELDS), 1 + len(custom), -1)
        present = np.flatnonzero(by_metric[EVENTS].any(axis=0))
        rows += len(present)
        if rows > limit:
            raise TooManyRows
        starts.append(np.full(len(present), start, np.int64))
        places.append(present)
        sums.append(by_metric[:, :, present])
    if not starts:
        return Rows(np.zeros(0, np.int64), [], np.zeros((len(FIELDS), 0), np.int64), {n: np.zeros(0, np.int64) for n in custom})
    joined = np.concatenate(sums, axis=2)
    return Rows(
        np.concatenate(starts),
        [groups.values[place] for place in np.concatenate(places).tolist()],
        joined[:, 0],
        {name: joined[FIELDS.index("spend"), 1 + i] for i, name in enumerate(custom)},
    )


def _by_step(parts: Sequence[_Part], step: int | None) -> Iterator[tuple[int, list[_Part]]]:
    together: dict[int, list[_Part]] = {}
    for part in parts:
        together.setdefault(part.start // step * step if step is not None else 0, []).append(part)
    yield from together.items()


class _Groups:
    """Which group each leaf of the org adds to: groups are the distinct values of the dimensions, in their order.

    Whole entities are sorted into groups, not leaves: campaigns are few, ads are many. Each custom metric has groups of its
    own behind those of the standard metrics, in the same order.
    """

    def __init__(
        self,
        panes: FrozenPanes,
        dimensions: Sequence[str],
        filters: Mapping[str, Collection[str]],
        custom: Sequence[str],
        limit: int,
    ) -> None:
        self._panes = panes
        used = np.concatenate([_NONE, *(part.leaves for part in panes.parts)])
        leaves, _ = distinct(used[panes.leaf_org[used] == panes.org], panes.rows.shape[1])
        channel = {"": 0, **{name: 1 + i for i, name in enumerate(custom)}}
        if filters:
            units, unit_of = self._units(leaves, filters)
            paths = [self._path(unit)[0] for unit in units.tolist()]
            wanted = np.array([all(path[name] in values for name, values in filters.items()) for path in paths], bool)
            leaves = leaves[wanted[unit_of]]
        units, unit_of = self._units(leaves, dimensions)
        found: list[tuple[int, tuple[str, ...]]] = []
        distinct_values: set[tuple[str, ...]] = set()
        for unit in units.tolist():
            path, metric = self._path(unit)
            number = 0 if "custom" in dimensions else channel.get(metric, -1)
            values = tuple(path[name] for name in dimensions)
            found.append((number, values))
            if number >= 0:
                distinct_values.add(values)
            if len(distinct_values) > limit:
                raise TooManyRows
        self.values = sorted(distinct_values)
        place = {values: i for i, values in enumerate(self.values)}
        self.size = len(self.values) * len(channel)
        group = [-1 if number < 0 else number * len(self.values) + place[values] for number, values in found]
        self._group = np.full(panes.rows.shape[1], -1, np.int64)  # leaf -> group
        self._group[leaves] = np.array(group, np.int64)[unit_of]

    def of(self, leaves: Int32) -> tuple[Int64, Int64]:
        """The places of those leaves that count, and the group of each."""
        group = self._group[leaves]
        own = np.flatnonzero(group >= 0)
        return own, group[own]

    def _units(self, leaves: Int64, names: Collection[str]) -> tuple[Int64, Int32]:
        """The highest entities that tell these names apart; a leaf that has none of that level stands for itself."""
        levels = self._panes.entities.levels
        needed = max((levels.index(_LEVEL_OF.get(name, name)) for name in names), default=0)
        rows = self._panes.rows[needed, leaves].astype(np.int64)
        self._alone = int(rows.max(initial=0)) + 1
        return distinct(np.where(rows == SINK, self._alone + leaves, rows), self._alone + self._panes.rows.shape[1])

    def _path(self, unit: int) -> tuple[dict[str, str], str]:
        entities = self._panes.entities
        if unit >= self._alone:
            _, *path, custom = entities.paths[unit - self._alone].split(PATH_SEPARATOR)
        else:
            _, _, *path, custom = entities.entity(unit)
        return {**dict(zip(PATH, path, strict=True)), "custom": custom}, custom


_NONE = np.zeros(0, np.int32)
