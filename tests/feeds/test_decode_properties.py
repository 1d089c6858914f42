"""The columns equal those of a plain reading of each event, whatever is mixed and wherever the text is cut."""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmis_stream.core.batch import event_uid, leaf_path
from cmis_stream.core.time import EARLIEST_MS
from cmis_stream.feeds import decode
from cmis_stream.feeds.decode import Decoded, decode_ndjson

NOW = 1_767_225_600_000
PLATFORMS = ("meta", "google", "tiktok", "linkedin", "x", "snapchat")
money = st.one_of(st.integers(0, 10**9), st.floats(0, 9e9, allow_nan=False), st.decimals(0, 10**6, places=6).map(float))
name = st.text(min_size=1, max_size=6)
wrong = st.sampled_from(
    [-1, 1.5, True, "7", None, [], {}, 2**60, 1e300, "", float("nan"), "a\x1fb", "\u2028", "é", "meta", "USD", "other"]
)
FIELDS = ("id", "ts", "org", "type", "platform", "account", "campaign", "ad_set", "ad", "impressions", "clicks",
          "spend", "conversions", "revenue", "currency", "source", "mode", "custom")  # fmt: skip

good = st.fixed_dictionaries(
    {"id": name, "ts": st.integers(EARLIEST_MS, NOW + 60_000), "platform": st.sampled_from(PLATFORMS), "campaign": name},
    optional={
        "org": st.just("acme"), "type": st.just("metric"), "account": name, "impressions": st.integers(0, 2**53),
        "clicks": st.integers(0, 1000), "spend": money, "conversions": money, "revenue": money,
        "currency": st.sampled_from(["EUR", "USD"]), "source": st.sampled_from(["s1", "s2"]), "extra": st.integers(),
        "custom": st.dictionaries(st.sampled_from(["views", "a.b"]), st.floats(-9e9, 9e9), max_size=2),
    },
)  # fmt: skip
spoiled = st.builds(lambda event, field, value: {**event, field: value}, good, st.sampled_from(FIELDS), wrong)
garbage = st.sampled_from([b"", b" ", b"{", b"[]", b"{}", b"nope", b'{"id":"\xff"}', b"{}{}"])
lines = st.lists(st.one_of(good, good, good, spoiled, garbage), max_size=25)


def text(item: Any) -> bytes:
    return item if isinstance(item, bytes) else json.dumps(item).encode()


def reads(event: Any) -> tuple[Any, ...] | None:
    """(id, source, ts, path, micros, custom) by the letter of the contract; None: refused."""
    if not isinstance(event, dict):
        return None
    event = {key: value for key, value in event.items() if value is not None}

    def is_name(field: str) -> bool:
        value = event.get(field, "")
        return isinstance(value, str) and len(value) <= 200 and not re.search(r"[\x00-\x1f\x7f]", value)

    def number(field: str, whole: bool) -> float | int | None:
        value = event.get(field, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            return None
        if whole and value != int(value):
            return None
        return value if 0 <= value <= (2**53 if whole else Decimal(2**53) / 10**6) else None

    names = ("id", "org", "account", "campaign", "ad_set", "ad", "source")
    ts = event.get("ts")
    if not all(map(is_name, names)) or not event.get("id") or (event.get("org") or "acme") != "acme":
        return None
    if (
        isinstance(ts, bool)
        or not isinstance(ts, int | float)
        or math.isnan(ts)
        or ts != int(ts)
        or not EARLIEST_MS <= ts <= NOW + 60_000
    ):
        return None
    if event.get("type", "metric") not in ("metric",) or event.get("mode", "delta") != "delta":
        return None
    if event.get("platform") not in PLATFORMS or not re.fullmatch("[A-Z]{3}", str(event.get("currency", "USD"))):
        return None
    account, campaign, ad_set, ad = (event.get(level, "") for level in ("account", "campaign", "ad_set", "ad"))
    if (ad and not ad_set) or (ad_set and not campaign) or not (campaign or account):
        return None
    values = [
        number("impressions", True),
        number("clicks", True),
        *(number(n, False) for n in ("spend", "conversions", "revenue")),
    ]
    custom = event.get("custom", {})
    if None in values or not isinstance(custom, dict):
        return None
    micros = [int(values[0]), int(values[1]), *(Decimal(v) * 10**6 for v in values[2:])]  # type: ignore[arg-type]
    path = leaf_path("acme", event.get("currency", "USD"), event["platform"], account, campaign, ad_set, ad)
    return event["id"], event.get("source") or "req", int(ts), path, micros, custom


def rows(result: Decoded) -> list[tuple[Any, ...]]:
    batch = result.batch
    if batch is None:
        return []
    return [
        (
            batch.event[i],
            batch.ids[batch.event[i]],
            batch.ts_ms[i],
            batch.paths[batch.leaf[i]],
            batch.values[:, i].tolist(),
        )
        for i in range(len(batch))
    ]


@given(lines)
@settings(max_examples=200, deadline=None)
def test_columns_equal_the_plain_reading(items: list[Any]) -> None:
    texts = [text(item) for item in items]
    result = decode_ndjson(b"\n".join(texts), org="acme", source="req", now_ms=NOW)
    events = [(i, item) for i, item in enumerate(items) if not (isinstance(item, bytes) and not item.strip())]
    expected = [reads(item) for _, item in events]
    assert result.events == len(events)
    assert [r.index for r in result.refused] == [k for k, read in enumerate(expected) if read is None]
    assert [r.line for r in result.refused] == [i + 1 for (i, _), read in zip(events, expected, strict=True) if read is None]
    accepted = [read for read in expected if read is not None]
    got = iter(rows(result))
    for number, (event_id, _, ts, path, micros, custom) in enumerate(accepted):
        event, own_id, own_ts, own_path, values = next(got)
        assert (event, own_id, own_ts, own_path) == (number, event_id, ts, path)
        # Half a micro, and half a unit in the last place of the product.
        assert all(abs(v - x) <= Decimal("0.5") + abs(Decimal(x)) / 2**53 for v, x in zip(values, micros, strict=True))
        for key, value in custom.items():
            event, own_id, own_ts, own_path, values = next(got)
            assert (event, own_id, own_ts, own_path) == (number, event_id, ts, path + key)
            assert abs(values[2] - Decimal(value) * 10**6) <= 1 and values[0] == values[1] == values[3] == values[4] == 0
    assert next(got, None) is None
    if result.batch is not None:
        assert result.batch.uid.tolist() == [event_uid("acme", read[1], read[0]) for read in accepted]
        assert sum(segment.count for segment in result.batch.segments) == len(accepted)


@given(lines, st.data())
@settings(max_examples=100, deadline=None)
def test_where_the_text_is_cut_does_not_matter(items: list[Any], data: st.DataObject) -> None:
    texts = [text(item) + b"\n" for item in items]
    cut = data.draw(st.integers(0, len(texts)))
    whole = decode_ndjson(b"".join(texts), org="acme", source="req", now_ms=NOW, sequence=7)
    first = decode_ndjson(b"".join(texts[:cut]), org="acme", source="req", now_ms=NOW, sequence=7)
    second = decode_ndjson(b"".join(texts[cut:]), org="acme", source="req", now_ms=NOW, sequence=7 + first.events, first_line=cut)
    assert [row[1:] for row in rows(whole)] == [row[1:] for part in (first, second) for row in rows(part)]
    both = [(r.index, r.line, str(r.error), r.raw) for r in first.refused]
    both += [(r.index + first.events, r.line, str(r.error), r.raw) for r in second.refused]
    assert [(r.index, r.line, str(r.error), r.raw) for r in whole.refused] == both


@given(lines)
@settings(max_examples=60, deadline=None)
def test_windows_inside_a_request_do_not_matter(items: list[Any]) -> None:
    body = b"\n".join(text(item) for item in items)
    whole = decode_ndjson(body, org="acme", source="req", now_ms=NOW, sequence=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "WINDOW_BYTES", 300)
        pieces = decode_ndjson(body, org="acme", source="req", now_ms=NOW, sequence=0)
    assert rows(whole) == rows(pieces)
    assert [(r.index, r.line, str(r.error)) for r in whole.refused] == [(r.index, r.line, str(r.error)) for r in pieces.refused]
