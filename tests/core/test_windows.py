"""Windows against the plain model: transitions, sums, cuts, lateness, retention, idleness."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmis_stream.core.engine import Engine, end_of_panes
from cmis_stream.core.rules import Rule
from cmis_stream.core.time import PANE_SIZES_MS, WINDOWS
from cmis_stream.core.windows import NEVER
from tests.core.reference import PANE_MS, ZERO, Event, Model
from tests.core.support import (
    DAY,
    HOUR,
    MINUTE,
    NOW,
    ORGS,
    SECOND,
    START,
    Run,
    cut,
    cuts,
    event,
    examples,
    follow,
    rule,
    rule_sets,
    streams,
)

ALL = tuple(WINDOWS.values())


def keep_all(run: Run) -> Run:
    run.engine.windows.keep(run.engine.windows.closed, ALL)
    return run


def modelled(rules: list[Rule], records: list[list[Event]]) -> Model:
    model = Model()
    for org in ORGS:
        model.adopt(org, [r for r in rules if r.org == org], NOW)
    for record in records:
        model.record(record)
    return model


def assert_sums_agree(engine: Engine, model: Model) -> None:
    """The running sums of both views, what the panes add up to, and the plain model."""
    windows, entities = engine.windows, engine.entities
    rows = np.arange(1, len(entities))
    for view, head_of in ((windows.closed, "head"), (windows.live, "live_head")):
        for window in view.gone:
            running = view.sums(window, rows)
            added = windows.window_sums(window, view)[:, rows]
            assert (running == added).all(), (window.name, head_of)
            for row in rows.tolist():
                entity = entities.entity(row)
                org = model.orgs[entity.org]
                want = org.closed_sums(window, entity) if head_of == "head" else org.sums(window, org.live_head, entity)
                assert tuple(running[:, row - 1].tolist()) == want, (window.name, head_of, entity)


# --- transitions ------------------------------------------------------------------------------------------------------


@pytest.mark.spec("ALR-M04", "ALR-M05")
@given(streams, rule_sets(), cuts)
@examples(70)
def test_pane_rules_change_exactly_as_in_the_plain_model(events: list[Event], rules: list[Rule], sizes: list[int]) -> None:
    run, model = Run(rules), modelled(rules, [events])
    for part in cut(events, sizes):
        run.record(part)
    assert sorted(run.changes) == sorted(model.changes)
    assert run.engine.windows.late_events == sum(len(list(e.rows())) for e in events) - _on_time_rows(events)
    assert len(run.refused) == model.too_late


def _on_time_rows(events: list[Event]) -> int:
    model, count = Model(), 0
    for e in events:
        before = model.late, model.too_late
        model.record([e])
        late, too_late = model.late - before[0], model.too_late - before[1]
        count += len(list(e.rows())) if not late or too_late else 0
    return count


@given(streams, rule_sets(), cuts, cuts, st.integers(0, 2**32))
@examples(30)
def test_how_events_are_cut_and_how_orgs_are_interleaved_changes_nothing(
    events: list[Event], rules: list[Rule], sizes: list[int], others: list[int], seed: int
) -> None:
    one, two = Run(rules), Run(rules)
    for part in cut(events, sizes):
        one.record(part)
    for part in cut(interleaved(events, random.Random(seed)), others):
        two.record(part)
    assert one.evidence() == two.evidence()


def interleaved(events: list[Event], chance: random.Random) -> list[Event]:
    """Another order across orgs, the same within each."""
    queues = {org: [e for e in events if e.org == org][::-1] for org in ORGS}
    owners = [e.org for e in events]
    chance.shuffle(owners)
    return [queues[org].pop() for org in owners]


@pytest.mark.spec("ALR-M08")
@given(streams, rule_sets(("live",)), cuts)
@examples(50)
def test_live_rules_change_exactly_as_in_the_plain_model(events: list[Event], rules: list[Rule], sizes: list[int]) -> None:
    records = cut(events, sizes)
    run, model = Run(rules), modelled(rules, records)
    for part in records:
        run.record(part)
    assert sorted(run.changes) == sorted(model.changes)


@given(streams, rule_sets(("live", "pane")), cuts)
@examples(20)
def test_the_same_records_give_the_same_transitions_in_the_same_order(
    events: list[Event], rules: list[Rule], sizes: list[int]
) -> None:
    one, two = Run(rules, live_windows=ALL), Run(rules, live_windows=ALL)
    for part in cut(events, sizes):
        assert one.record(part) == two.record(part)
    for org in ORGS:
        times = [c.at for c in one.changes if c.org == org and not is_live(rules, c.rule)]
        assert times == sorted(times)
    assert follow(one.changes) == one.engine.rules.firing_pairs()


def is_live(rules: list[Rule], rule_id: str) -> bool:
    return next(r.evaluate == "live" for r in rules if r.id == rule_id)


@given(streams, cuts)
@examples(40)
def test_running_sums_equal_added_panes_equal_the_plain_model_in_both_views(events: list[Event], sizes: list[int]) -> None:
    run, model = keep_all(Run(live_windows=ALL)), Model()
    records = cut(events, sizes)
    for i, part in enumerate(records):
        run.record(part)
        model.record(part)
        if i % 4 == 3 or i == len(records) - 1:
            assert_sums_agree(run.engine, model)


@given(streams, cuts, st.integers(0, 30), st.sets(st.sampled_from(list(WINDOWS)), min_size=1, max_size=3))
@examples(30)
def test_windows_that_are_wanted_later_are_added_up_from_the_panes(
    events: list[Event], sizes: list[int], moment: int, names: set[str]
) -> None:
    run, model = Run(), Model()
    records = cut(events, sizes)
    for i, part in enumerate(records):
        run.record(part)
        model.record(part)
        if i == min(moment, len(records) - 1) // 2:
            chosen = [window for window in ALL if window.name in names]
            for view in (run.engine.windows.live, run.engine.windows.closed):
                run.engine.windows.keep(view, chosen)
            assert_sums_agree(run.engine, model)
    assert_sums_agree(run.engine, model)


@given(streams, rule_sets(("live", "pane")), cuts, st.integers(0, 10 * DAY))
@examples(20)
def test_a_final_tick_closes_what_is_open_as_in_the_plain_model(
    events: list[Event], rules: list[Rule], sizes: list[int], beyond: int
) -> None:
    records = cut(events, sizes)
    run, model = Run(rules, live_windows=ALL), modelled(rules, records)
    for part in records:
        run.record(part)
    for watermark in (end_of_panes(max(e.ts for e in events)), end_of_panes(max(e.ts for e in events)) + beyond):
        run.tick(watermark_ms=watermark)
        model.move_to(dict.fromkeys(ORGS, watermark))
        assert sorted(run.changes) == sorted(model.changes)
    assert_sums_agree(run.engine, model)


# --- jumps and late events, one by one ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "records",
    [
        [[event(0)], [event(18 * MINUTE)]],
        [[event(0)], [event(3 * HOUR)]],
        [[event(0)], [event(30 * HOUR)]],
        [[event(0)], [event(8 * DAY)]],
        [[event(0)], [event(HOUR), event(30 * MINUTE), event(3 * HOUR)]],
        [[event(0)], [event(HOUR), event(30 * MINUTE)], [event(3 * HOUR)]],
        [[event(0), event(2 * HOUR), event(70 * MINUTE), event(DAY)]],
        [[event(0)], [event(16 * MINUTE), event(0), event(10 * SECOND)], [event(17 * MINUTE)], [event(40 * MINUTE)]],
        [[event(0)], [event(16 * MINUTE), event(10 * SECOND)], [event(16 * MINUTE + 10 * SECOND)], [event(17 * MINUTE)]],
        [[event(0), event(0, "beta")], [event(2 * DAY), event(9 * HOUR)], [event(3 * DAY), event(7 * HOUR, "beta")]],
        [[event(0)], [event(7 * DAY + 5 * SECOND), event(0), event(50 * SECOND)], [event(8 * DAY)]],
    ],
)  # fmt: skip
def test_after_jumps_with_late_events_every_window_still_holds_what_it_should(records: list[list[Event]]) -> None:
    run, model = keep_all(Run(live_windows=ALL)), Model()
    for part in records:
        run.record(part)
        model.record(part)
        assert_sums_agree(run.engine, model)


def test_the_first_live_rule_sees_the_window_that_ends_with_the_newest_event() -> None:
    silent = rule(metric="spend", window="1m", op="gt", threshold=100)
    run = Run([silent])
    run.record([event(0, spend=7)])
    run.record([event(3 * MINUTE, spend=1)])
    live = rule(id="live", evaluate="live", metric="spend", window="1m", op="eq", threshold=1)
    (fired,) = run.adopt("acme", 2, [silent, live])
    assert (fired.rule, fired.at, fired.firing) == ("live", START + 3 * MINUTE, True)


def test_an_amended_window_is_judged_when_its_own_next_pane_closes_even_within_a_jump() -> None:
    run = Run([rule(metric="spend", window="1h", op="gte", threshold=5)])
    run.record([event(0, spend=1), event(10 * MINUTE), event(MINUTE, spend=4), event(2 * DAY)])
    assert [(c.at - START, c.firing) for c in run.changes] == [(10 * MINUTE, True), (61 * MINUTE, False)]


def test_an_amended_window_is_not_judged_when_a_pane_of_another_org_closes() -> None:
    run = Run([rule(metric="spend", window="1m", op="gte", threshold=4)])
    run.record([event(0, spend=1), event(15 * SECOND), event(5 * SECOND, spend=4)])
    assert run.record([event(5 * SECOND, "beta"), event(10 * MINUTE, "beta")]) == []
    (fired,) = run.record([event(25 * SECOND)])
    assert (fired.entity.org, fired.at) == ("acme", START + 20 * SECOND)


@pytest.mark.parametrize("name", ["1m", "15m", "1h", "6h", "24h", "7d"])
def test_losing_a_pane_is_judged_even_when_nothing_else_happens_to_the_entity(name: str) -> None:
    window = WINDOWS[name]
    run = Run([rule(metric="spend", window=name, op="gte", threshold=5, campaign="c1")])
    run.record([event(0, spend=5), event(window.size_ms // 2, spend=1), event(window.size_ms + 5 * SECOND, campaign="c2")])
    assert [c.firing for c in run.changes] == [True]
    steps = range(window.size_ms, window.size_ms + window.pane_ms, max(10 * SECOND, window.pane_ms // 20))
    for moment in (*steps, window.size_ms + window.pane_ms + 5 * SECOND):
        changes = run.record([event(moment, campaign="c2")])
        assert [c.at for c in changes] in ([], [START + window.size_ms + window.pane_ms])
    assert [c.firing for c in run.changes] == [True, False]


def test_a_late_event_counts_from_the_first_pane_that_is_open_when_it_arrives() -> None:
    run = Run([rule(metric="spend", window="1m", op="gte", threshold=5)])
    run.record([event(0, spend=1), event(15_000), event(9_999, spend=4)])  # the pane of 0..10 s has just closed
    assert run.engine.windows.late_events == 1 and run.changes == []
    run.record([event(24_999)])
    assert run.changes == []
    (fired,) = run.record([event(25_000)])
    assert fired.at == START + 20_000


def test_an_event_five_seconds_behind_is_on_time() -> None:
    run = Run([rule(metric="spend", window="1m", op="gte", threshold=5)])
    run.record([event(0, spend=1), event(14_999), event(9_999, spend=4)])
    assert run.engine.windows.late_events == 0
    (fired,) = run.record([event(15_000)])
    assert fired.at == START + 10_000


# --- what is kept -------------------------------------------------------------------------------------------------------


def stored(run: Run) -> list[int]:
    return [len(store) for store in run.engine.windows.panes]


def test_panes_are_dropped_when_no_window_needs_them_any_more() -> None:
    run = keep_all(Run(live_windows=ALL))
    for minute in range(0, 8 * 24 * 60, 47):
        run.record([event(minute * MINUTE, spend=1)])
    assert all(have <= most for have, most in zip(stored(run), (3, 360 // 47 + 3, 1440 // 47 + 3, 168 + 3), strict=True))
    run.record([event(40 * DAY)])
    run.record([event(41 * DAY)])
    assert max(stored(run)) <= 2
    run.record([event(80 * DAY)])
    run.record([event(80 * DAY + MINUTE)])
    assert max(stored(run)) <= 2


def test_memory_follows_the_panes_that_have_events() -> None:
    run = keep_all(Run())
    for day in range(7):
        run.record([event(day * DAY, spend=1)])
    assert all(count <= 8 for count in stored(run))
    assert sum(pane.nbytes for store in run.engine.windows.panes for pane in store.values()) < 8_000


def test_events_older_than_the_retention_are_refused_once_each_and_count_nowhere() -> None:
    run = keep_all(Run(live_windows=ALL))
    head = 7 * DAY  # the first open pane starts here
    assert run.record([event(head + 5 * SECOND)]) == []
    run.record([event(0, spend=1), event(-1, spend=1, custom={"views": 1, "likes": 2}), event(head, spend=1)])
    assert run.refused == [(1, "too_late")]
    assert run.engine.windows.late_events == 1 and run.engine.events == 3
    entities = run.engine.entities
    assert not any(
        entities.entity(row).custom and run.engine.windows.live.sums(ALL[-1], np.array([row])).any()
        for row in range(1, len(entities))
    )


# --- idleness -------------------------------------------------------------------------------------------------------------


def sums_of(run: Run, org: str, window: str = "5m") -> tuple[int, ...]:
    rows = [row for row in range(1, len(run.engine.entities)) if run.engine.entities.entity(row)[:2] == ("campaign", org)]
    return tuple(run.engine.windows.closed.sums(WINDOWS[window], np.array(rows)).sum(axis=1).tolist())


def test_an_idle_org_follows_the_clock_a_minute_behind_until_its_windows_are_empty() -> None:
    overspend = rule(metric="spend", window="5m", op="gte", threshold=3)
    run = keep_all(Run([overspend], live_windows=ALL))
    run.record([event(0, spend=2), event(65_000, spend=1)], now_ms=START + 65_000)
    changes = []
    for second in range(66, 65 + 60):
        changes += run.tick(START + second * SECOND)
    assert changes == []  # 59 seconds without events: not idle yet
    fired_at = resolved_at = None
    for second in range(125, 429):
        for change in run.tick(START + second * SECOND):
            assert change.at <= START + (second - 60) * SECOND
            if change.firing:
                fired_at = second, change.at
            else:
                resolved_at = second, change.at
    assert fired_at == (130, START + 70_000)  # the pane of the last event closes when the clock, less a minute, is past it
    assert resolved_at == (370, START + 310_000)
    assert sums_of(run, "acme")[0] == 1
    for second in range(429, 600):
        run.tick(START + second * SECOND)
    assert sums_of(run, "acme") == ZERO
    row = np.arange(1, len(run.engine.entities))
    assert not run.engine.windows.live.sums(WINDOWS["5m"], row).any()


def test_records_of_other_orgs_move_an_idle_org_too_and_its_events_wake_it() -> None:
    run = keep_all(Run())
    for second in range(200):
        own = [event(second * SECOND, "beta", spend=1)]
        run.record([event(0, "acme", spend=1), *own] if second == 0 else own, now_ms=START + second * SECOND)
    number = run.engine.entities.org_number["acme"]
    assert run.engine.windows.closed.head[number] == (START + 139 * SECOND) // PANE_MS - 1
    run.record([event(200 * SECOND, "acme")], now_ms=START + 200 * SECOND)
    for second in range(201, 259):
        run.tick(START + second * SECOND)
    assert run.engine.windows.newest[number] == START + 200 * SECOND
    run.tick(START + 260 * SECOND)
    assert run.engine.windows.newest[number] == START + 205 * SECOND


def test_time_in_which_nobody_ran_the_partition_makes_no_org_idle() -> None:
    run = keep_all(Run())
    run.record([event(0, spend=1)], now_ms=START)
    run.tick(START + 10 * HOUR)
    assert run.engine.windows.newest[0] == START
    for second in range(1, 29):
        run.tick(START + 10 * HOUR + 2 * second * SECOND)
    assert run.engine.windows.newest[0] == START
    run.tick(START + 10 * HOUR + 58 * SECOND)
    assert run.engine.windows.newest[0] == START + 10 * HOUR + 58 * SECOND - MINUTE + 5 * SECOND


def test_a_clock_that_goes_back_moves_nothing_back() -> None:
    run = keep_all(Run())
    run.record([event(0)], now_ms=START + HOUR)
    run.tick(START)
    assert (run.engine.now_ms, run.engine.uptime_ms) == (START + HOUR, 0)


def test_a_final_tick_concerns_only_orgs_that_have_events() -> None:
    run = keep_all(Run(live_windows=ALL))
    run.record([event(0)])
    run.engine.entities.org("silent")
    run.tick(watermark_ms=START + MINUTE)
    assert run.engine.windows.newest[:2].tolist() == [START + MINUTE + 5 * SECOND, NEVER]
    assert run.engine.windows.closed.head[0] == (START + MINUTE) // PANE_MS - 1


def test_each_coarser_pane_is_a_whole_number_of_finer_ones() -> None:
    assert all(coarse % fine == 0 for fine, coarse in pairwise(PANE_SIZES_MS))
    assert all(window.size_ms % window.pane_ms == 0 for window in ALL)
