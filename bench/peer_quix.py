"""The peer on Apache Kafka: quixstreams with panes written by hand, as a careful user of that library would write them.

    topic of JSON events, keyed by campaign -> msgspec -> stateful apply: panes in the RocksDB state -> transitions -> topic

Runs in a Python environment of its own (`kafka_peer.py`): python -m bench.peer_quix BROKER WORKLOAD FOLDER

State is per message key, here the campaign: `now` has the next pane to close, the sums of its window and the rules that hold;
`p<number>` a pane's six sums. Both are packed bytes, since the library's own JSON for state values is slower. As in
`peer_lines` the panes of a quiet campaign close at its next event or at the end: the transitions are the exact ones, though not
when they are due. A message per campaign with only the last moment ends the input. The library's defaults stay (at least once, a
commit every 5 seconds) but for changelog topics, which are off: with them one of two long runs ended at its first commit, because
records of the changelog reached the dataframe (3.28.1, KeyError). So the peer keeps its state on this disk only, which is less
work than ours does.
"""

from __future__ import annotations

import json
import operator
import struct
import sys
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import Producer  # type: ignore[import-not-found]
from quixstreams import Application  # type: ignore[import-not-found]
from quixstreams.models import TopicConfig  # type: ignore[import-not-found]

from bench.measure import Report, Stopwatch
from bench.workloads import Workload

PANE_MS, WINDOW_PANES, LATE_MS, PARTITIONS = 10_000, 30, 5_000, 8
EVENTS, IMPRESSIONS, CLICKS, SPEND, CONVERSIONS, REVENUE = range(6)
FIELDS = ("events", "impressions", "clicks", "spend", "conversions", "revenue")
ENTRY = struct.Struct("<6q")
EVENTS_TOPIC, TRANSITIONS_TOPIC = "quix.events", "quix.transitions"


class MetricEvent(msgspec.Struct, gc=False):
    """last: the message that ends a campaign's input, which is no event."""

    ts: int
    org: str
    campaign: str
    impressions: int = 0
    clicks: int = 0
    spend: float = 0.0
    conversions: int = 0
    revenue: float = 0.0
    last: bool = False


class Now(msgspec.Struct, array_like=True, gc=False):
    """A campaign between two events. close_ms: an event time from which on the next pane is final."""

    next_pane: int
    close_ms: int
    sums: list[int]
    holding: list[str]


class Rule(msgspec.Struct, gc=False):
    id: str
    campaign: str | None
    metric: str
    compare: Callable[[float, float], bool]
    threshold: float
    minimum_field: int
    minimum: float


decode_event = msgspec.json.Decoder(MetricEvent).decode
decode_now, encode_now = msgspec.msgpack.Decoder(Now).decode, msgspec.msgpack.Encoder().encode


class Panes:
    """The stateful function of the dataframe."""

    def __init__(self, raw: list[dict[str, Any]]) -> None:
        self._rules: dict[str, list[Rule]] = defaultdict(list)
        for r in raw:
            compare: Callable[[float, float], bool] = operator.gt if r["op"] == "gt" else operator.lt
            rule = Rule(
                r["id"], r["campaign"], r["metric"], compare, r["threshold"], FIELDS.index(r["min_field"]), r["min_value"]
            )
            self._rules[r["org"]].append(rule)
        self._own: dict[str, list[Rule]] = {}

    def __call__(self, value: bytes, state: Any) -> list[dict[str, Any]]:
        event, out = decode_event(value), list[dict[str, Any]]()
        raw = state.get_bytes("now")
        if raw is None:
            first = (event.ts - LATE_MS) // PANE_MS
            now, changed = Now(first, (first + 1) * PANE_MS + LATE_MS, [0] * 6, []), True
        else:
            now, changed = decode_now(raw), False
        if event.ts >= now.close_ms or event.last:
            changed = True
            last = (event.ts if event.last else event.ts - LATE_MS) // PANE_MS - 1
            for number in range(now.next_pane, last + 1):
                self._close(now, number, event, state, out)
            now.next_pane = last + 1
            now.close_ms = (last + 2) * PANE_MS + LATE_MS
        if changed:
            state.set_bytes("now", encode_now(now))
        if not event.last:
            self._add(event, state)
        return out

    def _add(self, event: MetricEvent, state: Any) -> None:
        name = f"p{event.ts // PANE_MS}"
        raw = state.get_bytes(name)
        n, impressions, clicks, spend, conversions, revenue = ENTRY.unpack(raw) if raw is not None else (0,) * 6
        state.set_bytes(
            name,
            ENTRY.pack(
                n + 1,
                impressions + event.impressions,
                clicks + event.clicks,
                spend + round(event.spend * 1e6),
                conversions + event.conversions,
                revenue + round(event.revenue * 1e6),
            ),
        )

    def _close(self, now: Now, number: int, event: MetricEvent, state: Any, out: list[dict[str, Any]]) -> None:
        entering, leaving = state.get_bytes(f"p{number}"), state.get_bytes(f"p{number - WINDOW_PANES}")
        if entering is None and leaving is None:
            return
        if entering is not None:
            now.sums = [a + b for a, b in zip(now.sums, ENTRY.unpack(entering), strict=True)]
        if leaving is not None:
            now.sums = [a - b for a, b in zip(now.sums, ENTRY.unpack(leaving), strict=True)]
            state.delete(f"p{number - WINDOW_PANES}")
        rules = self._rules_of(event.campaign, event.org)
        if rules and now.sums[EVENTS]:
            self._judge(now, rules, event.campaign, (number + 1) * PANE_MS, out)

    def _rules_of(self, campaign: str, org: str) -> list[Rule]:
        own = self._own.get(campaign)
        if own is None:
            own = [rule for rule in self._rules.get(org, ()) if rule.campaign is None or rule.campaign == campaign]
            self._own[campaign] = own
        return own

    def _judge(self, now: Now, rules: list[Rule], campaign: str, at_ms: int, out: list[dict[str, Any]]) -> None:
        s = now.sums
        values = {
            "spend": s[SPEND] / 1e6,
            "ctr": s[CLICKS] / s[IMPRESSIONS] if s[IMPRESSIONS] else None,
            "cpc": s[SPEND] / 1e6 / s[CLICKS] if s[CLICKS] else None,
            "roas": s[REVENUE] / s[SPEND] if s[SPEND] else None,
        }
        for rule in rules:
            value = values[rule.metric]
            holds = value is not None and rule.compare(value, rule.threshold) and s[rule.minimum_field] >= rule.minimum
            if holds != (rule.id in now.holding):
                (now.holding.append if holds else now.holding.remove)(rule.id)
                state = "firing" if holds else "resolved"
                out.append({"at": at_ms, "rule": rule.id, "campaign": campaign, "state": state})


def fill(broker: str, workload: Workload) -> int:
    """The events, one message each, and a last one for each campaign; returns how many messages."""
    producer = Producer({"bootstrap.servers": broker, "linger.ms": 50, "batch.size": 1 << 20, "acks": "all",
                         "queue.buffering.max.messages": 500_000})  # fmt: skip
    org_of: dict[str, str] = {}
    messages = 0
    for chunk in workload.chunks():
        for line in chunk.splitlines():
            event = decode_event(line)
            org_of[event.campaign] = event.org
            _send(producer, event.campaign, line)
            messages += 1
    for campaign, org in org_of.items():
        _send(producer, campaign, msgspec.json.encode(MetricEvent(workload.end_ms(), org, campaign, last=True)))
    if producer.flush(60):
        raise RuntimeError("messages were not sent within a minute")
    return messages + len(org_of)


def _send(producer: Any, campaign: str, value: bytes) -> None:
    key = campaign.encode()
    while True:
        try:
            producer.produce(EVENTS_TOPIC, value, key=key, partition=zlib.crc32(key) % PARTITIONS)
            break
        except BufferError:
            producer.poll(0.1)
    producer.poll(0)


def run(broker: str, workload: Workload, folder: Path) -> Report:
    watch: list[Stopwatch] = []
    handled = 0

    def count(*_: Any) -> None:
        nonlocal handled
        if handled == 0:
            watch.append(Stopwatch())  # start-up, rebalance and the first fetch are over
        handled += 1
        if handled == messages:
            app.stop()

    app = Application(
        broker_address=broker, consumer_group="quix", auto_offset_reset="earliest", state_dir=folder / "state",
        on_message_processed=count, use_changelog_topics=False, loglevel="WARNING",
    )  # fmt: skip
    config = TopicConfig(num_partitions=PARTITIONS, replication_factor=1)
    source = app.topic(EVENTS_TOPIC, key_deserializer="bytes", value_deserializer="bytes", config=config)
    sink = app.topic(TRANSITIONS_TOPIC, key_serializer="bytes", value_serializer="json", config=config)
    messages = fill(broker, workload)
    panes = Panes(workload.rules())
    frame = app.dataframe(source).apply(
        panes, stateful=True, expand=True
    )  # fmt: skip
    frame.to_topic(sink)
    app.run()
    return watch[0].report(workload.events())


if __name__ == "__main__":
    broker_address, workload_folder, scratch_folder = sys.argv[1:]
    report = run(broker_address, Workload(Path(workload_folder)), Path(scratch_folder))
    sys.stdout.write(json.dumps({"cpu_s": report.cpu_s, "wall_s": report.wall_s, "peak_rss_mb": report.peak_rss_mb}) + "\n")
