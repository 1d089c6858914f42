"""When is a process sick? Pure decisions over what was seen; the clock is passed in.

The clock is time in which the process ran (`RunningClock`): one that was stopped for an hour has lost nothing when it wakes.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)

STALLED_S = 60.0
NOT_COMMITTED_S = 60.0
BLOCKED_S = 120.0


class Reason(NamedTuple):
    """code: crashed, stalled, not_committed, loop_blocked, memory, not_stopped. text: a sentence."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Reading:
    """One partition at one moment. All are offsets of the next record: of the log, to be taken by the engine, to be applied,
    that may be committed, that is committed. generation: of the assignment."""

    topic: str
    partition: int
    generation: str
    end: int
    begun: int
    reached: int
    acked: int
    committed: int


class RunningClock:
    """Seconds in which the process ran, from looks at a clock that goes on while it is stopped.

    >>> clock = RunningClock(most_step_s=2.0)
    >>> [clock.advance(now) for now in (100.0, 101.0, 4000.0, 4000.5)]
    [0.0, 1.0, 3.0, 3.5]
    """

    def __init__(self, most_step_s: float) -> None:
        """most_step_s: what lies between two looks at most, when nothing stops the process."""
        self._most_step_s = most_step_s
        self._seen: float | None = None
        self.ran_s = 0.0

    def advance(self, now_s: float) -> float:
        if self._seen is not None:
            self.ran_s += min(max(now_s - self._seen, 0.0), self._most_step_s)
        self._seen = now_s
        return self.ran_s


class Standstill(Generic[Key]):
    """Which of some things have not moved for too long although they should.

    >>> still = Standstill(limit_s=60)
    >>> still.look(0, {"a": 7}), still.look(59, {"a": 7}), still.look(60, {"a": 7})
    (None, None, ('a', 60))
    >>> still.look(61, {"a": 8}) is None  # it moved
    True
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since: dict[Key, tuple[Hashable, float]] = {}

    def look(self, now_s: float, marks: Mapping[Key, Hashable]) -> tuple[Key, float] | None:
        """marks: of the things that should move, a value that changes when they do; all others are forgotten. Returns the one
        that has stood longest, and for how long, when that is too long."""
        before = self._since
        self._since = {
            key: (mark, before[key][1] if key in before and before[key][0] == mark else now_s) for key, mark in marks.items()
        }
        if not self._since:
            return None
        key, (_, since) = min(self._since.items(), key=lambda item: item[1][1])
        return (key, now_s - since) if now_s - since >= self._limit_s else None


class Stalled:
    """A partition has records that wait, and takes none of them. One that has only just been assigned begins anew."""

    def __init__(self, after_s: float = STALLED_S) -> None:
        self._still: Standstill[tuple[str, int]] = Standstill(after_s)

    def look(self, ran_s: float, readings: Collection[Reading]) -> Reason | None:
        waiting = {(r.topic, r.partition): r for r in readings if r.end > r.reached}
        found = self._still.look(ran_s, {key: (r.generation, r.begun, r.reached) for key, r in waiting.items()})
        if found is None:
            return None
        place, stood_s = found
        reading = waiting[place]
        under_way = f"; it is at work on {reading.begun - 1} since" if reading.begun > reading.reached else ""
        return Reason(
            "stalled",
            f"{reading.topic}, partition {reading.partition}: {reading.end - reading.reached} records wait and none was "
            f"applied for {stood_s:.0f} s (the next is {reading.reached}{under_way})",
        )


class Uncommitted:
    """Offsets are acked, and the group's offset in the log does not follow. What is applied and not yet in a checkpoint (a
    long adoption, a slow changelog) is not acked, and nobody's fault here."""

    def __init__(self, after_s: float = NOT_COMMITTED_S) -> None:
        self._still: Standstill[tuple[str, int]] = Standstill(after_s)

    def look(self, ran_s: float, readings: Collection[Reading]) -> Reason | None:
        behind = {(r.topic, r.partition): r for r in readings if r.acked > r.committed}
        found = self._still.look(ran_s, {key: (r.generation, r.committed) for key, r in behind.items()})
        if found is None:
            return None
        place, stood_s = found
        reading = behind[place]
        return Reason(
            "not_committed",
            f"{reading.topic}, partition {reading.partition}: {reading.acked - reading.committed} records are acked and the "
            f"committed offset has stood at {reading.committed} for {stood_s:.0f} s",
        )


class Blocked:
    """The event loop has no turn."""

    def __init__(self, after_s: float = BLOCKED_S) -> None:
        self._still: Standstill[str] = Standstill(after_s)

    def look(self, ran_s: float, turns: int) -> Reason | None:
        """turns: a number that grows whenever the loop has one."""
        found = self._still.look(ran_s, {"loop": turns})
        return None if found is None else Reason("loop_blocked", f"the event loop has had no turn for {found[1]:.0f} s")


def too_much_memory(resident: int | None, limit: int | None) -> Reason | None:
    """Bytes; None: not known, or without a limit."""
    if resident is None or limit is None or resident < limit:
        return None
    return Reason("memory", f"memory: {resident / 1e6:,.0f} MB are resident, the limit is {limit / 1e6:,.0f} MB")
