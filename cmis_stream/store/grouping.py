"""Rows of one kind counted and added up by fields and time, the same for documents and facts and on both databases.

Sums and averages of whole numbers are exact, however large. A missing value is in no sum, average, minimum, maximum or number
of distinct values, and is a group of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import Column, ColumnElement, Integer, Table, case, distinct, func, literal, select

from .database import Transaction
from .listing import Filter, Listed, condition

TIME: Final = "time"
"""The dimension of steps; a field of this name cannot be grouped by."""
_LOW = 32
"""Bits of the lower half of a whole number: 2^31 halves add up in 64 bits."""

Function = Literal["count", "sum", "min", "max", "avg", "distinct"]


class Measure(NamedTuple):
    """field: None for the count of rows."""

    function: Function
    field: str | None = None


@dataclass(frozen=True, slots=True)
class Grouping:
    """What is asked. dimensions: fields, or TIME. start_ms, end_ms: rows of this time (end excluded), None: however old or new.

    steps: where TIME's steps begin, epoch ms in order, the first at or before start_ms; or their size in ms, from 1970 on.
    """

    measures: tuple[Measure, ...]
    dimensions: tuple[str, ...] = ()
    filters: tuple[Filter, ...] = ()
    start_ms: int | None = None
    end_ms: int | None = None
    steps: int | Sequence[int] | None = None


Rows = list[tuple[Any, ...]]
"""Of (dimensions, measures), values as the columns have them."""


class TooManyGroups(Exception):
    """There are more than `most`."""


def grouped(
    tx: Transaction, table: Table, kind: Listed, columns: Mapping[str, str], at: Column[int], asked: Grouping, most: int,
    *more: ColumnElement[bool],
) -> Rows:  # fmt: skip
    """In the order of the dimensions, missing values last; one row when there are no dimensions. TooManyGroups.

    columns: field -> column, where it is not called like the field. at: when a row was.
    """
    held = select(*_inner(table, columns, at, asked)).where(tx.own(table), table.c.kind == kind.name, *more)
    held = held.where(*(condition(tx, table.c[columns.get(one.field, one.field)], one) for one in asked.filters))
    if asked.start_ms is not None:
        held = held.where(at >= asked.start_ms)
    if asked.end_ms is not None:
        held = held.where(at < asked.end_ms)
    # Expressions with parameters are labelled first: PostgreSQL does not see that two of them are the same.
    of = held.subquery()
    by = [of.c[f"d{place}"] for place in range(len(asked.dimensions))]
    sums = [one for place, measure in enumerate(asked.measures) for one in _outer(measure, of.c, place)]
    wanted = select(*by, *sums).select_from(of).group_by(*by).order_by(*(one.asc().nulls_last() for one in by))
    rows = tx.rows(wanted.limit(most + 1))
    if len(rows) > most:
        raise TooManyGroups
    return [(*row[: len(by)], *_measured(asked.measures, iter(row[len(by) :]))) for row in rows]


def _inner(table: Table, columns: Mapping[str, str], at: Column[int], asked: Grouping) -> Iterator[ColumnElement[Any]]:
    yield literal(1).label("one")
    for place, name in enumerate(asked.dimensions):
        if name == TIME:
            assert asked.steps is not None, "time is grouped by steps"
            yield (_step(at, asked.steps)).label(f"d{place}")
        else:
            yield table.c[columns.get(name, name)].label(f"d{place}")
    for place, measure in enumerate(asked.measures):
        if measure.field is not None:
            yield table.c[columns.get(measure.field, measure.field)].label(f"m{place}")


def _step(at: ColumnElement[int], steps: int | Sequence[int]) -> ColumnElement[int]:
    """The beginning of the step: by halves, so that a row is compared a dozen times and not with each step of years."""
    if isinstance(steps, int):
        return at - at % steps
    if len(steps) == 1:
        return literal(steps[0])
    middle = len(steps) // 2
    return case((at < steps[middle], _step(at, steps[:middle])), else_=_step(at, steps[middle:]))


def _outer(measure: Measure, of: Any, place: int) -> list[ColumnElement[Any]]:
    if measure.function == "count":
        return [func.count()]
    value = of[f"m{place}"]
    if measure.function == "distinct":
        return [func.count(distinct(value))]
    if measure.function in ("min", "max"):
        return [getattr(func, measure.function)(value)]
    if value.type.python_type is int:
        halves = func.sum(value.bitwise_rshift(literal(_LOW, Integer))), func.sum(value.bitwise_and((1 << _LOW) - 1))
        return [*halves, func.count(value)]
    return [func.sum(value), literal(0), func.count(value)]


def _measured(measures: Sequence[Measure], values: Iterator[Any]) -> Iterator[Any]:
    for measure in measures:
        value = next(values)
        if measure.function not in ("sum", "avg"):
            yield value
            continue
        low, count = next(values), next(values)
        if not count:
            yield None
            continue
        total = value if isinstance(value, float) else (int(value) << _LOW) + int(low)
        yield total if measure.function == "sum" else total / count
