"""Duplicates: the set of ids against Python's, generations by time and count, senders that number their events."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmis_stream.core import dedup
from cmis_stream.core.batch import UInt64
from cmis_stream.core.dedup import HORIZON_MS, Generation, IdSet, Seen
from tests.core.support import examples


def u64(*values: int) -> UInt64:
    return np.array(values, np.uint64)


# Ids that meet in the same places of the table, at its end, and 0, which marks a free place (the one id that stands for it
# inside cannot be told from it).
_ids = st.one_of(
    st.integers(0, 6),
    st.integers(0, 2**64 - 1).filter(lambda n: n != dedup._SUBSTITUTE),
    st.integers(0, 5).map(lambda n: (n << 40) + 14),
    st.integers(0, 3).map(lambda n: 15 + 16 * n),
)


@given(st.lists(st.lists(_ids, max_size=25), max_size=12), st.sampled_from([4, 16, 4096]))
@examples(80)
def test_an_id_set_behaves_as_a_set_and_the_first_of_equal_ids_is_the_new_one(calls: list[list[int]], capacity: int) -> None:
    ids, plain = IdSet(capacity), set[int]()
    for call in calls:
        assert ids.holds(u64(*call)).tolist() == [i in plain for i in call]
        want = []
        for i in call:
            want.append(i not in plain)
            plain.add(i)
        assert ids.add(u64(*call)).tolist() == want
        assert ids.count == len(plain)
        assert all(i in ids for i in plain)
    assert 2**63 + 12_345 not in ids


def test_an_id_set_grows_and_keeps_what_it_has() -> None:
    ids, chance = IdSet(4), np.random.default_rng(1)
    values = np.unique(chance.integers(0, 2**64, 60_000, np.uint64))
    chance.shuffle(values)
    for part in np.array_split(values, 37):
        assert ids.add(part).all() and not ids.add(part).any()
    assert ids.count == len(values) and ids.holds(values).all()
    assert not ids.holds(values + np.uint64(1))[~np.isin(values + np.uint64(1), values)].any()
    assert ids.nbytes <= 8 * 8 * len(values)


def test_ids_are_remembered_for_at_least_an_hour_and_forgotten_after_two_quiet_ones() -> None:
    seen = Seen()
    assert seen.new_ids(u64(0, 7, 7), 0).tolist() == [True, True, False]
    assert seen.new_ids(u64(8, 7), HORIZON_MS - 1).tolist() == [True, False]
    assert [g.number for g in seen.generations] == [0]
    assert seen.new_ids(u64(9), HORIZON_MS).tolist() == [True]
    assert [g.number for g in seen.generations] == [0, 1]
    assert seen.new_ids(u64(8, 0), 2 * HORIZON_MS - 1).tolist() == [False, False]
    assert seen.new_ids(u64(7, 8, 0, 9), 2 * HORIZON_MS).tolist() == [True, False, False, False]
    assert [g.number for g in seen.generations] == [1, 2]


def test_a_full_generation_makes_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedup, "HORIZON_IDS", 8)
    seen = Seen()
    assert seen.new_ids(u64(1, 2, 3, 4), 0).all()
    assert len(seen.generations) == 1
    assert seen.new_ids(u64(1, 5), 0).tolist() == [False, True]
    assert [len(g) for g in seen.generations] == [4, 2]
    assert seen.new_ids(u64(6, 7, 8), 0).all()
    assert [g.number for g in seen.generations] == [1, 2]
    assert seen.new_ids(u64(2), 0).tolist() == [True]
    assert seen.new_ids(u64(5, 8), 0).tolist() == [True, False]


@given(st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=6), st.integers(0, HORIZON_MS // 2)), max_size=30))
@examples(40)
def test_every_repeat_within_the_hour_is_found(calls: list[tuple[list[int], int]]) -> None:
    seen, now, arrived = Seen(), 0, dict[int, int]()
    for ids, later in calls:
        now += later
        fresh = seen.new_ids(u64(*ids), now).tolist()
        for i, new in zip(ids, fresh, strict=True):
            if i in arrived and now - arrived[i] < HORIZON_MS:
                assert not new
            if i not in arrived:
                assert new
            arrived[i] = now if new or i not in arrived else arrived[i]


def test_a_generation_keeps_its_ids_in_chunks_in_the_order_of_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Generation, "CHUNK", 4)
    generation = Generation(3, 100)
    generation.add(u64(5, 4, 5, 9))
    assert generation.dirty == {0}
    generation.dirty.clear()
    generation.add(u64(4, 1, 2, 3, 8, 7, 6, 10))
    assert [chunk.tolist() for chunk in generation.chunks] == [[5, 4, 9, 1], [2, 3, 8, 7], [6, 10]]
    assert generation.dirty == {0, 1, 2} and len(generation) == 10
    generation.dirty.clear()
    generation.add(u64(6, 11))
    assert generation.dirty == {2} and generation.chunks[2].tolist() == [6, 10, 11]


def test_a_sender_that_numbers_its_events_is_known_by_its_highest_number() -> None:
    seen = Seen()
    numbers = np.array([0, 1, 4], np.int64)
    assert seen.new_numbers("acme", "feed", numbers).tolist() == [True, True, True] and seen.sequences_dirty
    assert seen.new_numbers("acme", "feed", numbers).tolist() == [False, False, False]
    assert seen.new_numbers("acme", "feed", np.array([3, 4, 5], np.int64)).tolist() == [False, False, True]
    assert seen.new_numbers("acme", "feed", np.array([2], np.int64)).tolist() == [False]
    assert seen.new_numbers("acme", "feed", np.array([], np.int64)).tolist() == []
    assert seen.new_numbers("acme", "other", np.array([0], np.int64)).tolist() == [True]
    assert seen.new_numbers("beta", "feed", np.array([5], np.int64)).tolist() == [True]
    assert seen.highest == {("acme", "feed"): 5, ("acme", "other"): 0, ("beta", "feed"): 5}
    seen.sequences_dirty = False
    seen.new_numbers("acme", "feed", np.array([5], np.int64))
    assert not seen.sequences_dirty
