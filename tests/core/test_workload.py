"""The benchmark's workload, whose exact answer is computed over whole arrays by other code."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cmis_stream.core.batch import Batch, Segment, leaf_path
from cmis_stream.core.engine import Engine, Step, end_of_panes
from cmis_stream.core.entities import LEVELS
from cmis_stream.core.rules import parse_rule
from cmis_stream.core.time import WINDOWS

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("CMIS_DATA", ROOT / "../shared/data"))
WORKLOAD = ROOT / "../shared/bench/workload.py"

pytestmark = pytest.mark.skipif(
    not (DATA.exists() and WORKLOAD.exists()), reason="needs CMIS_DATA (../shared/data) and ../shared/bench/workload.py"
)


@pytest.fixture(scope="module")
def workload() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_workload", WORKLOAD)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def batches(workload: ModuleType, events: dict[str, Any], size: int, levels: tuple[str, ...]) -> list[Batch]:
    campaign, ad_set, ad = events["campaign"], events["ad_set"], events["ad"]
    deep = "ad" in levels
    key = (campaign * 5 + ad_set) * 8 + ad if deep else campaign
    _, first, leaf = np.unique(key, return_index=True, return_inverse=True)
    paths = []
    for i in first.tolist():
        c, s, a = int(campaign[i]), int(ad_set[i]), int(ad[i])
        below = (f"as_{c:05d}_{s:02d}", f"ad_{c:05d}_{s:02d}_{a:02d}") if deep else ("", "")
        paths.append(
            leaf_path(
                f"org_{int(events['org'][i]):03d}",
                "USD",
                workload.PLATFORMS[int(events["platform"][i])],
                "",
                f"cmp_{c:05d}",
                *below,
            )
        )
    values = np.array([
        events["impressions"], events["clicks"], np.rint(events["spend"] * 1e6),
        events["conversions"] * 1_000_000, np.rint(events["revenue"] * 1e6),
    ]).astype(np.int64)  # fmt: skip
    found = []
    for start in range(0, len(leaf), size):
        part = slice(start, start + size)
        count = len(leaf[part])
        found.append(
            Batch(
                ts_ms=events["ts"][part], leaf=leaf[part].astype(np.int32), values=values[:, part],
                event=np.arange(count, dtype=np.int32),
                uid=np.arange(start, start + count, dtype=np.uint64), paths=paths, segments=[Segment("*", "bench", True, count)],
            )
        )  # fmt: skip
    return found


def answers(engine: Engine, steps: list[Step]) -> list[tuple[int, str, str, str]]:
    found = []
    for part in (part for step in steps for part in step.transitions):
        for i in range(len(part)):
            entity = engine.entities.entity(int(part.row[i]))
            assert entity.level == "campaign"
            found.append(
                (
                    int(part.at_ms[i]),
                    engine.rules.rule_id(int(part.rule[i])),
                    entity.campaign,
                    "firing" if part.firing[i] else "resolved",
                )
            )
    return sorted(found)


@pytest.mark.parametrize(
    ("seed", "count", "span_s", "orgs", "rules", "size", "levels"),
    [
        (42, 60_000, 720, 50, 100, 5_000, ("campaign",)),
        (7, 40_000, 720, 50, 1_200, 777, ("campaign",)),
        (1, 30_000, 7_200, 20, 100, 2_000, LEVELS),
        (3, 40_000, 7_200, 10, 1_500, 10_000, LEVELS),
    ],
)  # fmt: skip
def test_the_workload_is_answered_exactly(
    workload: ModuleType, seed: int, count: int, span_s: int, orgs: int, rules: int, size: int, levels: tuple[str, ...]
) -> None:
    events = workload.make_events(count, span_s * 1000, orgs, np.random.default_rng(seed))
    sums, first_pane = workload.window_sums(events, orgs * workload.CAMPAIGNS_PER_ORG)
    values = workload.metrics(sums)
    raw_rules = workload.make_rules(rules, values, orgs, np.random.default_rng(seed + 1))
    want = workload.expected(raw_rules, sums, values, first_pane)

    engine = Engine(levels, tuple(WINDOWS.values()) if levels is LEVELS else ())
    for org in sorted({raw["org"] for raw in raw_rules}):
        own = [raw for raw in raw_rules if raw["org"] == org]
        engine.adopt(org, 1, [parse_rule(raw, evaluate="pane") for raw in own], own)
    now_ms = int(events["ts"].max())
    steps = [engine.apply(batch, now_ms) for batch in batches(workload, events, size, levels)]
    steps.append(engine.tick(now_ms, end_of_panes(now_ms)))
    assert sum(step.late for step in steps) == 0 and sum(step.accepted for step in steps) == count
    assert answers(engine, steps) == sorted((t["at"], t["rule"], t["campaign"], t["state"]) for t in want)
    assert len(want) > 500
