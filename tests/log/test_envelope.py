"""The records of the metrics log: what goes in comes out; anything else is refused, never worse."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cmis_stream.core.batch import Batch, Segment, concatenate, cut, leaf_path
from cmis_stream.core.errors import Rejected
from cmis_stream.log.codec import pack, unpack
from cmis_stream.log.envelope import Events, Record, RuleSet, Tick, decode, encode

EXAMPLES = settings(max_examples=80, deadline=None, derandomize=True, database=None)
LARGEST = 2**53
names = st.text(st.characters(blacklist_categories=("Cc", "Cs")), min_size=1, max_size=12)
times = st.integers(946_684_800_000, 7_258_118_400_000)
amounts = st.one_of(st.integers(0, 300), st.integers(-LARGEST * 1000, LARGEST * 1000))


@st.composite
def batches(draw: st.DrawFn, most: int = 12) -> Batch:
    count = draw(st.integers(1, most))
    paths = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    rows_of = draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    event = np.repeat(np.arange(count), rows_of).astype(np.int32)
    n = len(event)
    cuts = sorted(draw(st.sets(st.integers(1, count - 1), max_size=3))) if count > 1 else []
    borders = [0, *cuts, count]
    segments = [Segment(draw(names), draw(names), draw(st.booleans()), b - a) for a, b in itertools.pairwise(borders)]
    sequenced = all(segment.sequenced for segment in segments)
    return Batch(
        ts_ms=np.array(draw(st.lists(times, min_size=n, max_size=n)), np.int64),
        leaf=np.array(draw(st.lists(st.integers(0, len(paths) - 1), min_size=n, max_size=n)), np.int32),
        values=np.array(draw(st.lists(amounts, min_size=5 * n, max_size=5 * n)), np.int64).reshape(5, n),
        event=event,
        uid=np.array(
            draw(st.lists(st.integers(0, 2**62 if sequenced else 2**64 - 1), min_size=count, max_size=count)), np.uint64
        ),
        paths=[leaf_path("org", "USD", path) for path in paths],
        segments=segments,
        ids=draw(st.lists(names, min_size=count, max_size=count)),
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
kinds = st.one_of(
    st.builds(Events, times, batches()),
    st.builds(Tick, times, st.none() | times),
    st.builds(RuleSet, times, names, st.integers(1, 2**40), st.lists(json_values, max_size=3), st.sampled_from(["live", "pane"])),
)


def same(a: Batch, b: Batch) -> bool:
    arrays = all(
        np.array_equal(getattr(a, name), getattr(b, name)) and getattr(a, name).dtype == getattr(b, name).dtype
        for name in ("ts_ms", "leaf", "values", "event", "uid")
    )
    return arrays and list(a.paths) == list(b.paths) and list(a.segments) == list(b.segments) and list(a.ids) == list(b.ids)


def read(data: bytes) -> Record | None:
    """The record, or None when it is refused; anything else fails the test."""
    try:
        return decode(data)
    except Rejected as error:
        assert error.code in ("malformed", "invalid", "unsupported") and str(error)
        return None


@given(times, batches())
@EXAMPLES
def test_events_come_out_as_they_went_in(stamp: int, batch: Batch) -> None:
    found = decode(encode(Events(stamp, batch)))
    assert isinstance(found, Events) and found.stamp_ms == stamp
    assert same(found.batch, batch)


@given(kinds.filter(lambda record: not isinstance(record, Events)))
@EXAMPLES
def test_ticks_and_rule_sets_come_out_as_they_went_in(record: Record) -> None:
    assert decode(encode(record)) == record


@given(st.lists(batches(6), min_size=1, max_size=4), st.integers(1, 7))
@EXAMPLES
def test_joined_and_cut_batches_hold_the_same_events_in_the_same_order(given_batches: list[Batch], most: int) -> None:
    def flat(some: list[Batch]) -> list[Any]:
        return [
            (int(b.ts_ms[row]), b.paths[b.leaf[row]], b.values[:, row].tolist(), b.ids[b.event[row]],
             int(b.uid[b.event[row]]), owner[b.event[row]])
            for b in some
            for owner in [[(s.org, s.source, s.sequenced) for s in b.segments for _ in range(s.count)]]
            for row in range(len(b))
        ]  # fmt: skip

    pieces = cut(concatenate(given_batches), most)
    assert all(len(piece.uid) <= most for piece in pieces)
    through = [decode(encode(Events(0, piece))) for piece in pieces]
    assert flat([found.batch for found in through if isinstance(found, Events)]) == flat(given_batches)


@given(st.binary(max_size=200))
@example(b"")
@example(b"\xc1")
@example(pack([1, 2]))
@example(pack({"k": "events"}))
@example(pack({"k": "events", "v": 1, "t": 0}))
@example(pack({"k": "tick", "v": 2, "t": 0, "w": None}))
@example(pack(None))
@EXAMPLES
def test_random_bytes_are_refused_and_never_raise_anything_else(data: bytes) -> None:
    assert read(data) is None


def test_endless_nesting_is_refused() -> None:
    refused = read(b"\x91" * 100_000) is None
    assert refused  # in two steps: pytest would print all of it


@given(kinds, st.data())
@settings(EXAMPLES, max_examples=250)
def test_a_damaged_record_is_refused_or_read_but_never_raises_anything_else(record: Record, data: st.DataObject) -> None:
    valid = encode(record)
    how = data.draw(st.sampled_from(["flip", "cut", "insert", "remove"]))
    place = data.draw(st.integers(0, len(valid) - 1))
    if how == "flip":
        damaged = valid[:place] + bytes([valid[place] ^ data.draw(st.integers(1, 255))]) + valid[place + 1 :]
    elif how == "cut":
        damaged = valid[:place]
    elif how == "insert":
        damaged = valid[:place] + data.draw(st.binary(min_size=1, max_size=4)) + valid[place:]
    else:
        damaged = valid[:place] + valid[place + data.draw(st.integers(1, 4)) :]
    found = read(damaged)
    if isinstance(found, Events):
        usable(found.batch)


@given(
    batches(),
    st.sampled_from(["base", "ts", "leaf", "values", "event", "uid", "paths", "segments", "ids", "t", "k", "v"]),
    st.data(),
)
@settings(EXAMPLES, max_examples=150)
def test_a_field_of_another_type_or_length_is_refused_or_harmless(batch: Batch, field: str, data: st.DataObject) -> None:
    raw = unpack(encode(Events(1, batch)))
    raw[field] = data.draw(
        st.one_of(
            st.none(), st.integers(-5, 5), names, st.lists(st.integers(-5, 5), max_size=4), st.floats(allow_nan=True),
            st.lists(st.integers(-9, 9), max_size=9).map(lambda v: np.array(v, np.int64)),
            st.just(np.zeros((2, 2), np.int32)), st.just(np.array([1.5, float("nan")])),
        )
    )  # fmt: skip
    found = read(pack(raw))
    if isinstance(found, Events):
        usable(found.batch)


def usable(batch: Batch) -> None:
    """What the engine reads of a batch without looking."""
    n, e = len(batch.ts_ms), len(batch.uid)
    assert batch.ts_ms.dtype == np.int64 and batch.values.dtype == np.int64 and batch.uid.dtype == np.uint64
    assert batch.ts_ms.ndim == batch.leaf.ndim == batch.event.ndim == batch.uid.ndim == 1
    assert batch.values.shape == (5, n) and len(batch.leaf) == len(batch.event) == n
    assert sum(segment.count for segment in batch.segments) == e
    assert n == 0 or (batch.leaf.min() >= 0 and batch.leaf.max() < len(batch.paths))
    assert n == 0 or (batch.event.min() >= 0 and batch.event.max() < e)
    assert len(batch.ids) == e
    assert all(isinstance(path, str) and path.count("\x1f") == 7 for path in batch.paths)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("leaf", np.array([0, 9], np.int32)), ("leaf", np.array([-1, 0], np.int32)), ("event", np.array([0, 2], np.int32)),
        ("event", np.array([-1, 0], np.int32)), ("uid", np.array([1], np.int64)), ("leaf", np.array([0], np.int32)),
        ("segments", [["acme", "feed", True, 3]]), ("ids", "only-one"), ("values", [None] * 4), ("paths", []),
    ],
)  # fmt: skip
def test_an_index_outside_its_list_or_a_column_of_another_length_is_refused(field: str, value: Any) -> None:
    batch = Batch(
        np.array([1, 2], np.int64), np.array([0, 0], np.int32), np.zeros((5, 2), np.int64), np.array([0, 1], np.int32),
        np.array([1, 2], np.uint64), [leaf_path("acme", "USD", "meta")], [Segment("acme", "feed", True, 2)], ["a", "b"],
    )  # fmt: skip
    raw = unpack(encode(Events(1, batch)))
    assert read(pack(raw)) is not None
    raw[field] = value
    assert read(pack(raw)) is None
