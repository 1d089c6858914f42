"""The rule language: what is refused and how it is named, and that both forms mean the same."""

from __future__ import annotations

from typing import Any

import pytest

from cmis_stream.core.errors import Rejected
from cmis_stream.core.rules import MAX_COMPARISONS, MAX_DEPTH, Comparison, Group, comparisons, holds, parse_rule
from cmis_stream.core.time import WINDOWS

FLAT: dict[str, Any] = {"id": "r", "org": "acme", "metric": "spend", "window": "5m", "op": "gt", "threshold": 10}
LEAF: dict[str, Any] = {"metric": "spend", "window": "5m", "op": "gt", "value": 10}
TREE: dict[str, Any] = {"id": "r", "org": "acme", "when": LEAF}


def flat(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**FLAT, **changes}.items() if value is not ...}


def leaf(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**LEAF, **changes}.items() if value is not ...}


def tree(when: Any = LEAF, **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**TREE, "when": when, **changes}.items() if value is not ...}


def nested(depth: int) -> Any:
    condition: Any = LEAF
    for _ in range(depth - 1):
        condition = {"not": condition}
    return condition


@pytest.mark.parametrize(
    ("raw", "code", "field"),
    [
        (None, "wrong_type", ""),
        ([FLAT], "wrong_type", ""),
        (flat(id=...), "missing", "id"),
        (flat(id=None), "missing", "id"),
        (flat(id=7), "wrong_type", "id"),
        (flat(id=""), "invalid", "id"),
        (flat(id="x" * 201), "invalid", "id"),
        (flat(id="a\x1fb"), "invalid", "id"),
        (flat(id="a\x7f"), "invalid", "id"),
        (flat(org=...), "missing", "org"),
        (flat(name=""), "invalid", "name"),
        (flat(name=3), "wrong_type", "name"),
        (flat(severity="urgent"), "invalid", "severity"),
        (flat(severity=["high"]), "invalid", "severity"),
        (flat(evaluate="later"), "invalid", "evaluate"),
        (flat(evaluate=None), "missing", "evaluate"),
        (flat(level="account"), "invalid", "level"),
        (flat(color="red"), "invalid", "color"),
        (flat(scope={"campaign": "c"}), "invalid", "scope"),
        (flat(value=3), "invalid", "value"),
        (flat(campaign=7), "wrong_type", "campaign"),
        (flat(metric=...), "missing", "metric"),
        (flat(metric="cost"), "invalid", "metric"),
        (flat(metric=3), "invalid", "metric"),
        (flat(metric="custom."), "invalid", "metric"),
        (flat(metric="custom.9"), "invalid", "metric"),
        (flat(metric="custom." + "x" * 65), "invalid", "metric"),
        (flat(window=...), "missing", "window"),
        (flat(window="2m"), "invalid", "window"),
        (flat(window={"m": 5}), "invalid", "window"),
        (flat(op=...), "missing", "op"),
        (flat(op=">"), "invalid", "op"),
        (flat(threshold=...), "missing", "threshold"),
        (flat(threshold="10"), "wrong_type", "threshold"),
        (flat(threshold=True), "wrong_type", "threshold"),
        (flat(threshold=float("nan")), "out_of_range", "threshold"),
        (flat(threshold=float("-inf")), "out_of_range", "threshold"),
        (flat(threshold=10**18), "out_of_range", "threshold"),
        (flat(threshold=-(10**400)), "out_of_range", "threshold"),
        (flat(min_field="reach", min_value=1), "invalid", "min_field"),
        (flat(min_field=["clicks"], min_value=1), "invalid", "min_field"),
        (flat(min_field=7, min_value=1), "invalid", "min_field"),
        (flat(min_field="clicks", min_value="1"), "wrong_type", "min_value"),
        (flat(min_field="clicks", min_value=float("inf")), "out_of_range", "min_value"),
        (flat(metric="custom.views", min_field="clicks", min_value=1), "unsupported", "min_field"),
        (tree(metric="spend"), "invalid", "metric"),
        (tree(campaign="c"), "invalid", "campaign"),
        (tree(scope=None), "wrong_type", "scope"),
        (tree(scope=["c"]), "wrong_type", "scope"),
        (tree(scope={"team": "a"}), "invalid", "scope.team"),
        (tree(scope={"campaign": None}), "missing", "scope.campaign"),
        (tree(scope={"ad": ""}), "invalid", "scope.ad"),
        (tree(scope={"ad": "a"}, level="campaign"), "invalid", "scope.ad"),
        (tree(scope={"account": "a"}, level="platform"), "invalid", "scope.account"),
        (tree(leaf(than={"metric": "clicks"})), "invalid", "when.than"),
        (tree(None), "wrong_type", "when"),
        (tree([LEAF]), "wrong_type", "when"),
        (tree({}), "missing", "when.metric"),
        (tree({"all": []}), "wrong_type", "when.all"),
        (tree({"any": LEAF}), "wrong_type", "when.any"),
        (tree({"not": [LEAF]}), "wrong_type", "when.not"),
        (tree({"all": [LEAF], "any": [LEAF]}), "invalid", "when"),
        (tree({"all": [LEAF], "metric": "spend"}), "invalid", "when"),
        (tree({"all": [LEAF, leaf(op="above")]}), "invalid", "when.all[1].op"),
        (tree({"any": [{"not": leaf(window=...)}]}), "missing", "when.any[0].not.window"),
        (tree(leaf(value=...)), "missing", "when.value"),
        (tree(leaf(value=None)), "missing", "when.value"),
        (tree(leaf(value="x")), "wrong_type", "when.value"),
        (tree(leaf(value=..., threshold="x")), "wrong_type", "when.threshold"),
        (tree(leaf(threshold=1)), "invalid", "when.value"),
        (tree(leaf(minimum=1)), "invalid", "when.minimum"),
        (tree(leaf(metric="reach")), "invalid", "when.metric"),
        (tree(leaf(min=5)), "wrong_type", "when.min"),
        (tree(leaf(min={})), "wrong_type", "when.min"),
        (tree(leaf(min={"clicks": 1, "spend": 2})), "wrong_type", "when.min"),
        (tree(leaf(min={"reach": 1})), "invalid", "when.min.reach"),
        (tree(leaf(min={"clicks": None})), "missing", "when.min.clicks"),
        (tree(leaf(min={"clicks": "1"})), "wrong_type", "when.min.clicks"),
        (tree(leaf(metric="custom.a", min={"custom.b": 1})), "unsupported", "when.min.custom.b"),
        (tree(leaf(value=..., than=2)), "wrong_type", "when.than"),
        (tree(leaf(value=..., than={"metric": "spend", "offset": 2})), "wrong_type", "when.than"),
        (tree(leaf(value=..., than={})), "missing", "when.than.metric"),
        (tree(leaf(value=..., than={"metric": "reach"})), "invalid", "when.than.metric"),
        (tree(leaf(value=..., than={"metric": "spend", "factor": "2"})), "wrong_type", "when.than.factor"),
        (tree(leaf(value=..., than={"metric": "custom.a"})), "unsupported", "when.than.metric"),
        (tree(leaf(metric="custom.a", value=..., than={"metric": "spend"})), "unsupported", "when.than.metric"),
        (tree({"all": [LEAF] * (MAX_COMPARISONS + 1)}), "too_long", "when"),
        (tree(nested(MAX_DEPTH + 1)), "too_long", "when" + ".not" * MAX_DEPTH),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_rule_is_said_with_its_code_and_field(raw: Any, code: str, field: str) -> None:
    with pytest.raises(Rejected) as caught:
        parse_rule(raw)
    assert (caught.value.code, caught.value.field) == (code, field)
    assert caught.value.expected and set(caught.value.as_dict()) == {"code", "field", "got", "expected"}


def test_rules_at_the_limits_are_accepted() -> None:
    assert len(list(comparisons(parse_rule(tree({"all": [LEAF] * MAX_COMPARISONS})).when))) == MAX_COMPARISONS
    parse_rule(tree(nested(MAX_DEPTH)))
    parse_rule(flat(id="x" * 200, metric="custom." + "x" * 64, threshold=-(10**17)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (flat(), tree()),
        (flat(campaign="c1", platform="meta"), tree(scope={"campaign": "c1", "platform": "meta"})),
        (flat(campaign=None, ad=None), tree(scope={})),
        (flat(min_field="clicks", min_value=20), tree(leaf(min={"clicks": 20}))),
        (flat(min_field="clicks"), tree(leaf(min={"clicks": 0}))),
        (flat(min_field=None, min_value=None), tree()),
        (flat(ad_set="s"), tree(scope={"ad_set": "s"}, level="ad_set")),
        (flat(ad="a", ad_set="s"), tree(scope={"ad_set": "s", "ad": "a"}, level="ad")),
        (flat(metric="conversion_rate"), tree(leaf(metric="cvr"))),
        (flat(threshold=10.0), tree(leaf(value=..., threshold=10))),
        (flat(severity="medium", evaluate="live", level="campaign", enabled=True, labels=["a"]), tree()),
    ],
)  # fmt: skip
def test_the_flat_form_means_the_same_as_the_tree(one: Any, other: Any) -> None:
    assert parse_rule(one) == parse_rule(other)


def test_a_rule_that_says_nothing_about_its_evaluation_takes_the_given_one() -> None:
    assert parse_rule(flat()).evaluate == "live"
    assert parse_rule(flat(), evaluate="pane").evaluate == "pane"
    assert parse_rule(flat(evaluate="live"), evaluate="pane").evaluate == "live"


def test_a_tree_is_read_with_its_comparisons_from_left_to_right() -> None:
    raw = tree(
        {
            "all": [
                leaf(metric="ctr"),
                {"not": {"any": [leaf(metric="cpc"), leaf(value=..., than={"metric": "spend", "factor": 2})]}},
            ]
        }
    )
    parsed = parse_rule(raw, evaluate="pane")
    spend, window = "spend", WINDOWS["5m"]
    assert parsed.when == Group("all", (
        Comparison("ctr", window, "gt", 10.0),
        Group("not", (Group("any", (Comparison("cpc", window, "gt", 10.0), Comparison(spend, window, "gt", 2.0, than=spend))),)),
    ))  # fmt: skip
    assert [c.metric for c in comparisons(parsed.when)] == ["ctr", "cpc", "spend"]
    truths = {(a, b, c): holds(parsed.when, iter([a, b, c])) for a in (False, True) for b in (False, True) for c in (False, True)}
    assert [case for case, truth in truths.items() if truth] == [(True, False, False)]
