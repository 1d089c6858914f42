"""What can be asked of a kind of documents or facts, made from its declared filter fields, and a body read by it.

count   sum(FIELD)   avg(FIELD)   min(FIELD)   max(FIELD)   distinct(FIELD)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from cmis_stream.core.errors import Rejected, shown
from cmis_stream.core.time import SECOND_MS
from cmis_stream.query import times
from cmis_stream.query.answers import Column, ValueType
from cmis_stream.query.calendar import CALENDAR, FIXED, borders
from cmis_stream.query.description import Description, described
from cmis_stream.query.model import Fault, Faulty, Limit, Moment, Sort, Text, ZoneName, distinct, parsed, pointer
from cmis_stream.store.grouping import TIME, Grouping, Measure
from cmis_stream.store.listing import OPERATORS, Filter, Listed, filter_of, filter_types

SIZES = {"10s": 10 * SECOND_MS, **FIXED}
MOST_BORDERS = 4_000
"""Of calendar steps: eleven years of days. The database compares with each."""
_MEASURE = re.compile(r"(sum|avg|min|max|distinct)\(([a-z0-9_]+)\)")
_UNITS = {"_micros": "micros", "_ratio": "ratio", "_ms": "ms"}
_JSON_OF = {"number": "number", "time": ["string", "integer"], "bool": "boolean"}


class StoredQuery(BaseModel):
    """What every question to documents or facts consists of; which names there are, its `Form` says."""

    model_config = ConfigDict(extra="forbid", strict=True)

    dataset: Text
    measures: Annotated[list[Text], Field(min_length=1, max_length=32), AfterValidator(distinct)]
    dimensions: Annotated[list[Text], Field(max_length=7), AfterValidator(distinct)] = []
    filters: Annotated[dict[str, Any], Field(max_length=32)] = {}
    from_: Annotated[Moment | None, Field(alias="from", description="None: however old. Needed where time is a dimension.")] = (
        None
    )
    to: Annotated[Moment | None, Field(description="None: up to what is there now.")] = None
    step: Annotated[
        Literal["10s", "1m", "15m", "1h", "1d", "1w", "1mo"] | None,
        Field(description="Up to 1h they begin at multiples in UTC; 1d, 1w (Monday), 1mo by the calendar of the time zone."),
    ] = None
    timezone: ZoneName = "UTC"
    sort: Sort = None
    limit: Limit = None


class Wanted(NamedTuple):
    """A query as the store is asked, and how its answer is told. start_ms, end_ms None: without that end."""

    query: StoredQuery
    grouping: Grouping
    columns: list[Column]
    zone: ZoneInfo


class Form:
    """name: of the dataset. at: what its time is, for people."""

    def __init__(self, name: str, kind: Listed, at: str) -> None:
        self.name, self._kind, self._at = name, kind, at
        self._title = name.replace("_", " ").capitalize()
        self._filters = filter_types(kind)
        fields = [*kind.filters, *(one for one in ("owner_id", "visibility") if one in self._filters)]
        self._fields = {one: Column(one, self._type(one), _unit(one), kind.ranks.get(one, ())) for one in fields}
        self.dimensions = {TIME: Column(TIME, "time"), **{one: of for one, of in self._fields.items() if one != TIME}}
        self.measures = {column.name: (measure, column) for measure, column in self._measures()}

    def _type(self, name: str) -> ValueType:
        if self._filters[name] == "number":
            return "number" if self._kind.family(name) == "real" else "integer"
        return _TYPE_OF[self._filters[name]]

    def _measures(self) -> Iterator[tuple[Measure, Column]]:
        yield Measure("count"), Column("count", "integer", "count")
        for name, field in self._fields.items():
            if field.type in ("integer", "number"):
                yield Measure("sum", name), Column(f"sum({name})", field.type, field.unit)
                yield Measure("avg", name), Column(f"avg({name})", "number", field.unit)
            if field.type in ("integer", "number", "time"):
                yield Measure("min", name), Column(f"min({name})", field.type, field.unit)
                yield Measure("max", name), Column(f"max({name})", field.type, field.unit)
            yield Measure("distinct", name), Column(f"distinct({name})", "integer", "count")

    # --- reading a body -----------------------------------------------------------------------------------------------

    def read(self, raw: Any, now_ms: int) -> Wanted:
        """Faulty names everything that is wrong."""
        query = parsed(StoredQuery, raw)
        faults = [
            Fault(pointer(part, place), "invalid", shown(name), f"one of {', '.join(known)}")
            for part, names, known in (
                ("measures", query.measures, self.measures), ("dimensions", query.dimensions, self.dimensions),
            )
            for place, name in enumerate(names) if name not in known
        ]  # fmt: skip
        filters = list[Filter]()
        for name, given in query.filters.items():
            try:
                filters += self._conditions(name, given)
            except Rejected as error:
                faults.append(Fault(error.field, error.code, shown(error.got), error.expected))
        if faults:
            raise Faulty(faults)
        start_ms, end_ms, zone = _span(query, now_ms)
        steps: int | tuple[int, ...] | None = None
        if query.step in SIZES:
            steps = SIZES[query.step]
            start_ms = None if start_ms is None else start_ms // steps * steps
            end_ms = None if end_ms is None else -(-end_ms // steps) * steps
        elif query.step is not None:
            start_ms, end_ms, steps = _by_calendar(query.step, start_ms, end_ms, zone)
        columns = [self.dimensions[one] for one in query.dimensions] + [self.measures[one][1] for one in query.measures]
        measures = tuple(self.measures[one][0] for one in query.measures)
        grouping = Grouping(measures, tuple(query.dimensions), tuple(filters), start_ms, end_ms, steps)
        return Wanted(query, grouping, columns, zone)

    def _conditions(self, name: str, given: Any) -> Iterator[Filter]:
        """Of one field: a value, a list of values, or {operator: value or list}."""
        asked = given if isinstance(given, dict) else {"in" if isinstance(given, list) else None: given}
        of = self._filters.get(name)
        if of is None:
            raise Rejected("invalid", pointer("filters", name), name, f"one of {', '.join(sorted(self._filters))}")
        if not asked:
            raise Rejected("invalid", pointer("filters", name), given, f"one of {', '.join(OPERATORS[of])}")
        for op, value in asked.items():
            at = pointer("filters", name) if not isinstance(given, dict) else pointer("filters", name, op)
            meant = op if op is not None else ("contains" if of == "tags" else "eq")
            if meant not in OPERATORS[of]:
                raise Rejected("invalid", at, meant, f"one of {', '.join(OPERATORS[of])}")
            if (meant == "in") != isinstance(value, list):
                raise Rejected("wrong_type", at, value, "a list of values" if meant == "in" else "a value")
            values = value if isinstance(value, list) else [value]
            texts = [_text(of, one, f"{at}/{place}" if meant == "in" else at) for place, one in enumerate(values)]
            if not texts:
                raise Rejected("invalid", at, value, "at least one value")
            yield filter_of(self._kind, self._filters, at, name, meant, texts)

    # --- describing ---------------------------------------------------------------------------------------------------

    @property
    def description(self) -> Description:
        filters = (
            {"name": one, "type": self._type(one), "unit": _unit(one), "operators": list(OPERATORS[of])}
            for one, of in self._filters.items()
        )
        return described(
            self.name, self._title, (column.as_json() for _, column in self.measures.values()),
            (column.as_json() for column in self.dimensions.values()), filters, (*SIZES, *CALENDAR), from_=False,
        )  # fmt: skip

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the body, with an example that can be asked as it is."""
        made = StoredQuery.model_json_schema()
        parts = made["properties"]
        parts["dataset"] = {"type": "string", "const": self.name}
        parts["measures"]["items"] = {"type": "string", "enum": list(self.measures)}
        parts["dimensions"]["items"] = {"type": "string", "enum": list(self.dimensions)}
        parts["filters"] = {
            "type": "object",
            "additionalProperties": False,
            "description": "Field -> a value, a list of values, or {operator: value}.",
            "properties": {one: _filter_schema(of, self._kind.ranks.get(one)) for one, of in self._filters.items()},
        }
        by = next((one for one, column in self._fields.items() if column.type in ("string", "boolean")), TIME)
        example = {"dataset": self.name, "measures": ["count"], "dimensions": [by], "from": "-30d"}
        about = f"Counts and sums over the {self._title.lower()} that are there now; time is {self._at}."
        return {
            **made, "title": self._title, "description": about,
            "examples": [{**example, "step": "1d"} if by == TIME else {**example, "sort": "-count"}],
        }  # fmt: skip


_TYPE_OF: Mapping[str, ValueType] = {"text": "string", "rank": "string", "tags": "string", "time": "time", "bool": "boolean"}


def _unit(name: str) -> str | None:
    return next((unit for end, unit in _UNITS.items() if name.endswith(end)), None)


def _text(of: str, value: Any, at: str) -> str:
    """A value as lists are asked for it. Rejected unless it has the field's type."""
    if of == "bool" and isinstance(value, bool):
        return "true" if value else "false"
    if of in ("number", "time") and isinstance(value, int | float) and not isinstance(value, bool):
        return repr(value)
    if of in ("text", "time", "tags", "rank") and isinstance(value, str):
        return value
    expected = {"bool": "true or false", "number": "a number", "time": "epoch milliseconds or an RFC 3339 time"}
    raise Rejected("wrong_type", at, value, expected.get(of, "a text"))


def _span(query: StoredQuery, now_ms: int) -> tuple[int | None, int | None, ZoneInfo]:
    """from, to, zone; Faulty."""
    by_time = TIME in query.dimensions
    for name, value in (("step", query.step), ("from", query.from_)):
        if by_time and value is None:
            expected = f"{', '.join([*SIZES, *CALENDAR])}" if name == "step" else "a time"
            raise Faulty([Fault(f"/{name}", "missing", "nothing", f"{expected}, since time is among the dimensions")])
    to = "now" if query.to is None and by_time else query.to
    try:
        start_ms = None if query.from_ is None else times.moment(query.from_, now_ms, "from")
        end_ms = None if to is None else times.moment(to, now_ms, "to")
        zone = times.zone(query.timezone, "timezone")
    except Rejected as error:
        raise Faulty([Fault(f"/{error.field}", error.code, shown(error.got), error.expected)]) from None
    if start_ms is not None and end_ms is not None and end_ms <= start_ms:
        raise Faulty([Fault("/to", "invalid", shown(to), f"a time after from, {shown(query.from_)}")])
    return start_ms, end_ms, zone


def _by_calendar(
    step: str, start_ms: int | None, end_ms: int | None, zone: ZoneInfo
) -> tuple[int | None, int | None, tuple[int, ...] | None]:
    """from and to moved to borders, and where the steps between them begin."""
    if start_ms is None or end_ms is None:
        start_ms = None if start_ms is None else int(borders(step, start_ms, start_ms + 1, zone)[0])
        end_ms = None if end_ms is None else int(borders(step, end_ms - 1, end_ms, zone)[-1])
        return start_ms, end_ms, None
    if (end_ms - start_ms) // (24 * FIXED["1h"]) > MOST_BORDERS:
        raise Faulty([Fault("/step", "too_long", shown(step), f"{MOST_BORDERS:,} days or fewer in all")], "too_many_rows")
    found = [int(one) for one in borders(step, start_ms, end_ms, zone)]
    return found[0], found[-1], tuple(found[:-1])


def _filter_schema(of: str, ranks: tuple[str, ...] | None) -> dict[str, Any]:
    value: dict[str, Any] = {"type": _JSON_OF.get(of, "string")} if ranks is None else {"enum": list(ranks)}
    values = {"type": "array", "items": value, "minItems": 1, "maxItems": 100}
    asked = {op: values if op == "in" else value for op in OPERATORS[of]}
    ways: list[dict[str, Any]] = [
        value,
        {"type": "object", "additionalProperties": False, "minProperties": 1, "properties": asked},
    ]
    return {"anyOf": [*ways, values] if "in" in OPERATORS[of] else ways}
