"""What the agent `project` does with transitions: incidents in the store, each transition once, whatever is repeated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from cmis_stream.core.errors import Rejected
from cmis_stream.live.positioned import PositionedWriter, Record
from cmis_stream.log import transitions
from cmis_stream.log.owner import TRANSITIONS
from cmis_stream.log.positions import Passed
from cmis_stream.modules.alerts.incidents import FIRING, KIND, VERSIONS, ended, incident_after
from cmis_stream.store.decisions import Body
from cmis_stream.store.fact_kinds import Fact
from cmis_stream.store.facts import Change, Facts, Place
from cmis_stream.store.listing import storable

READER = "project"
PAUSE_S = 0.1
STOP_WITHIN_S = 5.0
LONGEST_ORG = 255


class Projection(PositionedWriter):
    """Positions are those of the transitions, and of the records that they follow from. clock: epoch ms."""

    def __init__(
        self, facts: Facts, epoch: str, guard: Callable[[], AbstractContextManager[None]], clock: Callable[[], int]
    ) -> None:
        super().__init__(facts, TRANSITIONS, READER, epoch, guard, PAUSE_S)
        self._clock = clock

    def _begin(self) -> dict[Place, int]:
        now_ms = self._clock()

        def end(incident: Fact) -> Change:
            """The engines that would resolve it are gone with their log."""
            return Change(incident.org, KIND, incident.id, now_ms, partial(_ended_with_its_log, now_ms))

        self._store.leave_other_logs(READER, self._epoch, KIND, [("filter[state]", FIRING)], end)
        return super()._begin()

    def _what_is_new(self, records: Sequence[Record], known: Mapping[Place, int]) -> tuple[list[Change], dict[Place, int]]:
        passed, changes = Passed(), list[Change]()
        passed.highest = dict(known)
        for partition, offset, value, _ in records:
            passed.is_new(TRANSITIONS, partition, offset)
            try:
                source, lines = transitions.decode(value)
            except Rejected:
                continue  # a foreign record, which `deliver` makes a dead letter
            if passed.is_new(*source):
                # No org of ours is called so: nobody could read what is written for it.
                changes.extend(_change(line) for line in lines if 0 < len(line["org"]) <= LONGEST_ORG and storable(line["org"]))
        return changes, {place: position for place, position in passed.highest.items() if position > known.get(place, -1)}

    def _written(self, new: Any, positions: Mapping[Place, int], before: Mapping[Place, int]) -> bool:
        return self._store.write(new, READER, self._epoch, positions, before)


def _change(line: dict[str, Any]) -> Change:
    make = partial(incident_after, line=line)
    return Change(line["org"], KIND, line["incident"], line["at"], make, least=VERSIONS[line["state"]])


def _ended_with_its_log(now_ms: int, incident: Body | None) -> Body:
    assert incident is not None
    return ended(incident, now_ms, "log_replaced")
