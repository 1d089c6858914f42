"""Rollups against the plain model: a consumer that takes absolute values knows every pane as it is."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmis_stream.core.channels import entity_key
from cmis_stream.core.engine import Engine
from cmis_stream.core.entities import Entity
from cmis_stream.core.rollups import Rollup, Rollups, distinct, summed
from cmis_stream.core.windows import KEPT, UNITS
from tests.core.reference import PANE_MS, ZERO, Event, Model, Sums, entities_of, plus
from tests.core.support import HOUR, LEAVES, MINUTE, NOW, SECOND, START, batch_of, cut, cuts, event, examples, streams

Cell = tuple[str, str, int, int]
"""org, entity, the pane's start in ms, its size in ms."""
Told = dict[Cell, tuple[bool, Sums]]

TOLD = ("org", "platform", "campaign")


class Follower:
    """An engine whose rollups are followed: the newest value of a cell holds."""

    def __init__(self) -> None:
        self.engine = Engine()
        self.rollups = Rollups(self.engine.windows)
        self.cells: Told = {}
        self.told: list[Told] = []
        self.number = 0

    def record(self, events: list[Event]) -> None:
        self.engine.apply(batch_of(events, self.number), NOW)
        self.number += len(events)

    def roll_up(self) -> Told:
        rollup = self.rollups.take()
        cells = cells_of(rollup) if rollup is not None else {}
        self.cells.update(cells)
        self.told.append(cells)
        return cells


def cells_of(rollup: Rollup) -> Told:
    found: Told = {}
    for org, (first, last) in zip(rollup.orgs, pairwise(rollup.bounds), strict=True):
        for row in range(first, last):
            cell = (org, rollup.keys[rollup.entity[row]], int(rollup.start_ms[row]), int(rollup.pane_ms[row]))
            assert cell not in found, "a cell stands once in a rollup"
            found[cell] = (bool(rollup.closed[row]), tuple(rollup.sums[:, row].tolist()))
    return found


def key_of(entity: Entity) -> str:
    depth = {"org": 1, "platform": 2, "campaign": 4}[entity.level]
    return entity_key(entity[2 : 2 + depth], entity.custom)


class PlainRollups:
    """What a follower must know, an event at a time."""

    def __init__(self) -> None:
        self.model = Model()
        self.cells: dict[Cell, Sums] = {}

    def event(self, event: Event) -> None:
        too_late, pane = self.model.too_late, event.ts // PANE_MS
        org = self.model.orgs.get(event.org)
        head = org.head if org is not None else (event.ts - 5 * SECOND) // PANE_MS - 1
        self.model.record([event])
        if self.model.too_late > too_late:
            return
        for level, (unit, kept) in enumerate(zip(UNITS, KEPT, strict=True)):
            index = pane // unit
            gone = level and index * unit <= (head // UNITS[level - 1] - KEPT[level - 1]) * UNITS[level - 1]
            if level == 0 and (pane > head or index > head - kept):
                self._add(event, index, unit, whole=False)
            elif gone and index > head // unit - kept:
                self._add(event, index, unit, whole=True)

    def _add(self, event: Event, index: int, unit: int, *, whole: bool) -> None:
        """whole: the pane as it is; else only what has been told of it (a pane of 10 s is not amended for ever)."""
        for custom, sums in event.rows():
            for entity in entities_of(event, custom):
                if entity.level in TOLD:
                    cell = (event.org, key_of(entity), index * unit * PANE_MS, unit * PANE_MS)
                    now = self.model.orgs[event.org].panes[unit][index][entity]
                    self.cells[cell] = now if whole else plus(self.cells.get(cell, ZERO), sums)

    def known(self) -> Told:
        heads = {name: (org.head + 1) * PANE_MS for name, org in self.model.orgs.items()}
        return {cell: (cell[2] + cell[3] <= heads[cell[0]], sums) for cell, sums in self.cells.items()}


def assert_knows(follower: Follower, want: Told) -> None:
    """Also of coarser panes: those of an amended one are all told, so there may be more of them, and they must be right."""
    assert {cell: follower.cells.get(cell) for cell in want} == want
    assert {cell for cell in follower.cells if cell[3] == PANE_MS} == {cell for cell in want if cell[3] == PANE_MS}


@given(streams, st.lists(st.booleans(), min_size=1, max_size=7))
@examples(150)
def test_a_follower_knows_every_pane_whenever_rollups_are_taken(events: list[Event], moments: list[bool]) -> None:
    follower, plain = Follower(), PlainRollups()
    for i, e in enumerate(events):
        follower.record([e])
        plain.event(e)
        if moments[i % len(moments)]:
            follower.roll_up()
            assert_knows(follower, plain.known())
    follower.roll_up()
    assert_knows(follower, plain.known())
    assert not follower.roll_up(), "nothing has changed since"


@given(streams, cuts)
@examples(60)
def test_a_rollup_tells_exactly_what_has_changed(events: list[Event], sizes: list[int]) -> None:
    """Of panes of 10 s; of coarser ones, amended rarely, whole panes are told."""
    follower = Follower()
    for part in cut(events, sizes):
        before = dict(follower.cells)
        follower.record(part)
        told = follower.roll_up()
        same = [cell for cell, value in told.items() if before.get(cell) == value and cell[3] == PANE_MS]
        recent = follower.engine.windows.closed.head.max() - 12
        assert [cell for cell in same if cell[2] // PANE_MS > recent] == []


def test_an_org_whose_time_lags_behind_another_s_is_not_told_whole_again() -> None:
    follower = Follower()
    follower.record([event(0, campaign="a"), event(0, campaign="b"), event(MINUTE, org="beta"), event(8000, campaign="a")])
    follower.roll_up()
    follower.record([event(9000, campaign="b")])
    assert {cell[1] for cell in follower.roll_up()} == {"USD", "USD/meta", "USD/meta//b"}


def test_panes_that_are_forgotten_before_the_next_rollup_are_told_first() -> None:
    follower = Follower()
    follower.record([event(0, campaign="a", clicks=1), event(15 * SECOND, campaign="a", clicks=2)])
    follower.record([event(9 * 24 * HOUR, campaign="b", clicks=4)])
    follower.roll_up()
    assert [follower.cells["acme", "USD/meta//a", START + ms, PANE_MS] for ms in (0, 10_000)] == [
        (True, (1, 0, 1, 0, 0, 0)),
        (True, (1, 0, 2, 0, 0, 0)),
    ]
    follower.record([event(9 * 24 * HOUR + MINUTE, campaign="b")])
    assert all(number > START // PANE_MS + 100 for number in follower.engine.windows.panes[0]), "and then they go"


def test_a_late_event_is_told_in_the_finest_pane_that_is_kept_so_far_back() -> None:
    follower = Follower()
    follower.record([event(0, clicks=1), event(2 * HOUR)])
    follower.roll_up()
    follower.record([event(1000, clicks=10)])
    told = follower.roll_up()
    assert told["acme", "USD/meta//c1", START, MINUTE] == (True, (2, 0, 11, 0, 0, 0))
    assert {cell[3] for cell in told} == {MINUTE}


def test_an_org_that_is_idle_closes_its_panes_in_a_rollup_after_a_tick() -> None:
    follower = Follower()
    follower.record([event(0, clicks=1)])
    assert {closed for closed, _ in follower.roll_up().values()} == {False}
    follower.engine.tick(NOW, START + 10 * SECOND)
    told = follower.roll_up()
    assert len(told) == 3 and {closed for closed, _ in told.values()} == {True}
    assert follower.roll_up() == {}


def test_orgs_that_come_one_after_the_other_are_told_beside_those_that_were_there() -> None:
    follower = Follower()
    for number in range(200):
        follower.record([event(0, org=f"o{number}", clicks=number), event(0, org="o0")])
        assert {cell[0] for cell in follower.roll_up()} == {f"o{number}", "o0"}
    assert len(follower.cells) == 600 and follower.cells["o7", "USD", START, PANE_MS] == (False, (1, 0, 7, 0, 0, 0))


def test_nothing_is_marked_for_an_engine_that_nobody_asks() -> None:
    engine = Engine()
    engine.apply(batch_of([event(0), event(MINUTE)]), NOW)
    assert engine.windows.untold is None


@pytest.mark.parametrize("leaf", LEAVES)
def test_each_level_of_a_leaf_is_told_under_its_key(leaf: tuple[str, ...]) -> None:
    follower = Follower()
    follower.record([Event(START, ("acme", *leaf), (1, 2, 3, 4, 5), (("views", 7_000_000),))])
    keys = [
        key_of(e) for custom in ("", "views") for e in entities_of(Event(0, ("acme", *leaf), (0,) * 5), custom) if e.level in TOLD
    ]
    assert sorted(cell[1] for cell in follower.roll_up()) == sorted(keys)


@given(st.lists(st.integers(0, 30), max_size=40))
@examples(60)
def test_distinct_keys_and_their_places(keys: list[int]) -> None:
    found, place = distinct(np.array(keys, np.int64), 31)
    assert sorted(found.tolist()) == sorted(set(keys))
    assert found[place].tolist() == keys


def test_values_are_summed_by_place_for_each_set_of_places() -> None:
    values = np.arange(12, dtype=np.int64).reshape(6, 2)
    assert summed(np.array([1, 1]), values, 3).tolist() == [[0, a + b, 0] for a, b in values.tolist()]
    assert summed(np.array([[0, 1], [2, 2]]), values, 3).tolist() == [[a, b, a + b] for a, b in values.tolist()]


def test_rollups_of_many_orgs_with_random_cuts_end_at_the_same_cells() -> None:
    """The same records, rolled up at other moments: the same knowledge."""
    dice = random.Random(5)
    events = [
        event(
            int(n * 1.5 * SECOND) - dice.randrange(8_000),
            org=dice.choice(["acme", "beta"]),
            campaign=dice.choice("abc"),
            clicks=n,
        )
        for n in range(600)
    ]
    ends = []
    for every in (1, 3, 50):
        follower = Follower()
        for i, part in enumerate(cut(events, [4])):
            follower.record(part)
            if i % every == 0:
                follower.roll_up()
        follower.roll_up()
        ends.append(follower.cells)
    assert ends[0] == ends[1] == ends[2] and len(ends[0]) > 300
