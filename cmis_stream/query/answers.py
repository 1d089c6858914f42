"""What all answers have alike: columns with types and units, rows in the order that was asked for, values as JSON has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

from cmis_stream.core.errors import shown
from cmis_stream.core.time import LATEST_MS
from cmis_stream.query import times
from cmis_stream.query.model import MOST_ROWS, Fault, Faulty

ValueType = Literal["time", "string", "integer", "number", "boolean"]
Row = Sequence[Any]


class Column(NamedTuple):
    """unit: count, micros, ratio, ms, currency (whole units of the row's); None: it has none."""

    name: str
    type: ValueType
    unit: str | None = None
    ranks: tuple[str, ...] = ()
    """Of texts that have an order, which in rows are their places in it."""

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "type": self.type, "unit": self.unit}


def too_many_rows() -> Faulty:
    fault = Fault(
        "", "too_long", f"more than {MOST_ROWS:,} rows", "fewer dimensions, a larger step, a shorter time or more filters"
    )
    return Faulty([fault], "too_many_rows")


def listed(
    rows: Iterable[Row], columns: Sequence[Column], zone: ZoneInfo, sort: str | None, limit: int | None
) -> list[list[Any]]:
    """Rows as they stand in the answer. rows: times in epoch ms, booleans also as 0 and 1. Faulty for a sort of other columns.

    A missing value comes last, either way; rows of equal values stay in their order.
    """
    found = list(rows)
    for place, descending in reversed(_sorts(sort, columns)):
        missing = [row for row in found if row[place] is None]
        there = [row for row in found if row[place] is not None]
        found = [*sorted(there, key=lambda row: row[place], reverse=descending), *missing]
    values: list[list[Any]] = [[row[place] for row in found[:limit]] for place in range(len(columns))]
    for place, column in enumerate(columns):
        if column.type == "time":  # only now: texts of times are not in the order of times where clocks are put back
            texts = {ms: _shown(ms, zone) for ms in set(values[place])}
            values[place] = [texts[ms] for ms in values[place]]
        elif column.type == "boolean":
            values[place] = [None if value is None else bool(value) for value in values[place]]
        elif column.ranks:
            values[place] = [None if value is None else column.ranks[value] for value in values[place]]
    return [list(row) for row in zip(*values, strict=True)]


def _sorts(sort: str | None, columns: Sequence[Column]) -> list[tuple[int, bool]]:
    """(place, descending)"""
    names = [column.name for column in columns]
    made = dict[int, bool]()
    for part in sort.split(",") if sort is not None else ():
        name = part.removeprefix("-")
        if name not in names or names.index(name) in made:
            expected = f"different ones of {', '.join(names)}, each with - before it for the other way round"
            raise Faulty([Fault("/sort", "invalid", shown(sort), expected)])
        made[names.index(name)] = part.startswith("-")
    return list(made.items())


def _shown(ms: int | None, zone: ZoneInfo) -> str | int | None:
    """A number that is no moment stays one, as in documents."""
    return times.shown(ms, zone) if ms is not None and 0 <= ms <= LATEST_MS else ms
