"""The rule language: what a rule says, read from JSON and checked.

    {"id": "overspend", "org": "acme", "name": "Overspend", "severity": "high", "evaluate": "live", "level": "campaign",
     "scope": {"platform": "meta", "campaign": "cmp_1"},
     "when": {"all": [{"metric": "spend", "window": "5m", "op": "gt", "value": 100, "min": {"impressions": 1000}},
                      {"not": {"metric": "revenue", "window": "1h", "op": "gte", "than": {"metric": "spend", "factor": 2}}}]}}

The flat form {"id", "org", "campaign", "metric", "window", "op", "threshold", "min_field", "min_value"} means the same with
one comparison. A rule is judged for every entity of its level within its scope. Comparisons with undefined ratios and
with too little data are false.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cmis_stream.core.entities import LEVELS
from cmis_stream.core.errors import Rejected
from cmis_stream.core.metrics import ALIASES, CUSTOM_PREFIX, METRICS
from cmis_stream.core.time import WINDOWS, Window

SEVERITIES = ("critical", "high", "medium", "low")
OPERATORS = ("gt", "gte", "lt", "lte", "eq", "ne")
EVALUATIONS = ("live", "pane")
SCOPE_FIELDS = ("currency", "platform", "account", "campaign", "ad_set", "ad")
_NEEDED_LEVEL = {"platform": "platform", "account": "campaign", "campaign": "campaign", "ad_set": "ad_set", "ad": "ad"}
MAX_DEPTH, MAX_COMPARISONS = 8, 32

_CUSTOM = re.compile(r"custom\.[A-Za-z_][A-Za-z0-9_.]{0,63}")
_ENVELOPE = {"id", "org", "name", "severity", "evaluate", "level", "enabled", "labels"}
_FLAT = {"metric", "window", "op", "threshold", "min_field", "min_value", *SCOPE_FIELDS}


@dataclass(frozen=True, slots=True)
class Comparison:
    """metric over window `op` value; with `than`: metric `op` factor times than over the same window.

    minimum: (metric, value) that the same window must reach before there is enough data to judge.
    """

    metric: str
    window: Window
    op: str
    value: float
    than: str | None = None
    minimum: tuple[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """all, any or not (of exactly one) of its parts."""

    kind: str
    parts: tuple[Condition, ...]


Condition = Comparison | Group


@dataclass(frozen=True, slots=True)
class Rule:
    id: str
    org: str
    when: Condition
    level: str = "campaign"
    scope: tuple[tuple[str, str], ...] = ()
    """(field, value) in the order of SCOPE_FIELDS."""
    evaluate: str = "live"
    name: str = ""
    severity: str = "medium"


def comparisons(condition: Condition) -> Iterator[Comparison]:
    """The comparisons of a condition, left to right."""
    if isinstance(condition, Comparison):
        yield condition
    else:
        for part in condition.parts:
            yield from comparisons(part)


def holds(condition: Condition, truths: Iterator[bool]) -> bool:
    """The truth of a condition from those of its comparisons, left to right (all are consumed)."""
    if isinstance(condition, Comparison):
        return next(truths)
    results = [holds(part, truths) for part in condition.parts]
    return {"all": all(results), "any": any(results), "not": not results[0]}[condition.kind]


def parse_rule(raw: Any, *, evaluate: str = "live") -> Rule:
    """The rule in `raw` (either form); Rejected names the field. `evaluate` is what a rule means that says nothing."""
    if not isinstance(raw, Mapping):
        raise Rejected("wrong_type", "", raw, "a rule as a JSON object")
    known = _ENVELOPE | ({"when", "scope"} if "when" in raw else _FLAT)
    for name in raw:
        if name not in known:
            raise Rejected("invalid", str(name), raw[name], f"one of the fields {', '.join(sorted(known))}")
    scope = raw.get("scope", {}) if "when" in raw else {name: raw[name] for name in SCOPE_FIELDS if raw.get(name) is not None}
    if not isinstance(scope, Mapping):
        raise Rejected("wrong_type", "scope", scope, "an object of scope fields")
    for name in scope:
        _one_of(name, SCOPE_FIELDS, f"scope.{name}")
    when = raw["when"] if "when" in raw else _comparison_of_flat(raw)
    condition = _condition(when, "when" if "when" in raw else "", 1)
    if sum(1 for _ in comparisons(condition)) > MAX_COMPARISONS:
        raise Rejected("too_long", "when", when, f"at most {MAX_COMPARISONS} comparisons")
    level = _one_of(raw.get("level", _default_level(scope)), LEVELS, "level")
    prefix = "scope." if "when" in raw else ""
    chosen = tuple((name, _text(scope, name, prefix)) for name in SCOPE_FIELDS if name in scope)
    for name, value in chosen:
        if LEVELS.index(_NEEDED_LEVEL.get(name, "org")) > LEVELS.index(level):
            raise Rejected("invalid", prefix + name, value, f"nothing below the rule's level, {level}")
    return Rule(
        id=_text(raw, "id"),
        org=_text(raw, "org"),
        when=condition,
        level=level,
        scope=chosen,
        evaluate=_one_of(raw.get("evaluate", evaluate), EVALUATIONS, "evaluate"),
        name=_text(raw, "name") if "name" in raw else "",
        severity=_one_of(raw.get("severity", "medium"), SEVERITIES, "severity"),
    )


def _default_level(scope: Mapping[str, Any]) -> str:
    return "ad" if "ad" in scope else "ad_set" if "ad_set" in scope else "campaign"


def _comparison_of_flat(raw: Mapping[str, Any]) -> dict[str, Any]:
    comparison = {name: raw[name] for name in ("metric", "window", "op") if name in raw}
    if "threshold" in raw:
        comparison["threshold"] = raw["threshold"]
    if raw.get("min_field") is not None:
        comparison["min"] = {_metric(raw["min_field"], "min_field"): raw.get("min_value", 0)}
    return comparison


def _condition(raw: Any, place: str, depth: int) -> Condition:
    if depth > MAX_DEPTH:
        raise Rejected("too_long", place, raw, f"at most {MAX_DEPTH} levels of all, any and not")
    if not isinstance(raw, Mapping):
        raise Rejected("wrong_type", place, raw, "a comparison, or one of all, any, not")
    kinds = [kind for kind in ("all", "any", "not") if kind in raw]
    if not kinds:
        return _comparison(raw, place)
    if len(raw) > 1:
        raise Rejected("invalid", place, sorted(raw), f"nothing beside {kinds[0]!r}")
    kind, parts = kinds[0], raw[kinds[0]]
    if kind == "not":
        return Group(kind, (_condition(parts, f"{place}.not", depth + 1),))
    if not isinstance(parts, list) or not parts:
        raise Rejected("wrong_type", f"{place}.{kind}", parts, "a list of at least one condition")
    return Group(kind, tuple(_condition(part, f"{place}.{kind}[{i}]", depth + 1) for i, part in enumerate(parts)))


def _comparison(raw: Mapping[str, Any], place: str) -> Comparison:
    dot = f"{place}." if place else ""
    limit = "threshold" if "threshold" in raw or not place else "value"
    known = {"metric", "window", "op", "min", "than", limit}
    for name in raw:
        if name not in known:
            raise Rejected("invalid", f"{dot}{name}", raw[name], f"one of the fields {', '.join(sorted(known))}")
    metric = _metric(raw.get("metric"), f"{dot}metric")
    than, value = None, 0.0
    if "than" in raw and limit in raw:
        raise Rejected("invalid", f"{dot}than", raw["than"], f"a {limit} or than, not both")
    if "than" in raw:
        than, value = _than(raw["than"], metric, f"{dot}than")
    else:
        value = _number(raw.get(limit), f"{dot}{limit}")
    return Comparison(
        metric=metric,
        window=WINDOWS[_one_of(raw.get("window"), tuple(WINDOWS), f"{dot}window")],
        op=_one_of(raw.get("op"), OPERATORS, f"{dot}op"),
        value=value,
        than=than,
        minimum=_minimum(raw.get("min"), metric, f"{dot}min"),
    )


def _than(raw: Any, metric: str, place: str) -> tuple[str, float]:
    if not isinstance(raw, Mapping) or not set(raw) <= {"metric", "factor"}:
        raise Rejected("wrong_type", place, raw, 'an object like {"metric": "spend", "factor": 2}')
    other = _metric(raw.get("metric"), f"{place}.metric")
    if metric.startswith(CUSTOM_PREFIX) or other.startswith(CUSTOM_PREFIX):
        raise Rejected("unsupported", f"{place}.metric", other, "two standard metrics (custom ones are compared with values)")
    return other, _number(raw.get("factor", 1), f"{place}.factor")


def _minimum(raw: Any, metric: str, place: str) -> tuple[str, float] | None:
    if raw is None:
        return None
    if not isinstance(raw, Mapping) or len(raw) != 1:
        raise Rejected("wrong_type", place, raw, 'an object like {"impressions": 1000}')
    ((name, value),) = raw.items()
    flat = place == "min"  # the flat form has two fields for it
    named = "min_field" if flat else f"{place}.{name}"
    field = _metric(name, named)
    if metric.startswith(CUSTOM_PREFIX) and field not in ("events", metric):
        raise Rejected("unsupported", named, name, f"events or {metric}, the series of a custom metric")
    return field, _number(value, "min_value" if flat else named)


def _metric(value: Any, place: str) -> str:
    if isinstance(value, str):
        name = ALIASES.get(value, value)
        if name in METRICS or _CUSTOM.fullmatch(name):
            return name
    raise Rejected("missing" if value is None else "invalid", place, value, f"one of {', '.join(METRICS)} or custom.NAME")


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Rejected("missing" if value is None else "wrong_type", place, value, "a number")
    if not abs(value) < 1e18:
        raise Rejected("out_of_range", place, value, "a finite number below 1e18")
    return float(value)


def _one_of(value: Any, allowed: tuple[str, ...], place: str) -> str:
    if value not in allowed:
        raise Rejected("missing" if value is None else "invalid", place, value, f"one of {', '.join(allowed)}")
    return str(value)


def _text(raw: Mapping[str, Any], name: str, prefix: str = "") -> str:
    value = raw.get(name)
    if not isinstance(value, str) or not 1 <= len(value) <= 200 or any(ord(c) < 32 or ord(c) == 127 for c in value):
        code = "missing" if value is None else "invalid" if isinstance(value, str) else "wrong_type"
        raise Rejected(code, prefix + name, value, "1 to 200 characters without control characters")
    return value
