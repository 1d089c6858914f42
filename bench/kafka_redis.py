"""A publication to Redis: CPU of the publishing process and of Redis, and the memory that it holds.

python -m bench.kafka_redis publications      1,000 orgs, 14 items each (10 campaigns, their platforms and org), 60 times
"""

from __future__ import annotations

import asyncio

from bench.kafka_workers import cpu_s, redis
from bench.measure import Report, Stopwatch, job_arguments, memory_mb
from bench.pipeline import scratch
from cmis_stream.backplane.contract import Item, Publication
from cmis_stream.backplane.items import MetricItem
from cmis_stream.backplane.redis import RedisBackplane
from cmis_stream.runtime import ROLLUPS

ORGS, PLACES, TIMES, AT_MS = 1_000, 8, 60, 1_767_225_600_000


def items(org: int) -> list[Item]:
    entities = [f"USD/meta//cmp_{org:05d}_{n}" for n in range(10)] + ["USD/meta", "USD/google", "USD/x", "USD"]
    sums = (12, 3456, 78, 123_456_789, 3_000_000, 98_765_432)
    return [MetricItem(entity, AT_MS, 10_000, False, sums).item() for entity in entities]


async def publications() -> Report:
    with scratch() as folder, redis(folder) as (url, pid):
        backplane = RedisBackplane(url, "bench", lambda channel: (ROLLUPS, int(channel.split(":")[1]) % PLACES))
        for place in range(PLACES):
            await backplane.begin(ROLLUPS, place, -1)
        held, before, watch = memory_mb("VmRSS", pid), cpu_s(pid), Stopwatch()
        for offset in range(TIMES):
            for org in range(ORGS):
                await backplane.publish(f"org:{org}:metrics", Publication(offset, items(org)))
            await asyncio.gather(*(backplane.reached(ROLLUPS, place, offset) for place in range(PLACES)))
        count = ORGS * TIMES
        report = watch.report(count)
        report.extra = {
            "publisher_us": report.cpu_s / count * 1e6,
            "redis_us": (cpu_s(pid) - before) / count * 1e6,
            "held_bytes": (memory_mb("VmRSS", pid) - held) * 1e6 / count,
        }
        await backplane.close()
    return report


JOBS = {"publications": publications}

if __name__ == "__main__":
    name, _ = job_arguments(JOBS)
    asyncio.run(JOBS[name]()).print()
