"""Rolling windows over event time, per org its own watermark, many series at a time.

Events fill panes (`panes.py`). A `View` is what windows sum up to at a head, the newest pane it includes: `total` is all
that was ever added, `gone[w]` what has left window w since, so the window is `total - gone[w]` and an event costs the
same however many windows there are. Two views of the same panes:

    live    includes every event that has arrived; its head is the pane of the newest event
    closed  includes panes that are final (their end lies the allowed lateness behind the newest event), in order

Coarser panes fill from finer ones as they close. A late event (its pane was closed when it arrived) amends its pane, the
coarser panes made of it and the windows that hold it. Within an org everything in the closed view depends on the order of
events only, not on how they were cut into batches: a late event counts from the first pane still open at its arrival.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cmis_stream.core.batch import Int64
from cmis_stream.core.entities import Entities, grown
from cmis_stream.core.metrics import EVENTS, FIELDS
from cmis_stream.core.panes import Pane, add_at
from cmis_stream.core.time import LATENESS_MS, PANE_SIZES_MS, RETENTION_MS, WINDOWS, Window

Flags = npt.NDArray[np.bool_]

PANE_MS = PANE_SIZES_MS[0]
NEVER = -(2**62)
"""The head of an org without events."""

# For each resolution: how many of the finest panes make one, and how many are kept for the longest window made of them.
UNITS = tuple(size // PANE_MS for size in PANE_SIZES_MS)
KEPT = tuple(max(w.panes for w in WINDOWS.values() if w.pane_ms == size) for size in PANE_SIZES_MS)
_RESOLUTION = {size: number for number, size in enumerate(PANE_SIZES_MS)}
_RETENTION_PANES = RETENTION_MS // PANE_MS


def resolution(window: Window) -> int:
    return _RESOLUTION[window.pane_ms]


@dataclass(frozen=True, slots=True)
class Judged:
    """Entities whose value in a window may have changed: `rows` int64[k], sums int64[6, k], at a moment of event time."""

    window: Window
    rows: Int64
    sums: Int64
    at_ms: Int64


class View:
    """Running sums int64[6, entity] of some windows at a head per org."""

    def __init__(self, entities: Entities, windows: Iterable[Window]) -> None:
        self._entities = entities
        self.total = np.zeros((len(FIELDS), 1024), np.int64)
        self.gone = {window: np.zeros((len(FIELDS), 1024), np.int64) for window in windows}
        self.head = np.full(64, NEVER, np.int64)

    def make_room(self) -> None:
        if len(self._entities) > self.total.shape[1]:
            self.total = grown(self.total, len(self._entities))
            self.gone = {window: grown(gone, len(self._entities)) for window, gone in self.gone.items()}
        if len(self._entities.orgs) > len(self.head):
            head = np.full(2 * len(self._entities.orgs), NEVER, np.int64)
            head[: len(self.head)] = self.head
            self.head = head

    def add(self, leaves: npt.NDArray[np.integer], values: Int64) -> None:
        if self.gone:
            add_at(self.total, self._entities.rows[:, leaves], values)

    def drop(self, window: Window, leaves: npt.NDArray[np.integer], values: Int64) -> None:
        """Values that have left a window, or came too late to be in it."""
        add_at(self.gone[window], self._entities.rows[:, leaves], values)

    def sums(self, window: Window, rows: Int64) -> Int64:
        return self.total[:, rows] - self.gone[window][:, rows]


class Windows:
    """The panes and views of one partition."""

    def __init__(self, entities: Entities, live: Iterable[Window] = (), closed: Iterable[Window] = ()) -> None:
        self.entities = entities
        self.panes: tuple[dict[int, Pane], ...] = tuple({} for _ in PANE_SIZES_MS)
        self.live = View(entities, live)
        self.closed = View(entities, closed)
        self.newest = np.full(64, NEVER, np.int64)  # per org: the largest event time, ms
        self.unjudged: dict[Window, set[int]] = {}  # closed view: entities to judge at their window's next pane
        self.late_events = 0
        self.untold: dict[tuple[int, int], Flags] | None = None
        """(resolution, pane) -> orgs (bool) for which it has changed or closed since `Rollups` told it; None: nobody asks."""
        self.judged_levels: tuple[int, ...] = tuple(range(len(entities.levels)))
        """Places in `entities.levels`: entities of other levels have sums, but nobody asks when they change."""

    # --- time ---------------------------------------------------------------------------------------------------

    def add(self, ts_ms: Int64, leaves: Int64, values: Int64) -> tuple[list[Judged], Flags | None]:
        """Takes events in arrival order: ts int64[n], leaf numbers int64[n], values int64[6, n].

        Returns what there is to judge in the closed view, in order, and the flags bool[n] of events that are older than
        the retention (None: there are none), which were left out. `judge_live` must follow.
        """
        self._make_room()
        org = self.entities.leaf_org[leaves]
        pane = ts_ms // PANE_MS
        self._meet_new_orgs(org, ts_ms)
        newest = self.newest.copy()
        np.maximum.at(newest, org, ts_ms)
        target = np.maximum(_last_closed(newest), self.closed.head)
        too_late, late = None, None
        if (pane <= target[org]).any():
            open_from = self._open_panes_at_arrival(org, ts_ms)
            late = pane < open_from
            too_late = pane < open_from - _RETENTION_PANES
            if late.any():
                on_time = ~late
                late &= ~too_late
                late_parts = (pane[late], leaves[late], values[:, late], open_from[late])
                pane, leaves, values, org = pane[on_time], leaves[on_time], values[:, on_time], org[on_time]
            else:
                late = None
            too_late = too_late if too_late.any() else None
        self.newest = newest
        for number in _distinct(pane):
            chosen = slice(None) if number is None else pane == number
            index = int(pane[0]) if number is None else number
            self.panes[0].setdefault(index, Pane()).add(leaves[chosen], values[:, chosen])
            self._mark(0, index, org[chosen])
        self.live.add(leaves, values)
        if late is None:
            return list(self._close(target, None)), too_late
        self.late_events += len(late_parts[0])
        return list(self._close(target, late_parts)), too_late

    def move_to(self, watermark_ms: Int64) -> list[Judged]:
        """Time passes without events: watermark int64[orgs], NEVER for orgs that it does not concern."""
        self._make_room()
        known = np.zeros(len(self.newest), bool)
        known[: len(watermark_ms)] = self.newest[: len(watermark_ms)] != NEVER
        padded = np.full(len(self.newest), NEVER, np.int64)
        padded[: len(watermark_ms)] = watermark_ms
        self.newest = np.where(known, np.maximum(self.newest, padded + LATENESS_MS), self.newest)
        return list(self._close(np.maximum(_last_closed(self.newest), self.closed.head), None))

    def _mark(self, level: int, number: int, orgs: npt.NDArray[Any]) -> None:
        """A pane is to be told anew for these orgs (numbers, or a flag for each)."""
        if self.untold is not None:
            flags = self.untold.get((level, number))
            if flags is None or len(flags) < len(self.newest):
                flags = self.untold[level, number] = grown(np.zeros(0, bool) if flags is None else flags, len(self.newest))
            if orgs.dtype == np.bool_:
                np.logical_or(flags[: len(orgs)], orgs, out=flags[: len(orgs)])
            else:
                flags[orgs] = True

    def _make_room(self) -> None:
        self.live.make_room()
        self.closed.make_room()
        if len(self.newest) < len(self.closed.head):
            newest = np.full(len(self.closed.head), NEVER, np.int64)
            newest[: len(self.newest)] = self.newest
            self.newest = newest

    def _meet_new_orgs(self, org: npt.NDArray[np.int32], ts_ms: Int64) -> None:
        new = self.newest[org] == NEVER
        if not new.any():
            return
        numbers, first = np.unique(org[new], return_index=True)
        self.newest[numbers] = ts_ms[new][first]
        self.closed.head[numbers] = _last_closed(self.newest[numbers])
        self.live.head[numbers] = self.newest[numbers] // PANE_MS

    def _open_panes_at_arrival(self, org: npt.NDArray[np.int32], ts_ms: Int64) -> Int64:
        """For each event the first pane of its org that was open just before it: against the running maximum."""
        order = np.argsort(org, kind="stable")
        own, times = org[order].astype(np.int64), ts_ms[order]
        base = int(min(times.min(), self.newest[own].min()))
        span = int(max(times.max(), self.newest[own].max())) - base + 1
        rank = np.cumsum(np.concatenate(([0], own[1:] != own[:-1])))
        before = np.maximum(self.newest[own], NEVER)
        # One running maximum serves all orgs: each org's times are lifted above those of the orgs before it.
        running = np.maximum.accumulate(np.maximum(times, before) - base + rank * span) - rank * span + base
        shifted = np.concatenate((running[:1], running[:-1]))
        starts = np.concatenate(([True], own[1:] != own[:-1]))
        seen = np.where(starts, before, shifted)
        result = np.empty(len(org), np.int64)
        result[order] = np.maximum(_last_closed(seen), self.closed.head[own]) + 1
        return result

    # --- closing panes --------------------------------------------------------------------------------------------

    def _close(self, target: Int64, late: tuple[Int64, Int64, Int64, Int64] | None) -> Iterator[Judged]:
        """Moves the closed view to `target` (last closed pane per org), amending with late events where they belong."""
        orgs = len(self.entities.orgs)
        before, after = self.closed.head[:orgs].copy(), target[:orgs]
        moving = after > before
        if moving.any():
            amended = np.unique(late[0]).tolist() if late is not None else ()
            points = self._points(int(before[moving].min()) + 1, int(after[moving].max()), amended)
            if late is not None or any(self.unjudged.values()):
                first = np.unique(np.concatenate((before[moving] + 1, late[3] if late is not None else before[:0])))
                ends = [end for unit in UNITS for end in (first // unit * unit + unit - 1).tolist()]
                points = sorted({*points, *ends, *first.tolist()})
            for pane in points:
                chosen = (before < pane) & (pane <= after)
                if not chosen.any():
                    continue
                if late is not None:
                    late = self._amend_until(pane, chosen, late)
                self.closed.head[:orgs][chosen] = pane
                yield from self._close_pane(pane, chosen)
            self.closed.head[:orgs][moving] = after[moving]
        if late is not None and len(late[0]):
            self._amend(*late[:3])
        if moving.any():
            self._forget()

    def _points(self, low: int, high: int, amended: Iterable[int] = ()) -> list[int]:
        """The panes in low..high at which anything can happen: data, the end of a coarser pane, a pane leaving a window.

        amended: panes of 10 s that late events are about to amend.
        """
        if high - low < 8:
            return list(range(low, high + 1))
        shapes = {(UNITS[resolution(window)], window.panes) for window in (*self.live.gone, *self.closed.gone)}
        points: set[int] = set()
        for panes, unit in zip((*self.panes, amended), (*UNITS, 1), strict=True):
            for number in panes:
                first = number * unit
                points.add(first)
                # Coarser panes that are not made yet will be made, and will leave, on the way.
                points.update(first // coarser * coarser + coarser - 1 for coarser in UNITS if coarser >= unit)
                for coarser, count in shapes:
                    if coarser >= unit:
                        leaves = (first // coarser + count) * coarser
                        points.update((leaves, leaves + coarser - 1))
        return sorted(point for point in points if low <= point <= high)

    def _close_pane(self, number: int, chosen: Flags) -> Iterator[Judged]:
        """Pane `number` becomes final for the chosen orgs: it enters the closed view, old panes leave, windows are judged."""
        leaf_flags = chosen[self.entities.leaf_org[: self.entities.leaves]]
        fresh = self.panes[0].get(number)
        if fresh is not None:
            leaves, sums = fresh.of(leaf_flags)
            self.closed.add(leaves, sums)
            self._mark(0, number, chosen)
        for coarse in range(1, len(UNITS)):
            if (number + 1) % UNITS[coarse]:
                break
            self._fill_coarse(coarse, number // UNITS[coarse], leaf_flags)
        for window in self.closed.gone:
            unit, store = UNITS[resolution(window)], self.panes[resolution(window)]
            index = number // unit
            old = store.get(index - window.panes)
            if old is not None and number % unit == 0:
                self.closed.drop(window, *old.of(leaf_flags))
            if (number + 1) % unit == 0:
                touched = [pane.leaves_of(leaf_flags) for pane in (store.get(index), old) if pane is not None]
                yield from self._judge_closed(window, touched, chosen, (number + 1) * PANE_MS)

    def _fill_coarse(self, coarse: int, index: int, leaf_flags: Flags) -> None:
        ratio = UNITS[coarse] // UNITS[coarse - 1]
        parts = [self.panes[coarse - 1].get(index * ratio + i) for i in range(ratio)]
        found = [pane.of(leaf_flags) for pane in parts if pane is not None]
        found = [(leaves, sums) for leaves, sums in found if len(leaves)]
        if not found:
            return
        dense = np.zeros((len(FIELDS), self.entities.leaves), np.int64)
        for leaves, sums in found:
            add_at(dense, leaves, sums)  # leaves are distinct: it is the faster way of adding rows
        filled = np.flatnonzero(dense[EVENTS])
        self.panes[coarse].setdefault(index, Pane()).add(filled, dense[:, filled])

    def _judge_closed(self, window: Window, touched: list[npt.NDArray[np.int32]], chosen: Flags, at_ms: int) -> Iterator[Judged]:
        rows = self._entities_of(touched)
        waiting = self.unjudged.get(window)
        if waiting:
            extra = np.array(sorted(waiting), np.int64)
            extra = extra[chosen[self.entities.entity_org[extra]]]
            waiting.difference_update(extra.tolist())
            rows = np.union1d(rows, extra)
        sums = self.closed.sums(window, rows)
        holding = sums[EVENTS] > 0
        if holding.any():
            rows = rows[holding]
            yield Judged(window, rows, sums[:, holding], np.full(len(rows), at_ms, np.int64))

    def _entities_of(self, leaves: list[npt.NDArray[np.int32]]) -> Int64:
        """The distinct entities of the judged levels that these leaves add to."""
        flags = np.zeros(len(self.entities), bool)
        for part in leaves:
            for level in self.judged_levels:
                flags[self.entities.rows[level, part]] = True
        flags[0] = False
        return np.flatnonzero(flags)

    # --- late events ------------------------------------------------------------------------------------------------

    def _amend_until(
        self, pane: int, chosen: Flags, late: tuple[Int64, Int64, Int64, Int64]
    ) -> tuple[Int64, Int64, Int64, Int64]:
        """Applies the late events of the chosen orgs that arrived before `pane` closed; returns the others."""
        due = (late[3] <= pane) & chosen[self.entities.leaf_org[late[1]]]
        if due.any():
            self._amend(late[0][due], late[1][due], late[2][:, due])
        rest = ~due
        return late[0][rest], late[1][rest], late[2][:, rest], late[3][rest]

    def _amend(self, pane: Int64, leaves: Int64, values: Int64) -> None:
        """Adds late events to every pane that is already made of theirs and to both views."""
        org = self.entities.leaf_org[leaves]
        closed = self.closed.head[org]
        oldest = np.full(len(pane), -NEVER)  # the first pane of 10 s that is kept in a finer resolution than the one in turn
        for level, (store, unit, kept) in enumerate(zip(self.panes, UNITS, KEPT, strict=True)):
            index = pane // unit
            belongs = (index * unit + unit - 1 <= closed) & (index > closed // unit - kept)
            for number in np.unique(index[belongs]).tolist():
                chosen = belongs & (index == number)
                store.setdefault(number, Pane()).add(leaves[chosen], values[:, chosen])
                # A coarser pane is told once the finer ones that it begins with are gone.
                if (chosen := chosen & (number * unit < oldest)).any():
                    self._mark(level, number, org[chosen])
            oldest = (closed // unit - kept + 1) * unit
        for view in (self.live, self.closed):
            view.add(leaves, values)
            head = view.head[org]
            for window in view.gone:
                unit, kept = UNITS[resolution(window)], KEPT[resolution(window)]
                # The live head may lag behind the closed one here: what no pane has kept will not leave later.
                outside = pane // unit <= np.maximum(head // unit - window.panes, closed // unit - kept)
                if outside.any():
                    view.drop(window, leaves[outside], values[:, outside])
        amended = self._entities_of([leaves.astype(np.int32)]).tolist()
        for window in self.closed.gone:
            self.unjudged.setdefault(window, set()).update(amended)

    # --- the live view ----------------------------------------------------------------------------------------------

    def judge_live(self, leaves: Int64, wanted: Collection[Window], everything_of: Iterable[int] = ()) -> list[Judged]:
        """Moves the live view to the newest events and returns what may have changed in the wanted windows.

        leaves: those that received events since the last call; everything_of: orgs to judge whole (their rules changed).
        """
        orgs = len(self.entities.orgs)
        before, after = self.live.head[:orgs].copy(), np.maximum(self.live.head[:orgs], self.newest[:orgs] // PANE_MS)
        self.live.head[:orgs] = after
        lost = self._drop_from_live(before, after) if (after > before).any() else {}
        if not wanted:
            return []
        received = self._entities_of([leaves.astype(np.int32)])
        for number in everything_of:
            received = np.union1d(received, np.flatnonzero(self.entities.entity_org[: len(self.entities)] == number))
        received = received[received != 0]
        judged = []
        for window in wanted:
            rows = np.union1d(received, self._entities_of([lost[window]])) if window in lost else received
            if len(rows):
                sums = self.live.sums(window, rows)
                holding = sums[EVENTS] > 0
                rows = rows[holding]
                at_ms = self.newest[self.entities.entity_org[rows]]
                judged.append(Judged(window, rows, sums[:, holding], at_ms))
        return judged

    def _drop_from_live(self, before: Int64, after: Int64) -> dict[Window, npt.NDArray[np.int32]]:
        """Drops the panes that leave as heads move from `before` to `after` (per org); the leaves per window that lost some."""
        low, high = int(before[after > before].min()), int(after[after > before].max())
        leaf_org = self.entities.leaf_org[: self.entities.leaves]
        lost = {}
        for window in self.live.gone:
            unit, store = UNITS[resolution(window)], self.panes[resolution(window)]
            # Pane i leaves when a head reaches the first pane of i + window.panes.
            first, last = low // unit + 1 - window.panes, high // unit - window.panes
            numbers = range(first, last + 1) if last - first < len(store) else [n for n in store if first <= n <= last]
            parts = []
            for number in numbers:
                pane = store.get(number)
                if pane is not None:
                    point = (number + window.panes) * unit
                    leaving = (before < point) & (point <= after)
                    if leaving.any():
                        parts.append(pane.of(leaving[leaf_org]))
            if parts:
                # Nothing is judged in between: all of them in one addition.
                lost[window] = np.concatenate([leaves for leaves, _ in parts])
                self.live.drop(window, lost[window], np.concatenate([sums for _, sums in parts], axis=1))
        return lost

    # --- what is kept -------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        """Packs panes that are final for everyone and drops those that no window needs any more."""
        heads = self.closed.head[: len(self.entities.orgs)]
        if self.live.gone:
            # The live view has not moved yet: it still has to drop what lies between its head and the closed one.
            heads = np.minimum(heads, self.live.head[: len(heads)])
        heads = heads[heads != NEVER]
        slowest, fastest = int(heads.min()), int(heads.max())
        waiting = self.untold or {}
        for level, (store, unit, kept) in enumerate(zip(self.panes, UNITS, KEPT, strict=True)):
            # One pane more than the longest window: the live view drops a pane when it is about to leave.
            oldest = slowest // unit - kept - 1
            for number in [n for n in store if n < oldest and (level, n) not in waiting]:
                del store[number]
            for number, pane in store.items():
                if number * unit + unit - 1 <= max(slowest - 2, fastest - KEPT[0]):
                    pane.pack()

    def set_heads(self, newest: Int64, live: Int64, closed: Int64) -> None:
        """Recovery: the times that belong to the panes."""
        self._make_room()
        self.newest[: len(newest)] = newest
        self.live.head[: len(live)] = live
        self.closed.head[: len(closed)] = closed

    def keep(self, view: View, windows: Iterable[Window], anew: bool = False) -> None:
        """Makes a view hold just these windows; new ones (anew: all) are added up from the panes."""
        if not view.gone:
            # A view without windows does not count, and any total will do: what matters is total - gone.
            view.total[:] = 0
            if view is self.live:
                view.head = np.where(self.newest == NEVER, NEVER, self.newest // PANE_MS)
        self._make_room()
        view.gone = {
            window: view.total - self.window_sums(window, view) if anew or window not in view.gone else view.gone[window]
            for window in windows
        }

    def window_sums(self, window: Window, view: View) -> Int64:
        """Sums int64[6, capacity] of a window at a view's heads, added up from panes: slow, and exact."""
        result = np.zeros_like(view.total)
        leaf_org = self.entities.leaf_org[: self.entities.leaves]
        head, closed = view.head, self.closed.head
        unit = UNITS[resolution(window)]
        start = (head // unit - window.panes + 1) * unit
        for level in range(resolution(window), -1, -1):
            unit = UNITS[level]
            # The finest panes are taken up to the head; coarser ones exist once they are closed.
            end = np.where(closed == NEVER, NEVER, (closed + 1) // unit * unit) if level else head + 1
            for number, pane in self.panes[level].items():
                first = number * unit
                chosen = (start <= first) & (first < end)
                if chosen.any():
                    leaves, sums = pane.of(chosen[leaf_org])
                    for rows in self.entities.rows:
                        add_at(result, rows[leaves], sums)
            start = np.maximum(start, end)
        return result

    @property
    def nbytes(self) -> int:
        views = sum(view.total.nbytes * (1 + len(view.gone)) for view in (self.live, self.closed))
        return views + sum(pane.nbytes for store in self.panes for pane in store.values())


def _last_closed(newest_ms: Int64) -> Int64:
    """The last pane whose end lies the allowed lateness or more behind the newest event."""
    return np.where(newest_ms == NEVER, NEVER, (newest_ms - LATENESS_MS) // PANE_MS - 1)


def _distinct(pane: Int64) -> list[int | None]:
    """The distinct panes of a batch in ascending order; [None] when there is only one, [] when there is none."""
    if not len(pane):
        return []
    low, high = int(pane.min()), int(pane.max())
    return [None] if low == high else np.unique(pane).tolist()
