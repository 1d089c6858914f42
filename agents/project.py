"""Project: writes incidents into the store, from the transitions that open and resolve them.

Keyed by org, acked once they are in the store. The store knows how far it is, in the transaction that wrote them: what comes
again after a kill, here or from the metrics agent, or from a worker that has lost its partitions, is dropped by position.
"""

from __future__ import annotations

from typing import Any

import faust

from cmis_stream.runtime import TRANSITIONS, Runtime


def attach(app: faust.App, runtime: Runtime) -> None:
    runtime.on_assigned(runtime.projection.begin)

    @app.agent(runtime.raw_topic(TRANSITIONS), concurrency=1, name="project")
    async def project(stream: Any) -> None:
        async for event in stream.noack().events():
            with runtime.guard("project"):
                await runtime.projection.put(event.message.partition, event.message.offset, event.value or b"", event.ack)
