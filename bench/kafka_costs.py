"""What docs/scale.md reckons with: what a worker spends by the size of envelopes, what it writes, how long it takes to recover.

python -m bench.kafka_costs full|e500|e100|e20 WORKLOAD     envelopes as `cmis ingest` makes them, or of so many events: one
                                                            worker, ended and started again on the state that it has left
python -m bench.kafka_costs r500|r100|r20 WORKLOAD          api and worker, requests of at most so many events
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from bench.kafka import TOGETHER, http
from bench.kafka_feed import Feed
from bench.kafka_workers import Sampler, all_ready, committed, redis, workers
from bench.measure import Report, job_arguments, memory_mb
from bench.pipeline import scratch
from bench.workloads import Workload
from scripts.kafka import Kafka

TOPICS = {
    "metrics": "cmis.metrics.v1",
    "transitions": "cmis.transitions.v1",
    "rollups": "cmis.rollups.v1",
    "state": "cmis-state-changelog",
}


async def costs(envelope_events: int | None, workload: Workload) -> Report:
    with scratch() as folder, Kafka(folder / "kafka", settings=TOGETHER) as broker, redis(folder) as (backplane, redis_pid):
        feed = Feed(broker.bootstrap, workload)
        await feed.topics()
        fed = await feed.fill(envelope_events)
        with workers(1, broker.url, backplane, folder) as processes:
            sampler = Sampler(processes)
            ready = await sampler.until(asyncio.create_task(all_ready(processes)))
            end = await sampler.until(asyncio.create_task(committed(broker.bootstrap, fed.ends)))
            began = sampler.last_idle(ready)
            report = Report(workload.events(), end.at - began.at, end.cpu_s[0] - began.cpu_s[0], processes[0].peak_rss_mb())
        redis_mb, held = memory_mb("VmRSS", redis_pid), bytes_held(folder / "kafka" / "logs")
        started = time.perf_counter()
        with workers(1, broker.url, backplane, folder) as processes:
            sampler = Sampler(processes)
            ready = await sampler.until(asyncio.create_task(all_ready(processes)))
            idle = sampler.last_idle(ready)
            recovery = ready.at - idle.at, ready.cpu_s[0] - idle.cpu_s[0], ready.at - started
    report.extra = {
        "events_per_envelope": report.events / fed.envelopes,
        "us_per_envelope": report.cpu_s / fed.envelopes * 1e6,
        "recovery_s": recovery[0],
        "recovery_cpu_s": recovery[1],
        "ready_s": recovery[2],
        "redis_mb": redis_mb,
        **{f"{name}_mb": held.get(topic, 0) / 1e6 for name, topic in TOPICS.items()},
        "all_topics_mb": sum(held.values()) / 1e6,
    }
    return report


def bytes_held(logs: Path) -> dict[str, int]:
    """Topic -> bytes of its segments on the broker's disk."""
    found: dict[str, int] = {}
    for segment in logs.glob("*/*.log"):
        topic = segment.parent.name.rpartition("-")[0]
        found[topic] = found.get(topic, 0) + segment.stat().st_size
    return found


JOBS: dict[str, Callable[[Workload], Coroutine[Any, Any, Report]]] = {
    "full": partial(costs, None),
    **{f"e{events}": partial(costs, events) for events in (20, 100, 500)},
}
JOBS |= {f"r{events}": partial(http, request_events=events) for events in (20, 100, 500)}

if __name__ == "__main__":
    name, given = job_arguments(JOBS)
    asyncio.run(JOBS[name](Workload(given))).print()
