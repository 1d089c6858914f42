"""Lists: filters, sorts, cursors, the same for every kind and on both databases.

    filter[state]=active   filter[spend_micros][gte]=5000000   filter[name][contains]=spring   filter[tags][contains]=q3
    sort=-spend_micros,name   limit=1…500   cursor=…   deleted=only|with

A missing value is in no order: it matches only `ne`, and comes last either way. Texts are in the order of code points, but for
those whose values have ranks (`Kind.ranks`): these come in that order, of equals the newest first.
A cursor holds the sort values of the last row, so that what appears or goes meanwhile moves nothing to another page.
"""

from __future__ import annotations

import base64
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from typing import Any, Literal, NamedTuple, Protocol

import orjson
from sqlalchemy import Column, ColumnElement, Table, and_, false, func, or_, select, true, tuple_

from cmis_stream.core.errors import Rejected
from cmis_stream.core.time import parse_rfc3339

from .database import Transaction
from .kinds import FilterType, rank
from .slots import LONGEST_TEXT

LIMIT, MOST = 50, 500
MOST_VALUES = 100
COUNTED = 10_000
"""total_estimate is exact up to here, and this where there are more."""
TAG_SEPARATOR = "\x1f"

_ORDERED = ("eq", "ne", "gt", "gte", "lt", "lte", "in")
OPERATORS = {
    "text": (*_ORDERED, "contains"),
    "number": _ORDERED,
    "time": _ORDERED,
    "bool": ("eq", "ne", "in"),
    "tags": ("contains",),
    "rank": ("eq", "ne", "in"),
}
_COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq, "gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le,
}  # fmt: skip
_FILTER = re.compile(r"filter\[([a-z0-9_]{1,64})\](?:\[([a-z]{1,10})\])?")
_NUMBER = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_WHOLE = 2**63
_BOOLS = {"true": 1, "false": 0}


class Listed(Protocol):
    """A kind of documents or facts, as far as lists need to know it."""

    @property
    def name(self) -> str: ...
    @property
    def filters(self) -> Mapping[str, FilterType]: ...
    @property
    def sorts(self) -> tuple[str, ...]: ...
    @property
    def ranks(self) -> Mapping[str, tuple[str, ...]]: ...
    @property
    def common_filters(self) -> Mapping[str, str]: ...
    @property
    def common_sorts(self) -> tuple[str, ...]: ...
    @property
    def default_sort(self) -> str: ...
    @property
    def deletes(self) -> bool: ...
    def family(self, name: str) -> Literal["text", "whole", "real"]: ...


Order = Sequence[tuple[Column[Any], bool]]
"""(column, descending)"""


class Filter(NamedTuple):
    """value: as the column has it; a tuple for `in`."""

    field: str
    op: str
    value: Any


@dataclass(frozen=True, slots=True)
class Asked:
    """sorts: (name, descending), ending with id."""

    filters: tuple[Filter, ...] = ()
    sorts: tuple[tuple[str, bool], ...] = (("id", True),)
    limit: int = LIMIT
    cursor: str | None = None
    deleted: Literal["without", "only", "with"] = "without"


class Found(NamedTuple):
    """next: the cursor of the page after, None at the end."""

    rows: list[Any]
    next: str | None
    total_estimate: int


def asked(kind: Listed, parameters: Iterable[tuple[str, str]]) -> Asked:
    """What a list is asked for by a query string's pairs; in the kind's own order unless they say. Rejected names which."""
    types = filter_types(kind)
    filters = list[Filter]()
    plain = dict[str, str]()
    known = ("sort", "limit", "cursor", *(("deleted",) if kind.deletes else ()))
    for name, value in parameters:
        match = _FILTER.fullmatch(name)
        if match is not None:
            given = value.split(",") if match[2] == "in" else [value]
            filters.append(filter_of(kind, types, name, match[1], match[2] or "eq", given))
        elif name in known and name not in plain:
            plain[name] = value
        else:
            raise Rejected("invalid", name, value, f"only filter[FIELD], filter[FIELD][OPERATOR], {', '.join(known)}, each once")
    deleted = plain.get("deleted", "without")
    if deleted not in ("only", "with") and "deleted" in plain:
        raise Rejected("invalid", "deleted", deleted, "only or with")
    limit = plain.get("limit", str(LIMIT))
    if not re.fullmatch(r"[0-9]{1,4}", limit) or not 1 <= int(limit) <= MOST:
        raise Rejected("invalid", "limit", limit, f"a number from 1 to {MOST}")
    return Asked(tuple(filters), _sorts(kind, plain.get("sort", kind.default_sort)), int(limit), plain.get("cursor"), deleted)  # type: ignore[arg-type]


def filter_types(kind: Listed) -> dict[str, str]:
    """Every field that a kind's list can be filtered by -> text, number, time, bool, tags or rank."""
    return {**kind.common_filters, **kind.filters, **dict.fromkeys(kind.ranks, "rank")}


def find(
    tx: Transaction, table: Table, kind: Listed, columns: Mapping[str, str], asked: Asked, *more: ColumnElement[bool]
) -> Found:
    """One page. columns: filter field -> column, where it is not called like the field. more: further conditions."""
    # Ranks are kept from 0 downwards, so that the highest, with the newest first among equals, is an index read backwards.
    order = [(table.c[columns.get(name, name)], descending != (name in kind.ranks)) for name, descending in asked.sorts]
    where = [tx.own(table), table.c.kind == kind.name, *more]
    if kind.deletes and asked.deleted != "with":
        where.append(table.c.deleted_at.is_(None) if asked.deleted == "without" else table.c.deleted_at.is_not(None))
    where += [condition(tx, table.c[columns.get(one.field, one.field)], one) for one in asked.filters]
    keys = None if asked.cursor is None else _keys(asked, order)
    rows = list[Any]()
    for segment, by in _segments(order, keys):
        rows += tx.rows(select(table).where(*where, *segment).order_by(*by).limit(asked.limit + 1 - len(rows)))
        if len(rows) > asked.limit:
            break
    more_rows = len(rows) > asked.limit
    total = len(rows)
    if more_rows or keys is not None:
        total = tx.rows(select(func.count()).select_from(select(true()).where(*where).limit(COUNTED).subquery()))[0][0]
    rows = rows[: asked.limit]
    return Found(rows, _cursor(asked, [rows[-1]._mapping[column] for column, _ in order]) if more_rows else None, total)


# --- what the parameters say ------------------------------------------------------------------------------------------


def filter_of(kind: Listed, types: Mapping[str, str], name: str, field: str, op: str, given: Sequence[str]) -> Filter:
    """types: of `filter_types`. name: where the question stands, for Rejected. given: one value, or those of `in`."""
    of = types.get(field)
    if of is None:
        raise Rejected("invalid", name, field, f"a filter on one of {', '.join(sorted(types))}")
    if op not in OPERATORS[of]:
        raise Rejected("invalid", name, op, f"one of {', '.join(OPERATORS[of])}")
    if len(given) > MOST_VALUES:
        raise Rejected("too_long", name, f"{len(given)} values", f"at most {MOST_VALUES} values")
    if of == "rank":
        ranked = [_rank(name, kind.ranks[field], one) for one in given]
        return Filter(field, op, tuple(ranked) if op == "in" else ranked[0])
    real = of == "number" and kind.family(field) == "real"
    values = [_value(name, of, one, real) for one in given]
    if of == "number" and not real:
        return _whole(field, op, values)
    return Filter(field, op, tuple(values) if op == "in" else values[0])


def _value(name: str, of: str, text: str, real: bool) -> Any:
    if of == "bool":
        if text not in _BOOLS:
            raise Rejected("invalid", name, text, "true or false")
        return _BOOLS[text]
    if of == "time":
        return _time(name, text)
    if of == "number":
        if not _NUMBER.fullmatch(text):
            raise Rejected("invalid", name, text, "a number")
        if real and math.isfinite(float(text)):
            return float(text)
        if real or not -_WHOLE <= Decimal(text) < _WHOLE:
            raise Rejected("out_of_range", name, text, "a number of at most 64 bits")
        return Decimal(text)
    if len(text) > LONGEST_TEXT:
        raise Rejected("too_long", name, text, f"at most {LONGEST_TEXT} characters")
    if not storable(text) or (of == "tags" and TAG_SEPARATOR in text):
        raise Rejected("invalid", name, text, "a text without NUL" if of == "text" else "a tag")
    return text


def _rank(name: str, ranks: tuple[str, ...], text: str) -> int:
    found = rank(ranks, text)
    if found is None:
        raise Rejected("invalid", name, text, f"one of {', '.join(ranks)}")
    return found


def _time(name: str, text: str) -> int:
    """Epoch ms."""
    if re.fullmatch(r"-?[0-9]{1,15}", text):
        return int(text)
    try:
        return parse_rfc3339(text)
    except ValueError:
        raise Rejected("invalid", name, text, "epoch milliseconds or an RFC 3339 time such as 2026-01-01T00:00:00Z") from None


def _whole(field: str, op: str, values: Sequence[Decimal]) -> Filter:
    """The same question about whole numbers: 5 is above 4.5, and nothing equals it."""
    if op == "in":
        return Filter(field, op, tuple(int(value) for value in values if value == int(value)))
    (value,) = values
    floor = int(value.to_integral_value(ROUND_FLOOR))
    if value == floor:
        return Filter(field, op, floor)
    return {
        "eq": Filter(field, "in", ()),
        "ne": Filter(field, "ne", None),
        "gt": Filter(field, "gt", floor),
        "gte": Filter(field, "gt", floor),
        "lt": Filter(field, "lte", floor),
        "lte": Filter(field, "lte", floor),
    }[op]


def storable(text: str) -> bool:
    """Whether both databases can hold it: no NUL, no half of a surrogate pair."""
    return _UNSTORABLE.search(text) is None


def _sorts(kind: Listed, text: str) -> tuple[tuple[str, bool], ...]:
    known = (*kind.common_sorts, *kind.sorts)
    made = dict[str, bool]()
    for part in text.split(","):
        name = part.removeprefix("-")
        if name not in known or name in made:
            raise Rejected(
                "invalid", "sort", text, f"different ones of {', '.join(known)}, each with - before it for the other way round"
            )
        made[name] = part.startswith("-")
    first, descending = next(iter(made.items()))
    made.setdefault("id", descending or first in kind.ranks)  # the way of the first, so that its index is walked one way
    names = list(made)
    return tuple((name, made[name]) for name in names[: names.index("id") + 1])


# --- what the database is asked ---------------------------------------------------------------------------------------


def condition(tx: Transaction, column: Column[Any], one: Filter) -> ColumnElement[bool]:
    if one.field == "tags":
        return tx.has_member(column, f"{TAG_SEPARATOR}{one.value}{TAG_SEPARATOR}")
    if one.op == "contains":
        return tx.contains(column, one.value)
    if one.op == "in":
        return column.in_(one.value) if one.value else false()
    if one.op == "ne":
        return true() if one.value is None else column.is_distinct_from(one.value)
    found: ColumnElement[bool] = _COMPARE[one.op](column, one.value)
    return found


def _segments(order: Order, keys: Sequence[Any] | None) -> Iterator[tuple[list[ColumnElement[bool]], list[ColumnElement[Any]]]]:
    """(conditions, order) of the parts of a list, one behind the other: rows with the first sort value, which the index on it
    has in order, and those without."""
    first, descending = order[0]
    by = [_by(column, down) for column, down in order[1:]]
    if keys is None or keys[0] is not None:
        there = [first.is_not(None)] if first.nullable else []
        yield [*there, *_behind_first(order, keys)], [_by(first, descending, nulls=False), *by]
    if first.nullable:
        after = [] if keys is None or keys[0] is not None else _behind(order[1:], keys[1:])
        yield [first.is_(None), *after], by


def _by(column: Column[Any], descending: bool, nulls: bool = True) -> ColumnElement[Any]:
    ordered = column.desc() if descending else column.asc()
    return ordered.nulls_last() if nulls and column.nullable else ordered  # said without need, it keeps indexes from being used


def _behind_first(order: Order, keys: Sequence[Any] | None) -> list[ColumnElement[bool]]:
    """What comes after the row with these sort values, among those that have the first: as a range of an index."""
    if keys is None:
        return []
    first, descending = order[0]
    if len(order) == 2 and order[1][1] == descending:
        pair, last = tuple_(*(column for column, _ in order)), tuple_(*keys)
        return [pair < last if descending else pair > last]
    return [first <= keys[0] if descending else first >= keys[0], *_behind(order, keys)]


def _behind(order: Order, keys: Sequence[Any]) -> list[ColumnElement[bool]]:
    ways = []
    for place, (column, down) in enumerate(order):
        equal = [_same(earlier, key) for (earlier, _), key in zip(order[:place], keys[:place], strict=True)]
        ways.append(and_(*equal, _after(column, down, keys[place])))
    return [or_(*ways)]


def _same(column: Column[Any], key: Any) -> ColumnElement[bool]:
    return column.is_(None) if key is None else column == key


def _after(column: Column[Any], descending: bool, key: Any) -> ColumnElement[bool]:
    if key is None:
        return false()
    beyond = column < key if descending else column > key
    return or_(beyond, column.is_(None)) if column.nullable else beyond


# --- cursors ----------------------------------------------------------------------------------------------------------


def _sort_text(asked: Asked) -> str:
    return ",".join(f"-{name}" if descending else name for name, descending in asked.sorts)


def _cursor(asked: Asked, keys: Sequence[Any]) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([_sort_text(asked), *keys])).decode().rstrip("=")


def _keys(asked: Asked, order: Order) -> list[Any]:
    """The sort values in a cursor, which may have been made by anybody."""
    cursor = asked.cursor or ""
    try:
        keys: list[Any]
        of, *keys = orjson.loads(base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)))
        fits = of == _sort_text(asked) and len(keys) == len(order) and all(map(_fits, order, keys))
    except (ValueError, TypeError):
        fits = False
    if not fits:
        raise Rejected("invalid", "cursor", cursor, "`next` of an answer with the same sort")
    return keys


def _fits(ordered: tuple[Column[Any], bool], key: Any) -> bool:
    column, _ = ordered
    if key is None:
        return bool(column.nullable)
    if isinstance(key, bool):
        return False
    of = column.type.python_type
    if of is str:
        return isinstance(key, str) and storable(key)
    return isinstance(key, int) and -_WHOLE <= key < _WHOLE if of is int else isinstance(key, int | float)
