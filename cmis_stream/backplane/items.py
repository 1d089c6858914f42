"""The items of each topic: what clients get as JSON, and what the AsyncAPI document is generated from."""

from __future__ import annotations

from typing import Literal, TypeAlias

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


ITEMS: dict[str, type[MetricItem] | type[IncidentItem]] = {"metrics": MetricItem, "incidents": IncidentItem}
"""Topic of a channel -> its items."""
