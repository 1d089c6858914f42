"""Ad metric events as senders write them: vocabulary and shapes.

The msgspec structs of the fast path. They accept a subset of what `reading` accepts, with equal results, and leave it
to `reading` to explain the rest.

Money is in the account's currency. An event without `currency` counts as USD until the account's own currency is known
from `ads.entity` events.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from msgspec import Meta, Struct

from ..core.batch import LARGEST, MICROS

PLATFORMS = ("meta", "google", "tiktok", "linkedin", "x", "snapchat")
DEFAULT_CURRENCY = "USD"
LONGEST_IDENTIFIER = 200
MOST_CUSTOM = 20
LARGEST_MONEY = LARGEST / MICROS
"""Of spend, conversions and revenue: 2^53 micro-units, so that a double still tells neighbouring micros apart."""
LARGEST_CUSTOM = 9e9

CURRENCY = re.compile(r"[A-Z]{3}")
CUSTOM_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_.]{0,63}")
LEVELS = ("account", "campaign", "ad_set", "ad")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)

Identifier = Annotated[str, Meta(max_length=LONGEST_IDENTIFIER)]
Name = Annotated[str, Meta(min_length=1, max_length=LONGEST_IDENTIFIER)]
Moment = Annotated[datetime, Meta(tz=True)]
Platform = Literal["meta", "google", "tiktok", "linkedin", "x", "snapchat"]


class PlainEvent(Struct, gc=False, forbid_unknown_fields=True):
    """The flat event at its plainest; any other field sends a chunk to `WideEvent`, so none is overlooked."""

    id: Name
    platform: Platform
    ts: int
    org: Name | None = None
    type: Literal["metric"] = "metric"
    account: Identifier = ""
    campaign: Identifier = ""
    ad_set: Identifier = ""
    ad: Identifier = ""
    impressions: int = 0
    clicks: int = 0
    spend: float = 0.0
    conversions: float = 0.0
    revenue: float = 0.0
    currency: str = DEFAULT_CURRENCY


class WideEvent(Struct, gc=False):
    """Every field a flat event can have. `time`, aliases and `twitter` are gone after `settled`."""

    id: Name
    platform: Literal["meta", "google", "tiktok", "linkedin", "x", "snapchat", "twitter"]
    ts: int = -1
    org: Name | None = None
    type: Literal["metric", "cmis.ads.metrics.v1"] = "metric"
    account: Identifier = ""
    campaign: Identifier = ""
    ad_set: Identifier = ""
    ad: Identifier = ""
    impressions: int = 0
    clicks: int = 0
    spend: float = 0.0
    conversions: float = 0.0
    revenue: float = 0.0
    currency: str = DEFAULT_CURRENCY
    source: Name | None = None
    mode: Literal["delta"] = "delta"
    custom: dict[str, float] | None = None
    time: Moment | None = None
    account_id: Identifier = ""
    campaign_id: Identifier = ""
    ad_set_id: Identifier = ""
    ad_id: Identifier = ""


class MetricsData(Struct, gc=False):
    """`data` of a CloudEvent of type cmis.ads.metrics.v1. The flat names are here only to be noticed."""

    platform: Literal["meta", "google", "tiktok", "linkedin", "x", "snapchat", "twitter"]
    account_id: Identifier = ""
    campaign_id: Identifier = ""
    ad_set_id: Identifier = ""
    ad_id: Identifier = ""
    impressions: int = 0
    clicks: int = 0
    spend: float = 0.0
    conversions: float = 0.0
    revenue: float = 0.0
    currency: str = DEFAULT_CURRENCY
    mode: Literal["delta"] = "delta"
    custom: dict[str, float] | None = None
    account: Identifier = ""
    campaign: Identifier = ""
    ad_set: Identifier = ""
    ad: Identifier = ""


class CloudEvent(Struct, gc=False):
    """A CloudEvents 1.0 structured JSON event with our data."""

    specversion: Literal["1.0"]
    id: Name
    source: Name
    type: Literal["cmis.ads.metrics.v1"]
    time: Moment
    data: MetricsData
    orgid: Name | None = None


MetricEvent = PlainEvent | WideEvent


def settled(event: WideEvent) -> WideEvent | None:
    """The event with its aliases resolved in place; None when only the plain reading can tell what is meant."""
    if event.account_id or event.campaign_id or event.ad_set_id or event.ad_id:
        for level in LEVELS:
            other = getattr(event, level + "_id")
            if other:
                if getattr(event, level):
                    return None
                setattr(event, level, other)
                setattr(event, level + "_id", "")
    if event.time is not None:
        if event.ts != -1:
            return None
        event.ts, event.time = (event.time - EPOCH) // MILLISECOND, None
    if event.platform == "twitter":
        event.platform = "x"
    return event if event.custom is None or custom_is_sound(event.custom) else None


def flattened(event: CloudEvent) -> WideEvent | None:
    """The CloudEvent as a flat event; None when only the plain reading can tell what is meant."""
    data = event.data
    if data.account or data.campaign or data.ad_set or data.ad:
        return None
    if data.custom is not None and not custom_is_sound(data.custom):
        return None
    return WideEvent(
        event.id,
        "x" if data.platform == "twitter" else data.platform,
        (event.time - EPOCH) // MILLISECOND,
        event.orgid,
        "metric",
        data.account_id,
        data.campaign_id,
        data.ad_set_id,
        data.ad_id,
        data.impressions,
        data.clicks,
        data.spend,
        data.conversions,
        data.revenue,
        data.currency,
        event.source,
        "delta",
        data.custom,
    )


def custom_is_sound(custom: dict[str, float]) -> bool:
    return len(custom) <= MOST_CUSTOM and all(
        -LARGEST_CUSTOM <= value <= LARGEST_CUSTOM and CUSTOM_NAME.fullmatch(name) for name, value in custom.items()
    )
