"""What partitions have counted while this process held them: counters for Prometheus, made of state that moves between
processes. An engine's own counts go on in the next process, and back to a checkpoint, which a rate would take for a restart.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cmis_stream.health.ports import Partition


class Counts(NamedTuple):
    events: int = 0
    duplicates: int = 0
    late: int = 0
    records: int = 0

    def plus(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Counts) -> Counts:
        return Counts(*(a - b for a, b in zip(self, other, strict=True)))


def counts(partition: Partition) -> Counts:
    engine = partition.engine
    return Counts(engine.events, engine.duplicates, engine.windows.late_events, partition.position + 1)


class Totals:
    """`look` once a second at least: what a partition counts between its assignment and the first look is not in it."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[Partition, Counts]] = {}  # by generation: with what it had counted at the first look
        self._left: dict[int, Counts] = {}

    def look(self, partitions: Iterable[Partition]) -> None:
        now = {partition.generation: partition for partition in partitions}
        for generation in [g for g in self._held if g not in now]:
            partition, before = self._held.pop(generation)
            self._add(self._left, partition.partition, counts(partition).minus(before))
        for generation, partition in now.items():
            if generation not in self._held:
                self._held[generation] = (partition, counts(partition))

    def by_partition(self) -> dict[int, Counts]:
        """Also of those that are held no more: a counter does not vanish."""
        found = dict(self._left)
        for partition, before in self._held.values():
            self._add(found, partition.partition, counts(partition).minus(before))
        return dict(sorted(found.items()))

    @staticmethod
    def _add(to: dict[int, Counts], partition: int, more: Counts) -> None:
        to[partition] = to.get(partition, Counts()).plus(more)
