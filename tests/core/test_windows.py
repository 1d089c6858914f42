"""Windows against the plain model: transitions, sums, cuts, lateness, retention, idleness."""

from __future__ import annotations

import random
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmis_stream.core.engine import Engine, end_of_panes
from cmis_stream.core.rules import Rule
from cmis_stream.core.time import PANE_SIZES_MS, WINDOWS
from cmis_stream.core.windows import NEVER
from tests.core.reference import PANE_MS, ZERO, Event, Model
from tests.core.support import DAY, HOUR, MINUTE, NOW, ORGS, SECOND, START, Run, cut, cuts, event, examples, follow, rule, rule_sets, streams

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
def test_the_same_records_give_the_same_transitions_in_the_same_order(events: list[Event], rules: list[Rule], sizes: list[int]) -> None:
    one, two = Run(rules, live_windows=ALL), Run(rules, live_windows=ALL)
    for part in cut(events, sizes):
        assert one.record(part) == two.record(part)
    follow(one.changes)
    for (_, evaluation), own in groupby(one.changes, key=lambda c: (c.org, "")):
        del evaluation
        list(own)


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
def test_windows_that_are_wanted_later_are_added_up_from_the_panes(events: list[Event], sizes: list[int], moment: int, names: set[str]) -> None:
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
def test_a_final_tick_closes_what_is_open_as_in_the_plain_model(events: list[Event], rules: list[Rule], sizes: list[int], beyond: int) -> None:
    records = cut(events, sizes)
    run, model = Run(rules, live_windows=ALL), modelled(rules, records)
    for part in records:
        run.record(part)
    for watermark in (end_of_panes(max(e.ts for e in events)), end_of_panes(max(e.ts for e in events)) + beyond):
        run.tick(watermark_ms=watermark)
        model.move_to(dict.fromkeys(ORGS, watermark))
        assert sorted(run.changes) == sorted(model.changes)
    assert_sums_agree(run.engine, model)
