"""A worker on Kafka from the real agents: what `cmis worker` will be, without stores, HTTP and backplane.

As a process: python kafka_worker.py BROKER_URL FOLDER; it says "recovered" whenever it has its partitions, and runs until it
is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import secrets
import sys
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import faust

from cmis_stream.log.kafka import app_options, client_settings
from cmis_stream.log.kafka_reader import cluster_id
from cmis_stream.log.packer import Packer
from cmis_stream.log.topics import load_topics
from cmis_stream.runtime import METRICS, Runtime

SESSION = {"broker_session_timeout": 3.0, "broker_heartbeat_interval": 0.3}


class Worker(Runtime):
    """The part of a runtime that the agents `ingest` and `metrics` use."""

    def __init__(self, broker: str, folder: str) -> None:
        self.clock = lambda: time.time_ns() // 1_000_000
        self.topics = load_topics()
        self.partitions = self.topics[METRICS].partitions
        self.owners = {}
        self.recovered = asyncio.Event()
        self.failed = asyncio.get_running_loop().create_future()
        self.ticking = True
        self.packer = Packer(self._append_metrics, self.partitions, self.clock)
        self._nonce = secrets.token_hex(4)
        self.app = faust.App(
            "cmis", broker=broker, store="memory://", datadir=folder, topic_partitions=self.partitions,
            broker_max_poll_records=200, broker_commit_interval=1.0, stream_buffer_maxsize=256, **{**app_options(), **SESSION},
        )  # fmt: skip
        for name in ("ingest", "metrics"):
            importlib.import_module(f"agents.{name}").attach(self.app, self)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Worker]:
        """From recovery on; raises what has ended it meanwhile."""
        self.log = SimpleNamespace(epoch=await cluster_id(client_settings(self.app.transport.url)))
        starting, ending = asyncio.ensure_future(self._start()), asyncio.ensure_future(self.ended())
        try:
            await asyncio.wait([starting, ending], return_when=asyncio.FIRST_COMPLETED)
            (starting if starting.done() else ending).result()
            yield self
        finally:
            for task in (starting, ending):
                task.cancel()
            await self.app.stop()

    async def _start(self) -> None:
        await self.app.start()
        await self.recovered.wait()

    async def ended(self) -> None:
        """Until something has gone wrong, in an agent or in Faust; raises it."""
        crashed = asyncio.ensure_future(self.app._crashed.wait())
        await asyncio.wait([crashed, self.failed], return_when=asyncio.FIRST_COMPLETED)
        if self.failed.done():
            self.failed.result()
        reason: Any = self.app.crash_reason
        raise reason


async def main(broker: str, folder: str) -> None:
    worker = Worker(broker, folder)
    async with worker.running():
        print("recovered", flush=True)
        await worker.ended()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
