"""A process with a watch, put together like a role's, that falls ill as it is told: `sick_process.py WHAT FOLDER`.

It prints `ready` when the watch runs. Limits are a fraction of those in production.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from pathlib import Path

from cmis_stream.health.health import Health
from cmis_stream.health.memory import resident_bytes
from cmis_stream.health.watch import Limits, SickError
from tests.health.support import METRICS, Held, World


async def run(what: str, folder: Path) -> None:
    logging.basicConfig(filename=folder / "cmis.log", level=logging.WARNING, force=True)
    held = Held(position=4, begun=4, acked=4)
    world = World(held)
    world.log.end, world.log.done = {METRICS: {3: 5}}, {METRICS: {3: 5}}
    failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_sick(sick: SickError) -> None:
        failed.set_exception(sick)

    memory = (resident_bytes() or 0) + (100 << 20)
    limits = Limits(memory_bytes=memory, stalled_s=5 if what == "well" else 2, not_committed_s=2, blocked_s=3, stop_within_s=2)
    health = Health(world.parts, on_sick, limits=limits, log_file=folder / "cmis.log")
    await health.start()
    print("ready", flush=True)
    kept = []
    match what:
        case "stalled" | "stalled-while-the-log-is-away" | "stalled-while-nothing-flows":
            world.log.end = {METRICS: {3: 9}}
            world.log.away = "no broker answers" if what.endswith("away") else ""
            world.flows = not what.endswith("flows")
        case "not-committed":
            world.log.end, held.position, held.begun, held.acked = {METRICS: {3: 9}}, 8, 8, 8
        case "well":  # and busy: there is always something that waits
            world.log.end = {METRICS: {3: 10_000}}
            while True:
                held.position = held.begun = held.position + 1
                await asyncio.sleep(1.5)
        case "blocked":
            await asyncio.sleep(0.5)
            time.sleep(600)
        case "growing" | "growing-and-does-not-stop":
            while not failed.done():
                kept.append(b"x" * (8 << 20))
                await asyncio.sleep(0.01)
    try:
        await failed
    finally:
        if what.endswith("does-not-stop"):
            await asyncio.sleep(600)
        await health.stop()


if __name__ == "__main__":
    try:
        asyncio.run(run(sys.argv[1], Path(sys.argv[2])))
    except SickError as sick:
        print(f"cmis: {sick}", file=sys.stderr)
        raise SystemExit(sick.exit_code) from None
