"""The rows of the benchmark: what each runs, on which workload, and what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass

PEER, QUIX = "bytewax panes", "quixstreams, hand-written state"


@dataclass(frozen=True, slots=True)
class Row:
    """group: its name in `--rows`. rules: of its workload; 0 for jobs that make their own data."""

    name: str
    group: str
    module: str
    job: str
    rules: int = 100


ROWS = (
    Row(PEER, "bytewax", "bench.peer_panes", "panes"),
    Row("bytewax lines", "bytewax", "bench.peer_lines", "lines"),
    Row("core", "core", "bench.core", "campaign"),
    Row("levels", "levels", "bench.core", "levels"),
    Row("core, 10,000 rules", "rules", "bench.core", "campaign", 10_000),
    Row("judging, 100 rules", "rules", "bench.judging", "rules100", 0),
    Row("judging, 10,000 rules", "rules", "bench.judging", "rules10k", 0),
    Row("judging, 1,000,000 rules", "rules", "bench.judging", "rules1m", 0),
    Row("pipeline", "pipeline", "bench.pipeline", "ingest"),
    Row(QUIX, "kafka", "bench.kafka", "quix"),
    Row("kafka, one worker", "kafka", "bench.kafka", "one"),
    Row("kafka, two workers", "kafka", "bench.kafka", "two"),
    Row("kafka, HTTP to transitions", "kafka", "bench.kafka", "http"),
    Row("recovery", "recovery", "bench.pipeline", "recovery"),
    Row("event to alert", "latency", "bench.latency", "alert", 0),
    Row("event to page", "latency", "bench.latency", "browser", 0),
    Row("fan-out, 200 clients", "fanout", "bench.fanout", "gateway200", 0),
    Row("fan-out, 1,000 clients", "fanout", "bench.fanout", "gateway1000", 0),
    Row("fan-out, 1,000, 8 at once", "fanout", "bench.fanout", "gateway1000burst", 0),
    Row("broadcast, 200 clients", "fanout", "bench.fanout", "broadcast200", 0),
    Row("broadcast, 1,000 clients", "fanout", "bench.fanout", "broadcast1000", 0),
    Row("bare sockets, 1,000", "fanout", "bench.fanout", "sockets1000", 0),
    Row("memory, 20,000 ads", "memory", "bench.memory", "ads20k", 0),
    Row("memory, 100,000 ads", "memory", "bench.memory", "ads100k", 0),
)
GROUPS = tuple(dict.fromkeys(row.group for row in ROWS))
ONCE = frozenset({"memory"})
"""Groups whose figure is memory: one round says everything."""


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio that is wanted. value: `per` divides the row's figure by that of another row.

    figure: "rate" (events a CPU-second) or the name of one of the row's extra figures. smaller: less is better.
    """

    text: str
    row: str
    per: str
    good: float
    aim: float
    figure: str = "rate"
    smaller: bool = False


TARGETS = (
    Target("core path, against bytewax by lines", "core", "bytewax lines", 5, 8),
    Target("core path, against bytewax by chunks", "core", PEER, 5, 8),
    Target("all levels and windows, against bytewax by lines", "levels", "bytewax lines", 5 * 250 / 700, 8 * 400 / 1000),
    Target("all levels and windows, against the core path", "levels", "core", 250 / 700, 400 / 1000),
    Target("10,000 rules against 100", "core, 10,000 rules", "core", 0.7, 0.9),
    Target(
        "1,000,000 rules against 100, judging", "judging, 1,000,000 rules", "judging, 100 rules", 8, 2, "ms_per_judgement", True
    ),
    Target("pipeline, against bytewax by lines", "pipeline", "bytewax lines", 5 * 150 / 700, 8 * 300 / 1000),
    Target("kafka, one worker, against bytewax by lines", "kafka, one worker", "bytewax lines", 5 * 120 / 700, 8 * 250 / 1000),
    Target(
        "kafka, HTTP to transitions, against bytewax by lines",
        "kafka, HTTP to transitions",
        "bytewax lines",
        5 * 120 / 700,
        8 * 250 / 1000,
    ),
    Target("kafka, one worker, against quixstreams", "kafka, one worker", QUIX, 120 / 32, 250 / 32),
    Target("kafka, HTTP to transitions, against quixstreams", "kafka, HTTP to transitions", QUIX, 120 / 32, 250 / 32),
    Target("two workers against one, events per CPU-second", "kafka, two workers", "kafka, one worker", 0.85, 0.95),
    Target(
        "two workers against one, a core for each",
        "kafka, two workers",
        "kafka, one worker",
        1.7,
        1.9,
        "events_per_s_of_the_busiest",
    ),
    Target("two workers against one, by the clock", "kafka, two workers", "kafka, one worker", 1.7, 1.9, "events_per_s"),
    Target("event to alert at a client, 20,000 events a second, p50 ms", "event to alert", "", 40, 15, "p50_ms", True),
    Target("the same, p99 ms", "event to alert", "", 150, 60, "p99_ms", True),
    Target("fan-out to 1,000 clients, µs of CPU a message", "fan-out, 1,000 clients", "", 8, 5, "us_per_message", True),
    Target(
        "fan-out to 1,000 clients, against websockets.broadcast",
        "fan-out, 1,000 clients",
        "broadcast, 1,000 clients",
        1,
        0.75,
        "us_per_message",
        True,
    ),
    Target("ready after kill -9, seconds", "recovery", "", 5, 2, "ready_s", True),
)
