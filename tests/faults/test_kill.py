"""kill -9 at random moments: of the instance while a retrying client sends, and of the client."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cmis_stream.instance import Instance
from cmis_stream.settings import Settings
from tests.e2e.support import (
    Process,
    Processes,
    Up,
    Workload,
    as_answer,
    evaluate_anew,
    finish,
    firing_of,
    follow,
    make_workload,
    needs_workload,
    rules_in_log,
    transitions_of,
    undisturbed,
    until,
    window_sums,
    without_identity,
)

pytestmark = needs_workload

REQUESTS = 300
"""About so many at least: many chances for a kill to fall between any two steps, and time enough for it."""


class Disturbed:
    """A workload on its way into an instance, and what may be killed meanwhile."""

    def __init__(self, processes: Processes, folder: Path, workload: Workload, *, evaluate: str, seed: int) -> None:
        self.processes, self.workload, self.data_dir = processes, workload, folder / "data"
        self.random = random.Random(seed)
        self.up = Up(processes, self.data_dir, "--rules", workload.rules, "--evaluate", evaluate).ready()
        orgs = {rule["org"] for rule in workload.rules_given}
        until(lambda: orgs == set(rules_in_log(self.data_dir)), "the rules in the log")
        self.ingest = self._ingesting()

    def _ingesting(self) -> Process:
        return self.processes.cmis(
            "ingest",
            self.workload.events,
            "--data-dir",
            self.data_dir,
            "--create-orgs",
            "--batch",
            min(self.workload.count // REQUESTS, 250),
            "--url",
            self.up.url,
        )

    def acknowledged(self) -> int:
        """Events that the client knows to be safe."""
        states = [path for path in (self.data_dir / "ingest").glob("*.json") if not path.name.endswith(".rejected.ndjson")]
        return sum(sum(json.loads(path.read_text())["acknowledged"].values()) for path in states)

    def come_to(self, share: float) -> bool:
        """Waits until about this share of the events is acknowledged; False when the client has finished before."""
        target = share * self.workload.count
        until(lambda: not self.ingest.running or self.acknowledged() >= target, f"{target:.0f} acknowledged events")
        time.sleep(self.random.uniform(0, 0.05))  # the moment of a kill is random; nothing is awaited here
        return self.ingest.running

    def kill_instance(self, times: int) -> None:
        """At random moments spread over the stream, one in three of them while it is still starting again."""
        before = self.up.kills
        while self.up.kills - before < times:
            done = self.up.kills - before
            assert self.come_to((done + self.random.random()) / (times + 1)), f"the client was done after {done} kills"
            self.up.kill()
            if self.random.random() < 1 / 3 and self.up.kills - before < times:
                time.sleep(self.random.uniform(0.2, 1.5))
                self.up.kill()
            self.up.ready()

    def kill_client(self, share: float) -> None:
        assert self.come_to(share), "the client was done before"
        self.ingest.kill()
        self.ingest = self._ingesting()

    def all_sent(self) -> None:
        assert self.ingest.ended(600) == 0, self.ingest.text
        self.up.stop()

    @asynccontextmanager
    async def looked_at(self) -> AsyncIterator[Instance]:
        """What is left of it, in this process, with everything applied and final."""
        async with Instance(Settings(data_dir=self.data_dir, port=0)) as instance:
            instance.runtime.ticking = False
            await finish(instance)
            yield instance


async def equals_an_undisturbed_run(disturbed: Disturbed) -> None:
    workload = disturbed.workload
    alone = undisturbed(workload)
    async with disturbed.looked_at() as instance:
        lines = await transitions_of(instance)
        follow(lines)
        assert as_answer(lines) == workload.answer
        engines = [owner.engine for owner in instance.owners]
        assert sum(engine.events for engine in engines) == workload.count
        sums = {key: value for engine in engines for key, value in window_sums(engine).items()}
        assert sums == window_sums(alone)


async def equals_a_fresh_evaluation(disturbed: Disturbed) -> None:
    async with disturbed.looked_at() as instance:
        lines = await transitions_of(instance)
        assert lines, "no transitions show nothing"
        assert [i for i, n in Counter(line["id"] for line in lines).items() if n > 1] == []
        firing = follow(lines)
        anew, firing_anew = await evaluate_anew(instance)
        assert without_identity(lines) == without_identity(anew)
        assert [line["id"].rsplit("/", 1)[0] for line in lines] == [
            f"cmis.metrics.v1/{line['partition']}/{line['offset']}" for line in anew
        ]
        assert firing == firing_anew == set().union(*(firing_of(owner.engine) for owner in instance.owners))


@pytest.mark.spec("ALR-O04", partial="timers and cooldowns do not exist yet; windows and firing states survive kills")
async def test_sums_and_pane_transitions_after_kills_equal_an_undisturbed_run(processes: Processes, tmp_path: Path) -> None:
    workload = make_workload(tmp_path / "workload", events=40_000, span_s=720)
    disturbed = Disturbed(processes, tmp_path, workload, evaluate="pane", seed=1)
    disturbed.kill_instance(4)
    disturbed.all_sent()
    await equals_an_undisturbed_run(disturbed)


async def test_a_client_that_was_killed_resumes_and_nothing_is_counted_twice(processes: Processes, tmp_path: Path) -> None:
    workload = make_workload(tmp_path / "workload", events=30_000, span_s=720, seed=7)
    disturbed = Disturbed(processes, tmp_path, workload, evaluate="pane", seed=2)
    disturbed.kill_client(0.2)
    disturbed.kill_instance(1)
    disturbed.kill_client(0.7)
    disturbed.all_sent()
    assert "resumed at byte" in disturbed.ingest.text or "accepted" in disturbed.ingest.text
    await equals_an_undisturbed_run(disturbed)


async def test_live_transitions_after_kills_appear_once_and_equal_a_fresh_evaluation(
    processes: Processes, tmp_path: Path
) -> None:
    workload = make_workload(tmp_path / "workload", events=40_000, span_s=720, seed=11)
    disturbed = Disturbed(processes, tmp_path, workload, evaluate="live", seed=3)
    disturbed.kill_instance(4)
    disturbed.all_sent()
    await equals_a_fresh_evaluation(disturbed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_a_million_events_and_twenty_kills_equal_an_undisturbed_run(processes: Processes, tmp_path: Path) -> None:
    workload = make_workload(tmp_path / "workload", events=1_000_000)
    disturbed = Disturbed(processes, tmp_path, workload, evaluate="pane", seed=4)
    disturbed.kill_instance(20)
    disturbed.all_sent()
    await equals_an_undisturbed_run(disturbed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_a_million_live_events_and_twenty_kills_equal_a_fresh_evaluation(processes: Processes, tmp_path: Path) -> None:
    workload = make_workload(tmp_path / "workload", events=1_000_000, seed=5)
    disturbed = Disturbed(processes, tmp_path, workload, evaluate="live", seed=5)
    disturbed.kill_instance(20)
    disturbed.all_sent()
    await equals_a_fresh_evaluation(disturbed)
