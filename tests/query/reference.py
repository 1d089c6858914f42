"""What a query over panes must answer, in plain Python: a list of all events, added up anew."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from tests.core.reference import Event, Model, divide, plus

PARTS = ("currency", "platform", "account", "campaign", "ad_set", "ad")
SIZES = {"10s": 10_000, "1m": 60_000, "15m": 900_000, "1h": 3_600_000}
MONEY = {"spend_micros", "revenue_micros", "cpc", "cpm", "cpa", "roas"}


def taken(events: Sequence[Event]) -> list[Event]:
    """Those that an engine that takes them one by one does not refuse as too late."""
    model, found = Model(), []
    for event in events:
        before = model.too_late
        model.record([event])
        if model.too_late == before:
            found.append(event)
    return found


def answer(
    events: Sequence[Event],
    org: str,
    measures: list[str],
    dimensions: list[str],
    filters: dict[str, set[str]],
    start: int,
    end: int,
    step: str,
) -> list[tuple[Any, ...]]:
    """Rows in the order of time and of the dimensions' values. start, end: ms, at borders of the step."""
    money = any(measure in MONEY or measure.startswith("custom.") for measure in measures)
    dimensions = [*dimensions, *(["currency"] if money and "currency" not in dimensions else [])]
    custom = {measure.removeprefix("custom.") for measure in measures if measure.startswith("custom.")}
    sums: dict[tuple[Any, ...], tuple[int, ...]] = defaultdict(lambda: (0,) * 6)
    micros: dict[tuple[Any, ...], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for event in events:
        parts = dict(zip(PARTS, event.leaf[1:], strict=True))
        if event.org != org or not start <= event.ts < end or any(parts[name] not in values for name, values in filters.items()):
            continue
        at = event.ts // SIZES[step] * SIZES[step]
        row = (at if "time" in dimensions else 0, tuple(parts[name] for name in dimensions if name != "time"))
        sums[row] = plus(sums[row], (1, *event.values))
        for name, value in event.custom:
            if name in custom:
                micros[row][name] += value
    rows = []
    for (at, values), total in sorted(sums.items()):
        named = {"time": at, **dict(zip([name for name in dimensions if name != "time"], values, strict=True))}
        found = [measured(measure, total, micros[at, values]) for measure in measures]
        rows.append((*(named[name] for name in dimensions), *found))
    return rows


def measured(measure: str, sums: tuple[int, ...], micros: dict[str, int]) -> Any:
    if measure.startswith("custom."):
        return micros[measure.removeprefix("custom.")] / 1e6
    events, impressions, clicks, spend, conversions, revenue = sums
    found = {
        "events": events, "impressions": impressions, "clicks": clicks, "spend_micros": spend, "conversions_micros": conversions,
        "revenue_micros": revenue, "ctr": divide(clicks, impressions), "cpc": divide(spend / 1e6, clicks),
        "cpm": divide(spend / 1e6 * 1000, impressions), "cpa": divide(spend, conversions), "roas": divide(revenue, spend),
        "cvr": divide(conversions / 1e6, clicks),
    }[measure]  # fmt: skip
    return None if math.isnan(found) else found
