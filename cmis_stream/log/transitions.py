"""The records of cmis.transitions.v1 as they are read: whoever wrote one, what is not of this form is refused, not believed."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec
import orjson

from cmis_stream.core.errors import Rejected
from cmis_stream.core.ids import moment_of


class _Sums(msgspec.Struct):
    events: int
    impressions: int
    clicks: int
    spend: int
    conversions: int
    revenue: int


class _Line(msgspec.Struct):
    incident: str
    key: str
    org: str
    rule: str
    severity: str
    level: str
    currency: str
    platform: str
    account: str
    campaign: str
    ad_set: str
    ad: str
    at: int
    state: Literal["firing", "resolved"]
    value: float | None
    window: str
    sums: _Sums
    events: list[str] = []
    reason: str | None = None


class _Body(msgspec.Struct):
    source: tuple[str, int, int]
    transitions: list[_Line]


class Transitions(NamedTuple):
    """source: the position that they follow from."""

    source: tuple[str, int, int]
    lines: list[dict[str, Any]]


def decode(value: bytes) -> Transitions:
    """Rejected("malformed") when it is none of ours."""
    try:
        body = orjson.loads(value)
        checked = msgspec.convert(body, _Body)
        for line in checked.transitions:
            moment_of(line.incident)
    except (ValueError, RecursionError) as error:  # msgspec's and orjson's are ValueErrors
        raise Rejected("malformed", "", value[:40], f"transitions ({type(error).__name__}: {error})") from None
    return Transitions(checked.source, body["transitions"])
