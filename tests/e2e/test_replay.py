"""`cmis replay` against the workload's exact answer: seeds, many rules, long spans, however the events are cut."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.e2e.support import Processes, Workload, as_answer, make_workload, needs_workload

pytestmark = [
    needs_workload,
    pytest.mark.spec("ALR-M05", partial="one window"),
    pytest.mark.spec("ALR-M01", partial="spend, ctr, cpc, roas"),
]


def equals_the_answer(processes: Processes, workload: Workload, engine: str, *options: object) -> None:
    out = processes.folder / "transitions.ndjson"
    replay = processes.cmis("replay", workload.events, "--rules", workload.rules, "--out", out, "--engine", engine, *options)
    assert replay.ended(280) == 0, replay.text
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert as_answer(lines) == workload.answer
    assert all(
        line["org"].startswith("org_") and set(line) == {"rule", "org", "campaign", "at", "state", "value"} for line in lines
    )
    assert f"{len(workload.answer):,} transitions of" in replay.text and "left out" not in replay.text


@pytest.mark.parametrize("engine", ["core", "pipeline"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_both_engines_give_the_exact_answer(processes: Processes, tmp_path: Path, engine: str, seed: int) -> None:
    equals_the_answer(processes, make_workload(tmp_path / "workload", events=20_000, seed=seed), engine)


@pytest.mark.parametrize("engine", ["core", "pipeline"])
def test_two_hours_of_events(processes: Processes, tmp_path: Path, engine: str) -> None:
    equals_the_answer(processes, make_workload(tmp_path / "workload", events=30_000, span_s=7_200, seed=4), engine)


@pytest.mark.parametrize("batch", [100, 777])
def test_requests_of_any_size_give_the_same_answer(processes: Processes, tmp_path: Path, batch: int) -> None:
    workload = make_workload(tmp_path / "workload", events=20_000, seed=5)
    equals_the_answer(processes, workload, "pipeline", "--batch", batch)


@pytest.mark.parametrize("engine", ["core", "pipeline"])
def test_orgs_may_be_interleaved_in_any_way(processes: Processes, tmp_path: Path, engine: str) -> None:
    """What counts is the order within each org."""
    workload = make_workload(tmp_path / "workload", events=20_000, seed=6)
    lines = workload.events.read_bytes().splitlines(keepends=True)
    by_org: dict[bytes, list[bytes]] = {}
    for line in lines:
        by_org.setdefault(line.split(b'"org":')[1][:9], []).append(line)
    turns = [org for org, own in by_org.items() for _ in own]
    random.Random(6).shuffle(turns)
    rest = {org: iter(own) for org, own in by_org.items()}
    shuffled = [next(rest[org]) for org in turns]
    assert shuffled != lines and sorted(shuffled) == sorted(lines)
    workload.events.write_bytes(b"".join(shuffled))
    equals_the_answer(processes, workload, engine)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["core", "pipeline"])
@pytest.mark.parametrize("span_s", [720, 7_200])
def test_ten_thousand_rules(processes: Processes, tmp_path: Path, engine: str, span_s: int) -> None:
    workload = make_workload(tmp_path / "workload", events=100_000, rules=10_000, span_s=span_s, seed=8)
    equals_the_answer(processes, workload, engine)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["core", "pipeline"])
def test_a_million_events(processes: Processes, tmp_path: Path, engine: str) -> None:
    equals_the_answer(processes, make_workload(tmp_path / "workload", events=1_000_000), engine)
