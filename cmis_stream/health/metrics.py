"""The process's metrics for Prometheus, read from the live objects when they are scraped; nothing is counted on the way of a
record. Series are bounded: labels are topics, partitions and codes, never an org. docs/operations.md says what to do about each.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import CollectorRegistry

from cmis_stream.gateway.figures import measured
from cmis_stream.health.busiest import slowest_watermark
from cmis_stream.health.lag import LogView
from cmis_stream.health.loop_lag import LoopLag
from cmis_stream.health.ports import Clients, Partition, Parts
from cmis_stream.health.totals import Totals

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Not OpenMetrics: there a counter's family has the name of its gauge (cmis_gateway_connections)."""


def text(registry: CollectorRegistry) -> bytes:
    """The text exposition format."""
    return generate_latest(registry)


def checkpoint_age_s(partition: Partition, now_s: float) -> float:
    """How old the state is that would be recovered; 0 when everything that is applied is safe. now_s: monotonic."""
    return max(0.0, now_s - partition.saved_at) if partition.unacked else 0.0


class ProcessMetrics:
    """A collector of its own registry: several in one process (tests) do not meet."""

    def __init__(self, parts: Parts, view: LogView, lag: LoopLag, totals: Totals, version: str, memory_limit: int | None) -> None:
        self._parts, self._view, self._lag, self._totals = parts, view, lag, totals
        self._version, self._memory_limit = version, memory_limit
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(namespace="cmis", registry=self.registry)  # resident memory, CPU, start, open files

    def collect(self) -> Iterator[Metric]:
        yield from self._process()
        yield from self._partitions()
        yield from self._behind()
        if self._parts.gateway is not None:
            yield from gateway(self._parts.gateway)

    def _process(self) -> Iterator[Metric]:
        parts = self._parts
        build = GaugeMetricFamily("cmis_build_info", "What runs here; always 1.", labels=("role", "version"))
        build.add_metric((parts.role, self._version), 1)
        yield build
        if self._memory_limit is not None:
            yield GaugeMetricFamily(
                "cmis_memory_limit_bytes", "Resident memory at which the process ends itself.", value=self._memory_limit
            )
        buckets = self._lag.buckets()
        yield HistogramMetricFamily(
            "cmis_event_loop_lag_seconds", "How much later than it should a task of the event loop had its turn.",
            buckets=buckets, sum_value=self._lag.sum_s,
        )  # fmt: skip
        yield GaugeMetricFamily(
            "cmis_event_loop_lag_max_seconds", "The same, the most of the last minute.", value=self._lag.most_s
        )
        if parts.waiting_events is not None:
            yield GaugeMetricFamily(
                "cmis_packer_waiting_events", "Events accepted that are not durable yet.", value=parts.waiting_events()
            )
        if parts.failed_effects is not None:
            yield GaugeMetricFamily(
                "cmis_failed_effects", "Effects that were given up and wait for somebody.", value=parts.failed_effects()
            )
        if parts.history is not None:
            lag = GaugeMetricFamily(
                "cmis_history_lag_records", "Records that are not in history's files yet.", labels=("topic", "partition")
            )
            for (topic, partition), records in self._view.history_lags().items():
                lag.add_metric((topic, str(partition)), records)
            yield lag
            yield GaugeMetricFamily(
                "cmis_history_lost_records", "Records that the log dropped before history had them.", value=parts.history_lost()
            )
        if parts.dead_letters is not None:
            letters = CounterMetricFamily(
                "cmis_dead_letters_total", "Events refused and kept as dead letters.", labels=("reason",)
            )
            for reason, count in sorted(parts.dead_letters().items()):
                letters.add_metric((reason,), count)
            yield letters
        if parts.backplane is not None:
            connected = GaugeMetricFamily("cmis_backplane_connected", "1 when it answers.", labels=("kind",))
            connected.add_metric((parts.backplane.kind,), int(parts.backplane.connected))
            yield connected
            yield CounterMetricFamily(
                "cmis_backplane_reconnects_total", "Connections to it made anew.", value=parts.backplane.reconnects
            )

    def _partitions(self) -> Iterator[Metric]:
        held = sorted(self._parts.partitions(), key=lambda one: one.partition)
        if not self._parts.topics or self._parts.group_lag:
            return
        yield GaugeMetricFamily("cmis_partitions_held", "Partitions in this process's hands.", value=len(held))
        self._totals.look(held)
        totals = self._totals.by_partition()
        for field, name, text in (
            ("events", "cmis_events_applied_total", "Events applied, while this process held the partition."),
            ("duplicates", "cmis_events_duplicate_total", "Events that had come before."),
            ("late", "cmis_events_late_total", "Events that came after their pane was closed; they count."),
            ("records", "cmis_records_applied_total", "Log records applied."),
        ):
            counter = CounterMetricFamily(name, text, labels=("partition",))
            for partition, counts in totals.items():
                counter.add_metric((str(partition),), getattr(counts, field))
            yield counter
        now_s, now_ms = time.monotonic(), self._parts.clock()
        watermarks = {one.partition: slowest_watermark(one) for one in held}
        projected = self._projection_lag([one.partition for one in held])
        for name, text, values in (
            ("cmis_applied_offset", "Offset of the newest record applied.", {p.partition: p.position for p in held}),
            ("cmis_records_unacked", "Records applied and not in a safe checkpoint yet.", {p.partition: p.unacked for p in held}),
            (
                "cmis_checkpoint_age_seconds",
                "How old the state is that would be recovered; 0 when all that is applied is safe.",
                {p.partition: checkpoint_age_s(p, now_s) for p in held},
            ),
            (
                "cmis_checkpoint_duration_seconds",
                "How long the newest safe checkpoint took.",
                {p.partition: p.saving_s for p in held},
            ),
            (
                "cmis_watermark_lag_seconds",
                "How far behind the clock the figures of the slowest org of the partition are final.",
                {number: (now_ms - mark.at_ms) / 1000 for number, mark in watermarks.items() if mark is not None},
            ),
            ("cmis_projection_lag_records", "Records of transitions that are not in the store yet.", projected),
        ):
            gauge = GaugeMetricFamily(name, text, labels=("partition",))
            for number, value in values.items():
                gauge.add_metric((str(number),), value)
            yield gauge

    def _projection_lag(self, held: list[int]) -> dict[int, int]:
        if self._parts.projected is None:
            return {}
        done = self._parts.projected()
        ends = {number: self._view.end(self._parts.transitions, number) for number in held}
        return {number: max(0, end - 1 - done.get(number, -1)) for number, end in ends.items() if end is not None}

    def _behind(self) -> Iterator[Metric]:
        if self._parts.log is None:
            return
        yield GaugeMetricFamily("cmis_log_answers", "1 when the log answers.", value=int(self._view.away_since is None))
        where = "group" if self._parts.group_lag else "held"
        prefix, about = {
            "held": ("cmis_lag_", "of partitions held here"),
            "group": ("cmis_group_lag_", "of the whole group, by what it has committed"),
        }[where]
        records = GaugeMetricFamily(f"{prefix}records", f"Records that wait, {about}.", labels=("topic", "partition"))
        seconds = GaugeMetricFamily(
            f"{prefix}seconds", f"How long records have waited, {about}; 0 when none does.", labels=("topic", "partition")
        )
        for (topic, partition), lag in self._view.lags().items():
            records.add_metric((topic, str(partition)), lag.records)
            if lag.seconds is not None:
                seconds.add_metric((topic, str(partition)), lag.seconds)
        yield records
        yield seconds


def gateway(clients: Clients) -> Iterator[Metric]:
    outboxes = [client.outbox for client in clients.clients]
    for one in measured(
        clients.figures,
        connections=len(outboxes),
        subscriptions=len(clients.subscriptions),
        queue_bytes=sum(outbox.lossless_bytes for outbox in outboxes),
        conflated_items=sum(outbox.conflated_items for outbox in outboxes),
    ):
        made = GaugeMetricFamily if one.kind == "gauge" else CounterMetricFamily
        labels = () if None in one.values else ("code",)
        family = made(one.name, one.text, labels=labels)
        for code, value in one.values.items():
            family.add_metric(() if code is None else (str(code),), value)
        yield family
