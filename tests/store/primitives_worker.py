"""Processes for the tests of the primitives to kill: `schedule URL RELAY_URL CLOCK`, `jobs URL RELAY_URL NAME LEASE_MS`,
`upload URL PLACE`, `outbox URL RELAY_URL NAME LEASE_MS FILE`."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import threading
from pathlib import Path

from cmis_stream.jobs.runner import JobRunner
from cmis_stream.store.built_in_effects import commanding, publishing
from cmis_stream.store.database import Database
from cmis_stream.store.documents import Documents
from cmis_stream.store.due import Due
from cmis_stream.store.files import Files
from cmis_stream.store.jobs import Jobs
from cmis_stream.store.outbox import Outbox
from cmis_stream.store.schedules import Scheduler, Schedules
from cmis_stream.stores import blobs_at
from tests.store.errands import errand_kinds
from tests.store.primitives import JOB_KINDS


def schedule(url: str, relay_url: str, clock: Path) -> None:
    def now_ms() -> int:
        return int(clock.read_text())

    database = Database(url)
    Scheduler(Schedules(database, now_ms), Due(Database(relay_url)), now_ms).run(threading.Event())


async def jobs(url: str, relay_url: str, name: str, lease_ms: int) -> None:
    """Until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    kept, due = Jobs(Database(url), JOB_KINDS), Due(Database(relay_url))
    await JobRunner(kept, due, worker=name, settings={}, places=2, lease_ms=lease_ms).run(stop)


def upload(url: str, place: str) -> None:
    """Says (id, sha256) of each file that is kept, and goes on. Every third one is large enough for an upload in parts."""
    files = Files(Database(url), blobs_at(place if place.startswith("s3:") else None, Path(place)))
    for number in itertools.count():
        with files.create("acme", f"{number}.bin", "application/octet-stream", "ada") as made:
            for _ in range(20):
                made.write(os.urandom(400_000 if number % 3 == 1 else 20_000))
            file = made.finish()
        print(file.id, file.sha256, flush=True)


def outbox(url: str, relay_url: str, name: str, lease_ms: int, file: Path) -> None:
    """What it publishes is a line of the file."""
    database, kinds = Database(url), errand_kinds()

    def publish(org: str, topic: str, identity: str, body: bytes) -> None:
        with file.open("ab") as out:
            out.write(f"{org} {topic} {identity} {body.decode()}\n".encode())
            out.flush()
            os.fsync(out.fileno())

    handlers = {"publish": publishing(publish), "command": commanding(Documents(database, kinds), kinds)}
    Outbox(database, Due(Database(relay_url)), handlers, worker=name, lease_ms=lease_ms).run(threading.Event())


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["schedule", url, relay_url, clock]:
            schedule(url, relay_url, Path(clock))
        case ["jobs", url, relay_url, name, lease_ms]:
            asyncio.run(jobs(url, relay_url, name, int(lease_ms)))
        case ["upload", url, place]:
            upload(url, place)
        case ["outbox", url, relay_url, name, lease_ms, file]:
            outbox(url, relay_url, name, int(lease_ms), Path(file))
