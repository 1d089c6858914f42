"""How late the event loop is: what everything that waits in it waits longer."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable

BOUNDS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
REMEMBERED_S = 60.0


class LoopLag:
    """A histogram since the start, and the most of the last minute."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0
        self._largest: deque[tuple[float, float]] = deque()  # (moment, lag): falling lags, so the first is the most

    def observe(self, lag_s: float) -> None:
        self._counts[bisect_left(BOUNDS_S, lag_s)] += 1
        self.sum_s += lag_s
        while self._largest and self._largest[-1][1] <= lag_s:
            self._largest.pop()
        self._largest.append((self._monotonic(), lag_s))

    @property
    def most_s(self) -> float:
        """Of the last minute."""
        while self._largest and self._monotonic() - self._largest[0][0] > REMEMBERED_S:
            self._largest.popleft()
        return self._largest[0][1] if self._largest else 0.0

    def buckets(self) -> list[tuple[str, float]]:
        """(upper bound as text, how many were at or below it), as Prometheus has them."""
        found, total = [], 0
        for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), self._counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found
