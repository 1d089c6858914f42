from __future__ import annotations

import itertools
import re
from collections import defaultdict
from typing import Any

import msgspec
import pytest

from cmis_stream.feeds.decode import decode_ndjson
from cmis_stream.feeds.simulator import Simulator

START = 1_767_225_600_000
MINUTE = 60_000


def window_values(events: list[dict[str, Any]]) -> dict[tuple[str, str, int], dict[str, float]]:
    """Sums over each minute ending at a multiple of 10 s, by (org, campaign, end)."""
    panes: dict[tuple[str, str, int], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for event in events:
        sums = panes[event["org"], event["campaign"], event["ts"] // 10_000]
        for i, name in enumerate(("impressions", "clicks", "spend")):
            sums[i] += event[name]
    windows: dict[tuple[str, str, int], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for (org, campaign, pane), sums in panes.items():
        for end in range(pane + 1, pane + 7):
            for i in range(3):
                windows[org, campaign, end * 10_000][i] += sums[i]
    return {
        key: {"impressions": i, "clicks": c, "spend": s, "ctr": c / i if i else 0, "cpc": s / c if c else 0}
        for key, (i, c, s) in windows.items()
    }


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("rate", [50, 200])
@pytest.mark.parametrize("hour", [0, 3, 15])
def test_demo_rules_fire_on_every_incident_and_on_nothing_else(seed: int, rate: int, hour: int) -> None:
    simulator = Simulator(("acme", "globex"), seed=seed, start_ms=START + hour * 60 * MINUTE, rate=rate)
    begin, end = simulator.start_ms, simulator.start_ms + 12 * MINUTE
    windows = window_values(simulator.events_between(begin, end))
    incidents = simulator.incidents_between(begin, end)
    assert {i.kind for i in incidents} == {"overspend", "click_drop"}
    fired: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for rule in simulator.demo_rules():
        for (org, campaign, at), values in windows.items():
            value = values[rule["metric"]]
            holds = value > rule["threshold"] if rule["op"] == "gt" else value < rule["threshold"]
            if org == rule["org"] and holds and values[rule["min_field"]] >= rule["min_value"]:
                fired[org, campaign, rule["metric"]].append(at)
                causes = {"spend": {"overspend"}, "ctr": {"click_drop"}, "cpc": {"overspend", "click_drop"}}[rule["metric"]]
                assert any(
                    i.org == org and i.campaign == campaign and i.kind in causes and i.start_ms < at <= i.end_ms + MINUTE
                    for i in incidents
                ), (rule["id"], campaign, at)
    for incident in incidents:
        metric = "spend" if incident.kind == "overspend" else "ctr"
        if incident.end_ms <= end:
            seen = fired[incident.org, incident.campaign, metric]
            assert any(incident.start_ms < at <= incident.start_ms + MINUTE for at in seen), incident


def test_the_first_overspend_starts_60_to_90_seconds_after_the_start() -> None:
    for seed in range(20):
        simulator = Simulator(("a", "b"), seed=seed, start_ms=START)
        first = {i.org: i for i in reversed(simulator.incidents_between(START, START + 90_000)) if i.kind == "overspend"}
        assert set(first) == {"a", "b"}
        assert all(60_000 <= i.start_ms - START <= 90_000 and 60_000 <= i.end_ms - i.start_ms <= 120_000 for i in first.values())


def test_events_do_not_depend_on_how_time_is_cut() -> None:
    simulator = Simulator(seed=5, start_ms=START + 300, rate=70)
    whole = simulator.events_between(START, START + 20_000)
    cuts = [START, START + 1, START + 999, START + 1_000, START + 7_777, START + 20_000]
    parts = [event for a, b in itertools.pairwise(cuts) for event in simulator.events_between(a, b)]
    assert whole == parts == Simulator(seed=5, start_ms=START + 300, rate=70).events_between(START, START + 20_000)
    assert whole != Simulator(seed=6, start_ms=START + 300, rate=70).events_between(START, START + 20_000)
    assert min(event["ts"] for event in whole) >= START + 300
    assert [event["ts"] for event in whole] == sorted(event["ts"] for event in whole)
    assert len({(event["org"], event["id"]) for event in whole}) == len(whole)


def test_the_rate_is_kept_and_totals_do_not_depend_on_it() -> None:
    minutes = 5 * MINUTE
    totals = []
    for rate in (50, 200):
        events = Simulator(seed=1, start_ms=START, rate=rate).events_between(START, START + minutes)
        assert len(events) == rate * 300
        totals.append(sum(event["impressions"] for event in events))
    assert abs(totals[0] / totals[1] - 1) < 0.02


def test_there_is_a_daily_rhythm() -> None:
    simulator = Simulator(seed=1, start_ms=START)
    night, day = (
        sum(e["impressions"] for e in simulator.events_between(START + h * 60 * MINUTE, START + h * 60 * MINUTE + MINUTE))
        for h in (3, 15)
    )
    assert day > 1.7 * night


def test_every_event_is_one_that_ingest_takes() -> None:
    events = Simulator(seed=2, start_ms=START).events_between(START, START + 30_000)
    body = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
    result = decode_ndjson(body, org=None, source="demo", now_ms=START + 30_000)
    assert not result.refused and result.batch is not None and result.events == len(events) == 3_000
    assert {segment.org for segment in result.batch.segments} == {"acme", "globex"}
    assert any(path.endswith("\x1fvideo_views") for path in result.batch.paths)


def test_demo_rules_have_the_flat_shape() -> None:
    rules = Simulator(("acme", "globex")).demo_rules()
    keys = {
        "id",
        "org",
        "name",
        "campaign",
        "metric",
        "window",
        "op",
        "threshold",
        "min_field",
        "min_value",
        "severity",
    }
    assert all(set(rule) == keys for rule in rules) and len({(rule["org"], rule["id"]) for rule in rules}) == len(rules)
    assert all(re.fullmatch("critical|high|medium|low", rule["severity"]) for rule in rules)
