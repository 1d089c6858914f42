"""One scenario from start to end: an installation, a load, an audience, a disturbance in the midst, and the count of it all."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.audience import Audience, Reader
from tests.faults.cluster import Cluster, Part, Shape
from tests.faults.load import Load, Transition, expected_transitions, present_workload
from tests.faults.outcome import Outcome, Tally

SETTLES_S = 90.0
"""How long what is missing at the end may take to come before it counts as lost."""
CLOSE_EVERY_S = 20.0
"""An org without events for a minute follows the clock and forgets old panes; the load's end is repeated before."""
AFTERWARDS_S = 2.0
"""How long to go on listening for what comes twice."""


@dataclass(frozen=True)
class Size:
    """events over `seconds`, of `orgs`. outage_s: how long what is away stays away. clients: of the reconnect storm."""

    events: int
    seconds: float
    orgs: int = 8
    outage_s: float = 5.0
    clients: int = 200


@dataclass(frozen=True)
class Scenario:
    """what: for docs/reliability.md. program: runs `cmis` in another way than as it is."""

    name: str
    shape: Shape
    disturb: Callable[[Stage], Awaitable[None]]
    short: Size
    long: Size
    begins: bool = True
    """Whether events flow before the disturbance begins; else it begins the load itself."""
    data_dir: Callable[[Path, AsyncExitStack], Path] | None = None
    program: Callable[[Path], list[str]] | None = None


@dataclass
class Stage:
    """What a disturbance works with."""

    cluster: Cluster
    load: Load
    audience: Audience
    size: Size
    folder: Path
    dice: random.Random
    opened: AsyncExitStack
    others: list[tuple[str, Counter[Transition]]] = field(default_factory=list)
    """(org, what it was told) of each further client that was there from the first event to the last."""
    recoveries: list[float] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    async def recovered(self, since: float) -> None:
        """Returns when an event that is sent now is in every org's figures at its client; notes the time since then."""
        await self.audience.sees(await self.load.probe())
        self.recoveries.append(time.monotonic() - since)

    @property
    def busiest_org(self) -> str:
        """The one with the most alerts."""
        due = Counter(org for org, *_ in expected_transitions(self.load.workload).elements())
        return due.most_common(1)[0][0]

    def told(self) -> Tally:
        """Over all clients."""
        due, end_ms = expected_transitions(self.load.workload), self.load.end_ms
        found = Tally.of(due, self.audience.heard(end_ms))
        for org, heard in self.others:
            own = Counter({t: n for t, n in due.items() if t[0] == org})
            found += Tally.of(own, Counter({t: n for t, n in heard.items() if t[-1] <= end_ms}))
        return found

    def worker(self) -> Part:
        """Any that runs."""
        return self.dice.choice([worker for worker in self.cluster.workers if worker.run.running])


async def play(scenario: Scenario, size: Size, folder: Path, *, seed: int = 1) -> Outcome:
    """Raises AssertionError, with the outputs of all processes, when something ended that must not or did not come back."""
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    workload = await asyncio.to_thread(
        present_workload, folder / "workload", events=size.events, orgs=size.orgs, span_s=420, seed=seed
    )
    async with AsyncExitStack() as opened:
        data_dir = scenario.data_dir(folder, opened) if scenario.data_dir else None
        program = scenario.program(folder) if scenario.program else None
        cluster = await opened.enter_async_context(
            Cluster(folder, workload.rules, scenario.shape, data_dir=data_dir, program=program)
        )  # fmt: skip
        load = Load(workload, cluster.url, cluster.ingest_tokens(), size.seconds, folder / "sender")
        opened.push_async_callback(load.close)
        tokens = {org: cluster.read_token(org) for org in load.orgs}
        audience, reader = Audience(cluster.gateway_urls, tokens), Reader(cluster.url, tokens)
        opened.push_async_callback(reader.close)
        stage = Stage(cluster, load, audience, size, folder, random.Random(seed), opened)
        try:
            return await cluster.while_supervised(_played(scenario, stage, reader, began))
        except (AssertionError, ExceptionGroup) as error:
            raise AssertionError(f"{scenario.name}: {error}\n{cluster.told()}") from error


async def _played(scenario: Scenario, stage: Stage, reader: Reader, began: float) -> Outcome:
    load, audience = stage.load, stage.audience
    await _rules_in_force(stage)
    await audience.connect()
    try:
        await audience.sees(await load.probe())
        if scenario.begins:
            load.begin()
        await scenario.disturb(stage)
        summary = await load.all_sent()
        stage.remarks.append(f"{summary.retries} requests sent again")
        outcome = await _settled(scenario, stage, reader, began)
    finally:
        await audience.disconnect()
    for part in stage.cluster.parts:
        part.must_run()
    return outcome


async def _rules_in_force(stage: Stage) -> None:
    """Returns when each org's rules are in the metrics log, which says by their place what they judge."""
    expected = {rule["org"] for rule in stage.load.workload.rules_given}
    give_up_at = time.monotonic() + SETTLES_S
    while missing := expected - await stage.cluster.adopted():
        if time.monotonic() > give_up_at:
            raise AssertionError(f"the rules of {sorted(missing)} are not in force")
        await asyncio.sleep(0.2)


async def _settled(scenario: Scenario, stage: Stage, reader: Reader, began: float) -> Outcome:
    """Counts when nothing is missing any more, or waiting longer makes no sense."""
    load, audience = stage.load, stage.audience
    due = expected_transitions(load.workload)
    give_up_at, close_at, equal = time.monotonic() + SETTLES_S, 0.0, False
    while True:
        if time.monotonic() >= close_at:
            await load.close_panes()
            close_at = time.monotonic() + CLOSE_EVERY_S
        outcome = Outcome(
            scenario.name,
            Tally.of_sums(load.expected, await reader.cells(load)),
            Tally.of(due, await reader.transitions(load.end_ms)),
            stage.told(),
            max(stage.recoveries, default=None),
            time.monotonic() - began,
            [*stage.remarks, *_remarks(stage)],
        )
        good = not outcome.lost and not outcome.doubled
        if (good and equal) or time.monotonic() > give_up_at:
            if audience.disordered():
                raise AssertionError(f"transitions came out of order to {audience.disordered()}")
            return outcome
        equal = good
        await asyncio.sleep(AFTERWARDS_S if good else 0.5)


def _remarks(stage: Stage) -> list[str]:
    found = []
    for reason, times in Counter(stage.cluster.endings()).items():
        found.append(f"{times} × ended by itself and was started again: {reason}")
    if unrecovered := stage.audience.unrecovered():
        found.append(f"{unrecovered} subscriptions not recovered")
    return found
