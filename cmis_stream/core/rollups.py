"""Rollups: what panes hold per org, platform and campaign, told whenever it has changed.

Panes hold leaves. A leaf's *base* is the lowest of its entities that rollups tell: its campaign, or its platform or org when
it has none. Leaves are added up to their bases once, and the few bases then to the platforms and orgs above them.

Values are absolute, so telling one twice is harmless; what has to be told is marked by `Windows` (`untold`), also when a pane
closes or is amended. A pane is told in 10 s; a late event older than those are kept amends the finest that holds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cmis_stream.core.batch import Int32, Int64
from cmis_stream.core.channels import entity_key
from cmis_stream.core.entities import SINK, grown
from cmis_stream.core.metrics import EVENTS
from cmis_stream.core.panes import add_at
from cmis_stream.core.windows import PANE_MS, UNITS, Flags, Windows

TOLD_LEVELS = ("campaign", "platform", "org")
"""From the lowest."""

Marks = Mapping[tuple[int, int], Flags]
"""(resolution, pane) -> orgs (bool)."""

_REMEMBERED = 12
"""Panes of 10 s behind the fastest org's head for which it is known what was told; of older ones all rows are told again."""
_NOTHING = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Rollup:
    """n rows, each the sums of one pane of one entity; those of orgs[i] are bounds[i]:bounds[i + 1].

    entity    int32[n]     index into `keys` (`core.channels.entity_key`)
    start_ms  int64[n]     the pane's start, epoch milliseconds
    pane_ms   int64[n]     its size
    closed    bool[n]      no event on time can change it any more
    sums      int64[6, n]  absolute, in the order of FIELDS; money and conversions in micros
    """

    orgs: list[str]
    bounds: list[int]
    keys: list[str]
    entity: Int32
    start_ms: Int64
    pane_ms: Int64
    closed: Flags
    sums: Int64


@dataclass(frozen=True, slots=True)
class _Rows:
    """n rows: the pane (place in `panes`, which begins at pane `first` of 10 s and is `unit` of them long), the entity's
    number, whether it is closed, its sums."""

    panes: list[tuple[int, int]]
    first: Int64
    unit: Int64
    place: Int64
    number: Int64
    closed: Flags
    sums: Int64

    def chosen(self, which: npt.NDArray[Any]) -> _Rows:
        return replace(
            self, place=self.place[which], number=self.number[which], closed=self.closed[which], sums=self.sums[:, which]
        )


class Rollups:
    """What is still to be told of one partition's windows. Nothing of it is state: `docs/design/live.md` says why.

    The engine's entities must have the levels org, platform and campaign.
    """

    def __init__(self, windows: Windows) -> None:
        self._windows, self._entities = windows, windows.entities
        self._levels = [self._entities.levels.index(level) for level in TOLD_LEVELS]
        # Told entities are numbered by themselves, from 1: there are few of them, and ads would stand in between.
        self._keys = [""]
        self._number = np.zeros(1024, np.int32)  # entity -> its number, 0 for none yet
        self._org = np.zeros(1024, np.int32)  # number -> org
        self._above = np.zeros((len(TOLD_LEVELS), 1024), np.int32)  # number -> itself, its platform, its org; or 0
        self._base = np.zeros(1024, np.int32)  # leaf -> number of its base
        self._leaves = 0
        self._told: dict[tuple[int, int], Int64] = {}  # pane -> by number: what was told of it last
        windows.untold = {}

    @property
    def pending(self) -> bool:
        return bool(self._windows.untold)

    def take(self) -> Rollup | None:
        """What has changed since the last call; None: nothing."""
        marks, self._windows.untold = self._windows.untold, {}
        rows = self._rows(marks) if marks else None
        return None if rows is None else self._rollup(self._changed(rows))

    def _rows(self, marks: Marks) -> _Rows | None:
        self._learn()
        panes, leaves, sums = [], [], []
        for name, orgs in marks.items():
            pane = self._windows.panes[name[0]][name[1]]
            own_leaves, own_sums = pane.where(orgs[self._entities.leaf_org[pane.leaves()]])
            if len(own_leaves):
                panes.append(name)
                leaves.append(own_leaves)
                sums.append(own_sums)
        if not panes:
            return None
        place = np.repeat(np.arange(len(panes)), [len(part) for part in leaves])
        width = len(self._keys)
        bases, base = distinct(place * width + self._base[np.concatenate(leaves)], len(panes) * width)
        base_sums = summed(base, np.concatenate(sums, axis=1), len(bases))
        cells = bases // width * width + self._above[:, bases % width]
        cells, cell = distinct(cells.reshape(-1), len(panes) * width)
        cell_sums = summed(cell.reshape(len(TOLD_LEVELS), -1), base_sums, len(cells))
        named = cells % width != 0
        place, number = np.divmod(cells[named], width)
        unit = np.array([UNITS[level] for level, _ in panes], np.int64)
        first = np.array([pane for _, pane in panes], np.int64) * unit
        closed = (first + unit - 1)[place] <= self._windows.closed.head[self._org[number]]
        return _Rows(panes, first, unit, place, number, closed, cell_sums[:, named])

    def _changed(self, rows: _Rows) -> _Rows:
        """Those that were not told like this before: the count of events grows with every change."""
        told = np.zeros((len(rows.panes), len(self._keys)), np.int64)
        for i, pane in enumerate(rows.panes):
            before = self._told.get(pane, _NOTHING)
            told[i, : len(before)] = before
            self._told[pane] = told[i]
        now = 2 * rows.sums[EVENTS] + rows.closed
        changed = told[rows.place, rows.number] != now
        told[rows.place, rows.number] = now
        oldest = int(self._windows.closed.head.max()) - _REMEMBERED
        self._told = {(level, pane): told for (level, pane), told in self._told.items() if (pane + 1) * UNITS[level] - 1 > oldest}
        return rows if changed.all() else rows.chosen(changed)

    def _rollup(self, rows: _Rows) -> Rollup | None:
        if not len(rows.number):
            return None
        rows = rows.chosen(np.argsort(self._org[rows.number], kind="stable"))
        org = self._org[rows.number]
        starts = np.flatnonzero(np.concatenate(([True], org[1:] != org[:-1])))
        used, entity = distinct(rows.number, len(self._keys))
        return Rollup(
            orgs=[self._entities.orgs[i] for i in org[starts].tolist()],
            bounds=[*starts.tolist(), len(org)],
            keys=[self._keys[i] for i in used.tolist()],
            entity=entity,
            start_ms=rows.first[rows.place] * PANE_MS,
            pane_ms=rows.unit[rows.place] * PANE_MS,
            closed=rows.closed,
            sums=rows.sums,
        )

    # --- names --------------------------------------------------------------------------------------------------------

    def _learn(self) -> None:
        """Numbers the entities of leaves that are new since the last call."""
        first, self._leaves = self._leaves, self._entities.leaves
        if first == self._leaves:
            return
        rows = self._entities.rows[self._levels, first : self._leaves]
        self._number = grown(self._number, len(self._entities))
        unknown = rows[(self._number[rows] == 0) & (rows != SINK)]
        new = np.unique(unknown).tolist() if len(unknown) else []
        for row in new:
            self._number[row] = len(self._keys)
            _, _, *path, custom = self._entities.entity(row)
            while path and not path[-1]:
                path.pop()
            self._keys.append(entity_key(path, custom))
        known = len(self._keys)
        self._org, self._above = grown(self._org, known), grown(self._above, known)
        self._org[known - len(new) : known] = self._entities.entity_org[new]
        self._base = grown(self._base, self._leaves)
        numbers = self._number[rows]
        base = numbers[-1]
        for level in numbers[-2::-1]:
            base = np.where(level, level, base)
        self._base[first : self._leaves] = base
        self._above[0, base] = base
        for depth in range(1, len(TOLD_LEVELS)):
            self._above[depth, base] = np.where(numbers[depth] == base, 0, numbers[depth])


def distinct(keys: npt.NDArray[np.integer], size: int) -> tuple[Int64, Int32]:
    """The distinct keys (each from 0 to size - 1) and for each key its place among them; without sorting."""
    place = np.empty(size, np.int32)
    order = np.arange(len(keys), dtype=np.int32)
    place[keys] = order  # of equal keys the last one written stays
    found = keys[place[keys] == order]
    place[found] = order[: len(found)]
    return found.astype(np.int64), place[keys]


def summed(places: npt.NDArray[np.integer], values: Int64, size: int) -> Int64:
    """int64[6, size]: the sums of values int64[6, k] by place, [k] or [m, k] for m places each."""
    result = np.zeros((len(values), size), np.int64)
    add_at(result, places, values)
    return result
