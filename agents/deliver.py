"""Deliver: takes results (transitions, rollups) to the backplane, each once, and to whoever listens in this process.

Keyed by org, acked when published. Repeats of the metrics agent are dropped by position; at the start the backplane's memory
is filled from the log's newest records (`Runtime.start`), so that a restart changes nothing for gateways.
"""

from __future__ import annotations

from typing import Any

import faust

from cmis_stream.runtime import ROLLUPS, TRANSITIONS, Runtime


def attach(app: faust.App, runtime: Runtime) -> None:
    async def deliver(stream: Any) -> None:
        async for event in stream.noack().events():
            message = event.message
            with runtime.guard("deliver"):
                await runtime.delivery.take(message.topic, message.partition, message.offset, event.value or b"")
            event.ack()

    # Two agents, so that a flood of figures holds no alert back.
    for topic, name in ((TRANSITIONS, "deliver-transitions"), (ROLLUPS, "deliver-rollups")):
        app.agent(runtime.raw_topic(topic), concurrency=1, name=name)(deliver)
