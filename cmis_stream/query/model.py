"""What can be asked of figures, what all questions have alike, and what is wrong with a body as `Fault`s with JSON pointers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from cmis_stream.core.errors import CmisError, Rejected, shown
from cmis_stream.core.metrics import CUSTOM_PREFIX
from cmis_stream.query.calendar import Step as LongStep

MEASURES = {
    "events": "count", "impressions": "count", "clicks": "count",
    "spend_micros": "micros", "conversions_micros": "micros", "revenue_micros": "micros",
    "ctr": "ratio", "cpc": "currency", "cpm": "currency", "cpa": "currency", "roas": "ratio", "cvr": "ratio",
}  # fmt: skip
"""Name -> unit. Money in micros or whole units of the row's currency; conversions in micros of one."""
MONEY = {"spend_micros", "revenue_micros", "cpc", "cpm", "cpa", "roas"}
_CUSTOM = re.compile(r"custom\.[A-Za-z_][A-Za-z0-9_.]{0,63}")

Dimension = Literal["time", "currency", "platform", "account", "campaign", "ad_set", "ad"]
Part = Literal["currency", "platform", "account", "campaign", "ad_set", "ad"]
Step = Literal["10s", "1m", "15m", "1h"]
Text = Annotated[str, Field(max_length=500)]
MOST_ROWS = 10_000
Moment = Annotated[str, Field(max_length=64, description="RFC 3339 with its offset, now, or -15m (s, m, h, d) before now.")]
ZoneName = Annotated[str, Field(max_length=64, description="IANA name; of calendar steps and of the times in the answer.")]
Sort = Annotated[
    str | None,
    Field(max_length=2000, description="Columns of the answer with , between them, - before one for the other way round."),
]
Limit = Annotated[
    int | None,
    Field(ge=1, le=MOST_ROWS, description="So many of the first rows; more than there may be in all is still too many."),
]


class Fault(NamedTuple):
    """pointer: JSON pointer into the body; got and expected as people read them."""

    pointer: str
    code: str
    got: str
    expected: str


class Faulty(CmisError):
    """A query that cannot be answered as it is. code: of the problem."""

    def __init__(self, faults: Sequence[Fault], code: str = "invalid") -> None:
        first = faults[0]
        super().__init__(f"{first.pointer or 'the body'}: expected {first.expected}, got {first.got}")
        self.faults, self.code = faults, code


def known_measure(name: str) -> str:
    if name not in MEASURES and not _CUSTOM.fullmatch(name):
        raise ValueError(f"one of {', '.join(MEASURES)}, or custom.NAME")
    return name


def distinct(names: list[Any]) -> list[Any]:
    if len(set(names)) < len(names):
        raise ValueError("each name once")
    return names


class Condition(BaseModel):
    """Exactly one of them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    eq: Text | None = None
    in_: Annotated[list[Text] | None, Field(alias="in", min_length=1, max_length=1000)] = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.eq is None) == (self.in_ is None):
            raise ValueError("either eq or in")
        return self

    @property
    def values(self) -> frozenset[str]:
        return frozenset(self.in_ or ()) if self.eq is None else frozenset([self.eq])


def _listed(given: Any) -> Any:
    return {"in": given} if isinstance(given, list) else given


_VALUES = {"type": "array", "items": {"type": "string", "maxLength": 500}, "minItems": 1, "maxItems": 1000}
_CONDITION = {"type": "object", "additionalProperties": False, "properties": {"eq": {"type": "string"}, "in": _VALUES}}
Filter = Annotated[Condition, BeforeValidator(_listed), WithJsonSchema({"anyOf": [_VALUES, _CONDITION]})]


class PanesQuery(BaseModel):
    """Sums and ratios over the panes that are kept in memory: of 10 s for 15 minutes, of 1 m for 6 hours, of 15 m for a day,
    of 1 h for a week, behind the newest event."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "dataset": "panes",
                    "measures": ["spend_micros", "clicks", "ctr"],
                    "dimensions": ["time", "campaign"],
                    "filters": {"platform": ["meta"], "campaign": {"in": ["spring", "summer"]}},
                    "from": "-1h",
                    "to": "now",
                    "step": "1m",
                }
            ]
        },
    )

    dataset: Literal["panes"]
    measures: Annotated[
        list[Annotated[str, AfterValidator(known_measure)]],
        Field(min_length=1, max_length=32, description=f"{', '.join(MEASURES)}, or {CUSTOM_PREFIX}NAME"),
        AfterValidator(distinct),
    ]
    dimensions: Annotated[
        list[Dimension],
        Field(max_length=7, description="The currency is added where money or a custom metric is asked for."),
        AfterValidator(distinct),
    ] = []
    filters: Annotated[
        dict[Part, Filter],
        Field(description="Part of the path -> the values that count, or {eq: value} or {in: values}."),
    ] = {}
    from_: Annotated[Moment, Field(alias="from")]
    to: Moment = "now"
    step: Annotated[
        Step | None, Field(description="Without one: the finest that reaches back to `from`. Steps begin at multiples in UTC.")
    ] = None
    timezone: ZoneName = "UTC"
    sort: Sort = None
    limit: Limit = None


_HistoryDimension = Literal["time", "currency", "platform", "account", "campaign"]
_HistoryPart = Literal["currency", "platform", "account", "campaign"]


class HistoryQuery(BaseModel):
    """Sums and ratios of campaigns, platforms and orgs, as far back as history is kept; some half a minute behind `panes`."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "dataset": "history",
                    "measures": ["spend_micros", "clicks", "ctr"],
                    "dimensions": ["time", "platform"],
                    "from": "-90d",
                    "to": "now",
                    "step": "1d",
                    "timezone": "Europe/Berlin",
                }
            ]
        },
    )

    dataset: Literal["history"]
    measures: Annotated[
        list[Annotated[Text, AfterValidator(known_measure)]], Field(min_length=1, max_length=32), AfterValidator(distinct)
    ]
    dimensions: Annotated[list[_HistoryDimension], Field(max_length=5), AfterValidator(distinct)] = []
    filters: dict[_HistoryPart, Filter] = {}
    from_: Annotated[Moment, Field(alias="from")]
    to: Moment = "now"
    step: Annotated[
        LongStep | None,
        Field(description="1m, 15m, 1h begin at multiples in UTC; 1d, 1w (Monday), 1mo by the calendar of the time zone."),
    ] = None
    timezone: ZoneName = "UTC"
    sort: Sort = None
    limit: Limit = None


_Q = TypeVar("_Q", bound=BaseModel)


def parsed(model: type[_Q], raw: Any) -> _Q:
    """Faulty names everything that is wrong with the body."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise Faulty([_fault(raw, detail, model) for detail in error.errors(include_url=False)]) from None


def pointer(*parts: object) -> str:
    """JSON pointer (RFC 6901).

    >>> pointer("filters", "a/b", 0)
    '/filters/a~1b/0'
    """
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def fault_of(error: Rejected) -> Fault:
    return Fault(f"/{error.field}" if error.field else "", error.code, shown(error.got), error.expected)


def _fault(raw: Any, detail: Any, model: type[BaseModel]) -> Fault:
    """What pydantic says of one place. Not all of its `loc` are steps into the body."""
    kind, parts, value = detail["type"], [], raw
    for part in detail["loc"]:
        if isinstance(value, dict) and (part in value or kind == "missing"):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int):
            value = value[part]
        else:
            continue
        parts.append(part)
    at = pointer(*parts)
    if kind == "missing":
        return Fault(at, "missing", "nothing", "a value")
    context = detail.get("ctx", {})
    expected = str(context.get("error") or context.get("expected") or detail["msg"].removeprefix("Input should be "))
    if kind == "extra_forbidden":
        known: type[BaseModel] = Condition if len(parts) > 1 else model
        expected = f"only {', '.join(field.alias or name for name, field in known.model_fields.items())}"
    if kind in ("dict_type", "model_type"):
        expected = "a JSON object"
    code = "too_long" if "too_long" in kind else "wrong_type" if kind.endswith("_type") else "invalid"
    return Fault(at, code, shown(detail["input"]), expected)
