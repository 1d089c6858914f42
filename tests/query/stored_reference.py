"""What a query over documents or facts must answer, in plain Python: a list of all of them, looked at one by one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

SIZES = {"10s": 10_000, "1m": 60_000, "15m": 900_000, "1h": 3_600_000}
_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq, "gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le,
}  # fmt: skip


def fits(value: Any, condition: Any) -> bool:
    """Of one field: a value, a list of values, or {operator: value}. Tags: a list."""
    if isinstance(value, list):
        return (condition["contains"] if isinstance(condition, dict) else condition) in value
    if not isinstance(condition, dict):
        condition = {"in" if isinstance(condition, list) else "eq": condition}
    for op, wanted in condition.items():
        if op == "ne":
            found = value is None or value != wanted
        elif value is None:
            found = False
        elif op == "in":
            found = value in wanted
        elif op == "contains":
            found = wanted.lower() in value.lower()
        else:
            found = _OPERATORS[op](value, wanted)
        if not found:
            return False
    return True


def begin(ms: int, step: str, zone: ZoneInfo) -> int:
    """Of the step that holds a moment."""
    if step in SIZES:
        return ms // SIZES[step] * SIZES[step]
    day = datetime.fromtimestamp(ms / 1000, zone).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    if step == "1w":
        day -= timedelta(days=day.weekday())
    if step == "1mo":
        day = day.replace(day=1)
    return round(day.replace(tzinfo=zone).timestamp() * 1000)


def told(ms: int, zone: ZoneInfo) -> str:
    precision = "milliseconds" if ms % 1000 else "seconds"
    return datetime.fromtimestamp(ms / 1000, UTC).astimezone(zone).isoformat(timespec=precision).replace("+00:00", "Z")


def measured(measure: str, rows: Sequence[Mapping[str, Any]]) -> Any:
    if measure == "count":
        return len(rows)
    function, name = measure.removesuffix(")").split("(")
    values = [row[name] for row in rows if row[name] is not None]
    if function == "distinct":
        return len(set(values))
    if not values:
        return None
    return {"sum": sum, "min": min, "max": max, "avg": lambda of: sum(of) / len(of)}[function](values)


def answer(
    rows: Sequence[Mapping[str, Any]],
    at: str,
    query: Mapping[str, Any],
    times: frozenset[str],
    ranks: Mapping[str, Sequence[str]],
) -> list[list[Any]]:
    """In the order of the dimensions' values, missing ones last. at: the field that time is. from, to: epoch ms, at borders."""
    zone, dimensions = ZoneInfo(query.get("timezone", "UTC")), query.get("dimensions", [])
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {} if dimensions else {(): []}
    for row in rows:
        if not query.get("from_ms", 0) <= row[at] < query.get("to_ms", 10**15):
            continue
        if all(fits(row[name], condition) for name, condition in query.get("filters", {}).items()):
            of = tuple(begin(row[at], query["step"], zone) if name == "time" else row[name] for name in dimensions)
            groups.setdefault(of, []).append(row)

    def place(of: tuple[Any, ...]) -> list[Any]:
        by = [ranks[name].index(value) if name in ranks else value for name, value in zip(dimensions, of, strict=True)]
        return [(value is None, 0 if value is None else value) for value in by]

    def shown(name: str, value: Any) -> Any:
        return told(value, zone) if value is not None and name in times else value

    return [
        [*(shown(name, value) for name, value in zip(dimensions, of, strict=True)),
         *(shown(name.split("(")[-1].removesuffix(")") if name[:3] in ("min", "max") else "", measured(name, groups[of]))
           for name in query["measures"])]
        for of in sorted(groups, key=place)
    ]  # fmt: skip
