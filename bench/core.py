"""The core path in one process, no log and no state store: JSON bytes to transitions.

python -m bench.core campaign WORKLOAD      campaign level, the windows that rules need
python -m bench.core levels WORKLOAD        all five levels, all seven windows kept in the live view besides
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from bench.measure import Report, Stopwatch, job_arguments, settle
from bench.workloads import NOW_MS, Workload, transition_of
from cmis_stream.core.engine import Engine, Step, end_of_panes, transition_lines
from cmis_stream.core.entities import LEVELS
from cmis_stream.core.rules import parse_rule
from cmis_stream.core.time import WINDOWS, Window
from cmis_stream.feeds.decode import decode_ndjson

JOBS: dict[str, tuple[tuple[str, ...], str, tuple[Window, ...]]] = {
    "campaign": (("campaign",), "campaign", ()),
    "levels": (LEVELS, "ad", tuple(WINDOWS.values())),
}
"""Name -> kept levels, level of the leaves, windows of the live view."""


def engine_with(rules: Sequence[dict[str, Any]], levels: Sequence[str], live: Sequence[Window], evaluate: str = "pane") -> Engine:
    """An engine with these rules (flat or nested form) in force."""
    engine = Engine(levels, live)
    of_org: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for rule in rules:
        of_org[rule["org"]].append(rule)
    for org, own in of_org.items():
        engine.adopt(org, 1, [parse_rule(rule, evaluate=evaluate) for rule in own], own)
    return engine


def replay(engine: Engine, workload: Workload, leaf_level: str) -> tuple[int, list[Step]]:
    """Feeds every chunk as one record, then the tick that makes all panes final. Returns the events and the steps."""
    steps: list[Step] = []
    events, largest_ms = 0, 0
    for body in workload.chunks():
        decoded = decode_ndjson(body, org=None, source="bench", now_ms=NOW_MS, sequence=events, leaf_level=leaf_level)
        if decoded.refused or decoded.batch is None:
            raise ValueError(f"the workload holds events that are refused: {decoded.refused[:3]}")
        events += decoded.events
        largest_ms = max(largest_ms, int(decoded.batch.ts_ms.max()))
        steps.append(engine.apply(decoded.batch, NOW_MS))
    steps.append(engine.tick(NOW_MS, end_of_panes(largest_ms)))
    return events, steps


def run(job: str, workload: Workload) -> Report:
    levels, leaf_level, live = JOBS[job]
    engine = engine_with(workload.rules(), levels, live)
    watch = Stopwatch()
    events, steps = replay(engine, workload, leaf_level)
    report = watch.report(events, sum(step.changes for step in steps))
    if sum(step.accepted for step in steps) != events:
        raise ValueError("events were refused or taken for duplicates")
    return settle(report, workload, [transition_of(line) for step in steps for line in transition_lines(engine, step)])


if __name__ == "__main__":
    name, folder = job_arguments(JOBS)
    run(name, Workload(folder)).print()
