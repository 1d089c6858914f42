"""kill -9 under load: rollups, incidents in the store and what a gateway can recover are those of an undisturbed run."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from cmis_stream.core.channels import entity_key
from cmis_stream.core.time import PANE_SIZES_MS
from cmis_stream.instance import Instance
from cmis_stream.live.projection import READER
from cmis_stream.log import rollup
from cmis_stream.log.positions import Passed
from cmis_stream.runtime import ROLLUPS, TRANSITIONS
from tests.e2e.support import PATIENCE_S, Processes, Workload, make_workload, needs_workload, records_of, transitions_of
from tests.faults.test_kill import Disturbed

pytestmark = needs_workload

PANE_MS = PANE_SIZES_MS[0]
Cells = dict[tuple[str, str, int], tuple[Any, ...]]


def panes_of(workload: Workload) -> Cells:
    """(org, entity, start) -> (closed, sums) of every pane of 10 s, added up from the file."""
    sums: dict[tuple[str, str, int], list[int]] = defaultdict(lambda: [0] * 6)
    for text in workload.events.read_text().splitlines():
        event = json.loads(text)
        values = [
            1,
            event["impressions"],
            event["clicks"],
            *(round(event[name] * 1e6) for name in ("spend", "conversions", "revenue")),
        ]
        for path in (["USD"], ["USD", event["platform"]], ["USD", event["platform"], "", event["campaign"]]):
            held = sums[event["org"], entity_key(path), event["ts"] // PANE_MS * PANE_MS]
            held[:] = [a + b for a, b in zip(held, values, strict=True)]
    return {cell: (True, *held) for cell, held in sums.items()}


async def followed(instance: Instance) -> Cells:
    """What a consumer of the rollups topic knows: each position once, the newest value of each pane."""
    passed, cells = Passed(), {}
    for partition in range(instance.runtime.partitions):
        for record in await records_of(instance, ROLLUPS, partition):
            told = rollup.decode(record.value or b"")
            if passed.is_new(*told.source):
                own = told.rollup
                assert set(own.pane_ms.tolist()) == {PANE_MS}
                for org, (first, last) in zip(own.orgs, pairwise(own.bounds), strict=True):
                    for row in range(first, last):
                        cell = (org, own.keys[own.entity[row]], int(own.start_ms[row]))
                        cells[cell] = (bool(own.closed[row]), *own.sums[:, row].tolist())
    return cells


async def awaited(condition: Callable[[], bool], what: str) -> None:
    give_up_at = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up_at, f"waited {PATIENCE_S} s for {what}"
        await asyncio.sleep(0.02)


def incidents_of(lines: list[dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """incident -> (org, key, state, started_at, resolved_at) by the transitions."""
    found: dict[str, tuple[Any, ...]] = {}
    for line in lines:
        if line["state"] == "firing":
            assert line["incident"] not in found
            found[line["incident"]] = (line["org"], line["key"], "firing", line["at"], None)
        else:
            org, key, state, began, _ = found[line["incident"]]
            assert (org, key, state) == (line["org"], line["key"], "firing")
            found[line["incident"]] = (org, key, "resolved", began, line["at"])
    return found


async def in_store(instance: Instance) -> dict[str, tuple[Any, ...]]:
    runtime = instance.runtime
    ends = {(TRANSITIONS, p): end - 1 for p, end in (await runtime.log.ends(TRANSITIONS)).items()}

    def written() -> bool:
        at = runtime.facts.positions(READER, runtime.log.epoch)
        return all(at.get(place, -1) >= end for place, end in ends.items())

    await awaited(written, "the transitions in the store")
    found = runtime.facts.everywhere("incident")
    assert max(Counter(fact.id for fact in found).values()) == 1
    return {fact.id: (fact.org, *(fact.body[name] for name in ("key", "state", "started_at", "resolved_at"))) for fact in found}


async def recovered(instance: Instance) -> dict[str, list[tuple[str, int]]]:
    """org -> (incident, version) in the order in which a client that was always away gets them."""
    runtime = instance.runtime
    found = {}
    for org in {owner_org for owner in instance.owners for owner_org in owner.engine.entities.orgs}:
        answer = await runtime.backplane.recover(f"org:{org}:incidents", -1, runtime.log.epoch, 100_000)
        assert answer.publications is not None
        items = [item for publication in answer.publications for item in orjson.loads(publication.data())["items"]]
        found[org] = [(item["id"], item["version"]) for item in items]
    return found


async def equals_an_undisturbed_run(disturbed: Disturbed) -> None:
    async with disturbed.looked_at() as instance:
        assert await followed(instance) == panes_of(disturbed.workload)
        lines = await transitions_of(instance)
        assert lines, "no transitions show nothing"
        assert await in_store(instance) == incidents_of(lines)
        by_org: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for line in lines:
            by_org[line["org"]].append((line["incident"], 1 if line["state"] == "firing" else 2))
        for org, told in (await recovered(instance)).items():
            assert told == by_org[org]


@pytest.mark.spec("GTW-M06", partial="exactly what was missed, from memory and log; the snapshot's part is the gateway's")
@pytest.mark.spec("ALR-M11")
async def test_results_after_kills_are_those_of_an_undisturbed_run(processes: Processes, tmp_path: Path) -> None:
    workload = make_workload(tmp_path / "workload", events=40_000, seed=31)
    disturbed = Disturbed(processes, tmp_path, workload, evaluate="pane", seed=31)
    disturbed.kill_instance(4)
    disturbed.all_sent()
    await equals_an_undisturbed_run(disturbed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_results_after_twenty_kills_are_those_of_an_undisturbed_run(processes: Processes, tmp_path: Path) -> None:
    workload = make_workload(tmp_path / "workload", events=300_000, seed=32)
    disturbed = Disturbed(processes, tmp_path, workload, evaluate="live", seed=32)
    disturbed.kill_instance(20)
    disturbed.all_sent()
    await equals_an_undisturbed_run(disturbed)
