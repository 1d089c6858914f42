"""docs/scale.md says what its script reckons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench.kafka_capacity import Load, figures

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "scale.md").read_text()
ROWS = {row.split("|")[1].strip(): row for row in TEXT.splitlines() if row.startswith("| ") and row.count("|") >= 4}


def test_the_large_case_of_the_document_is_the_one_that_the_script_reckons() -> None:
    found = figures(Load())
    small = figures(replace(Load(), request_events=100))
    eight = figures(replace(Load(), partitions=8))
    shared = figures(replace(Load(), own_gateways=1))
    assert f"{found['api cores']:.1f} cores" in ROWS["api"] and f"{small['api cores']:.1f} cores" in ROWS["api"]
    assert f"{found['worker cores']:.1f} cores, {found['workers, 60% of a core each']:.0f} processes" in ROWS["workers"]
    assert f"{small['worker cores']:.1f} cores, {small['workers, 60% of a core each']:.0f} processes" in ROWS["workers"]
    assert f"{found['memory of a worker, GB']:.2f} GB each" in ROWS["workers"]
    fullest = "of them the fullest partition (at most 0.6)"
    assert f"{found[fullest]:.2f} cores" in ROWS["fullest partition of 64"]
    assert f"of 8: {eight[fullest]:.2f}" in ROWS["fullest partition of 64"]
    assert f"{found['Redis memory, GB']:.0f} GB" in ROWS["Redis"]
    assert f"{found['Redis cores (of one thread)']:.2f} of its one thread" in ROWS["Redis"]
    assert f"{found['log of 7 days, TB, all copies']:.0f} TB" in ROWS["disk"]
    assert f"{found['gateways']:.0f}, {found['gateway cores']:.1f} cores" in ROWS["gateways"]
    assert f"{shared['gateways']:.0f}, {shared['gateway cores']:.1f} cores" in ROWS["gateways"]
    assert f"{found['to browsers, Gbit/s']:.0f} Gbit/s" in ROWS["to browsers"]


def test_twice_the_events_need_twice_the_api_and_less_than_twice_the_workers() -> None:
    once, twice = figures(Load()), figures(replace(Load(), events_s=2e6))
    assert twice["api cores"] == 2 * once["api cores"]
    assert once["worker cores"] < twice["worker cores"] < 2 * once["worker cores"]


def test_no_more_workers_than_partitions_are_reckoned_with() -> None:
    assert figures(replace(Load(), partitions=4))["workers, 60% of a core each"] == 4
