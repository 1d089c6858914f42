"""Rules in force: thresholds, trees, minimums, what adopting does, and that no firing is ever left behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmis_stream.core.banks import MAX_GUARDED_BANKS
from cmis_stream.core.metrics import METRICS, evaluate
from cmis_stream.core.rules import Rule, parse_rule
from tests.core.reference import Event, Model, metric
from tests.core.support import (
    HOUR,
    MINUTE,
    NOW,
    ORGS,
    SECOND,
    START,
    Run,
    batch_of,
    cuts,
    event,
    examples,
    follow,
    rule,
    rule_sets,
    streams,
)
from tests.core.support import cut as cut_into

LIVE = {"evaluate": "live", "window": "5m"}


def fires(when: dict[str, Any], *events: Event) -> bool:
    """Whether a live rule on all campaigns fires after these events."""
    run = Run([parse_rule({"id": "r", "org": "acme", "when": when})])
    run.record(list(events))
    return bool(run.changes)


def leaf(metric: str, op: str, value: float | None = None, window: str = "5m", **more: Any) -> dict[str, Any]:
    return {"metric": metric, "window": window, "op": op, **({} if value is None else {"value": value}), **more}


# --- comparisons ------------------------------------------------------------------------------------------------------

AT_THRESHOLD = [
    ("gt", (False, False, True)), ("gte", (False, True, True)), ("lt", (True, False, False)),
    ("lte", (True, True, False)), ("eq", (False, True, False)), ("ne", (True, False, True)),
]  # fmt: skip


@pytest.mark.spec("ALR-M02", partial="change_pct comes with the alerts module")
@pytest.mark.parametrize(("op", "want"), AT_THRESHOLD)
@pytest.mark.parametrize(
    ("name", "sample", "value"),
    [
        ("spend", event(0, spend=0.1), 0.1),
        ("spend", event(0, spend=9_007_199_254.740991), 9_007_199_254.740991),
        ("ctr", event(0, impressions=3, clicks=1), 1 / 3),
        ("clicks", event(0, clicks=0), 0.0),
        ("custom.views", event(0, custom={"views": -2.5}), -2.5),
        ("roas", event(0, spend=3, revenue=10), 10 / 3),
    ],
)
def test_comparisons_are_exact_to_the_last_bit_at_the_threshold(
    op: str, want: tuple[bool, ...], name: str, sample: Event, value: float
) -> None:
    limits = math.nextafter(value, math.inf), value, math.nextafter(value, -math.inf)
    assert tuple(fires(leaf(name, op, limit), sample) for limit in limits) == want


@pytest.mark.parametrize(("op", "want"), AT_THRESHOLD)
def test_a_metric_is_compared_with_a_multiple_of_another_exactly(op: str, want: tuple[bool, ...]) -> None:
    when = leaf("revenue", op, than={"metric": "spend", "factor": 1.5})
    assert tuple(fires(when, event(0, spend=2, revenue=revenue)) for revenue in (2.999999, 3, 3.000001)) == want


@pytest.mark.parametrize("op", ["gt", "gte", "lt", "lte", "eq", "ne"])
@pytest.mark.parametrize("name", ["ctr", "cpc", "cpm", "cpa", "roas", "cvr"])
def test_undefined_ratios_make_every_comparison_false(name: str, op: str) -> None:
    for sample in (event(0), event(0, spend=1, clicks=1, conversions=1, revenue=1) if name == "cpm" else event(0)):
        assert not fires(leaf(name, op, 0.5), sample)
        assert not fires(leaf("clicks", op, than={"metric": name}), sample)
        assert fires({"not": leaf(name, op, 0.5)}, sample)
        assert not fires(leaf("events", "gte", 0, min={name: -1}), sample)


@given(st.tuples(*[st.integers(0, 3)] * 6).map(lambda n: tuple(v * (1_000_000 if i > 2 else 1) for i, v in enumerate(n))))
@examples(40)
def test_metrics_equal_those_of_the_plain_model(sums: tuple[int, ...]) -> None:
    for name in [*METRICS, "custom.views"]:
        got, want = float(evaluate(name, np.array(sums).reshape(6, 1))[0]), metric(name, sums)
        assert got == want or not (math.isfinite(got) or math.isfinite(want)), name


@pytest.mark.spec("ALR-E03")
def test_with_too_little_data_a_comparison_is_false() -> None:
    when = leaf("spend", "gte", 0, min={"impressions": 100})
    assert not fires(when, event(0, impressions=99))
    assert fires(when, event(0, impressions=100))
    assert fires(when, event(0, impressions=99), event(1, impressions=1))


def test_a_custom_metric_is_summed_apart_from_the_standard_ones() -> None:
    plain, with_views = event(0, spend=5), event(0, spend=5, custom={"views": 2, "likes": 9})
    assert not fires(leaf("custom.views", "gte", 0), plain)
    assert fires(leaf("custom.views", "eq", 4), with_views, with_views)
    assert fires(leaf("spend", "eq", 10), with_views, plain)
    assert fires(leaf("events", "eq", 2), with_views, plain)
    assert fires(
        {"all": [leaf("custom.views", "eq", 2), leaf("spend", "eq", 10), leaf("custom.likes", "eq", 9)]}, with_views, plain
    )


def test_a_rule_on_a_custom_metric_names_the_entity_itself() -> None:
    run = Run(
        [
            rule(metric="custom.views", op="gt", threshold=1, **LIVE),
            rule(id="both", evaluate="live", when={"all": [leaf("custom.views", "gt", 1), leaf("clicks", "eq", 0)]}),
        ]
    )
    run.record([event(0, custom={"views": 2})])
    assert {(c.rule, c.entity.campaign, c.entity.custom) for c in run.changes} == {("r", "c1", ""), ("both", "c1", "")}
    assert {c.rule for c in run.adopt("acme", 2, [])} == {"r", "both"}
    assert follow(run.changes) == run.engine.rules.firing_pairs() == set()


@pytest.mark.parametrize(("kind", "want"), [("all", [False, False, False, True]), ("any", [False, True, True, True])])
def test_all_and_any_combine_their_parts(kind: str, want: list[bool]) -> None:
    when = {kind: [leaf("clicks", "gte", 1), leaf("spend", "gte", 1)]}
    assert [fires(when, event(0, clicks=a, spend=b)) for a, b in ((0, 0), (0, 1), (1, 0), (1, 1))] == want


@pytest.mark.spec("ALR-M06", partial="no label filter yet")
@pytest.mark.parametrize(
    ("level", "scope", "want"),
    [
        ("org", {}, {("", "", "")}),
        ("platform", {}, {("", "", "")}),
        ("campaign", {}, {("c1", "", ""), ("c2", "", "")}),
        ("campaign", {"campaign": "c2"}, {("c2", "", "")}),
        ("campaign", {"platform": "x"}, set()),
        ("campaign", {"currency": "EUR"}, set()),
        ("ad_set", {}, {("c1", "s1", ""), ("c1", "s2", "")}),
        ("ad_set", {"campaign": "c2"}, set()),
        ("ad_set", {"ad_set": "s2"}, {("c1", "s2", "")}),
        ("ad", {"ad_set": "s1"}, {("c1", "s1", "a1"), ("c1", "s1", "a2")}),
        ("ad", {"ad": "a1", "platform": "meta"}, {("c1", "s1", "a1")}),
    ],
)  # fmt: skip
def test_a_rule_is_judged_for_each_entity_of_its_level_within_its_scope(
    level: str, scope: dict[str, str], want: set[Any]
) -> None:
    run = Run([rule(evaluate="live", level=level, scope=scope, when=leaf("events", "gte", 1))])
    events = [
        event(0, ad_set="s1", ad="a1"),
        event(0, ad_set="s1", ad="a2"),
        event(0, ad_set="s2"),
        event(0, campaign="c2"),
        event(0, "beta"),
    ]
    run.record(events)
    assert {(c.entity.campaign, c.entity.ad_set, c.entity.ad) for c in run.changes} == want
    assert {c.entity.level for c in run.changes} <= {level}


def test_entities_that_appear_after_the_rule_and_after_many_others_are_judged() -> None:
    run = Run([rule(metric="spend", op="gt", threshold=1, **LIVE)])
    run.record([event(0, campaign=f"c{i}", spend=1) for i in range(3000)])
    assert run.changes == []
    run.record([event(0, campaign="c2999", spend=1), event(0, campaign="new", spend=2)])
    assert {c.entity.campaign for c in run.changes} == {"c2999", "new"}


def test_windows_that_end_at_the_same_moment_are_judged_together() -> None:
    run = Run([rule(when={"any": [leaf("spend", "gte", 5, "1m"), leaf("impressions", "gte", 2, "5m")]})])
    run.record([event(0, spend=5), event(61 * SECOND, impressions=2), event(6 * MINUTE)])
    assert [(c.at - START, c.firing) for c in run.changes] == [(10 * SECOND, True)]


# --- not ---------------------------------------------------------------------------------------------------------------


def test_a_not_rule_is_decided_when_an_entity_is_first_judged() -> None:
    quiet = rule(when={"not": leaf("clicks", "gte", 1, "1m")})
    run = Run([quiet])
    run.record([event(0), event(0, campaign="busy", clicks=1)])
    assert run.changes == []
    (fired,) = run.record([event(15 * SECOND)])
    assert (fired.entity.campaign, fired.at) == ("c1", START + 10 * SECOND)
    run.record([event(25 * SECOND, clicks=1), event(36 * SECOND)])
    assert [(c.entity.campaign, c.firing) for c in run.changes[1:]] == [("c1", False)]


def test_a_not_rule_that_is_new_is_decided_at_the_next_judgement_of_what_was_judged_before() -> None:
    other = rule(id="other", metric="clicks", window="1m", op="gte", threshold=1)
    run = Run([other])
    run.record([event(0), event(16 * SECOND)])
    assert run.adopt("acme", 2, [other, rule(when={"not": leaf("clicks", "gte", 1, "1m")})]) == []
    (fired,) = run.record([event(26 * SECOND)])
    assert (fired.rule, fired.at) == ("r", START + 20 * SECOND)
    assert run.record([event(36 * SECOND)]) == []


# --- many ---------------------------------------------------------------------------------------------------------------


def distinct_minimums(name: str, minimum: str, evaluation: str) -> list[Rule]:
    # Twice as many rules with the higher minimums, so that these have banks and the lower ones become comparisons.
    return [
        parse_rule(
            {"id": f"{op}{n}.{i}", "org": org, "evaluate": evaluation, "when": leaf(name, op, 2, "1m", min={minimum: n / 2})}
        )
        for n in range(MAX_GUARDED_BANKS + 9)
        for i in range(1 if n < 9 else 2)
        for op in ("gte", "ne", "lt")
        for org in ORGS[:2]
    ]


@pytest.mark.parametrize("evaluation", ["live", "pane"])
@pytest.mark.parametrize(
    ("name", "minimum"), [("spend", "impressions"), ("clicks", "ctr"), ("custom.views", "events"), ("ctr", "cpc")]
)
def test_more_minimums_than_there_are_banks_behave_as_few(name: str, minimum: str, evaluation: str) -> None:
    rules = distinct_minimums(name, minimum, evaluation)
    chance = np.random.default_rng(3)
    events = [
        event(int(1500 * i), ORGS[i % 2], f"c{i % 3}", impressions=int(chance.integers(4)), clicks=int(chance.integers(3)),
              spend=int(chance.integers(3)), custom={"views": int(chance.integers(-1, 3))} if i % 4 else None)
        for i in range(120)
    ]  # fmt: skip
    run, model = Run(rules), Model()
    for org in ORGS:
        model.adopt(org, [r for r in rules if r.org == org], NOW)
    for part in cut_into(events, [7]):
        run.record(part)
        model.record(part)
    assert sorted(run.changes) == sorted(model.changes) and len(run.changes) > 80
    guarded = {key.minimum for key in run.engine.rules.banks if key.minimum}
    assert len(guarded) <= MAX_GUARDED_BANKS or name.startswith("custom.")


def test_thousands_of_rules_at_one_scope_fire_and_resolve_as_their_thresholds_are_passed() -> None:
    rules = [rule(id=f"r{n:04}", metric="clicks", op="gt", threshold=n + 0.5, campaign="c1", **LIVE) for n in range(3000)]
    run = Run(rules)
    total = 0
    for step in (1000, 700, 1300):
        changes = run.record([event(0, clicks=step)])
        assert [c.rule for c in changes] == [f"r{n:04}" for n in range(total, min(total + step, 3000))]
        assert all(c.firing for c in changes)
        total += step
    assert len(run.engine.rules.firing_pairs()) == 3000
    changes = run.record([event(6 * MINUTE, clicks=2500)])
    assert sorted(c.rule for c in changes) == [f"r{n:04}" for n in range(2500, 3000)] and not any(c.firing for c in changes)
    resolved = run.adopt("acme", 2, rules[1000:2000])
    assert sorted(c.rule for c in resolved) == [f"r{n:04}" for n in [*range(1000), *range(2000, 2500)]]
    assert len(run.engine.rules.firing_pairs()) == 1000


# --- adopting -----------------------------------------------------------------------------------------------------------


def over(limit: float, rule_id: str = "r", evaluation: str = "pane") -> Rule:
    return rule(id=rule_id, evaluate=evaluation, metric="spend", window="1m", op="gt", threshold=limit)


def fired_run(*rules: Rule) -> Run:
    """spend = 5 in the first pane, judged at 10 s."""
    run = Run(rules)
    run.record([event(0, spend=5), event(15 * SECOND)])
    return run


@pytest.mark.parametrize(
    "wrap",
    [
        lambda r: r,
        lambda r: rule(id=r.id, when={"all": [leaf("spend", "gt", r.when.value, "1m"), leaf("clicks", "eq", 0, "1m")]}),
    ],
)
def test_a_removed_rule_resolves_what_it_had_firing_and_says_why(wrap: Callable[[Rule], Rule]) -> None:
    run = fired_run(wrap(over(1)), over(9, "silent"))
    (resolved,) = run.adopt("acme", 2, [])
    assert (resolved.rule, resolved.firing, resolved.at) == ("r", False, START + 15 * SECOND)
    assert run.parts[-1].reason == "rule_changed"
    assert run.engine.rules.firing_pairs() == set() and run.engine.rules.banks == {}


def test_a_changed_rule_resolves_and_fires_anew_only_when_it_is_judged() -> None:
    run = fired_run(over(1))
    (resolved,) = run.adopt("acme", 2, [over(2)])
    assert not resolved.firing and run.engine.rules.firing_pairs() == set()
    (fired,) = run.record([event(25 * SECOND)])
    assert fired.firing and fired.at == START + 20 * SECOND
    assert run.record([event(35 * SECOND)]) == []


def test_an_unchanged_rule_keeps_its_state_without_a_word() -> None:
    run = fired_run(over(1), over(9, "later"))
    assert run.adopt("acme", 2, [over(9, "later"), over(1), over(3, "new")]) == []
    assert {pair[1] for pair in run.engine.rules.firing_pairs()} == {"r"}
    assert [c.rule for c in run.record([event(25 * SECOND)])] == ["new"]
    assert [c.rule for c in run.record([event(36 * SECOND, spend=5), event(50 * SECOND)])] == ["later"]


def test_a_new_rule_does_not_fire_on_what_was_judged_before_it_and_not_at_all_when_that_no_longer_holds() -> None:
    for final in ([over(1), over(4, "new")], [over(1)]):
        run = Run([over(1)])
        run.record([event(0, spend=5), event(65 * SECOND, campaign="c2")])
        assert run.adopt("acme", 2, [over(1), over(4, "new")]) == run.adopt("acme", 3, final) == []
        assert run.record([event(61 * SECOND), event(74 * SECOND, campaign="c2")]) == []
        (resolved,) = run.record([event(75 * SECOND, campaign="c2")])
        assert (resolved.rule, resolved.firing, resolved.at) == ("r", False, START + 70 * SECOND)
        assert run.engine.rules.waiting == {}


def test_a_new_live_rule_is_judged_at_once_for_all_entities_of_its_org() -> None:
    run = Run([over(1, "first", "live")])
    run.record([event(0, spend=5), event(0, campaign="c2", spend=9), event(0, "beta", spend=9)])
    changes = run.adopt("acme", 2, [over(1, "first", "live"), over(6, "new", "live")])
    assert [(c.rule, c.entity.campaign, c.firing) for c in changes] == [("new", "c2", True)]


def test_versions_that_are_not_newer_are_ignored() -> None:
    run = fired_run(over(1))
    assert run.adopt("acme", 1, []) == [] and run.adopt("acme", 0, []) == []
    assert run.engine.rules.windows("pane") and run.engine.versions == {"acme": 1}
    assert len(run.adopt("acme", 5, [])) == 1 and run.adopt("acme", 4, [over(1)]) == []
    assert not run.engine.rules.windows("pane")


@pytest.mark.spec("TEN-M05", partial="rules and their state; the other paths come with them")
def test_the_rules_of_one_org_do_not_concern_another() -> None:
    run = fired_run(over(1))
    beta = parse_rule({"id": "r", "org": "beta", "metric": "spend", "window": "1m", "op": "gt", "threshold": 1}, evaluate="pane")
    assert run.adopt("beta", 1, [beta]) == [] and run.adopt("beta", 2, []) == []
    assert {pair[:2] for pair in run.engine.rules.firing_pairs()} == {("acme", "r")}


_adopt = st.tuples(st.just("adopt"), st.sampled_from(ORGS), st.lists(st.integers(0, 15), max_size=10))
_actions = st.lists(
    st.one_of(st.just(("record",)), st.just(("record",)), _adopt),
    min_size=3, max_size=14,
)  # fmt: skip


@given(
    streams,
    rule_sets(("live", "pane"), ("1m", "1m", "5m", "1h"), 8),
    rule_sets(("live", "pane"), ("1m", "5m", "1h", "7d"), 8),
    _actions,
    cuts,
)
@examples(60)
def test_following_the_transitions_always_gives_exactly_what_is_firing(
    events: list[Event], some: list[Rule], others: list[Rule], actions: list[Any], sizes: list[int]
) -> None:
    run, model = Run(), Model()
    records, version = cut_into(events, sizes), 0
    firing: set[tuple[str, str, Any]] = set()
    for action in [*actions, *[("record",)] * len(records)]:
        if action[0] == "record":
            if not records:
                break
            part = records.pop(0)
            changes = run.record(part)
            model.record(part)
        else:
            _, org, chosen = action
            pool = [r for r in [*some, *others] if r.org == org]
            rules = list({r.id: r for r in (pool[i % len(pool)] for i in chosen)}.values()) if pool else []
            version += 1
            changes = run.adopt(org, version, rules)
            model.adopt(org, rules, NOW)
        follow(changes, firing)
        assert firing == run.engine.rules.firing_pairs() == model.firing
        pane = {(c.org, c.at, c.rule, c.entity, c.firing) for c in changes}
        assert len(pane) == len(changes)
    assert sorted(run.changes) == sorted(model.changes)


# --- the record's way -----------------------------------------------------------------------------------------------------


def test_events_that_were_seen_or_claim_the_future_count_nowhere() -> None:
    run = Run([over(0, evaluation="live")])
    now = START + HOUR
    step = run.engine.apply(
        batch_of([event(0, spend=1), event(HOUR + MINUTE, spend=1), event(HOUR + MINUTE + 1, spend=1, custom={"a": 1})], 5), now
    )
    assert (step.accepted, step.duplicates, step.refused) == (2, 0, [(2, "in_future")])
    step = run.engine.apply(batch_of([event(0, spend=1), event(0, spend=1), event(0, spend=1), event(0, spend=3)], 5), now)
    assert (step.accepted, step.duplicates, step.refused) == (1, 3, [])
    assert (run.engine.events, run.engine.duplicates) == (3, 3)
