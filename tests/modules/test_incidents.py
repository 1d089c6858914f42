"""Incidents as their transitions tell them."""

from __future__ import annotations

from typing import Any

import pytest

from cmis_stream.core.ids import fact_id
from cmis_stream.modules.alerts.incidents import Incident, ended, entity_of, incident_after

NOW = 1_767_225_600_000
SUMS = {"events": 1, "impressions": 2, "clicks": 3, "spend": 4, "conversions": 5, "revenue": 6}


def line(state: str, **more: Any) -> dict[str, Any]:
    """A transition as the metrics agent writes it."""
    return {
        "org": "acme", "key": "k" * 16, "rule": "r", "severity": "high", "level": "campaign", "currency": "USD",
        "platform": "meta", "account": "", "campaign": "c/1", "ad_set": "", "ad": "", "at": NOW, "state": state, "value": 2.5,
        "window": "5m", "sums": SUMS, "id": "t/0/7/0", "incident": fact_id(NOW, "t/0/7/0"), "events": ["e3"], **more,
    }  # fmt: skip


def after(before: dict[str, Any] | None, told: dict[str, Any]) -> dict[str, Any]:
    made = incident_after(before, told)
    assert made is not None
    return made


def test_a_firing_transition_opens_an_incident_with_its_evidence() -> None:
    opened = incident_after(None, line("firing"))
    assert opened == {
        "key": "k" * 16, "entity": "USD/meta//c%2F1", "rule": "r", "severity": "high",
        "level": "campaign", "currency": "USD", "platform": "meta", "account": "", "campaign": "c/1", "ad_set": "", "ad": "",
        "state": "firing", "started_at": NOW, "resolved_at": None, "value": 2.5, "window": "5m", "sums": [1, 2, 3, 4, 5, 6],
        "events": ["e3"],
    }  # fmt: skip
    assert Incident.model_validate(opened).model_dump(mode="json") == {**opened, "reason": None}


def test_a_resolved_transition_closes_it_and_keeps_what_tipped_it() -> None:
    opened = after(None, line("firing"))
    later = line("resolved", at=NOW + 9000, value=0.0, events=["e9"])
    closed = after(opened, later)
    assert closed == {**opened, "state": "resolved", "resolved_at": NOW + 9000}
    assert after(opened, {**later, "reason": "rule_changed"})["reason"] == "rule_changed"


def test_a_transition_that_comes_again_says_nothing_new() -> None:
    opened = after(None, line("firing"))
    closed = after(opened, line("resolved", at=NOW + 9000))
    assert incident_after(opened, line("firing")) is None
    assert incident_after(closed, line("firing")) is None and incident_after(closed, line("resolved", at=NOW + 10_000)) is None


def test_an_incident_whose_opening_is_not_known_began_when_its_id_says() -> None:
    closed = after(None, line("resolved", at=NOW + 9000))
    assert (closed["started_at"], closed["resolved_at"], closed["state"]) == (NOW, NOW + 9000, "resolved")


def test_a_transition_without_events_of_its_own_has_none_as_evidence() -> None:
    ticked = line("firing")
    del ticked["events"]
    assert after(None, ticked)["events"] == []


def test_an_incident_may_end_for_another_reason() -> None:
    closed = ended(after(None, line("firing")), NOW + 1, "log_replaced")
    assert (closed["state"], closed["resolved_at"], closed["reason"]) == ("resolved", NOW + 1, "log_replaced")


@pytest.mark.parametrize(
    ("path", "entity"),
    [
        ({"platform": "", "campaign": ""}, "USD"),
        ({"campaign": ""}, "USD/meta"),
        ({"ad_set": "s", "ad": "a"}, "USD/meta//c%2F1/s/a"),
    ],
)
def test_the_entity_is_named_by_its_path(path: dict[str, str], entity: str) -> None:
    assert entity_of(line("firing", **path)) == entity
