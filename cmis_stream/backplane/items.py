"""The items of each topic: what clients get as JSON, and what the AsyncAPI document is generated from."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from cmis_stream.backplane.contract import Item

Sums: TypeAlias = tuple[int, int, int, int, int, int]
"""Events, impressions, clicks, spend_micros, conversions_micros, revenue_micros."""

_encode = msgspec.json.Encoder().encode


class MetricItem(msgspec.Struct, frozen=True, gc=False):
    """The sums of one pane of one entity, absolute: the newest for (entity, at, pane_ms) holds.

    entity: `core.channels.entity_key`. at: the pane's start, epoch ms. closed: no event on time can change it any more.
    """

    entity: str
    at: int
    pane_ms: int
    closed: bool
    sums: Sums

    def item(self) -> Item:
        return Item(self.entity, f"{self.entity} {self.at} {self.pane_ms}", _encode(self))


class IncidentItem(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An incident, as the transition that has just changed it says.

    id: the incident's, the same from firing to resolved. key: the rule and the entity, whose episodes incidents are.
    entity: `core.channels.entity_key` of the path below. at: epoch ms of event time. value None: undefined (0/0).
    sums: of the window, or of that of the rule's first comparison. events: ids of the newest that led to it.
    version: of two items with the same id the one with the larger version is the newer.
    """

    id: str
    key: str
    entity: str
    rule: str
    severity: str
    level: str
    currency: str
    platform: str
    account: str
    campaign: str
    ad_set: str
    ad: str
    state: Literal["firing", "resolved"]
    at: int
    value: float | None
    window: str
    sums: Sums
    events: list[str]
    version: int

    def item(self) -> Item:
        return Item(self.entity, self.id, _encode(self))


class JobItem(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A job as its last change has left it; of two items with the same id the one with the larger version is the newer.

    entity: `core.channels.entity_key` of the id. Times: epoch ms. said: a few words about what it does. eta_at: when it is
    expected to end. result: what it made; None, too, where it is long: result_length is the characters of its JSON, and REST
    has it. problem: code and detail of one that failed.
    """

    entity: str
    id: str
    kind: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    progress_ratio: float
    said: str
    eta_at: int | None
    created_at: int
    started_at: int | None
    ended_at: int | None
    attempts: int
    cancel_asked_at: int | None
    actor: str
    result: Any
    result_length: int | None
    problem: dict[str, Any] | None
    version: int

    def item(self) -> Item:
        return Item(self.entity, self.id, _encode(self))


ITEMS: dict[str, type[MetricItem] | type[IncidentItem] | type[JobItem]] = {
    "metrics": MetricItem,
    "incidents": IncidentItem,
    "jobs": JobItem,
}
"""Topic of a channel -> its items."""
