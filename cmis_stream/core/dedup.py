"""Which events have been seen: 64-bit ids in open addressing, and the highest number of each sender that counts.

Ids live in two generations. The younger one takes new ids until it is an hour old or holds half of the horizon's ids;
then the older one is forgotten. So every id is remembered for at least an hour of arrival time, unless more than half
of `HORIZON_IDS` others came after it. Everything depends on the log alone: arrival stamps and the ids themselves.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cmis_stream.core.batch import Int64, UInt64
from cmis_stream.core.time import HOUR_MS

HORIZON_MS = HOUR_MS
HORIZON_IDS = 5_000_000

Flags = npt.NDArray[np.bool_]
_FREE = np.uint64(0)
_SUBSTITUTE = np.uint64(0x9E3779B97F4A7C15)  # stands for the id 0, which marks a free place


class IdSet:
    """A growing set of uint64 in one array, at most half full: look-up and insertion of many at once.

    >>> ids = IdSet()
    >>> ids.add(np.array([7, 7, 9], np.uint64)).tolist(), ids.add(np.array([9, 8], np.uint64)).tolist()
    ([True, False, True], [False, True])
    """

    def __init__(self, capacity: int = 1 << 12) -> None:
        self._table = np.zeros(capacity, np.uint64)
        self.count = 0

    def __contains__(self, value: int) -> bool:
        return bool(self.holds(np.array([value], np.uint64))[0])

    def holds(self, ids: UInt64) -> Flags:
        ids = np.where(ids == _FREE, _SUBSTITUTE, ids)
        found = np.zeros(len(ids), bool)
        mask = np.uint64(len(self._table) - 1)
        place = ids & mask
        searching = np.arange(len(ids))
        while len(searching):
            there = self._table[place]
            hit = there == ids[searching]
            found[searching[hit]] = True
            going = ~hit & (there != _FREE)
            searching, place = searching[going], (place[going] + np.uint64(1)) & mask
        return found

    def add(self, ids: UInt64) -> Flags:
        """Flags of the ids that were not in the set; of equal ones in a batch the first is the new one."""
        ids = np.where(ids == _FREE, _SUBSTITUTE, ids)
        new = np.zeros(len(ids), bool)
        ordered = np.sort(ids)
        if (ordered[1:] == ordered[:-1]).any():
            first = np.sort(np.unique(ids, return_index=True)[1])
            new[first] = self._add_distinct(ids[first])
        else:
            new[:] = self._add_distinct(ids)
        return new

    def _add_distinct(self, ids: UInt64) -> Flags:
        if 2 * (self.count + len(ids)) > len(self._table):
            self._grow(self.count + len(ids))
        new = np.zeros(len(ids), bool)
        mask = np.uint64(len(self._table) - 1)
        searching, place, wanted = np.arange(len(ids)), ids & mask, ids
        while len(searching):
            there = self._table[place]
            free = there == _FREE
            # Several ids may want one free place: the last one written stays, the others find it taken and go on.
            self._table[place[free]] = wanted[free]
            new[searching[free]] = self._table[place[free]] == wanted[free]
            going = (there != wanted) & ~new[searching]
            searching, wanted, place = searching[going], wanted[going], (place[going] + np.uint64(1)) & mask
        self.count += int(np.count_nonzero(new))
        return new

    def _grow(self, needed: int) -> None:
        held = self._table[self._table != _FREE]
        capacity = len(self._table)
        while capacity < 4 * needed:
            capacity *= 2
        self._table, self.count = np.zeros(capacity, np.uint64), 0
        for start in range(0, len(held), 1 << 16):
            self._add_distinct(held[start : start + (1 << 16)])

    @property
    def nbytes(self) -> int:
        return self._table.nbytes


class Generation:
    """Ids in the order of their arrival, in chunks (what a checkpoint stores), and the set that finds them."""

    CHUNK = 8192

    def __init__(self, number: int, since_ms: int) -> None:
        self.number, self.since_ms = number, since_ms
        self.chunks: list[UInt64] = []
        self.dirty: set[int] = set()
        self._ids = IdSet()
        self._room = 0

    def __len__(self) -> int:
        return self._ids.count

    def holds(self, ids: UInt64) -> Flags:
        return self._ids.holds(ids)

    def add(self, ids: UInt64) -> Flags:
        new = self._ids.add(ids)
        arrived = ids[new]
        while len(arrived):
            if self._room == 0:
                self.chunks.append(np.zeros(0, np.uint64))
                self._room = self.CHUNK
            taken, arrived = arrived[: self._room], arrived[self._room :]
            self.chunks[-1] = np.concatenate((self.chunks[-1], taken))
            self._room -= len(taken)
            self.dirty.add(len(self.chunks) - 1)
        return new

    @property
    def nbytes(self) -> int:
        return self._ids.nbytes + sum(chunk.nbytes for chunk in self.chunks)


class Seen:
    """The deduplication state of one partition."""

    def __init__(self) -> None:
        self.generations: list[Generation] = []
        self.highest: dict[tuple[str, str], int] = {}
        """(org, source) of senders that number their events -> the highest number taken."""
        self.sequences_dirty = False

    def new_ids(self, ids: UInt64, now_ms: int) -> Flags:
        """Flags of the ids that arrive for the first time within the horizon; they are remembered."""
        young = self.generations[-1] if self.generations else None
        if young is None or now_ms - young.since_ms >= HORIZON_MS or len(young) + len(ids) > HORIZON_IDS // 2:
            young = Generation(young.number + 1 if young else 0, now_ms)
            self.generations = [*self.generations[-1:], young]
        new = young.add(ids)
        if len(self.generations) > 1:
            new &= ~self.generations[0].holds(ids)
        return new

    def all_new(self, org: str, source: str, first: int, last: int) -> bool:
        """Takes a run of ascending numbers if all of it is new, which is the usual case and needs no arrays."""
        if first <= self.highest.get((org, source), -1):
            return False
        self.highest[org, source] = last
        self.sequences_dirty = True
        return True

    def new_numbers(self, org: str, source: str, numbers: Int64) -> Flags:
        """Flags of the events whose number is above all that this sender has sent; ascending within a call."""
        highest = self.highest.get((org, source), -1)
        new = numbers > highest
        if len(numbers) and int(numbers[-1]) > highest:
            self.highest[org, source] = int(numbers[-1])
            self.sequences_dirty = True
        return new

    @property
    def nbytes(self) -> int:
        return sum(generation.nbytes for generation in self.generations)
