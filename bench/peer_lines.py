"""Bytewax with hand-written panes in the library's usual shape: an item is one line, the key is the campaign.

    lines -> map: msgspec -> key: campaign -> stateful_batch: panes -> transitions

Each campaign has only its own watermark, so the panes of a quiet one close late, at its next event or at the end of the
input: the transitions are the exact ones, but not when they are due. `peer_panes` closes them in time, and is faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import bytewax.operators as op
import msgspec
from bytewax.dataflow import Dataflow
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.operators import StatefulBatchLogic
from bytewax.testing import run_main

from bench.measure import Report, Stopwatch, job_arguments, settle
from bench.peer_panes import LATE_MS, NEVER, PANE_MS, Campaign, ListSink, MetricEvent, Rule, rules_of_orgs
from bench.workloads import Transition, Workload


class CampaignLogic(StatefulBatchLogic[MetricEvent, Transition, None]):
    """One campaign and its own watermark."""

    def __init__(self, rules_of: Mapping[str, Sequence[Rule]], others: list[CampaignLogic]) -> None:
        self.rules_of = rules_of
        self.others = others
        others.append(self)
        self.campaign: Campaign | None = None
        self.next_pane = NEVER
        self.newest_ms = 0

    def on_batch(self, values: list[MetricEvent]) -> tuple[Iterable[Transition], bool]:
        out: list[Transition] = []
        campaign = self.campaign
        if campaign is None:
            first = values[0]
            campaign = self.campaign = Campaign(first.campaign, self.rules_of.get(first.org, ()))
            self.next_pane = (first.ts - LATE_MS) // PANE_MS
        for event in values:
            if event.ts > self.newest_ms:
                self.newest_ms = event.ts
                self._close_until((event.ts - LATE_MS) // PANE_MS - 1, out)
            campaign.add(event)
        return out, StatefulBatchLogic.RETAIN

    def on_eof(self) -> tuple[Iterable[Transition], bool]:
        """The end of the input makes every pane final, up to the newest event of all campaigns."""
        out: list[Transition] = []
        self._close_until(max(logic.newest_ms for logic in self.others) // PANE_MS, out)
        return out, StatefulBatchLogic.RETAIN

    def _close_until(self, last: int, out: list[Transition]) -> None:
        if last >= self.next_pane and self.campaign is not None:
            for pane in range(self.next_pane, last + 1):
                self.campaign.close(pane, out)
            self.next_pane = last + 1

    def snapshot(self) -> None:
        """No recovery is configured, so it is never asked for."""


class LinePartition(StatelessSourcePartition[bytes]):
    def __init__(self, workload: Workload) -> None:
        self._chunks = workload.chunks()

    def next_batch(self) -> list[bytes]:
        return next(self._chunks).splitlines()


class LineSource(DynamicSource[bytes]):
    def __init__(self, workload: Workload) -> None:
        self._workload = workload

    def build(self, step_id: str, worker_index: int, worker_count: int) -> LinePartition:
        return LinePartition(self._workload)


def run(workload: Workload) -> Report:
    rules, found, logics = rules_of_orgs(workload.rules()), list[Transition](), list[CampaignLogic]()
    flow = Dataflow("lines")
    decoded = op.map("decode", op.input("source", flow, LineSource(workload)), msgspec.json.Decoder(MetricEvent).decode)
    keyed = op.key_on("key", decoded, lambda event: event.campaign)
    op.output("sink", op.stateful_batch("panes", keyed, lambda _: CampaignLogic(rules, logics)), ListSink(found))
    watch = Stopwatch()
    run_main(flow)  # type: ignore[no-untyped-call]  # bytewax: a Rust function without annotations
    report = watch.report(workload.events(), len(found))
    return settle(report, workload, found)


JOBS = {"lines": run}

if __name__ == "__main__":
    name, folder = job_arguments(JOBS)
    JOBS[name](Workload(folder)).print()
