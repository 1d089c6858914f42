"""What fails, and when: each disturbs an installation under load. docs/reliability.md tells what users notice of it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from scripts.server import Server
from tests.faults.cluster import Cluster, Shape, until
from tests.faults.disk import full_disk, small_disk
from tests.faults.poison import poisoned
from tests.faults.stage import Scenario, Size, Stage
from tests.faults.storm import storm

SESSION_S = 10.0
"""After so long without a sign of life a worker's partitions go to others (`cmis_stream/log/kafka.py`)."""


# --- workers ------------------------------------------------------------------------------------------------------------


async def worker_killed(stage: Stage) -> None:
    """kill -9, and started again as its supervisor would."""
    await stage.load.comes_to(0.25)
    worker, killed = stage.worker(), time.monotonic()
    worker.kill()
    worker.start()
    await stage.recovered(killed)


async def zombie(stage: Stage) -> None:
    """Stopped for longer than the session, with work begun; its partitions are another's when it goes on."""
    await stage.load.comes_to(0.25)
    worker, stopped = stage.worker(), time.monotonic()
    worker.pause()
    await stage.recovered(stopped)
    await asyncio.sleep(max(0.0, stopped + SESSION_S + 2 - time.monotonic()))
    worker.resume()
    await stage.recovered(time.monotonic())


async def rebalance(stage: Stage) -> None:
    """Two workers join one under load, and one of the three leaves."""
    await stage.load.comes_to(0.15)
    added = [stage.cluster.start_worker() for _ in range(2)]
    for worker in added:
        await worker.ready()
    await stage.recovered(time.monotonic())
    await stage.load.comes_to(0.5)
    left = time.monotonic()
    stage.cluster.workers.remove(leaver := stage.worker())
    stage.cluster.parts.remove(leaver)
    code = await leaver.end()
    assert code == 0, f"{leaver.name} ended with {code}:\n{leaver.text}"
    await stage.recovered(left)


async def million(stage: Stage) -> None:
    """Ten workers are killed, one after the other; two of them once more while they start, join or recover."""
    for kill in range(10):
        await stage.load.comes_to((kill + stage.dice.random()) / 11)
        worker, killed = stage.worker(), time.monotonic()
        worker.kill()
        worker.start()
        if kill in (3, 7):
            await asyncio.sleep(stage.dice.uniform(0.2, 3.0))
            worker.kill()
            worker.start()
        if kill in (0, 5, 9):
            await stage.recovered(killed)


# --- what they stand on -----------------------------------------------------------------------------------------------------


Which = Callable[[Cluster], Server | None]


def broker(cluster: Cluster) -> Server | None:
    return cluster.kafka


def redis(cluster: Cluster) -> Server | None:
    return cluster.redis


async def _of(stage: Stage, which: Which) -> Server:
    """It, once events flow."""
    await stage.load.comes_to(0.3)
    server = which(stage.cluster)
    assert server is not None
    return server


async def restarted(which: Which, stage: Stage) -> None:
    server = await _of(stage, which)
    await asyncio.to_thread(server.restart)
    await stage.recovered(time.monotonic())


async def away(which: Which, stage: Stage) -> None:
    """kill -9, and it is away for a while."""
    server = await _of(stage, which)
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(stage.size.outage_s)
    await asyncio.to_thread(server.start)
    await stage.recovered(time.monotonic())


async def stalled(which: Which, stage: Stage) -> None:
    """SIGSTOP: connections stay open and nobody answers."""
    server = await _of(stage, which)
    server.pause()
    await asyncio.sleep(stage.size.outage_s)
    server.resume()
    await stage.recovered(time.monotonic())


async def redis_emptied(stage: Stage) -> None:
    """Everything in it is deleted while records flow and gateways read: once with its process staying, once with a restart."""
    from redis.asyncio import Redis as Client

    redis = stage.cluster.redis
    assert redis is not None
    await stage.load.comes_to(0.25)
    async with Client.from_url(redis.url) as client:
        await client.flushall()
    await stage.recovered(time.monotonic())
    await stage.load.comes_to(0.5)
    await asyncio.to_thread(redis.kill)
    for path in redis.data.rglob("*"):
        if path.suffix in (".rdb", ".aof") or "appendonly" in path.name:
            path.unlink() if path.is_file() else None
    await asyncio.to_thread(redis.start)
    await stage.recovered(time.monotonic())


# --- what stands in front ---------------------------------------------------------------------------------------------------


async def api_killed(stage: Stage) -> None:
    assert stage.cluster.api is not None
    for share in (0.25, 0.5):
        await stage.load.comes_to(share)
        killed = time.monotonic()
        stage.cluster.api.kill()
        stage.cluster.api.start()
        await stage.recovered(killed)


async def gateway_killed(stage: Stage) -> None:
    await stage.load.comes_to(0.25)
    killed = time.monotonic()
    for gateway in stage.cluster.gateways:
        gateway.kill()
        gateway.start()
    await stage.recovered(killed)


# --- everything in one process -------------------------------------------------------------------------------------------------


async def instance_killed(stage: Stage) -> None:
    up = stage.cluster.api
    assert up is not None
    for share in (0.2, 0.45, 0.7):
        await stage.load.comes_to(share)
        killed = time.monotonic()
        up.kill()
        up.start()
        if share == 0.45:
            await asyncio.sleep(stage.dice.uniform(0.2, 1.5))  # while it starts or recovers
            up.kill()
            up.start()
        await stage.recovered(killed)


async def disk_full(stage: Stage) -> None:
    await stage.load.comes_to(0.3)
    with full_disk(stage.cluster.data_dir):
        before = stage.load.sent
        await until(lambda: stage.load.refused > 3, "a refusal")
        await asyncio.sleep(stage.size.outage_s)
        stage.remarks.append(f"{stage.load.sent - before:,} events were acknowledged while it was full")
    await stage.recovered(time.monotonic())


async def clock_jumps(stage: Stage) -> None:
    """An hour ahead, right again, half a minute behind."""
    for share, ahead_ms in ((0.2, 3_600_000), (0.4, 0), (0.6, -30_000), (0.8, 0)):
        await stage.load.comes_to(share)
        set_clock(stage.folder, ahead_ms)
        await stage.recovered(time.monotonic())


def set_clock(folder: Path, ahead_ms: int) -> None:
    new = folder / "clock.new"
    new.write_text(str(ahead_ms))
    new.replace(folder / "clock")


def _with_a_wrong_clock(folder: Path) -> list[str]:
    set_clock(folder, 0)
    return [sys.executable, str(Path(__file__).with_name("shifted_clock.py")), str(folder / "clock")]


_ROLES, _ONE = Shape(workers=2), Shape()
_SHORT, _LONG = Size(8_000, 12), Size(100_000, 60)
_WAITS = Size(8_000, 30)

SCENARIOS = [
    Scenario("worker kill -9", _ROLES, worker_killed, _WAITS, _LONG),
    Scenario("worker stopped longer than its session, then continued", _ROLES, zombie, Size(8_000, 40), _LONG),
    Scenario("1 → 3 → 2 workers under load", Shape(workers=1), rebalance, Size(8_000, 25), _LONG),
    Scenario("API kill -9, twice", _ROLES, api_killed, _SHORT, _LONG),
    Scenario("gateway kill -9", _ROLES, gateway_killed, _SHORT, _LONG),
    Scenario("broker restarted", _ROLES, partial(restarted, broker), _SHORT, _LONG),
    Scenario("broker kill -9 and away", _ROLES, partial(away, broker), _SHORT, Size(100_000, 60, outage_s=60)),
    Scenario("broker stops answering", _ROLES, partial(stalled, broker), _SHORT, Size(100_000, 60, outage_s=60)),
    Scenario("Redis restarted", _ROLES, partial(restarted, redis), _SHORT, _LONG),
    Scenario("Redis kill -9 and away", _ROLES, partial(away, redis), _SHORT, Size(100_000, 60, outage_s=60)),
    Scenario("Redis emptied, twice", _ROLES, redis_emptied, _SHORT, _LONG),
    Scenario("poison records on Kafka", _ROLES, poisoned, _SHORT, _LONG),
    Scenario("reconnect storm", _ROLES, storm, Size(4_000, 15), Size(20_000, 60, clients=2_000), begins=False),
    Scenario("`cmis up` kill -9, four times", _ONE, instance_killed, _SHORT, _LONG),
    Scenario("disk full, embedded log", _ONE, disk_full, _SHORT, Size(100_000, 60, outage_s=30), data_dir=small_disk),
    Scenario("poison records on the embedded log", _ONE, poisoned, _SHORT, _LONG),
    Scenario("clock jumps, embedded log", _ONE, clock_jumps, _SHORT, _LONG, program=_with_a_wrong_clock),
    Scenario("clock jumps, Kafka", _ROLES, clock_jumps, _SHORT, _LONG, program=_with_a_wrong_clock),
]

MILLION = Scenario(
    "a million events, 3 workers, 12 kills", Shape(workers=3), million, Size(60_000, 100, orgs=50), Size(1_000_000, 300, orgs=50)
)
