"""An alert rule as people write it: a document of kind `alert_rule`. What the engine makes of it is `core.rules.Rule`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, create_model

from cmis_stream.core.errors import Rejected
from cmis_stream.core.rules import MAX_COMPARISONS, parse_rule
from cmis_stream.store.decisions import Document

_FORBID = ConfigDict(extra="forbid")
Text = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]


def _no_uuid(key: str) -> str:
    try:
        UUID(key)
    except ValueError:
        return key
    raise ValueError("a key that is no UUID: those are ids")


Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"), AfterValidator(_no_uuid)]
Window = Literal["1m", "5m", "15m", "1h", "6h", "24h", "7d"]
Operator = Literal["gt", "gte", "lt", "lte", "eq", "ne"]


class Than(BaseModel):
    """Another metric over the same window, times a factor."""

    model_config = _FORBID

    metric: Text
    factor: float = 1


class Comparison(BaseModel):
    """A metric over a window, compared with a value or with another metric.

    metric: spend, impressions, clicks, conversions, revenue, ctr, cpc, cpm, cpa, roas, cvr, events or custom.NAME. Money in whole
    units of the rule's currency.
    """

    model_config = _FORBID

    metric: Text
    window: Window
    op: Operator
    value: float | None = None
    than: Than | None = None
    min: dict[str, float] | None = Field(None, description="What the same window must reach before there is enough to judge.")


class All(BaseModel):
    model_config = _FORBID

    all: list[Condition] = Field(min_length=1, max_length=MAX_COMPARISONS)


class Some(BaseModel):
    model_config = _FORBID

    any: list[Condition] = Field(min_length=1, max_length=MAX_COMPARISONS)


def _form(value: Any) -> str:
    names = value if isinstance(value, dict) else type(value).model_fields if isinstance(value, BaseModel) else ()
    return next((f"{form}_of" for form in ("all", "any", "not") if form in names), "comparison")


Condition = Annotated[
    Annotated[Comparison, Tag("comparison")]
    | Annotated[All, Tag("all_of")]
    | Annotated[Some, Tag("any_of")]
    | Annotated["Not", Tag("not_of")],  # type: ignore[valid-type]
    Discriminator(_form),
]
# A class statement cannot have a field of this name.
Not = create_model("Not", __config__=_FORBID, __module__=__name__, **{"not": (Condition, ...)})  # type: ignore[call-overload]
for _model in (All, Some):
    _model.model_rebuild()


class Scope(BaseModel):
    """What a rule looks at; what is not named counts whatever it is."""

    model_config = _FORBID

    currency: Text | None = None
    platform: Text | None = None
    account: Text | None = None
    campaign: Text | None = None
    ad_set: Text | None = None
    ad: Text | None = None


class AlertRule(BaseModel):
    """Fires for every entity of its level within its scope while its condition holds."""

    model_config = _FORBID

    key: Key
    name: Text
    severity: Literal["critical", "high", "medium", "low"] = "medium"
    enabled: bool = True
    evaluate: Literal["live", "pane"] = Field(
        "live", description="Live: after each record. Pane: at each closed pane of its windows, which can be reproduced."
    )
    level: Literal["org", "platform", "campaign", "ad_set", "ad"] | None = Field(
        None, description="Without one that of the scope, ad or ad set, else campaign."
    )
    scope: Scope = Scope()
    when: Condition
    labels: dict[Text, Text] = Field(default_factory=dict, max_length=50)


def engine_rule(key: str, org: str, body: dict[str, Any]) -> dict[str, Any]:
    """The rule as `core.rules` reads it. body: of an `alert_rule`."""
    named = ("name", "severity", "evaluate", "level")
    return {
        "id": key,
        "org": org,
        **{name: body[name] for name in named if body[name] is not None},
        "scope": _without_nulls(body["scope"]),
        "when": _without_nulls(body["when"]),
    }


def catalogued(document: Document) -> dict[str, Any] | None:
    """What agents get of a rule; None when it is not in force."""
    return engine_rule(document.body["key"], document.org, document.body) if document.body["enabled"] else None


def check(body: dict[str, Any]) -> None:
    """Rejected with a JSON pointer, when the engine could not judge it."""
    try:
        parse_rule(engine_rule(body["key"], "org", body))
    except Rejected as error:
        raise Rejected(error.code, _pointer(error.field), error.got, error.expected) from None


def _pointer(field: str) -> str:
    """
    >>> _pointer("when.all[0].metric"), _pointer("scope.ad"), _pointer("")
    ('/when/all/0/metric', '/scope/ad', '')
    """
    return "".join(f"/{part}" for part in re.split(r"[.\[\]]+", field) if part)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value
