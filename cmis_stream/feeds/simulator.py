"""Made-up ad metrics for demos: a daily rhythm, noise, and every few minutes something that an alert should catch.

Any second of it can be computed on its own from the seed, so events do not depend on how time is cut into calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from ..core.time import HOUR_MS, SECOND_MS
from .events import PLATFORMS

CAMPAIGNS = ("brand", "launch", "retarget")
AD_SETS = ("young", "broad")
ADS = ("video", "still")
VIDEO_PLATFORMS = frozenset({"meta", "tiktok", "snapchat"})

IMPRESSIONS_PER_S = 60.0  # of one ad, on a daily average
CLICK_RATE = 0.02
SPEND_PER_IMPRESSION = 0.004
CYCLE_MS = 300 * SECOND_MS
FIRST_INCIDENT_MS = 70 * SECOND_MS
OVERSPEND_FACTOR, CLICK_DROP_FACTOR = 6.0, 0.15
OVERSPEND_MS, CLICK_DROP_MS = 90 * SECOND_MS, 100 * SECOND_MS
CLICK_DROP_AFTER_MS = 15 * SECOND_MS


@dataclass(frozen=True, slots=True)
class Incident:
    """One campaign misbehaves from start_ms until end_ms (exclusive). kind: overspend or click_drop."""

    kind: str
    org: str
    campaign: str
    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class _Ad:
    org: str
    platform: str
    campaign: str
    ad_set: str
    ad: str
    impressions_per_s: float
    click_rate: float
    spend_per_impression: float


class Simulator:
    """Events of a few orgs on some platforms; `rate` events a second in total, whatever they add up to per campaign."""

    def __init__(
        self,
        orgs: Sequence[str] = ("acme", "globex"),
        platforms: Sequence[str] = PLATFORMS,
        seed: int = 0,
        start_ms: int = 0,
        rate: int = 100,
    ) -> None:
        if not orgs or not platforms or rate < 1:
            raise ValueError("a simulation needs an org, a platform and at least one event a second")
        self.orgs, self.platforms, self.seed, self.start_ms, self.rate = (
            tuple(orgs),
            tuple(platforms),
            seed,
            start_ms,
            rate,
        )
        self._ads = [
            self._made_ad(org, platform, f"{platform}-{campaign}", ad_set, ad)
            for ad in ADS
            for ad_set in AD_SETS
            for campaign in CAMPAIGNS
            for platform in self.platforms
            for org in self.orgs
        ]
        self._incidents: dict[int, list[Incident]] = {}

    def _made_ad(self, org: str, platform: str, campaign: str, ad_set: str, ad: str) -> _Ad:
        """Campaigns differ by up to a tenth in each figure: enough to look alive, little enough for one threshold for
        all."""
        own = Random(f"{self.seed}/{org}/{campaign}")
        volume, clicks, price = (own.uniform(0.9, 1.1) for _ in range(3))
        name = f"{campaign}-{ad_set}"
        return _Ad(
            org, platform, campaign, name, f"{name}-{ad}",
            IMPRESSIONS_PER_S * volume, CLICK_RATE * clicks, SPEND_PER_IMPRESSION * price,
        )  # fmt: skip

    def events_between(self, t0_ms: int, t1_ms: int) -> list[dict[str, Any]]:
        """The flat events with t0_ms <= ts < t1_ms in order of time; a pure function of the seed."""
        events: list[dict[str, Any]] = []
        for second in range(max(t0_ms, self.start_ms) // SECOND_MS, -(-t1_ms // SECOND_MS)):
            events += (event for event in self._second(second) if t0_ms <= event["ts"] < t1_ms)
        return events

    def incidents_between(self, t0_ms: int, t1_ms: int) -> list[Incident]:
        """What was injected and overlaps [t0_ms, t1_ms)."""
        first = max((t0_ms - self.start_ms) // CYCLE_MS - 1, 0)
        cycles = range(first, max((t1_ms - self.start_ms) // CYCLE_MS + 1, first))
        found = [incident for cycle in cycles for incident in self._cycle(cycle)]
        return [incident for incident in found if incident.start_ms < t1_ms and incident.end_ms > t0_ms]

    def _cycle(self, cycle: int) -> list[Incident]:
        """Each org's overspend and click-rate drop of one cycle, on two different campaigns."""
        known = self._incidents.get(cycle)
        if known is None:
            if len(self._incidents) > 8:
                self._incidents.clear()
            known = self._incidents[cycle] = []
            chance = Random(f"{self.seed}/incidents/{cycle}")
            campaigns = [f"{platform}-{name}" for platform in self.platforms for name in CAMPAIGNS]
            for org in self.orgs:
                start = self.start_ms + FIRST_INCIDENT_MS + cycle * CYCLE_MS + chance.randrange(10) * SECOND_MS
                costly, dull = chance.sample(campaigns, 2)
                known.append(Incident("overspend", org, costly, start, start + OVERSPEND_MS))
                later = start + CLICK_DROP_AFTER_MS
                known.append(Incident("click_drop", org, dull, later, later + CLICK_DROP_MS))
        return known

    def _second(self, second: int) -> list[dict[str, Any]]:
        chance = Random(f"{self.seed}/{second}")
        ms = second * SECOND_MS
        active = {(i.org, i.campaign): i for i in self.incidents_between(ms, ms + SECOND_MS)}
        daily = 1 + 0.35 * math.sin(2 * math.pi * (ms % (24 * HOUR_MS) / HOUR_MS - 9) / 24)
        # Each event reports what its ad did since the ad's last turn.
        covered_s = len(self._ads) / self.rate
        events = []
        for turn in range(self.rate):
            ad = self._ads[(second * self.rate + turn) % len(self._ads)]
            ts = ms + turn * SECOND_MS // self.rate
            incident = active.get((ad.org, ad.campaign))
            if incident is not None and not incident.start_ms <= ts < incident.end_ms:
                incident = None
            events.append(_event(ad, ts, f"{ad.org}-{second}-{turn}", daily * covered_s, incident, chance))
        return [event for event in events if event["ts"] >= self.start_ms]

    def demo_rules(self) -> list[dict[str, Any]]:
        """Flat rules for each org that fire on the injected incidents and on nothing else."""
        rules: list[dict[str, Any]] = []
        per_minute = 60 * IMPRESSIONS_PER_S * len(AD_SETS) * len(ADS)
        spend = round(2.2 * per_minute * SPEND_PER_IMPRESSION, 2)
        figures = (
            ("overspend", "spend", "A campaign spends far too fast", "gt", spend, "impressions", 0, "critical"),
            ("click-rate-drop", "ctr", "A campaign's click rate has dropped", "lt", CLICK_RATE / 2, "impressions", 3_000, "high"),
            ("expensive-clicks", "cpc", "A campaign's clicks have become expensive", "gt", 0.55, "impressions", 3_000, "medium"),
        )
        for org in self.orgs:
            for rule_id, metric, name, op, threshold, min_field, min_value, severity in figures:
                rules.append(
                    {"id": rule_id, "org": org, "name": name, "campaign": None, "metric": metric,
                     "window": "1m", "op": op, "threshold": threshold, "min_field": min_field,
                     "min_value": min_value, "severity": severity}
                )  # fmt: skip
        return rules


def _event(ad: _Ad, ts: int, event_id: str, covered: float, incident: Incident | None, chance: Random) -> dict[str, Any]:
    kind = incident.kind if incident is not None else ""
    impressions = _whole(ad.impressions_per_s * covered * math.exp(chance.gauss(0, 0.12)), chance)
    click_rate = ad.click_rate * (CLICK_DROP_FACTOR if kind == "click_drop" else 1)
    clicks = min(_whole(impressions * click_rate * math.exp(chance.gauss(0, 0.15)), chance), impressions)
    price = ad.spend_per_impression * (OVERSPEND_FACTOR if kind == "overspend" else 1)
    conversions = _whole(clicks * 0.05, chance)
    event: dict[str, Any] = {
        "id": event_id, "ts": ts, "org": ad.org, "type": "metric", "platform": ad.platform, "campaign": ad.campaign,
        "ad_set": ad.ad_set, "ad": ad.ad, "impressions": impressions, "clicks": clicks,
        "spend": round(impressions * price * math.exp(chance.gauss(0, 0.08)), 4), "conversions": conversions,
        "revenue": round(conversions * 30 * math.exp(chance.gauss(0, 0.3)), 2),
    }  # fmt: skip
    views = _whole(impressions * 0.4 * math.exp(chance.gauss(0, 0.1)), chance)
    if ad.platform in VIDEO_PLATFORMS:
        event["custom"] = {"video_views": views}
    return event


def _whole(value: float, chance: Random) -> int:
    """A whole number near `value`, equal to it on average."""
    return int(value + chance.random())
