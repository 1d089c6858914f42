"""Panes add up whatever the order, keep their sums packed or not; entities and leaves are found again."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cmis_stream.core.entities import LEVELS, SINK, Entities, Entity
from cmis_stream.core.panes import Pane, narrow
from tests.core.reference import Event, entities_of
from tests.core.support import examples

_value = st.one_of(st.integers(-3, 300), st.sampled_from([65_535, 65_536, 2**31 - 1, 2**31, -(2**31) - 1, 2**53]))
_parts = st.lists(st.lists(st.tuples(st.integers(0, 40), _value), min_size=1, max_size=6), max_size=5)


def add(pane: Pane, part: list[tuple[int, int]]) -> None:
    leaves, values = zip(*part, strict=True)
    sums = np.array([[1] * len(part), *([v + i for v in values] for i in range(5))], np.int64)
    pane.add(np.array(leaves, np.int64), sums)


def held(pane: Pane) -> dict[int, tuple[int, ...]]:
    leaves = pane.leaves().tolist()
    assert len(leaves) == len(set(leaves)) == len(pane)
    return {leaf: tuple(sums) for leaf, sums in zip(leaves, pane.sums().T.tolist(), strict=True)}


def plain(parts: list[list[tuple[int, int]]]) -> dict[int, tuple[int, ...]]:
    total: dict[int, tuple[int, ...]] = {}
    for leaf, value in (entry for part in parts for entry in part):
        total[leaf] = tuple(a + b for a, b in zip(total.get(leaf, (0,) * 6), (1, *(value + i for i in range(5))), strict=True))
    return total


@given(_parts, st.lists(st.booleans(), min_size=5, max_size=5))
@examples(40)
def test_a_pane_is_the_same_whatever_the_order_the_split_and_the_packing(
    parts: list[list[tuple[int, int]]], packs: list[bool]
) -> None:
    want = plain(parts)
    for order in list(permutations(parts))[:6]:
        pane = Pane()
        for part, pack in zip(order, packs, strict=False):
            add(pane, part)
            if pack:
                pane.pack()
                assert pane.leaves().tolist() == sorted(pane.leaves().tolist())
        assert held(pane) == want
    one = Pane()
    for entry in reversed([entry for part in parts for entry in part]):
        add(one, [entry])
    assert held(one) == want


@given(_parts, st.booleans())
@examples(30)
def test_a_pane_comes_back_from_its_columns(parts: list[list[tuple[int, int]]], pack: bool) -> None:
    pane = Pane()
    for part in parts:
        add(pane, part)
    if pack:
        pane.pack()
    again = Pane.from_columns([column.copy() for column in pane.columns()])
    assert held(again) == plain(parts) and not again.dirty
    add(again, [(3, 4)])
    assert held(again) == plain([*parts, [(3, 4)]]) and again.dirty


def test_the_chosen_leaves_of_a_pane_are_those_that_are_flagged() -> None:
    pane = Pane()
    add(pane, [(5, 1), (2, 7), (9, 3)])
    for _ in range(2):
        flags = np.zeros(10, bool)
        flags[[2, 9]] = True
        leaves, sums = pane.of(flags)
        assert dict(zip(leaves.tolist(), sums[1].tolist(), strict=True)) == {2: 7, 9: 3}
        pane.pack()


def test_a_packed_pane_is_a_fraction_of_a_filling_one() -> None:
    pane = Pane()
    add(pane, [(leaf, 40) for leaf in range(1000)])
    before = pane.nbytes
    pane.pack()
    assert pane.nbytes * 5 <= before


@given(st.lists(st.one_of(_value, st.sampled_from([0, 255, 256, -1])), max_size=6))
@examples(40)
def test_narrowed_integers_are_the_same_integers(values: list[int]) -> None:
    narrowed = narrow(np.array(values, np.int64))
    assert narrowed.tolist() == values
    low, high = min(values, default=0), max(values, default=0)
    assert narrowed.itemsize <= (
        1 if low >= 0 and high < 256 else 2 if low >= 0 and high < 65_536 else 4 if low >= -(2**31) and high < 2**31 else 8
    )


_names = st.sampled_from(["", "a", "b"])
_leaves = st.tuples(
    st.sampled_from(["o1", "o2"]), st.sampled_from(["USD", "EUR"]), st.sampled_from(["meta", "x"]), _names, _names, _names, _names
)


@given(
    st.lists(st.lists(st.tuples(_leaves, st.sampled_from(["", "views"])), max_size=8), max_size=4),
    st.sets(st.sampled_from(LEVELS), min_size=1),
)
@examples(50)
def test_each_leaf_adds_to_one_entity_of_each_kept_level_that_it_has(calls: list[list[Any]], kept: set[str]) -> None:
    entities = Entities([level for level in LEVELS if level in kept])
    numbers: dict[str, int] = {}
    for call in calls:
        paths = ["\x1f".join((*leaf, custom)) for leaf, custom in call]
        for path, number in zip(paths, entities.numbers(paths).tolist(), strict=True):
            assert numbers.setdefault(path, number) == number and entities.paths[number] == path
    assert len(set(numbers.values())) == len(numbers) == entities.leaves
    known: dict[Entity, int] = {}
    for leaf, custom in (entry for call in calls for entry in call):
        number = numbers["\x1f".join((*leaf, custom))]
        assert entities.orgs[entities.leaf_org[number]] == leaf[0]
        want = {e for e in entities_of(Event(0, leaf, (0,) * 5), custom) if e.level in kept}
        rows = [row for row in entities.rows[:, number].tolist() if row != SINK]
        assert {entities.entity(row) for row in rows} == want and len(rows) == len(want)
        for row in rows:
            entity = entities.entity(row)
            assert known.setdefault(entity, row) == row == entities.find(entity)
            assert entities.orgs[entities.entity_org[row]] == leaf[0] and LEVELS[entities.entity_level[row]] == entity.level
    assert len(entities) == len(known) + 1
    assert entities.find(Entity("org", "nobody", "USD")) is None
