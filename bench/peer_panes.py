"""The peer to beat: Bytewax with hand-written panes, as a careful user of that library would write them.

    chunks of 5,000 lines -> flat_map_batch: msgspec, whole chunks at a time -> key: org -> stateful_batch: panes -> transitions

One state per org, not per campaign: an org's watermark then closes the panes of its quiet campaigns too, which is what
makes the transitions exact. Per campaign there is one dict of 10 s panes and the running sums of its window; a pane that
closes is added, the pane that leaves is taken away, and the campaign's rules are compared, only if one of both existed.
Without checkpoints, deduplication, late events and validation beyond the types, all of which the product's row includes.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import bytewax.operators as op
import msgspec
from bytewax.dataflow import Dataflow
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main

from bench.measure import Report, Stopwatch, job_arguments, settle
from bench.workloads import Transition, Workload

PANE_MS, WINDOW_PANES, LATE_MS = 10_000, 30, 5_000
FIELDS = ("events", "impressions", "clicks", "spend", "conversions", "revenue")
EVENTS, IMPRESSIONS, CLICKS, SPEND, CONVERSIONS, REVENUE = range(6)
NEVER = -1

Comparator = Callable[[float, float], bool]


class MetricEvent(msgspec.Struct, gc=False):
    ts: int
    org: str
    campaign: str
    impressions: int
    clicks: int
    spend: float
    conversions: int
    revenue: float


class Rule(msgspec.Struct, gc=False):
    id: str
    campaign: str | None
    metric: str
    compare: Comparator
    threshold: float
    minimum_field: int
    minimum: float


def rules_of_orgs(raw: Iterable[dict[str, Any]]) -> dict[str, list[Rule]]:
    rules: dict[str, list[Rule]] = defaultdict(list)
    for r in raw:
        compare: Comparator = operator.gt if r["op"] == "gt" else operator.lt
        minimum_field = FIELDS.index(r["min_field"])
        rules[r["org"]].append(Rule(r["id"], r["campaign"], r["metric"], compare, r["threshold"], minimum_field, r["min_value"]))
    return rules


def values_of(s: list[int]) -> dict[str, float | None]:
    spend = s[SPEND]
    return {
        "spend": spend / 1e6,
        "ctr": s[CLICKS] / s[IMPRESSIONS] if s[IMPRESSIONS] else None,
        "cpc": spend / 1e6 / s[CLICKS] if s[CLICKS] else None,
        "roas": s[REVENUE] / spend if spend else None,
    }


class Campaign:
    """Panes and running sums of one campaign; `holding` has the rules that hold."""

    __slots__ = ("holding", "name", "panes", "rules", "sums")

    def __init__(self, name: str, rules: Sequence[Rule]) -> None:
        self.name = name
        self.rules = [rule for rule in rules if rule.campaign is None or rule.campaign == name]
        self.panes: dict[int, list[int]] = {}
        self.sums = [0] * len(FIELDS)
        self.holding: set[str] = set()

    def add(self, event: MetricEvent) -> None:
        number = event.ts // PANE_MS
        pane = self.panes.get(number)
        if pane is None:
            pane = self.panes[number] = [0, 0, 0, 0, 0, 0]
        pane[EVENTS] += 1
        pane[IMPRESSIONS] += event.impressions
        pane[CLICKS] += event.clicks
        pane[SPEND] += round(event.spend * 1e6)
        pane[CONVERSIONS] += event.conversions
        pane[REVENUE] += round(event.revenue * 1e6)

    def close(self, pane: int, out: list[Transition]) -> None:
        entering, leaving = self.panes.get(pane), self.panes.pop(pane - WINDOW_PANES, None)
        if entering is None and leaving is None:
            return
        sums = self.sums
        if entering is not None:
            sums = [a + b for a, b in zip(sums, entering, strict=True)]
        if leaving is not None:
            sums = [a - b for a, b in zip(sums, leaving, strict=True)]
        self.sums = sums
        if self.rules and sums[EVENTS]:
            self._judge((pane + 1) * PANE_MS, out)

    def _judge(self, at_ms: int, out: list[Transition]) -> None:
        values, holding = values_of(self.sums), self.holding
        for rule in self.rules:
            value = values[rule.metric]
            holds = value is not None and rule.compare(value, rule.threshold) and self.sums[rule.minimum_field] >= rule.minimum
            if holds != (rule.id in holding):
                (holding.add if holds else holding.discard)(rule.id)
                out.append((at_ms, rule.id, self.name, "firing" if holds else "resolved"))


class OrgLogic(StatefulBatchLogic[MetricEvent, Transition, None]):
    """All campaigns of one org and its watermark."""

    def __init__(self, rules_of: Mapping[str, Sequence[Rule]], others: list[OrgLogic]) -> None:
        self.rules_of = rules_of
        self.others = others
        others.append(self)
        self.campaigns: dict[str, Campaign] = {}
        self.next_pane = NEVER
        self.close_ms = 0
        self.newest_ms = 0

    def on_batch(self, values: list[MetricEvent]) -> tuple[Iterable[Transition], bool]:
        out: list[Transition] = []
        campaigns, close_ms, newest_ms = self.campaigns, self.close_ms, self.newest_ms
        for event in values:
            ts = event.ts
            if ts > newest_ms:
                newest_ms = ts
                if self.next_pane == NEVER:
                    self.next_pane = (ts - LATE_MS) // PANE_MS
                    self.close_ms = close_ms = (self.next_pane + 1) * PANE_MS + LATE_MS
                if ts >= close_ms:
                    self._close_until((ts - LATE_MS) // PANE_MS - 1, out)
                    close_ms = self.close_ms
            campaign = campaigns.get(event.campaign)
            if campaign is None:
                campaign = campaigns[event.campaign] = Campaign(event.campaign, self.rules_of.get(event.org, ()))
            campaign.add(event)
        self.newest_ms = newest_ms
        return out, StatefulBatchLogic.RETAIN

    def on_eof(self) -> tuple[Iterable[Transition], bool]:
        """The end of the input makes every pane final, up to the newest event of all orgs."""
        out: list[Transition] = []
        self._close_until(max(logic.newest_ms for logic in self.others) // PANE_MS, out)
        return out, StatefulBatchLogic.RETAIN

    def _close_until(self, last: int, out: list[Transition]) -> None:
        for pane in range(self.next_pane, last + 1):
            for campaign in self.campaigns.values():
                campaign.close(pane, out)
        self.next_pane = last + 1
        self.close_ms = (self.next_pane + 1) * PANE_MS + LATE_MS

    def snapshot(self) -> None:
        """No recovery is configured, so it is never asked for."""


class ChunkPartition(StatelessSourcePartition[bytes]):
    def __init__(self, workload: Workload) -> None:
        self._chunks = workload.chunks()

    def next_batch(self) -> list[bytes]:
        return [next(self._chunks)]  # StopIteration is how a partition says that it is done


class ChunkSource(DynamicSource[bytes]):
    def __init__(self, workload: Workload) -> None:
        self._workload = workload

    def build(self, step_id: str, worker_index: int, worker_count: int) -> ChunkPartition:
        return ChunkPartition(self._workload)


class ListPartition(StatelessSinkPartition[tuple[str, Transition]]):
    def __init__(self, found: list[Transition]) -> None:
        self._found = found

    def write_batch(self, items: list[tuple[str, Transition]]) -> None:
        self._found.extend(transition for _, transition in items)


class ListSink(DynamicSink[tuple[str, Transition]]):
    def __init__(self, found: list[Transition]) -> None:
        self._found = found

    def build(self, step_id: str, worker_index: int, worker_count: int) -> ListPartition:
        return ListPartition(self._found)


def run(workload: Workload) -> Report:
    rules, found, logics = rules_of_orgs(workload.rules()), list[Transition](), list[OrgLogic]()
    decoder = msgspec.json.Decoder(MetricEvent)

    def decode(bodies: list[bytes]) -> list[tuple[str, MetricEvent]]:
        return [(event.org, event) for body in bodies for event in decoder.decode_lines(body)]

    def build(_: None) -> OrgLogic:
        return OrgLogic(rules, logics)

    flow = Dataflow("panes")
    source = op.input("source", flow, ChunkSource(workload))
    keyed = op.flat_map_batch("decode", source, decode)
    op.output("sink", op.stateful_batch("panes", keyed, build), ListSink(found))
    watch = Stopwatch()
    run_main(flow)  # type: ignore[no-untyped-call]  # bytewax: a Rust function without annotations
    return settle(watch.report(workload.events(), len(found)), workload, found)


JOBS = {"panes": run}

if __name__ == "__main__":
    name, folder = job_arguments(JOBS)
    JOBS[name](Workload(folder)).print()
