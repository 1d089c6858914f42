"""Alert rules for common cases; thresholds are meant to be changed."""

from __future__ import annotations

from typing import Any

from cmis_stream.store.kinds import Template


def _comparison(metric: str, window: str, op: str, value: float, **minimum: float) -> dict[str, Any]:
    return {"metric": metric, "window": window, "op": op, "value": value, **({"min": minimum} if minimum else {})}


def _rule(key: str, name: str, severity: str, when: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"key": key, "name": name, "severity": severity, "when": when, **more}


TEMPLATES = (
    Template(
        "overspend", "A campaign spends too fast",
        _rule("overspend", "Spends too fast", "critical", _comparison("spend", "1h", "gt", 500)),
        "Spend of an hour above an amount, in the campaign's currency.",
    ),
    Template(
        "spend_without_conversions", "Spend without conversions",
        _rule("spend-without-conversions", "Spends without conversions", "high", {"all": [
            _comparison("spend", "6h", "gt", 100), _comparison("conversions", "6h", "eq", 0),
        ]}),
        "Money goes out and nothing comes of it.",
    ),
    Template(
        "expensive_conversions", "Conversions are expensive",
        _rule("expensive-conversions", "Conversions are expensive", "high", _comparison("cpa", "24h", "gt", 50, conversions=10)),
        "Cost per conversion over a day, once there are ten of them.",
    ),
    Template(
        "low_return", "Revenue below spend",
        _rule("low-return", "Earns less than it spends", "high",
              {"metric": "revenue", "window": "24h", "op": "lt", "than": {"metric": "spend"}, "min": {"spend": 100}}),
        "Return on ad spend below one over a day.",
    ),
    Template(
        "click_rate_drop", "Click-through rate is low",
        _rule("low-click-rate", "Few people click", "medium", _comparison("ctr", "1h", "lt", 0.002, impressions=10_000)),
        "Clicks per impression over an hour, once there are ten thousand impressions.",
    ),
    Template(
        "expensive_clicks", "Clicks are expensive",
        _rule("expensive-clicks", "Clicks are expensive", "medium", _comparison("cpc", "1h", "gt", 3, clicks=100)),
        "Cost per click over an hour, once there are a hundred.",
    ),
    Template(
        "platform_overspend", "A platform spends too much",
        _rule("platform-overspend", "A platform spends much", "high", _comparison("spend", "24h", "gt", 5_000), level="platform"),
        "Spend of a day over all campaigns of a platform, per currency.",
    ),
)  # fmt: skip
