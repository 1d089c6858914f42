"""Windows of uniform lines give exactly what the other readings give; whatever else is sent is left to these."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmis_stream.core.batch import Batch, Segment, event_uid, leaf_path
from cmis_stream.core.time import EARLIEST_MS
from cmis_stream.feeds import decode, uniform
from cmis_stream.feeds.decode import Decoded, decode_ndjson
from cmis_stream.feeds.events import PlainEvent
from cmis_stream.feeds.leaves import KnownLeaves
from cmis_stream.feeds.shapes import NUMBER_FIELDS, PATH_FIELDS
from cmis_stream.feeds.uniform import Rows, read_uniform

NOW = 1_767_225_600_000
PLATFORMS = ("meta", "google", "tiktok", "linkedin", "x", "snapchat")
REQUIRED = ["id", "platform", "ts", "campaign"]
OPTIONAL = ["org", "type", "account", "ad_set", "ad", "impressions", "clicks", "spend", "conversions", "revenue", "currency"]
PRINTABLE = "".join(chr(code) for code in range(32, 127) if chr(code) not in '"\\:')

Line = dict[str, str]
"""Field -> value as JSON text, quotes included."""


def quoted(draw: random.Random, longest: int = 12, shortest: int = 1) -> str:
    return '"' + "".join(draw.choices(PRINTABLE, k=draw.randint(shortest, longest))) + '"'


def decimal(draw: random.Random) -> str:
    whole, after = draw.randrange(10 ** draw.randint(1, 8)), draw.randint(0, 6)
    return f"{whole}.{draw.randrange(10**after):0{after}d}" if after else str(whole)


VALUES: dict[str, Callable[[random.Random], str]] = {
    "id": lambda draw: quoted(draw, draw.choice([3, 12, 200])),
    "platform": lambda draw: f'"{draw.choice(PLATFORMS)}"',
    "ts": lambda draw: str(draw.randint(EARLIEST_MS, NOW + 60_000)),
    "org": lambda draw: '"acme"',
    "type": lambda draw: '"metric"',
    "account": lambda draw: quoted(draw, 4, 0),
    "campaign": lambda draw: f'"cmp:{draw.randrange(9) ** 9}"',
    "ad_set": lambda draw: f'"{"s" * draw.randint(1, 20)}"',
    "ad": lambda draw: f'"{"a" * draw.randint(1, 40)}"',
    "impressions": lambda draw: str(draw.randrange(10 ** draw.randint(1, 15))),
    "clicks": lambda draw: str(draw.randrange(10 ** draw.randint(1, 3))),
    "spend": decimal,
    "conversions": decimal,
    "revenue": decimal,
    "currency": lambda draw: draw.choice(['"USD"', '"EUR"']),
}


def line_of(values: Line, spaced: bool) -> str:
    comma, colon = (", ", ": ") if spaced else (",", ":")
    return "{" + comma.join(f'"{field}"{colon}{value}' for field, value in values.items()) + "}"


@st.composite
def feeds(draw: st.DrawFn) -> tuple[list[Line], bool]:
    """40 to 120 plain events with the same fields in the same order, and whether they are written with spaces."""
    optional = draw(st.lists(st.sampled_from(OPTIONAL), unique=True))
    if "ad" in optional and "ad_set" not in optional:
        optional.append("ad_set")
    fields = draw(st.permutations(REQUIRED + optional))
    source = random.Random(draw(st.integers(0, 2**32)))
    lines = [{field: VALUES[field](source) for field in fields} for _ in range(draw(st.integers(40, 120)))]
    return lines, draw(st.booleans())


options = st.fixed_dictionaries(
    {
        "org": st.sampled_from(["acme", None]),
        "sequence": st.sampled_from([None, 7]),
        "leaf_level": st.sampled_from(["ad", "campaign"]),
        "now_ms": st.sampled_from([NOW, None]),
        "window": st.sampled_from([8_000, 20_000, 1 << 20]),
    }
)


def content(batch: Batch | None) -> tuple[Any, ...] | None:
    if batch is None:
        return None
    columns = (batch.ts_ms, batch.leaf, batch.values, batch.event, batch.uid)
    return (
        *((column.dtype, column.tolist()) for column in columns),
        *map(list, (batch.paths, batch.segments, batch.ids)),
    )


def everything(result: Decoded) -> tuple[Any, ...]:
    refused = [(r.index, r.line, r.id, str(r.error), r.error.as_dict(), r.raw) for r in result.refused]
    return content(result.batch), refused, result.events


def both(body: bytes, *, window: int = 1 << 20, fewest: int = 0, **how: Any) -> tuple[Decoded, list[bool]]:
    """The result, after comparing it with that of the other readings; for each window, whether it was taken as uniform."""
    how = {"org": "acme", "now_ms": NOW, **how}
    taken: list[bool] = []

    def noted(text: memoryview, **more: Any) -> Rows | None:
        rows = read_uniform(text, **more)
        taken.append(rows is not None)
        return rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "WINDOW_BYTES", window)
        patch.setattr(uniform, "FEWEST_BYTES", fewest)
        patch.setattr(decode, "read_uniform", noted)
        found = decode_ndjson(body, source="src", **how)
        patch.setattr(decode, "read_uniform", lambda text, **more: None)
        wanted = decode_ndjson(body, source="src", **how)
    assert everything(found) == everything(wanted)
    return found, taken


@given(feeds(), options, st.booleans())
@settings(max_examples=200, deadline=None)
def test_plain_lines_of_one_shape_are_taken_with_equal_results(
    feed: tuple[list[Line], bool], how: dict[str, Any], ended: bool
) -> None:
    lines, spaced = feed
    if how["org"] is None:
        lines = [{"org": f'"{("acme", "globex", "o")[i % 3]}"', **line} for i, line in enumerate(lines)]
    body = "\n".join(line_of(line, spaced) for line in lines) + "\n" * ended
    result, taken = both(body.encode(), **how)
    assert result.events == len(lines) and not result.refused
    assert how["window"] < 1 << 20 or all(taken)  # small windows may hold too few lines


ODD_NUMBERS = [
    "1e5", "1E5", "1e-5", "0.1", "12.345678", "12.3456789", "00", "01", "-0", "-1", "0", "0.0", "00.5", ".5", "5.", "1.2.3",
    "9007199254740992", "9007199254740993", "9007199254740991", "99999999999999999", "0.30000000000000004", "+1", "1.0",
    "1234567.12345678", "123456789.1234567", "4503599627370.495", "9007199254.740992", "9007199255", "12/4", "0x1", "1:",
    "12345678", "123456789", "0.00000000000001", "NaN", "null", "true", '"7"',
]  # fmt: skip
number_texts = st.one_of(
    st.sampled_from(ODD_NUMBERS),
    st.from_regex(r"[0-9]{1,17}(\.[0-9]{0,16})?", fullmatch=True),
    st.from_regex(r"-?[0-9.]{1,9}([eE][+-]?[0-9]{1,2})?", fullmatch=True),
)


@given(
    feeds(), options, st.lists(st.tuples(st.integers(0, 119), st.sampled_from([*OPTIONAL[5:10], "ts"]), number_texts), max_size=4)
)
@settings(max_examples=300, deadline=None)
def test_odd_numbers_among_plain_ones_change_no_result(
    feed: tuple[list[Line], bool], how: dict[str, Any], odd: list[tuple[int, str, str]]
) -> None:
    lines, spaced = feed
    for place, field, text in odd:
        line = lines[place % len(lines)]
        if field in line:
            line[field] = text
    both("\n".join(line_of(line, spaced) for line in lines).encode(), **how)


ODD_STRINGS = [
    '""', '" "', '"a b"', '"é"', '"\\u2028"', '"\\\\"', '"a\\"b"', '"a\tb"', '"a\x7fb"', '"a\x1fb"', '"a:b"', '":"', '"a,b"',
    '"metric"', '"twitter"', '"Meta"', '"globex"', '"usd"', '"EURO"', '"x","ad":"y"', '"x", "ad": "y"', "7", "null", "{}",
    *('"' + "x" * size + '"' for size in (7, 8, 9, 15, 16, 63, 64, 199, 200, 201, 5000)),
]  # fmt: skip
odd_strings = st.one_of(
    st.sampled_from(ODD_STRINGS),
    st.text(max_size=9).map(json.dumps),
    st.text(max_size=9).map(lambda text: json.dumps(text, ensure_ascii=False)),
)


@given(feeds(), options, st.lists(st.tuples(st.integers(0, 119), st.sampled_from(REQUIRED + OPTIONAL), odd_strings), max_size=4))
@settings(max_examples=300, deadline=None)
def test_odd_strings_among_plain_ones_change_no_result(
    feed: tuple[list[Line], bool], how: dict[str, Any], odd: list[tuple[int, str, str]]
) -> None:
    lines, spaced = feed
    for place, field, text in odd:
        line = lines[place % len(lines)]
        if field in line:
            line[field] = text
    both("\n".join(line_of(line, spaced) for line in lines).encode(), **how)


@given(
    feeds(),
    options,
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 2), st.sampled_from(b'":,{}\\\n\r 09.-eaz\x00\x1f\x7f\xc3')), max_size=3),
)
@settings(max_examples=400, deadline=None)
def test_bytes_changed_added_or_lost_change_no_result(
    feed: tuple[list[Line], bool], how: dict[str, Any], changes: list[tuple[float, int, int]]
) -> None:
    lines, spaced = feed
    body = bytearray("\n".join(line_of(line, spaced) for line in lines).encode())
    for where, kind, byte in changes:
        place = int(where * (len(body) - 1))
        body[place : place + (kind != 1)] = b"" if kind == 2 else bytes([byte])
    both(bytes(body), **how)


def swapped(line: str) -> str:
    first, second, rest = line[1:].split(",", 2)
    return "{" + second.lstrip() + "," + first + "," + rest


OTHER_SHAPES: list[Callable[[str], str]] = [
    swapped,
    lambda line: line + line,
    lambda line: line + " ",
    lambda line: " " + line,
    lambda line: line + "\r",
    lambda line: line + "\n",
    lambda line: line[:-1] + ',"extra":1}',
    lambda line: line[:-1] + ',"source":"other"}',
    lambda line: line[:-1] + ',"custom":{"v":1}}',
    lambda line: line[:-1] + ',"campaign":"again"}',
    lambda line: line[:-1] + ',"clicks":1}',
    lambda line: line[:-1] + ',"type":"metric"}',
    lambda line: line.replace(",", "\n", 1),
    lambda line: line.replace(",", "{", 1),
    lambda line: line.replace(",", ",,", 1),
    lambda line: line.replace("{", ",", 1),
    lambda line: line.replace("{", "{{", 1),
    lambda line: line.replace('"id"', '"\\u0069d"'),
    lambda line: line.replace('"id"', '"Id"'),
    lambda line: line.replace('"campaign"', '"ad_set"', 1),
    lambda line: line.replace(":", ": ", 1),
    lambda line: line.replace(":", "::", 1),
    lambda line: line.replace(":", " :  ", 1),
    lambda line: line.replace('"', "", 1),
    lambda line: "[" + line + "]",
    lambda line: line[1:],
    lambda line: line[:-1],
    lambda line: "\ufeff" + line,
    lambda line: "",
    lambda line: "{}",
]


@given(feeds(), options, st.integers(0, 119), st.booleans(), st.sampled_from(OTHER_SHAPES))
@settings(max_examples=400, deadline=None)
def test_one_line_or_all_of_another_shape_change_no_result(
    feed: tuple[list[Line], bool], how: dict[str, Any], place: int, everywhere: bool, change: Callable[[str], str]
) -> None:
    lines, spaced = feed
    texts = [line_of(line, spaced) for line in lines]
    both(
        "\n".join(change(text) if everywhere or i == place % len(texts) else text for i, text in enumerate(texts)).encode(), **how
    )


GOOD: Line = {
    "id": '"e1"', "ts": str(NOW), "org": '"acme"', "type": '"metric"', "platform": '"meta"', "campaign": '"c"', "ad_set": '"s"',
    "ad": '"a"', "impressions": "100", "clicks": "3", "spend": "1.25", "conversions": "0.5", "revenue": "10",
}  # fmt: skip


def body_of(count: int = 64, spaced: bool = False, **changes: str | Callable[[int], str]) -> bytes:
    """`count` lines of GOOD with changes, which may depend on the line's number."""
    texts = []
    for i in range(count):
        changed = {field: value if isinstance(value, str) else value(i) for field, value in changes.items()}
        texts.append(line_of({**GOOD, "id": f'"e{i}"', **changed}, spaced) + "\n")
    return "".join(texts).encode()


def test_a_uniform_window_is_what_its_events_say() -> None:
    result, taken = both(body_of(clicks=str, ad=lambda i: f'"a{i % 3}"'))
    batch = result.batch
    assert taken == [True] and batch is not None
    assert batch.paths == [leaf_path("acme", "USD", "meta", "", "c", "s", f"a{i}") for i in range(3)]
    assert batch.leaf.tolist() == [i % 3 for i in range(64)] and batch.event.tolist() == list(range(64))
    assert batch.values[:, 5].tolist() == [100, 5, 1_250_000, 500_000, 10_000_000]
    assert batch.segments == (Segment("acme", "src", False, 64),)
    assert batch.uid.tolist() == [event_uid("acme", "src", f"e{i}") for i in range(64)]


def test_the_layouts_of_usual_writers_are_taken() -> None:
    for body in (
        body_of(),
        body_of(spaced=True),
        body_of(ts=lambda i: str(NOW - i * 10**9)),
        body_of(spend=lambda i: f"{i * 12345.67:.2f}", revenue=lambda i: f"{i}.{i:06d}"),
        body_of(spend=lambda i: str(i * 1_000_003.5), impressions=lambda i: str(i**8)),
        body_of(campaign=lambda i: f'"urn:li:campaign:{i}"'),
        body_of(campaign=lambda i: f'"Spring, summer & {i}"', id=lambda i: f'"{i:0200d}"'),
        body_of()[:-1],
    ):
        assert both(body)[1] == [True]


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"org": '"globex"'}, "wrong_org", "org"),
        ({"platform": '"bing"'}, "invalid", "platform"),
        ({"currency": '"usd"'}, "invalid", "currency"),
        ({"campaign": '""'}, "missing", "campaign"),
        ({"ad_set": '""'}, "missing", "ad_set"),
        ({"id": '""'}, "missing", "id"),
        ({"id": '"' + "x" * 201 + '"'}, "too_long", "id"),
        ({"ts": str(NOW + 60_001)}, "in_future", "ts"),
        ({"ts": "0" + str(NOW)}, "malformed", ""),
        ({"ts": "946684799999"}, "out_of_range", "ts"),
        ({"clicks": "9007199254740993"}, "out_of_range", "clicks"),
        ({"clicks": "3.5"}, "wrong_type", "clicks"),
        ({"clicks": "03"}, "malformed", ""),
        ({"spend": "9007199254.750000"}, "out_of_range", "spend"),
        ({"spend": "1.2.3"}, "malformed", ""),
        ({"spend": "1."}, "malformed", ""),
        ({"spend": ".5"}, "malformed", ""),
        ({"campaign": '"a\tb"'}, "malformed", ""),
        ({"ad": '"a\x7fb"'}, "invalid", "ad"),
        ({"ad": '"a\\u001fb"'}, "invalid", "ad"),
    ],
)
@pytest.mark.parametrize("leaf_level", ["ad", "campaign"])
def test_a_wrong_event_among_uniform_lines_is_refused_and_its_neighbours_are_kept(
    change: dict[str, str], code: str, field: str, leaf_level: str
) -> None:
    usual = {**GOOD, "currency": '"EUR"'} if "currency" in change else GOOD
    texts = [line_of({**usual, "id": f'"e{i}"', **(change if i == 40 else {})}, False) for i in range(64)]
    both("\n".join(texts[:40]).replace("acme", "globex").encode(), org=None)  # what one org may name, another may not
    body = "\n".join(texts).encode()
    result, taken = both(body, leaf_level=leaf_level)
    assert [(r.index, r.line, r.error.code, r.error.field) for r in result.refused] == [(40, 41, code, field)]
    assert taken == [False] or code in ("in_future", "out_of_range")
    assert result.batch is not None and len(result.batch.ids) == 63


def test_leaves_are_numbered_by_their_first_event_whichever_reading_took_it() -> None:
    ads = [[5, 3, 5, 1], [1, 7, 3, 9], [9, 2, 5, 8], [6, 2, 4, 8]]
    windows = [body_of(ad=lambda i, own=own: f'"a{own[i % 4]}"') for own in ads]
    odd = body_of(ad='"a7"', spend="1e0", currency='"EUR"')
    body = windows[0] + windows[1] + odd + windows[2] + odd + windows[3]
    result, taken = both(body, window=len(windows[0]) + 100)
    assert result.batch is not None and True in taken and False in taken
    assert [path.split("\x1f")[6] for path in result.batch.paths[:4]] == ["a5", "a3", "a1", "a7"]


@pytest.mark.parametrize("spaced", [False, True])
@pytest.mark.parametrize(
    "text", ['"a:b:c"', '":"', '""', "-0", "1e5", "null", "", "[7]", '{"x":1}', '"é"', '"\\u003a"', "7", "7.5", '"7"']
)
def test_whatever_the_first_line_teaches_no_result_changes(text: str, spaced: bool) -> None:
    for field in GOOD:
        for count in (1, 64):  # only the first line, or all
            lines = [line_of({**GOOD, **({field: text} if i < count else {})}, spaced) for i in range(64)]
            both("\n".join(lines).encode())


def test_events_that_lack_a_field_or_a_level_are_left_to_the_other_readings() -> None:
    for without in ("ad_set", "campaign", "id", "platform", "ts"):
        texts = [line_of({field: text for field, text in GOOD.items() if field != without}, False) for _ in range(64)]
        result, taken = both("\n".join(texts).encode())
        assert taken == [False] and len(result.refused) == 64
    only_ids = [line_of({field: GOOD[field] for field in ("id", "ts", "platform")}, False)] * 64
    assert both("\n".join(only_ids).encode())[1] == [False]
    account = {"id": '"e"', "ts": str(NOW), "platform": '"meta"', "account": '"act"'}
    assert both("\n".join([line_of(account, False)] * 64).encode())[1] == [True]
    assert both("\n".join([line_of(account, False)] * 63 + [line_of({**account, "account": '""'}, False)]).encode())[1] == [False]


@pytest.mark.parametrize("end", ["", "}", "} ", "]", "}}", '"}', "},", "\n", " "])
def test_the_end_of_the_last_line_is_looked_at_too(end: str) -> None:
    for body in (body_of()[:-2], body_of()[:-1], body_of(revenue="7"), body_of(type='"metric"', spaced=True)[:-2]):
        both(body + end.encode())


def test_every_field_of_a_plain_event_is_known() -> None:
    assert {*NUMBER_FIELDS, *PATH_FIELDS, "id", "type"} == set(PlainEvent.__struct_fields__)


def test_a_feed_may_change_its_shape_and_the_widths_of_its_values() -> None:
    for _ in range(2):
        for body in (body_of(), body_of(spaced=True), body_of(ad='"' + "a" * 90 + '"'), body_of(account='"act"'), body_of()):
            assert both(body)[1] == [True]


def test_hashes_that_collide_merge_no_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    known = KnownLeaves()
    monkeypatch.setattr(uniform, "_known", known)
    both(body_of(ad='"other"'))
    (leaves,) = known._tables.values()
    leaves._factors = np.zeros_like(leaves._factors)
    for _ in range(3):
        result, taken = both(body_of(200, ad=lambda i: f'"a{i % 50}"', campaign=lambda i: f'"c{i % 3}"'))
        assert taken == [True] and result.batch is not None and len(result.batch.paths) == 150


def test_known_leaves_are_begun_anew_when_they_take_too_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    known = KnownLeaves(largest_memory=100_000)
    monkeypatch.setattr(uniform, "_known", known)
    body = b"".join(body_of(100, ad=lambda i, n=n: f'"a{n * 100 + i}"') for n in range(30))
    for _ in range(2):
        result, taken = both(body, window=20_000)
        assert all(taken[:-1]) and result.batch is not None and len(result.batch.paths) == 3_000
        assert sum(table.memory for table in known._tables.values()) < 300_000


def test_requests_in_several_threads_do_not_mix_their_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uniform, "_known", KnownLeaves())
    monkeypatch.setattr(uniform, "FEWEST_BYTES", 0)

    def paths(seed: int) -> bool:
        draw = random.Random(seed)
        ads = [draw.randrange(3_000) for _ in range(500)]
        batch = decode_ndjson(body_of(500, ad=lambda i: f'"a{ads[i]}"'), org="acme", source="s", now_ms=None).batch
        assert batch is not None
        return [batch.paths[leaf].split("\x1f")[6] for leaf in batch.leaf] == [f"a{ad}" for ad in ads]

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(paths, range(100)))
    finally:
        sys.setswitchinterval(before)
