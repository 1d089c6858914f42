"""Alerts: rules that people write, incidents that agents find."""

from __future__ import annotations

from cmis_stream.core.rules import SEVERITIES
from cmis_stream.store.kinds import Kind, Manifest

from .incidents import INCIDENT
from .model import AlertRule, catalogued, check
from .templates import TEMPLATES

ALERT_RULE = Kind(
    "alert_rule",
    AlertRule,
    title="Alert rule",
    plural="alert_rules",
    path="alerts/rules",
    filters={
        "key": "text", "name": "text", "severity": "text", "enabled": "bool", "evaluate": "text", "level": "text",
    },
    sorts=("key", "name", "severity", "enabled"),
    ranks={"severity": SEVERITIES},
    most=20_000,  # agents get all of them in one record
    unique=(("key",),),
    natural_key="key",
    check=check,
    templates=TEMPLATES,
    catalog=catalogued,
    examples=(
        {
            "key": "overspend",
            "name": "Overspend",
            "severity": "high",
            "scope": {"platform": "meta"},
            "when": {
                "all": [
                    {"metric": "spend", "window": "5m", "op": "gt", "value": 100, "min": {"impressions": 1000}},
                    {"not": {"metric": "revenue", "window": "1h", "op": "gte", "than": {"metric": "spend", "factor": 2}}},
                ]
            },
        },
        {
            "key": "low-ctr",
            "name": "Low click-through rate",
            "severity": "low",
            "evaluate": "pane",
            "level": "platform",
            "when": {"metric": "ctr", "window": "1h", "op": "lt", "value": 0.002, "min": {"impressions": 10000}},
        },
    ),
)  # fmt: skip
MANIFEST = Manifest("alerts", (ALERT_RULE,), facts=(INCIDENT,), title="Alerts")
