"""Through Apache Kafka: workers of ours, and quixstreams on the same kind of broker.

python -m bench.kafka one WORKLOAD       CPU of one worker, from envelopes in Kafka to transitions in Kafka, store and Redis
python -m bench.kafka two WORKLOAD       the same work by two workers of one group (also: three)
python -m bench.kafka http WORKLOAD      CPU of an api and a worker while `cmis ingest` sends the events over HTTP
python -m bench.kafka quix WORKLOAD      quixstreams with panes by hand in its state store, from JSON messages

But for `http` everything lies in the log before the clock starts. Each measurement has a broker of its own (scripts/kafka.py),
so that none finds the warm caches of another.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from bench import kafka_peer
from bench.kafka_feed import Feed, peer_transitions, transitions
from bench.kafka_workers import Process, Sampler, all_ready, committed, cpu_s, redis, workers
from bench.measure import Report, job_arguments, settle
from bench.pipeline import CMIS, scratch
from bench.workloads import REPOSITORY, Workload
from scripts.kafka import Kafka

TOGETHER = {"group.initial.rebalance.delay.ms": "3000"}
"""A new group waits so long for its first members, so all workers are in its first generation and nothing moves later. They
wait idle: that is what tells their start from their work."""


async def by_workers(count: int, workload: Workload) -> Report:
    with scratch() as folder, Kafka(folder / "kafka", settings=TOGETHER) as broker, redis(folder) as (backplane, redis_pid):
        feed = Feed(broker.bootstrap, workload)
        await feed.topics()
        fed = await feed.fill()
        with workers(count, broker.url, backplane, folder) as processes:
            sampler = Sampler(processes)
            ready = await sampler.until(asyncio.create_task(all_ready(processes)))
            others = cpu_s(broker.pid), cpu_s(redis_pid)
            end = await sampler.until(asyncio.create_task(committed(broker.bootstrap, fed.ends)))
            others = cpu_s(broker.pid) - others[0], cpu_s(redis_pid) - others[1]
            began, ended = sampler.last_idle(ready), sampler.last_busy()
            each = [after - before for before, after in zip(began.cpu_s, end.cpu_s, strict=True)]
            peak_rss_mb = max(process.peak_rss_mb() for process in processes)
        found = await transitions(broker.bootstrap, workload.end_ms())
    report = Report(workload.events(), ended.at - began.at, sum(each), peak_rss_mb, len(found))
    report.extra = {
        "events_per_s": report.events / report.wall_s,
        "events_per_s_of_the_busiest": report.events / max(each),
        "with_decoding": report.events / (report.cpu_s + fed.cpu_s),
        "decode_us": fed.cpu_s / report.events * 1e6,
        "broker_us": others[0] / report.events * 1e6,
        "redis_us": others[1] / report.events * 1e6,
        "events_per_envelope": report.events / fed.envelopes,
        "bytes_per_event": fed.bytes / report.events,
    }
    return settle(report, workload, found)


async def http(workload: Workload, request_events: int = 5_000) -> Report:
    """The whole of it: what `pipeline` measures on the embedded log, in two processes."""
    with scratch() as folder, Kafka(folder / "kafka") as broker, redis(folder) as (backplane, _):
        feed = Feed(broker.bootstrap, workload)
        await feed.topics()
        with workers(1, broker.url, backplane, folder) as (worker,):
            rules = ("--rules", str(workload.path / "rules.json"), "--evaluate", "pane")
            common = ("--data-dir", str(folder / "data"), "--log", broker.url, "--port", "0")
            api = Process(folder, "api", "api", *common, *rules)
            try:
                sampler = Sampler([api, worker])
                await sampler.until(asyncio.create_task(all_ready([api, worker])))
                await feed.rules_adopted()
                began = sampler.take()
                sending = await asyncio.create_subprocess_exec(
                    *CMIS, "ingest", str(workload.events_file), "--data-dir", str(folder / "data"), "--create-orgs",
                    "--batch", str(request_events),
                    cwd=REPOSITORY, stdout=sys.stderr,
                )  # fmt: skip
                await sampler.until(asyncio.create_task(_ended(sending)))
                end = await sampler.until(asyncio.create_task(committed(broker.bootstrap, await feed.end())))
                ended = sampler.last_busy()
                peak_rss_mb = max(api.peak_rss_mb(), worker.peak_rss_mb())
            finally:
                api.end()
        found = await transitions(broker.bootstrap, workload.end_ms())
    each = [after - before for before, after in zip(began.cpu_s, end.cpu_s, strict=True)]
    report = Report(workload.events(), ended.at - began.at, sum(each), peak_rss_mb, len(found))
    report.extra = {"api_us": each[0] / report.events * 1e6, "worker_us": each[1] / report.events * 1e6,
                    "events_per_s": report.events / report.wall_s}  # fmt: skip
    return settle(report, workload, found)


async def _ended(process: asyncio.subprocess.Process) -> None:
    if code := await process.wait():
        raise RuntimeError(f"cmis ingest ended with code {code}")


async def quix(workload: Workload) -> Report:
    with scratch() as folder, Kafka(folder / "kafka") as broker:
        figures = await asyncio.to_thread(kafka_peer.run, broker.bootstrap, workload.path, folder)
        found = await peer_transitions(broker.bootstrap)
    report = Report(workload.events(), figures["wall_s"], figures["cpu_s"], figures["peak_rss_mb"], len(found))
    report.extra = {"events_per_s": report.events / report.wall_s}
    return settle(report, workload, found)


JOBS: dict[str, Callable[[Workload], Coroutine[Any, Any, Report]]] = {
    "one": partial(by_workers, 1),
    "two": partial(by_workers, 2),
    "three": partial(by_workers, 3),
    "http": http,
    "quix": quix,
}

if __name__ == "__main__":
    name, folder = job_arguments(JOBS)
    asyncio.run(JOBS[name](Workload(folder))).print()
