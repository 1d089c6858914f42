"""Facts that follow from the records of one topic alone: what an agent of a module needs to find something."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

from cmis_stream.core.errors import Rejected
from cmis_stream.live.positioned import PositionedWriter, Record, behind
from cmis_stream.store.facts import Change, Facts, Place

ChangesOf = Callable[[bytes], Sequence[Change]]
"""What follows from a record's value; pure. Rejected: nothing, since it is none of ours."""


class FactWriter(PositionedWriter):
    """Writes facts and how far the topic was read in one transaction, so each record counts once whatever is repeated.

    reader: a name that no other agent has; positions stand under it. `Runtime.fact_writer` makes one.
    """

    def __init__(
        self,
        facts: Facts,
        topic: str,
        reader: str,
        epoch: str,
        guard: Callable[[], AbstractContextManager[None]],
        changes_of: ChangesOf,
    ) -> None:
        super().__init__(facts, topic, reader, epoch, guard, pause_s=0.0)
        self._changes_of = changes_of

    def _what_is_new(self, records: Sequence[Record], known: Mapping[Place, int]) -> tuple[list[Change], dict[Place, int]]:
        values, positions = behind(self._topic, records, known)
        changes = list[Change]()
        for value in values:
            with suppress(Rejected):  # the agent has made a dead letter of it
                changes += self._changes_of(value)
        return changes, positions

    def _written(self, new: Any, positions: Mapping[Place, int], before: Mapping[Place, int]) -> bool:
        return self._store.write(new, self._reader, self._epoch, positions, before)
