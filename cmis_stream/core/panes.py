"""Panes: exact sums of one stretch of event time per leaf, sparse in time and in leaves.

One `Pane` holds the leaves that had events in it. While it is filled it maps leaves to places through an array; once
packed it is sorted by leaf with each field in the smallest integer type that holds it, a fifth of the size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cmis_stream.core.batch import Int32, Int64
from cmis_stream.core.entities import grown
from cmis_stream.core.metrics import FIELDS

_EMPTY_LEAVES = np.zeros(0, np.int32)
_EMPTY_SUMS = np.zeros((len(FIELDS), 0), np.int64)


_FIELD = np.arange(len(FIELDS))[:, None]


def add_at(target: Int64, places: npt.NDArray[Any], values: Int64) -> None:
    """target[:, places] += values, counting repeated places each time.

    target: int64[6, n], contiguous; values: int64[6, k]; places: [k], or [m, k] to add the same values at m sets of places.
    One call over the flat array: fewer calls, between as fast as and three times as fast as one per field and set.
    """
    flat = (places.reshape(-1) + _FIELD * target.shape[1]).reshape(-1)
    sets = places.size // values.shape[1] if values.shape[1] else 1
    np.add.at(target.reshape(-1), flat, (values if sets == 1 else np.concatenate([values] * sets, axis=1)).reshape(-1))


_NARROW = tuple((np.dtype(t), int(np.iinfo(t).min), int(np.iinfo(t).max)) for t in (np.uint8, np.uint16, np.int32, np.int64))


def _smallest(low: int, high: int) -> np.dtype[Any]:
    return next(dtype for dtype, least, most in _NARROW if least <= low and high <= most)


def narrow(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same integers in the smallest type that holds them all.

    >>> narrow(np.array([0, 300])).dtype, narrow(np.array([-1])).dtype
    (dtype('uint16'), dtype('int32'))
    """
    if not len(values):
        return values.astype(np.uint8)
    return values.astype(_smallest(int(values.min()), int(values.max())))


def narrow_rows(rows: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """`narrow` of each row of [m, k], with two passes over all of them instead of two for each."""
    if not rows.shape[1]:
        return [row.astype(np.uint8) for row in rows]
    bounds = zip(rows.min(1).tolist(), rows.max(1).tolist(), strict=True)
    return [row.astype(_smallest(low, high)) for row, (low, high) in zip(rows, bounds, strict=True)]


class Pane:
    """Sums int64[6, k] of the k leaves with events in this pane.

    Adding is commutative and associative: any order and any split of the same events gives the same pane.
    """

    __slots__ = ("_count", "_leaves", "_packed", "_place", "_sums", "dirty")

    def __init__(self) -> None:
        self._leaves: Int32 = _EMPTY_LEAVES
        self._sums: Int64 = _EMPTY_SUMS
        self._place: Int32 | None = np.zeros(0, np.int32)  # leaf -> place + 1
        self._count = 0
        self._packed: list[npt.NDArray[Any]] | None = None
        self.dirty = True

    def add(self, leaves: Int64, values: Int64) -> None:
        """Adds values int64[6, n] of n events (leaves may repeat)."""
        if self._place is None:
            self._unpack()
        assert self._place is not None
        self._place = grown(self._place, int(leaves.max()) + 1)
        places = self._place[leaves]
        if not places.all():
            # Of equal leaves the last one written stays: distinct without sorting them all.
            met = leaves[places == 0]
            order = np.arange(1, len(met) + 1, dtype=np.int32)
            self._place[met] = order
            new = np.sort(met[self._place[met] == order])
            count = self._count + len(new)
            self._leaves = grown(self._leaves, count)
            self._sums = grown(self._sums, count)
            self._leaves[self._count : count] = new
            self._place[new] = np.arange(self._count + 1, count + 1, dtype=np.int32)
            self._count = count
            places = self._place[leaves]
        add_at(self._sums, places - 1, values)
        self.dirty = True

    def __len__(self) -> int:
        return self._count

    def leaves(self) -> Int32:
        return self._leaves[: self._count]

    def sums(self) -> Int64:
        if self._packed is not None:
            return np.array(self._packed, np.int64).reshape(len(FIELDS), self._count)
        return self._sums[:, : self._count]

    def of(self, chosen: npt.NDArray[np.bool_]) -> tuple[Int32, Int64]:
        """Leaves int32[k] and sums int64[6, k] of the leaves whose flag in `chosen` (by leaf number) is set."""
        return self.where(chosen[self.leaves()])

    def leaves_of(self, chosen: npt.NDArray[np.bool_]) -> Int32:
        """The leaves of `of` without their sums."""
        leaves = self.leaves()
        return leaves[chosen[leaves]]

    def where(self, own: npt.NDArray[np.bool_]) -> tuple[Int32, Int64]:
        """Leaves int32[k] and sums int64[6, k] of the leaves whose flag (in the order of `leaves`) is set."""
        places = np.flatnonzero(own)
        if len(places) == self._count:
            return self.leaves(), self.sums()
        if self._packed is None:
            return self._leaves[places], self._sums.take(places, axis=1)
        sums = np.empty((len(FIELDS), len(places)), np.int64)
        for row, column in zip(sums, self._packed, strict=True):
            row[:] = column[places]
        return self._leaves[places], sums

    def frozen(self) -> tuple[Int32, Int64 | list[npt.NDArray[Any]]]:
        """Leaves int32[k] and the six fields [k] as they are now, for another thread: later additions do not change them."""
        return self.leaves(), self._sums[:, : self._count].copy() if self._packed is None else self._packed

    def pack(self) -> None:
        """Lets go of what only filling needs. A packed pane can still be added to; it unpacks by itself."""
        if self._packed is not None:
            return
        order = np.argsort(self.leaves(), kind="stable")
        self._leaves = self.leaves()[order]
        self._packed = narrow_rows(self._sums[:, order])
        self._sums, self._place = _EMPTY_SUMS, None

    def _unpack(self) -> None:
        self._sums = self.sums()
        self._packed = None
        self._place = np.zeros(int(self._leaves.max(initial=0)) + 1, np.int32)
        self._place[self._leaves] = np.arange(1, self._count + 1, dtype=np.int32)

    @property
    def nbytes(self) -> int:
        arrays = [self._leaves, *(self._packed if self._packed is not None else [self._sums])]
        return sum(int(array.nbytes) for array in arrays) + (self._place.nbytes if self._place is not None else 0)

    def columns(self) -> list[npt.NDArray[Any]]:
        """Leaves and the six fields, narrow: what a checkpoint stores."""
        if self._packed is not None:
            return [self._leaves, *self._packed]
        return [self.leaves(), *narrow_rows(self.sums())]

    @classmethod
    def from_columns(cls, columns: list[npt.NDArray[Any]]) -> Pane:
        pane = cls()
        order = np.argsort(columns[0], kind="stable")
        pane._leaves = columns[0][order].astype(np.int32)
        pane._count = len(pane._leaves)
        pane._packed = [np.ascontiguousarray(column[order]) for column in columns[1:]]
        pane._place = None
        pane.dirty = False
        return pane
