"""Deliver: takes results (transitions, rollups, jobs) to the backplane, each once, and to whoever listens in this process.

Keyed by org, acked when published. Records go to the backplane as they come and are acked in their order: what a backplane over
the network takes for one record it takes for all that came meanwhile. Repeats of the metrics agent are dropped by position; with
each assignment the backplane's memory is filled from the log's newest records, so that a restart changes nothing for gateways.
"""

from __future__ import annotations

import asyncio
from typing import Any

import faust

from cmis_stream.feeds.decode import Refusal
from cmis_stream.live.jobs import JOBS
from cmis_stream.runtime import ROLLUPS, TRANSITIONS, Runtime

MOST_COMING = 250
"""Records on their way to the backplane, of each topic."""


def attach(app: faust.App, runtime: Runtime) -> None:
    runtime.on_assigned(runtime.delivery.begin)

    async def take(event: Any) -> None:
        message = event.message
        with runtime.guard("deliver"):
            value = event.value or b""
            wrong = await runtime.delivery.take(message.topic, message.partition, message.offset, value)
            if wrong is not None:
                position = [message.topic, message.partition, message.offset]
                await runtime.dead_letter_at(position, [Refusal(0, None, None, wrong, value[:4096])])

    async def ack(coming: asyncio.Queue[tuple[Any, asyncio.Task[None]]]) -> None:
        while True:
            event, taking = await coming.get()
            await taking
            event.ack()

    async def deliver(stream: Any) -> None:
        coming: asyncio.Queue[tuple[Any, asyncio.Task[None]]] = asyncio.Queue(MOST_COMING)
        acking = asyncio.create_task(ack(coming))
        taking: asyncio.Task[None] | None = None
        try:
            async for event in stream.noack().events():
                taking = asyncio.create_task(take(event))
                await coming.put((event, taking))
        finally:
            acking.cancel()
            for task in [taking, *(coming.get_nowait()[1] for _ in range(coming.qsize()))]:
                if task is not None:
                    task.cancel()

    # An agent for each, so that a flood of figures holds no alert back.
    for topic, name in ((TRANSITIONS, "deliver-transitions"), (ROLLUPS, "deliver-rollups"), (JOBS, "deliver-jobs")):
        app.agent(runtime.raw_topic(topic), concurrency=1, name=name)(deliver)

    @app.task  # type: ignore[untyped-decorator]
    async def watch_the_backplane() -> None:
        with runtime.guard("deliver"):
            await runtime.delivery.watch()
