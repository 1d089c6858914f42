"""An incident: one firing episode of a rule for an entity, told by its two transitions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from cmis_stream.core.channels import entity_key
from cmis_stream.core.ids import moment_of
from cmis_stream.core.metrics import FIELDS
from cmis_stream.core.rules import SCOPE_FIELDS, SEVERITIES
from cmis_stream.store.fact_kinds import FactKind
from cmis_stream.store.fields import Time

KIND: Final = "incident"
FIRING: Final = "firing"
RESOLVED: Final = "resolved"
VERSIONS = {FIRING: 1, RESOLVED: 2}
"""Of an incident after its transition into this state, at least: commands on it count, too."""
PATH = SCOPE_FIELDS
_TOLD = ("key", "rule", "severity", "level", *PATH)


class Incident(BaseModel):
    """One firing episode of a rule for an entity. Value, window, sums and events are those of the moment it began."""

    model_config = ConfigDict(extra="forbid")
    key: str = Field(description="The same for all incidents of a rule and an entity.")
    entity: str = Field(description="As in the gateway's channels: the path below, percent-encoded, joined by /.")
    rule: str
    severity: Literal["critical", "high", "medium", "low"]
    level: str
    currency: str
    platform: str
    account: str
    campaign: str
    ad_set: str
    ad: str
    state: Literal["firing", "resolved"]
    started_at: Time = Field(description="In event time.")
    resolved_at: Time | None = None
    reason: str | None = Field(None, description="Why it was resolved, when it is not that the condition no longer held.")
    value: float | None = Field(description="Of the rule's metric when it began to fire; null: undefined.")
    window: str
    sums: Annotated[list[int], Field(min_length=6, max_length=6)] = Field(
        description="Of that window: events, impressions, clicks, spend_micros, conversions_micros, revenue_micros."
    )
    events: list[str] = Field(description="Ids of the newest events that led to it, at most three.")


INCIDENT = FactKind(
    KIND,
    Incident,
    title="Incident",
    path="alerts/history",
    filters={
        "state": "text", "severity": "text", "rule": "text", "level": "text", "platform": "text", "campaign": "text",
        "key": "text", "started_at": "time",
    },
    sorts=("started_at", "severity"),
    ranks={"severity": SEVERITIES, "state": (FIRING, RESOLVED)},
    default_sort="-started_at",
    reader="project",
    topic="cmis.transitions.v1",
    examples=(
        {
            "key": "496e9d647d06eee1", "entity": "EUR/meta/act_7/spring", "rule": "overspend", "severity": "high",
            "level": "campaign", "currency": "EUR", "platform": "meta", "account": "act_7", "campaign": "spring", "ad_set": "",
            "ad": "", "state": "resolved", "started_at": 1_767_225_600_000, "resolved_at": 1_767_225_850_000, "value": 104.2,
            "window": "5m", "sums": [41, 1200, 31, 104_200_000, 2_000_000, 61_500_000], "events": ["e41", "e40", "e39"],
        },
    ),
)  # fmt: skip


def entity_of(line: Mapping[str, Any]) -> str:
    """`core.channels.entity_key` of what a transition or an incident is about."""
    path = [line[name] for name in PATH]
    while path and not path[-1]:
        path.pop()
    return entity_key(path)


def sums_of(line: Mapping[str, Any]) -> list[int]:
    """A transition's sums in the order of FIELDS: counts, money and conversions in micros."""
    return [line["sums"][name] for name in FIELDS]


def incident_after(before: Mapping[str, Any] | None, line: Mapping[str, Any]) -> dict[str, Any] | None:
    """The incident after a transition. before: as it was, None when its opening is not known (too old to be still told).

    Value, window, sums and events stay those of the moment it opened: what tipped it. Times are epoch ms of event time. None:
    the transition says nothing new.
    """
    if before is not None:
        over = line["state"] == FIRING or before["state"] == RESOLVED
        return None if over else ended(before, line["at"], line.get("reason"))
    told = {
        **{name: line[name] for name in _TOLD},
        "entity": entity_of(line),
        "state": line["state"],
        "started_at": moment_of(line["incident"]),
        "resolved_at": None,
        "value": line["value"],
        "window": line["window"],
        "sums": sums_of(line),
        "events": line.get("events", []),
    }
    return told if line["state"] == FIRING else ended(told, line["at"], line.get("reason"))


def ended(incident: Mapping[str, Any], at_ms: int, reason: str | None = None) -> dict[str, Any]:
    """The incident, resolved. reason: why, when it is not that its condition no longer holds."""
    because = {} if reason is None else {"reason": reason}
    return {**incident, "state": RESOLVED, "resolved_at": at_ms, **because}
