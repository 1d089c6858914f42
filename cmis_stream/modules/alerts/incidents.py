"""An incident: one firing episode of a rule for an entity, told by its two transitions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cmis_stream.core.channels import entity_key
from cmis_stream.core.ids import moment_of
from cmis_stream.core.metrics import FIELDS
from cmis_stream.core.rules import SCOPE_FIELDS

KIND = "incident"
FIRING, RESOLVED = "firing", "resolved"
VERSIONS = {FIRING: 1, RESOLVED: 2}
"""Of an incident after its transition into this state."""
PATH = SCOPE_FIELDS
_TOLD = ("key", "rule", "severity", "level", *PATH)


def entity_of(line: Mapping[str, Any]) -> str:
    """`core.channels.entity_key` of what a transition or an incident is about."""
    path = [line[name] for name in PATH]
    while path and not path[-1]:
        path.pop()
    return entity_key(path)


def sums_of(line: Mapping[str, Any]) -> list[int]:
    """A transition's sums in the order of FIELDS: counts, money and conversions in micros."""
    return [line["sums"][name] for name in FIELDS]


def incident_after(before: Mapping[str, Any] | None, line: Mapping[str, Any]) -> dict[str, Any]:
    """The incident after a transition. before: as it was, None when its opening is not known (too old to be still told).

    Value, window, sums and events stay those of the moment it opened: what tipped it. Times are epoch ms of event time.
    """
    told = {
        "id": line["incident"],
        **{name: line[name] for name in _TOLD},
        "entity": entity_of(line),
        "state": line["state"],
        "started_at": moment_of(line["incident"]),
        "resolved_at": None,
        "value": line["value"],
        "window": line["window"],
        "sums": sums_of(line),
        "events": line.get("events", []),
        "version": VERSIONS[line["state"]],
    }
    if line["state"] == FIRING:
        return told
    return ended(told if before is None else before, line["at"], line.get("reason"))


def ended(incident: Mapping[str, Any], at_ms: int, reason: str | None = None) -> dict[str, Any]:
    """The incident, resolved. reason: why, when it is not that its condition no longer holds."""
    because = {} if reason is None else {"reason": reason}
    return {**incident, "state": RESOLVED, "resolved_at": at_ms, "version": VERSIONS[RESOLVED], **because}
