"""The plain reading of an ad metric event: field by field from a dict, with an exact reason for each refusal.

The fast path (`events`) accepts a subset of what this accepts, with equal results; this alone refuses.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec

from ..core.batch import LARGEST, MICRO_FIELDS, VALUE_FIELDS
from ..core.errors import Rejected
from ..core.time import EARLIEST_MS, FUTURE_MS, LATEST_MS, rfc3339
from .events import (
    CURRENCY,
    CUSTOM_NAME,
    EPOCH,
    LARGEST_CUSTOM,
    LARGEST_MONEY,
    LEVELS,
    LONGEST_IDENTIFIER,
    MILLISECOND,
    MOST_CUSTOM,
    PLATFORMS,
    Moment,
    Platform,
    WideEvent,
)  # fmt: skip

METRIC_TYPES = frozenset({"metric", "cmis.ads.metrics.v1"})
OTHER_TYPES = frozenset(
    f"cmis.{name}.v1"
    for name in (
        "ads.entity", "social.mention", "sentiment.label", "prediction.label", "experiment.exposure", "conversion",
        "flag.evaluation", "influencer.profile", "influencer.post_stats", "fx.rate",
    )
)  # fmt: skip
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def parse_json(raw: bytes) -> Any:
    """One JSON value; Rejected("malformed") with the reader's reason, or "out_of_range" for numbers that are not
    finite."""
    try:
        return msgspec.json.decode(raw)
    except RecursionError:
        raise Rejected("malformed", "", raw, "an event, not hundreds of nested arrays") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = str(error)
    try:
        # Python's own reader takes NaN, Infinity and 1e999: what it can read, it can name by field.
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise Rejected("malformed", "", raw, f"JSON ({reason})") from None
    for name, number in _numbers(value, ""):
        if not math.isfinite(number):
            raise Rejected("out_of_range", name, number, "a finite number; NaN and Infinity are not JSON")
    raise Rejected("malformed", "", raw, f"JSON ({reason})")


def _numbers(value: Any, name: str) -> list[tuple[str, float]]:
    """The floats in nested objects, with dotted names; deep enough for `data.custom.x`."""
    if isinstance(value, float):
        return [(name, value)]
    if isinstance(value, dict) and name.count(".") < 3:
        return [found for key, item in value.items() for found in _numbers(item, f"{name}.{key}" if name else key)]
    return []


def read_flat(value: Any, *, org: str | None, now_ms: int | None) -> WideEvent:
    """A flat event, field by field; Rejected names the first field that is wrong. `org`: the request's, None for the
    event's own."""
    event = _object(value, "")
    _check_type(event, "")
    own = _identifier(event, "org", required=org is None)
    if own and org is not None and own != org:
        raise Rejected("wrong_org", "org", own, f"the request's org {org!r}, or none")
    flat = _read_metrics(event, "", _identifier(event, "id", required=True), _flat_time(event, now_ms), now_ms)
    flat.org, flat.source = own or org, _identifier(event, "source") or None
    return flat


def read_cloudevent(value: Any, *, org: str | None, now_ms: int | None) -> WideEvent:
    """A CloudEvent, field by field, as the flat event it means; Rejected names the first field that is wrong."""
    event = _object(value, "")
    if "specversion" not in event:
        raise Rejected("missing", "specversion", None, 'CloudEvents "1.0"')
    if event["specversion"] != "1.0":
        raise Rejected("unsupported", "specversion", event["specversion"], 'CloudEvents "1.0"')
    event_id = _identifier(event, "id", required=True)
    source = _identifier(event, "source", required=True)
    if event.get("type") is None:
        raise Rejected("missing", "type", None, '"cmis.ads.metrics.v1"')
    _check_type(event, "")
    own = _identifier(event, "orgid", required=org is None)
    if own and org is not None and own != org:
        raise Rejected("wrong_org", "orgid", own, f"the request's org {org!r}, or none")
    if event.get("data") is None:
        raise Rejected("missing", "data", None, "an object with platform, campaign_id and metrics")
    moment = _rfc3339(event, "time")
    if moment is None:
        raise Rejected("missing", "time", None, "an RFC 3339 time")
    flat = _read_metrics(_object(event["data"], "data"), "data.", event_id, _sane_time(moment, "time", now_ms), now_ms)
    flat.org, flat.source = own or org, source
    return flat


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Rejected("wrong_type" if name else "malformed", name, value, "an object")
    return value


def _check_type(event: dict[str, Any], prefix: str) -> None:
    kind = event.get("type")
    if kind is None or (isinstance(kind, str) and kind in METRIC_TYPES):
        return
    if not isinstance(kind, str):
        raise Rejected("wrong_type", prefix + "type", kind, 'the string "metric"')
    code = "unsupported" if kind in OTHER_TYPES else "invalid"
    raise Rejected(code, prefix + "type", kind, '"metric" or "cmis.ads.metrics.v1"; this version takes ad metrics only')


def _read_metrics(data: dict[str, Any], prefix: str, event_id: str, ts: int, now_ms: int | None) -> WideEvent:
    platform = _platform(data, prefix)
    mode = data.get("mode")
    if mode == "cumulative":
        raise Rejected("unsupported", prefix + "mode", mode, '"delta": cumulative figures are not taken by this version')
    if mode is not None and mode != "delta":
        raise Rejected("invalid" if isinstance(mode, str) else "wrong_type", prefix + "mode", mode, '"delta"')
    event = WideEvent(event_id, platform, ts)
    for level in LEVELS:
        setattr(event, level, _level(data, prefix, level))
    _check_hierarchy(event, data, prefix)
    for name in VALUE_FIELDS:
        setattr(event, name, _value(data, prefix, name))
    currency = data.get("currency")
    if currency is not None:
        if not isinstance(currency, str):
            raise Rejected("wrong_type", prefix + "currency", currency, "an ISO 4217 code such as USD")
        if not CURRENCY.fullmatch(currency):
            raise Rejected("invalid", prefix + "currency", currency, "an ISO 4217 code: three upper-case letters such as USD")
        event.currency = currency
    event.custom = _custom(data, prefix)
    return event


def _platform(data: dict[str, Any], prefix: str) -> Platform:
    value = data.get("platform")
    expected = f"one of {', '.join(PLATFORMS)}"
    if value is None or value == "":
        raise Rejected("missing", prefix + "platform", value, expected)
    if not isinstance(value, str):
        raise Rejected("wrong_type", prefix + "platform", value, expected)
    if value == "twitter":
        return "x"
    if value not in PLATFORMS:
        raise Rejected("invalid", prefix + "platform", value, expected)
    return value  # type: ignore[return-value]  # membership was checked just above


def _identifier(data: dict[str, Any], name: str, prefix: str = "", required: bool = False) -> str:
    """A name of 1 to 200 characters without control characters; "" for an absent one that is not required."""
    value = data.get(name)
    expected = f"a string of 1 to {LONGEST_IDENTIFIER} characters"
    if value is None or value == "":
        if required:
            raise Rejected("missing", prefix + name, value, expected)
        return ""
    if not isinstance(value, str):
        raise Rejected("wrong_type", prefix + name, value, expected)
    if len(value) > LONGEST_IDENTIFIER:
        raise Rejected("too_long", prefix + name, value, expected)
    if CONTROL.search(value):
        raise Rejected("invalid", prefix + name, value, "an identifier without control characters")
    return value


def _level(data: dict[str, Any], prefix: str, level: str) -> str:
    short, long = _identifier(data, level, prefix), _identifier(data, level + "_id", prefix)
    if short and long and short != long:
        raise Rejected("invalid", prefix + level + "_id", long, f"the same as {level}, {short!r}, or only one of the two")
    return short or long


def _check_hierarchy(event: WideEvent, data: dict[str, Any], prefix: str) -> None:
    suffix = "_id" if prefix or any(data.get(level + "_id") for level in LEVELS) else ""
    if event.ad and not event.ad_set:
        raise Rejected("missing", f"{prefix}ad_set{suffix}", None, f"the ad set of ad {event.ad!r}")
    if event.ad_set and not event.campaign:
        raise Rejected("missing", f"{prefix}campaign{suffix}", None, f"the campaign of ad set {event.ad_set!r}")
    if not event.campaign and not event.account:
        raise Rejected("missing", f"{prefix}campaign{suffix}", None, "a campaign or at least an account")


def _value(data: dict[str, Any], prefix: str, name: str) -> int | float:
    value = data.get(name)
    if value is None:
        return 0
    if name in MICRO_FIELDS:
        number, largest, expected = (
            _number(value, prefix + name, "a number"),
            LARGEST_MONEY,
            "a number from 0 to 9007199254",
        )
    else:
        number, largest, expected = (
            _integer(value, prefix + name, "an integer"),
            LARGEST,
            f"an integer from 0 to {LARGEST}",
        )
    if not 0 <= number <= largest:
        raise Rejected("out_of_range", prefix + name, value, expected)
    return number


def _number(value: Any, name: str, expected: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Rejected("wrong_type", name, value, expected)
    return value


def _integer(value: Any, name: str, expected: str) -> int:
    """An integer; 12.0 is one too, as in JSON Schema (dataframes with gaps write their counts so)."""
    number = _number(value, name, expected)
    if isinstance(number, float) and not number.is_integer():
        raise Rejected("wrong_type", name, value, expected)
    return int(number)


def _custom(data: dict[str, Any], prefix: str) -> dict[str, float] | None:
    value = data.get("custom")
    if value is None:
        return None
    field = prefix + "custom"
    if not isinstance(value, dict):
        raise Rejected("wrong_type", field, value, "an object {name: number}")
    if len(value) > MOST_CUSTOM:
        raise Rejected("too_long", field, f"{len(value)} names", f"at most {MOST_CUSTOM} custom metrics")
    for name, item in value.items():
        if not CUSTOM_NAME.fullmatch(name):
            raise Rejected(
                "invalid", field, name, "names of letters, digits, _ and ., not starting with a digit, at most 64 long"
            )
        if not -LARGEST_CUSTOM <= _number(item, f"{field}.{name}", "a number") <= LARGEST_CUSTOM:
            raise Rejected("out_of_range", f"{field}.{name}", item, "a number from -9e9 to 9e9")
    return value


def _flat_time(event: dict[str, Any], now_ms: int | None) -> int:
    value = event.get("ts")
    if value is not None:
        return _sane_time(_integer(value, "ts", "epoch milliseconds as an integer"), "ts", now_ms)
    moment = _rfc3339(event, "time")
    if moment is None:
        raise Rejected("missing", "ts", None, "epoch milliseconds, or `time` as RFC 3339")
    return _sane_time(moment, "time", now_ms)


def _rfc3339(event: dict[str, Any], name: str) -> int | None:
    value = event.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise Rejected("wrong_type", name, value, "an RFC 3339 time such as 2026-01-01T00:00:00Z")
    try:
        return (msgspec.convert(value, Moment) - EPOCH) // MILLISECOND
    except msgspec.ValidationError:
        raise Rejected("invalid", name, value, "an RFC 3339 time with an offset, such as 2026-01-01T00:00:00Z") from None


def _sane_time(ms: int, field: str, now_ms: int | None) -> int:
    if not EARLIEST_MS <= ms <= LATEST_MS:
        hint = ""
        if ms > LATEST_MS:
            hint = "; this looks like micro- or nanoseconds"
        elif ms > 0 and EARLIEST_MS <= ms * 1_000 <= LATEST_MS:
            hint = "; this looks like seconds"
        raise Rejected("out_of_range", field, ms, f"epoch milliseconds from {EARLIEST_MS} to {LATEST_MS}{hint}")
    if now_ms is not None and ms > now_ms + FUTURE_MS:
        raise Rejected("in_future", field, rfc3339(ms), f"at most {FUTURE_MS // 1000} s after its arrival, {rfc3339(now_ms)}")
    return ms
