"""The rule by which consumers of results see each once: keep the highest source offset, ignore the rest.

A result record carries the position of the source record that it follows from. After a crash an agent may send the
results of a record again, always the same and in order; whoever has passed that position drops them.
"""

from __future__ import annotations


class Passed:
    """
    >>> passed = Passed()
    >>> [passed.is_new("cmis.metrics.v1", 0, offset) for offset in (4, 5, 5, 4, 6)]
    [True, True, False, False, True]
    """

    def __init__(self) -> None:
        self.highest: dict[tuple[str, int], int] = {}

    def is_new(self, topic: str, partition: int, offset: int) -> bool:
        if offset <= self.highest.get((topic, partition), -1):
            return False
        self.highest[topic, partition] = offset
        return True
