"""Toy: finds playdates in what `play` has published.

Keyed by org, acked once they are in the store, which knows how far it is. What is no play is a dead letter.
"""

from __future__ import annotations

from typing import Any

import faust

from cmis_stream.core.errors import Rejected
from cmis_stream.feeds.decode import Refusal
from cmis_stream.runtime import Runtime

from .played import PLAYED, READER, changes_of


def attach(app: faust.App, runtime: Runtime) -> None:
    writer = runtime.fact_writer(READER, PLAYED, changes_of)

    @app.agent(runtime.raw_topic(PLAYED), concurrency=1, name="toy")
    async def played(stream: Any) -> None:
        async for event in stream.noack().events():
            with runtime.guard("toy"):
                message, value = event.message, event.value or b""
                try:
                    changes_of(value)
                except Rejected as error:
                    position = [PLAYED, message.partition, message.offset]
                    await runtime.dead_letter_at(position, [Refusal(0, None, None, error, value[:4096])])
                await writer.put(message.partition, message.offset, value, event.ack)
