"""Rules of a file as documents: they say the same, and the store becomes what the file says."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmis_stream.core.rules import Rule, parse_rule
from cmis_stream.core.time import WINDOWS
from cmis_stream.modules.alerts.manifest import ALERT_RULE, MANIFEST
from cmis_stream.modules.alerts.model import engine_rule
from cmis_stream.modules.alerts.rule_file import Applied, apply_rules, read_items, rule_documents
from cmis_stream.modules.applying import Wanted
from cmis_stream.store.bodies import checked
from cmis_stream.store.decisions import Actor, Command
from cmis_stream.store.documents import Documents
from cmis_stream.store.kinds import Kinds
from tests.core.support import _rules, examples
from tests.servers.postgres import postgres, postgres_urls
from tests.store.conftest import Database, Places, database, places

__all__ = ["Places", "database", "places", "postgres", "postgres_urls"]

ACTOR = Actor("rules")
RULE = {"id": "r1", "org": "acme", "metric": "spend", "window": "5m", "op": "gt", "threshold": 1}
Body = dict[str, Any]

_flat = st.fixed_dictionaries(
    {
        "org": st.sampled_from(["acme", "beta"]), "metric": st.sampled_from(["spend", "ctr", "impressions"]),
        "window": st.sampled_from(list(WINDOWS)), "op": st.sampled_from(["gt", "lte", "ne"]),
        "threshold": st.sampled_from([-1, 0, 0.5, 12]),
    },
    optional={
        "campaign": st.sampled_from([None, "c1"]), "ad_set": st.just("s1"), "currency": st.just("EUR"),
        "min_field": st.sampled_from([None, "impressions", "clicks"]), "min_value": st.sampled_from([0, 1000]),
    },
)  # fmt: skip
_extras = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["Overspend", "ÄÖ 😀"]), "severity": st.sampled_from(["critical", "low"]),
        "labels": st.just({"team": "growth"}), "enabled": st.booleans(),
    },
)  # fmt: skip
rules = st.builds(lambda rule, extras: {**rule, **extras}, st.one_of(_rules(tuple(WINDOWS), ("live", "pane")), _flat), _extras)


def engine_form(wanted: Wanted, org: str) -> Rule:
    """As agents get it."""
    body = checked(ALERT_RULE, wanted.body, None, "")
    return parse_rule(engine_rule(body["key"], org, body))


@examples(400)
@given(st.lists(rules, min_size=1, max_size=5), st.sampled_from(["live", "pane"]))
def test_a_document_means_what_the_rule_means(raws: list[Body], evaluate: str) -> None:
    given_rules = [{"id": f"r{number}", **raw} for number, raw in enumerate(raws)]
    found = rule_documents(given_rules, evaluate=evaluate)
    assert found.errors == [] and found.kept == {}
    documents = {(org, wanted.key): wanted for org, own in found.wanted.items() for wanted in own}
    assert len(documents) == len(given_rules)
    for raw in given_rules:
        wanted = documents[raw["org"], raw["id"]]
        assert engine_form(wanted, raw["org"]) == parse_rule({"name": raw["id"], **raw}, evaluate=evaluate)
        assert wanted.body["enabled"] == raw.get("enabled", True) and wanted.body["labels"] == raw.get("labels", {})


def test_the_flat_form_becomes_a_tree_of_one_comparison() -> None:
    raw = {**RULE, "campaign": "c1", "min_field": "impressions", "min_value": 1000}
    (wanted,) = rule_documents([raw]).wanted["acme"]
    assert wanted[:2] == ("alert_rule", "r1") and wanted.place == "rules[0]"
    assert wanted.body["scope"] == {"campaign": "c1"}
    assert wanted.body["when"] == {"metric": "spend", "window": "5m", "op": "gt", "value": 1, "min": {"impressions": 1000}}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({**RULE, "id": "over spend"}, "rules[0] (over spend): id: expected "),
        ({**RULE, "id": "a" * 101}, "id: expected "),
        ({**RULE, "id": "01890000-0000-7000-8000-000000000000"}, "id: expected a key that is no UUID"),
        ({**RULE, "window": "3m"}, "rules[0] (r1): window: expected one of 1m"),
        ({**RULE, "labels": {"team": 7}}, "rules[0] (r1): labels.team: expected "),
        ({**RULE, "enabled": "maybe"}, "rules[0] (r1): enabled: expected "),
        ("r1", "rules[0]: expected a rule as a JSON object"),
    ],
)
def test_what_is_wrong_is_named_by_place_and_field_and_kept_as_it_is(raw: Any, said: str) -> None:
    found = rule_documents([raw], file="rules.json")
    (error,) = found.errors
    assert error.startswith("rules.json: rules[0]") and said in error and found.wanted == {}
    assert found.kept == ({"acme": {("alert_rule", raw["id"])}} if isinstance(raw, dict) else {})


def test_the_second_of_an_id_is_an_error_and_the_first_one_counts() -> None:
    found = rule_documents([RULE, {**RULE, "threshold": 2}, {**RULE, "org": "beta"}])
    assert {org: [one.key for one in own] for org, own in found.wanted.items()} == {"acme": ["r1"], "beta": ["r1"]}
    assert found.errors == ["rules: rules[1] (r1): id: expected an id of its own in the org (rules[0] has it), got 'r1'"]


def test_items_are_read_from_both_shapes_of_a_file(tmp_path: Path) -> None:
    for content in ([RULE], {"rules": [RULE]}):
        (tmp_path / "rules.json").write_text(json.dumps(content))
        assert read_items(tmp_path / "rules.json") == [RULE]


# --- in the store ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def documents(database: Database) -> Documents:
    return Documents(database, Kinds([MANIFEST]))


def apply(documents: Documents, *raws: Body, org: str = "acme", set_name: str = "rules", prune: bool = True) -> Applied:
    found = rule_documents(raws)
    return apply_rules(documents, org, found.wanted.get(org, []), set_name, ACTOR, prune=prune, kept=found.kept.get(org, ()))


def there(documents: Documents, org: str = "acme") -> dict[str, Body]:
    page = documents.list(org, ACTOR, "alert_rule", [("limit", "500")])
    assert page.next is None
    return {one.body["key"]: one.body for one in page.items}


def test_the_store_becomes_what_the_file_says_and_stays_so(documents: Documents) -> None:
    second = {**RULE, "id": "r2", "enabled": False}
    assert apply(documents, RULE, second) == Applied(2, 0, 0, [])
    assert apply(documents, RULE, second) == Applied(0, 0, 0, [])
    assert there(documents)["r1"]["metadata"] == {"applied_from": "rules"} and not there(documents)["r2"]["enabled"]
    assert apply(documents, {**RULE, "threshold": 2}) == Applied(0, 1, 1, [])
    assert {key: body["when"]["value"] for key, body in there(documents).items()} == {"r1": 2}
    assert apply(documents) == Applied(0, 0, 1, []) and there(documents) == {}


def test_without_prune_and_of_other_orgs_and_by_others_nothing_is_deleted(documents: Documents) -> None:
    mine = {"key": "mine", "name": "Mine", "when": {"metric": "spend", "window": "5m", "op": "gt", "value": 1}}
    documents.execute("acme", Actor("ann"), Command("create", "alert_rule", None, mine))
    apply(documents, RULE)
    apply(documents, {**RULE, "org": "beta"}, org="beta")
    assert apply(documents, prune=False) == Applied(0, 0, 0, [])
    assert apply(documents) == Applied(0, 0, 1, [])
    assert set(there(documents)) == {"mine"} and set(there(documents, "beta")) == {"r1"}


def test_a_rule_that_got_a_mistake_stays_as_it_was(documents: Documents) -> None:
    apply(documents, RULE, {**RULE, "id": "r2"})
    assert apply(documents, {**RULE, "window": "3m"}) == Applied(0, 0, 1, [])
    assert there(documents)["r1"]["when"]["window"] == "5m"


def test_a_rule_of_another_set_is_told_and_left(documents: Documents) -> None:
    apply(documents, RULE, set_name="others")
    applied = apply(documents, {**RULE, "threshold": 2}, {**RULE, "id": "r2"})
    assert applied[:3] == (1, 0, 0) and len(applied.errors) == 1
    assert applied.errors[0].startswith("alert_rule r1: rules[0]: expected a document of no other set")
    assert there(documents)["r1"]["when"]["value"] == 1


def test_more_rules_than_a_page_or_a_bulk_holds(documents: Documents) -> None:
    raws = [{**RULE, "id": f"r{number}"} for number in range(1_100)]
    assert apply(documents, *raws) == Applied(1_100, 0, 0, [])
    assert apply(documents, *raws[:-1]) == Applied(0, 0, 1, [])


def test_processes_that_apply_the_same_file_at_once_agree(documents: Documents) -> None:
    raws = [{**RULE, "id": f"r{number}"} for number in range(30)]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(5):
            applied = list(threads.map(lambda _: apply(documents, *raws), range(4)))
            assert [one.errors for one in applied] == [[]] * 4
            assert sum(one.created for one in applied) == 30
            assert apply(documents) == Applied(0, 0, 30, [])
