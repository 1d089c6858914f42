"""Every reason for which an event is refused, and that the good ones around it are kept."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from cmis_stream.core.batch import LARGEST, VALUE_FIELDS, Segment, event_uid, leaf_path
from cmis_stream.core.errors import Rejected
from cmis_stream.feeds.decode import (
    LONGEST_LINE,
    RAW_KEPT,
    Decoded,
    decode_cloudevents,
    decode_json,
    decode_ndjson,
)

NOW = 1_767_225_600_000
GOOD: dict[str, Any] = {
    "id": "e1", "ts": NOW, "org": "acme", "type": "metric", "platform": "meta", "campaign": "c", "ad_set": "s",
    "ad": "a", "impressions": 100, "clicks": 3, "spend": 1.25, "conversions": 0.5, "revenue": 10,
}  # fmt: skip
CLOUD: dict[str, Any] = {
    "specversion": "1.0", "id": "e1", "source": "//feed", "type": "cmis.ads.metrics.v1", "time": "2026-01-01T00:00:00Z",
    "orgid": "acme", "subject": "c",
    "data": {"platform": "meta", "account_id": "act", "campaign_id": "c", "ad_set_id": "s", "ad_id": "a",
             "impressions": 100, "clicks": 3, "spend": 1.25, "currency": "EUR", "mode": "delta"},
}  # fmt: skip


def line(**changes: Any) -> bytes:
    """GOOD with changes; a value of ... removes the field."""
    event = {name: value for name, value in {**GOOD, **changes}.items() if value is not ...}
    return json.dumps(event).encode()


def decoded(*lines: bytes, org: str | None = "acme", now_ms: int | None = NOW, **more: Any) -> Decoded:
    return decode_ndjson(b"\n".join(lines) + b"\n", org=org, source="src", now_ms=now_ms, **more)


def refused(*lines: bytes, **more: Any) -> Rejected:
    """The one refusal among the lines."""
    result = decoded(*lines, **more)
    assert len(result.refused) == 1, result.refused
    return result.refused[0].error


def test_a_flat_event_becomes_one_row_of_exact_micros() -> None:
    result = decoded(line())
    batch = result.batch
    assert batch is not None and result.events == 1 and not result.refused
    assert batch.ts_ms.tolist() == [NOW]
    assert batch.values[:, 0].tolist() == [100, 3, 1_250_000, 500_000, 10_000_000]
    assert batch.paths == [leaf_path("acme", "USD", "meta", "", "c", "s", "a")]
    assert batch.leaf.tolist() == [0] and batch.event.tolist() == [0] and list(batch.ids) == ["e1"]
    assert list(batch.segments) == [Segment("acme", "src", False, 1)]
    assert batch.uid.tolist() == [event_uid("acme", "src", "e1")]
    assert (batch.ts_ms.dtype, batch.leaf.dtype, batch.values.dtype) == (np.int64, np.int32, np.int64)
    assert (batch.event.dtype, batch.uid.dtype) == (np.int32, np.uint64)


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"id": ...}, "missing", "id"),
        ({"id": ""}, "missing", "id"),
        ({"id": 7}, "wrong_type", "id"),
        ({"id": "x" * 201}, "too_long", "id"),
        ({"id": "a\x01b"}, "invalid", "id"),
        ({"id": "a\x7fb"}, "invalid", "id"),
        ({"ts": ...}, "missing", "ts"),
        ({"ts": None}, "missing", "ts"),
        ({"ts": "2026-01-01T00:00:00Z"}, "wrong_type", "ts"),
        ({"ts": 1.5}, "wrong_type", "ts"),
        ({"ts": True}, "wrong_type", "ts"),
        ({"ts": -1}, "out_of_range", "ts"),
        ({"ts": NOW * 1000}, "out_of_range", "ts"),
        ({"ts": 10**30}, "out_of_range", "ts"),
        ({"ts": NOW + 60_001}, "in_future", "ts"),
        ({"ts": ..., "time": "2026-01-01T00:00:00"}, "invalid", "time"),
        ({"ts": ..., "time": "yesterday"}, "invalid", "time"),
        ({"ts": ..., "time": 7}, "wrong_type", "time"),
        ({"ts": ..., "time": "2026-01-01T00:01:00.001Z"}, "in_future", "time"),
        ({"org": "globex"}, "wrong_org", "org"),
        ({"org": 7}, "wrong_type", "org"),
        ({"type": "mention"}, "invalid", "type"),
        ({"type": "cmis.social.mention.v1"}, "unsupported", "type"),
        ({"type": 1}, "wrong_type", "type"),
        ({"mode": "cumulative"}, "unsupported", "mode"),
        ({"mode": "other"}, "invalid", "mode"),
        ({"mode": 1}, "wrong_type", "mode"),
        ({"platform": ...}, "missing", "platform"),
        ({"platform": ""}, "missing", "platform"),
        ({"platform": "facebook"}, "invalid", "platform"),
        ({"platform": "instagram"}, "invalid", "platform"),
        ({"platform": 1}, "wrong_type", "platform"),
        ({"campaign": ..., "ad_set": ..., "ad": ...}, "missing", "campaign"),
        ({"campaign": ""}, "missing", "campaign"),
        ({"campaign": ..., "account": "act"}, "missing", "campaign"),
        ({"ad_set": ...}, "missing", "ad_set"),
        ({"campaign": 7}, "wrong_type", "campaign"),
        ({"campaign": "x" * 201}, "too_long", "campaign"),
        ({"campaign": "a\nb"}, "invalid", "campaign"),
        ({"ad": "a\x1fb"}, "invalid", "ad"),
        ({"campaign_id": "other"}, "invalid", "campaign_id"),
        ({"impressions": -1}, "out_of_range", "impressions"),
        ({"impressions": 1.5}, "wrong_type", "impressions"),
        ({"impressions": True}, "wrong_type", "impressions"),
        ({"impressions": "7"}, "wrong_type", "impressions"),
        ({"clicks": LARGEST + 1}, "out_of_range", "clicks"),
        ({"clicks": 10**400}, "out_of_range", "clicks"),
        ({"spend": -0.01}, "out_of_range", "spend"),
        ({"spend": 9_007_199_255}, "out_of_range", "spend"),
        ({"spend": False}, "wrong_type", "spend"),
        ({"revenue": "1.5"}, "wrong_type", "revenue"),
        ({"spend": float("nan")}, "out_of_range", "spend"),
        ({"spend": float("inf")}, "out_of_range", "spend"),
        ({"custom": {"views": float("-inf")}}, "out_of_range", "custom.views"),
        ({"currency": "usd"}, "invalid", "currency"),
        ({"currency": "EURO"}, "invalid", "currency"),
        ({"currency": 978}, "wrong_type", "currency"),
        ({"custom": 5}, "wrong_type", "custom"),
        ({"custom": {"2x": 1}}, "invalid", "custom"),
        ({"custom": {"x" * 65: 1}}, "invalid", "custom"),
        ({"custom": {"views": "7"}}, "wrong_type", "custom.views"),
        ({"custom": {"views": True}}, "wrong_type", "custom.views"),
        ({"custom": {"views": 9.1e9}}, "out_of_range", "custom.views"),
        ({"custom": {f"m{i}": 1 for i in range(21)}}, "too_long", "custom"),
        ({"source": 7}, "wrong_type", "source"),
        ({"source": "a\tb"}, "invalid", "source"),
    ],
)
def test_a_wrong_event_is_refused_by_field_and_its_neighbours_are_kept(changes: dict[str, Any], code: str, field: str) -> None:
    result = decoded(line(id="before"), line(**changes), line(id="after"))
    assert [(r.index, r.line, r.error.code, r.error.field) for r in result.refused] == [(1, 2, code, field)]
    assert result.batch is not None and list(result.batch.ids) == ["before", "after"] and result.events == 3


@pytest.mark.parametrize(
    "raw",
    [
        b"{", b"nonsense", b"[1]", b"7", b'"text"', b"null", b'{"id":"\xff"}', b"[" * 5000, b'{"id":"\\ud800"}',
        b"{}{}", line()[:-1] + b",}", line() + line(), b'{"spend":1e999',
    ],
)  # fmt: skip
def test_what_is_no_object_of_json_is_malformed(raw: bytes) -> None:
    result = decoded(line(id="before"), raw, line(id="after"))
    assert [(r.index, r.error.code) for r in result.refused] == [(1, "malformed")]
    assert result.batch is not None and list(result.batch.ids) == ["before", "after"]


def test_an_object_on_two_lines_is_not_an_event_even_beside_two_on_one() -> None:
    first, second = line(id="x").split(b", ", 1)
    result = decoded(line(id="a") + line(id="b"), first + b",", second)
    assert [r.error.code for r in result.refused] == ["malformed"] * 3 and result.batch is None


@pytest.mark.parametrize(
    "changes",
    [
        {"ts": float(NOW)},
        {"ts": ..., "time": "2026-01-01T01:00:00+01:00"},
        {"org": ...},
        {"org": None},
        {"type": ...},
        {"type": "cmis.ads.metrics.v1"},
        {"mode": "delta"},
        {"currency": "USD"},
        {"currency": None},
        {"campaign": ..., "campaign_id": "c"},
        {"ad_set": ..., "ad_set_id": "s", "ad": ..., "ad_id": "a"},
        {"campaign": "c", "campaign_id": "c"},
        {"impressions": 100.0},
        {"custom": None},
        {"custom": {}},
        {"unknown": {"deep": [1, 2]}},
        {"revenue": 1e1},
    ],
)
def test_other_spellings_mean_the_same_event(changes: dict[str, Any]) -> None:
    usual, other = decoded(line()).batch, decoded(line(**changes)).batch
    assert usual is not None and other is not None
    assert other.paths == usual.paths and other.uid.tolist() == usual.uid.tolist()
    assert other.ts_ms.tolist() == usual.ts_ms.tolist() and other.values.tolist() == usual.values.tolist()


def test_twitter_is_x_and_the_other_fields_may_be_absent() -> None:
    batch = decoded(b'{"id":"1","ts":%d,"platform":"twitter","account":"act"}' % NOW).batch
    assert batch is not None and batch.paths == [leaf_path("acme", "USD", "x", "act")]
    assert batch.values[:, 0].tolist() == [0] * len(VALUE_FIELDS)


def test_the_expected_platforms_are_listed() -> None:
    assert "one of meta, google, tiktok, linkedin, x, snapchat" in str(refused(line(platform="myspace")))


def test_a_wrong_unit_of_time_is_guessed() -> None:
    assert "micro" in str(refused(line(ts=NOW * 1000)))


def test_the_largest_values_are_exact() -> None:
    batch = decoded(line(impressions=LARGEST, clicks=LARGEST - 1, spend=4503599627.370495, revenue=0.0000015)).batch
    assert batch is not None
    assert batch.values[:3, 0].tolist() == [LARGEST, LARGEST - 1, 4503599627370495]
    assert batch.values[4, 0] in (1, 2)


def test_custom_metrics_are_rows_behind_their_event() -> None:
    batch = decoded(line(id="1"), line(id="2", custom={"views": 7, "score": -0.25}), line(id="3"), leaf_level="campaign").batch
    assert batch is not None
    assert batch.event.tolist() == [0, 1, 1, 1, 2] and len(batch.uid) == 3
    custom = [batch.paths[i].rsplit("\x1f", 1)[1] for i in batch.leaf]
    assert custom == ["", "", "views", "score", ""]
    assert batch.values[:, 2].tolist() == [0, 0, 7_000_000, 0, 0] and batch.values[2, 3] == -250_000
    assert all(path.split("\x1f")[5:7] == ["", ""] for path in batch.paths)


def test_without_a_request_org_events_are_grouped_by_their_own() -> None:
    lines = [line(id=str(i), org=("b", "a", "c")[i % 3], custom={"v": i} if i % 2 else None) for i in range(30)]
    result = decoded(*lines, line(org=...), org=None)
    batch = result.batch
    assert batch is not None and [r.error.code for r in result.refused] == ["missing"]
    assert [(s.org, s.count, s.sequenced) for s in batch.segments] == [
        ("b", 10, False),
        ("a", 10, False),
        ("c", 10, False),
    ]
    assert list(batch.ids) == [str(i) for k in range(3) for i in range(k, 30, 3)]
    assert batch.uid.tolist() == [event_uid(("b", "a", "c")[int(i) % 3], "src", i) for i in batch.ids]
    assert np.all(np.diff(batch.event) >= 0) and len(batch) == 45
    for row in range(len(batch)):
        parts = batch.paths[batch.leaf[row]].split("\x1f")
        own = int(batch.ids[batch.event[row]])
        assert parts[0] == ("b", "a", "c")[own % 3]
        if parts[-1] == "v":
            assert batch.values[2, row] == own * 1_000_000


def test_numbers_of_a_file_count_through_all_its_orgs() -> None:
    batch = decoded(*(line(id=str(i), org=("b", "a")[i % 2]) for i in range(4)), org=None, sequence=7).batch
    assert batch is not None
    assert list(batch.segments) == [Segment("", "src", True, 4)]
    assert batch.uid.tolist() == [7, 8, 9, 10]
    assert [batch.paths[leaf].split("\x1f")[0] for leaf in batch.leaf] == ["b", "a", "b", "a"]


def test_refused_events_use_up_their_sequence_numbers() -> None:
    batch = decoded(line(), b"{", b"", line(), sequence=40).batch
    assert batch is not None and batch.uid.tolist() == [40, 42]
    assert list(batch.segments) == [Segment("acme", "src", True, 2)]


def test_a_source_of_its_own_takes_part_in_the_uid() -> None:
    batch = decoded(line(id="1"), line(id="1", source="other"), line(id="2", source="other"), line(id="2")).batch
    assert batch is not None
    assert [(s.source, s.count) for s in batch.segments] == [("src", 1), ("other", 2), ("src", 1)]
    assert batch.uid.tolist() == [
        event_uid("acme", s, i) for s, i in (("src", "1"), ("other", "1"), ("other", "2"), ("src", "2"))
    ]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b" \n", b"\n\n", b"\n \t\n"])
def test_blank_lines_and_endings_are_no_events_but_lines(ending: bytes) -> None:
    result = decode_ndjson(ending.join([line(id="1"), line(id="2"), b"{"]), org="acme", source="s", now_ms=NOW, first_line=10)
    assert result.batch is not None and list(result.batch.ids) == ["1", "2"] and result.events == 3
    assert result.refused[0].line == 11 + 2 * ending.count(b"\n") and result.refused[0].index == 2


def test_nothing_and_only_blank_lines_are_no_events() -> None:
    for body in (b"", b"\n", b"\n \n"):
        result = decode_ndjson(body, org="acme", source="s", now_ms=NOW)
        assert (result.batch, result.refused, result.events) == (None, [], 0)


def test_a_byte_order_mark_at_the_start_is_skipped() -> None:
    assert decoded(b"\xef\xbb\xbf" + line()).events == 1 and not decoded(b"\xef\xbb\xbf" + line()).refused


def test_an_enormous_line_is_one_error_and_is_not_parsed() -> None:
    result = decoded(line(id="before"), b'{"id":"' + b"x" * 50_000_000 + b'"}', line(id="after"))
    refusal = result.refused[0]
    assert len(result.refused) == 1 and (refusal.index, refusal.line, refusal.error.code) == (1, 2, "too_long")
    assert len(refusal.raw) == RAW_KEPT and "50000009 bytes" in str(refusal.error)
    assert result.batch is not None and list(result.batch.ids) == ["before", "after"]


@pytest.mark.parametrize(("length", "fits"), [(LONGEST_LINE, True), (LONGEST_LINE + 1, False)])
def test_the_longest_line_is_exactly_one_mebibyte(length: int, fits: bool) -> None:
    long = line(note="").replace(b'"note": ""', b'"note": "%s"' % (b"x" * (length - len(line(note="")))))
    assert len(long) == length
    for body in (long, long + b"\n", line() + b"\n" + long, long + b"\n" + line()):
        result = decode_ndjson(body, org="acme", source="s", now_ms=NOW)
        assert [r.error.code for r in result.refused] == ([] if fits else ["too_long"])


def test_a_refusal_names_the_event_and_keeps_its_text() -> None:
    refusal = decoded(line(id="bad", spend=-1)).refused[0]
    assert refusal.id == "bad" and refusal.raw == line(id="bad", spend=-1)
    assert refusal.error.as_dict()["got"] == "-1"


def test_a_cloudevent_means_the_flat_event_and_keeps_its_source() -> None:
    result = decode_cloudevents(json.dumps(CLOUD).encode(), org="acme", now_ms=NOW, batched=False)
    batch = result.batch
    assert batch is not None and not result.refused
    assert batch.paths == [leaf_path("acme", "EUR", "meta", "act", "c", "s", "a")]
    assert batch.uid.tolist() == [event_uid("acme", "//feed", "e1")] and batch.ts_ms.tolist() == [NOW]
    assert batch.values[:, 0].tolist() == [100, 3, 1_250_000, 0, 0]


def cloud(data: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    event = {name: value for name, value in {**CLOUD, **changes}.items() if value is not ...}
    if data is not None:
        event["data"] = {name: value for name, value in {**CLOUD["data"], **data}.items() if value is not ...}
    return event


@pytest.mark.parametrize(
    ("event", "code", "field"),
    [
        (cloud(specversion=...), "missing", "specversion"),
        (cloud(specversion="0.3"), "unsupported", "specversion"),
        (cloud(id=...), "missing", "id"),
        (cloud(source=...), "missing", "source"),
        (cloud(type=...), "missing", "type"),
        (cloud(type="cmis.fx.rate.v1"), "unsupported", "type"),
        (cloud(type="com.example"), "invalid", "type"),
        (cloud(time=...), "missing", "time"),
        (cloud(time="2026-01-01"), "invalid", "time"),
        (cloud(time="2027-01-01T00:00:00Z"), "in_future", "time"),
        (cloud(orgid="globex"), "wrong_org", "orgid"),
        (cloud(data=None) | {"data": None}, "missing", "data"),
        (cloud() | {"data": [1]}, "wrong_type", "data"),
        (cloud({"platform": "bing"}), "invalid", "data.platform"),
        (cloud({"campaign_id": ...}), "missing", "data.campaign_id"),
        (cloud({"mode": "cumulative"}), "unsupported", "data.mode"),
        (cloud({"spend": -1}), "out_of_range", "data.spend"),
        (cloud({"custom": {"a": 1e10}}), "out_of_range", "data.custom.a"),
        (cloud({"campaign": "other"}), "invalid", "data.campaign_id"),
        ([], "malformed", ""),
        (7, "malformed", ""),
    ],
)
def test_a_wrong_cloudevent_is_refused_by_field_and_its_neighbours_are_kept(event: Any, code: str, field: str) -> None:
    body = json.dumps([cloud(id="before"), event, cloud(id="after")]).encode()
    result = decode_cloudevents(body, org="acme", now_ms=NOW, batched=True)
    assert [(r.index, r.line, r.error.code, r.error.field) for r in result.refused] == [(1, None, code, field)]
    assert result.batch is not None and list(result.batch.ids) == ["before", "after"]


def test_cloudevents_data_may_use_the_flat_names() -> None:
    flat = cloud({"campaign_id": ..., "campaign": "c", "ad_set_id": ..., "ad_set": "s"})
    batch = decode_cloudevents(json.dumps(flat).encode(), org=None, now_ms=NOW, batched=False).batch
    assert batch is not None and batch.paths == [leaf_path("acme", "EUR", "meta", "act", "c", "s", "a")]


@pytest.mark.parametrize(
    ("body", "batched"), [(b"[]x", True), (b"{}", True), (b"[]", False), (b"", True), (b"[1", True), (b"[NaN,", True)]
)
def test_a_body_of_another_shape_is_refused_as_a_whole(body: bytes, batched: bool) -> None:
    with pytest.raises(Rejected) as error:
        decode_cloudevents(body, org="acme", now_ms=NOW, batched=batched)
    assert error.value.code == "malformed"


def test_an_item_that_is_not_a_number_spares_its_neighbours() -> None:
    body = b"[" + line(id="1") + b"," + line(id="2", spend=float("nan")) + b"," + line(id="3") + b"]"
    result = decode_json(body, org="acme", source="s", now_ms=NOW)
    assert [(r.index, r.error.code, r.error.field) for r in result.refused] == [(1, "out_of_range", "spend")]
    assert result.batch is not None and list(result.batch.ids) == ["1", "3"]


def test_plain_json_takes_one_or_many_flat_or_cloud_events() -> None:
    both = decode_json(json.dumps([GOOD, CLOUD]).encode(), org="acme", source="src", now_ms=NOW)
    one = decode_json(line(), org="acme", source="src", now_ms=NOW)
    assert both.batch is not None and one.batch is not None and not both.refused
    assert [(s.source, s.count) for s in both.batch.segments] == [("src", 1), ("//feed", 1)]
    assert one.batch.uid.tolist() == [both.batch.uid[0]]
