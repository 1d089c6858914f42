"""Banks: comparisons that need the same number, their thresholds sorted, and per entity its value and ranks.

The first half of compiled rules; `conditions.py` is the other: which comparisons belong to which rule, and their states.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cmis_stream.core.batch import Int32, Int64
from cmis_stream.core.metrics import Float64, Sums, evaluate
from cmis_stream.core.rules import SCOPE_FIELDS, Comparison, Condition, Group

Guards = frozenset[tuple[str, str, tuple[str, float]]]
"""(metric, window, minimum) of the minimums that have banks of their own."""

MAX_GUARDED_BANKS = 16
"""Of one metric and window. Rarer minimums become comparisons of their own, so that banks stay few."""


class BankKey(NamedTuple):
    evaluate: str
    window: str
    metric: str
    than: str
    factor: float
    minimum: tuple[str, float] | None
    sign: int


class Scope(NamedTuple):
    """What entities a comparison is for; an empty field means any."""

    level: str
    org: str
    currency: str = ""
    platform: str = ""
    account: str = ""
    campaign: str = ""
    ad_set: str = ""
    ad: str = ""
    custom: str = ""

    @property
    def kind(self) -> tuple[str, ...]:
        """Which fields are given: entities of a level have at most one scope of a kind."""
        return (self.level, *(name for name in SCOPE_FIELDS if getattr(self, name)))


class Layer:
    """The segments of one kind of scope in a bank."""

    def __init__(self) -> None:
        self.segments: dict[Scope, int] = {}
        self.terms_of: list[dict[int, float]] = [{}]  # segment -> {term: threshold}; segment 0 is empty
        self.segment = np.zeros(1024, np.int32)  # entity -> segment
        self.rank = np.zeros(1024, np.int32)  # entity -> thresholds exceeded
        self._thresholds: Float64 = np.zeros(1)
        self.terms: Int32 = np.zeros(0, np.int32)
        self.start = np.zeros(1, np.int64)
        self._end = np.zeros(1, np.int64)
        self._steps = 0
        self._sorted: list[tuple[Float64, Int32]] = []  # segment -> thresholds, terms
        self.stale: set[int] = set()  # segments with other terms than in the arrays

    def segment_of(self, scope: Scope) -> int:
        number = self.segments.get(scope)
        if number is None:
            number = self.segments[scope] = len(self.terms_of)
            self.terms_of.append({})
        return number

    def compile(self) -> None:
        """Joins the sorted thresholds of all segments; only those of stale segments are sorted anew."""
        nothing = (np.zeros(0), np.zeros(0, np.int32))
        self._sorted.extend([nothing] * (len(self.terms_of) - len(self._sorted)))
        for segment in self.stale:
            terms = self.terms_of[segment]
            numbers = np.fromiter(terms, np.int32, len(terms))
            thresholds = np.fromiter(terms.values(), np.float64, len(terms))
            order = np.lexsort((numbers, thresholds))
            self._sorted[segment] = (thresholds[order], numbers[order])
        self.stale.clear()
        counts = np.array([len(numbers) for _, numbers in self._sorted], np.int64)
        self._thresholds = np.concatenate([*(thresholds for thresholds, _ in self._sorted), [np.inf]])
        self.terms = np.concatenate([numbers for _, numbers in self._sorted])
        self._end = counts.cumsum()
        self.start = self._end - counts
        self._steps = int(counts.max(initial=0)).bit_length()

    def ranks(self, rows: Int64, values: Float64) -> Int32:
        """How many thresholds of its segment each value exceeds, int32[k]; 0 for NaN."""
        segment = self.segment[rows]
        start = self.start[segment]
        low, high = start, self._end[segment]
        for _ in range(self._steps):
            middle = (low + high) >> 1
            exceeded = (self._thresholds[middle] < values) & (low < high)
            low, high = np.where(exceeded, middle + 1, low), np.where(exceeded, high, middle)
        return (low - start).astype(np.int32)


class Bank:
    def __init__(self, key: BankKey) -> None:
        self.key = key
        self.layers: dict[tuple[str, ...], Layer] = {}
        self.value = np.full(1024, np.nan)  # entity -> the last judged value times sign; NaN exceeds nothing
        self.seen = np.zeros(1024, bool)  # entities judged since their rules are what they are
        self.covered = np.zeros(1024, bool)  # entities in some segment
        self.chunks: set[int] = set()  # of entities that have values
        self.changed: set[int] = set()  # chunks with new ones, for the checkpoint

    CHUNK_BITS = 13

    def values(self, sums: Sums) -> Float64:
        key = self.key
        values = evaluate(key.metric, sums)
        if key.than:
            with np.errstate(invalid="ignore"):
                values = values - key.factor * evaluate(key.than, sums)
        defined = np.isfinite(values)
        if key.minimum is not None:
            reached = evaluate(key.minimum[0], sums)
            with np.errstate(invalid="ignore"):
                defined &= np.isfinite(reached) & (reached >= key.minimum[1])
        return np.where(defined, key.sign * values, np.nan)

    def make_room(self, rows: int) -> None:
        have = len(self.value)
        if rows > have:
            size = max(rows, 2 * have)
            self.value = np.concatenate((self.value, np.full(size - have, np.nan)))
            self.seen = np.concatenate((self.seen, np.zeros(size - have, bool)))
            self.covered = np.concatenate((self.covered, np.zeros(size - have, bool)))
        for layer in self.layers.values():
            if len(layer.segment) < len(self.value):
                more = np.zeros(len(self.value) - len(layer.segment), np.int32)
                layer.segment = np.concatenate((layer.segment, more))
                layer.rank = np.concatenate((layer.rank, more))

    def note_change(self, rows: Int64) -> None:
        if len(rows):
            low, high = int(rows.min()) >> self.CHUNK_BITS, int(rows.max()) >> self.CHUNK_BITS
            changed = [low] if low == high else np.unique(rows >> self.CHUNK_BITS).tolist()
            self.changed.update(changed)
            self.chunks.update(changed)


def bounds(comparison: Comparison) -> list[tuple[int, float]]:
    """(sign, threshold) pairs: `sign * value > threshold` for one of them, both for eq, either for ne."""
    value = 0.0 if comparison.than else comparison.value
    below = float(np.nextafter(value, -np.inf))
    over = float(np.nextafter(-value, -np.inf))
    return {
        "gt": [(1, value)],
        "gte": [(1, below)],
        "lt": [(-1, -value)],
        "lte": [(-1, over)],
        "eq": [(1, below), (-1, over)],
        "ne": [(1, value), (-1, -value)],
    }[comparison.op]


def normal_form(condition: Condition, guards: Guards) -> Condition:
    """The same condition with single-bound comparisons only; minimums outside `guards` become comparisons."""
    if isinstance(condition, Group):
        return Group(condition.kind, tuple(normal_form(part, guards) for part in condition.parts))
    comparison, extra = condition, []
    if condition.minimum and (condition.metric, condition.window.name, condition.minimum) not in guards:
        extra = [Comparison(condition.minimum[0], condition.window, "gte", condition.minimum[1])]
        comparison = Comparison(condition.metric, condition.window, condition.op, condition.value, condition.than)
    parts: list[Condition] = [comparison]
    if comparison.op in ("eq", "ne"):
        halves = ("gte", "lte") if comparison.op == "eq" else ("gt", "lt")
        two = tuple(
            Comparison(comparison.metric, comparison.window, op, comparison.value, comparison.than, comparison.minimum)
            for op in halves
        )
        parts = [Group("all" if comparison.op == "eq" else "any", two)]
    return parts[0] if not extra else Group("all", (*parts, *extra))
