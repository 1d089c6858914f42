"""Ingest: packs the single CloudEvents that foreign producers write to cmis.events.raw into envelopes.

Keyed by org: an event is packed for its org's partition, wherever it was written. Acked when its envelope is durable; a
restart packs some again, which the metrics agent drops by their ids. Bad events go to the dead letters with position.
"""

from __future__ import annotations

import asyncio
from typing import Any

import faust

from cmis_stream.core.batch import Batch
from cmis_stream.core.errors import Rejected
from cmis_stream.feeds.decode import Decoded, Refusal, decode_cloudevents
from cmis_stream.log.packer import Pressure
from cmis_stream.runtime import RAW, LogFull, Runtime

MOST_UNDER_WAY = 2_000


def attach(app: faust.App, runtime: Runtime) -> None:
    under_way: set[asyncio.Task[None]] = set()

    async def publish(batch: Batch) -> None:
        """Waits while there is no room: nobody sends these again. What is written twice for it is dropped by its ids."""
        while True:
            try:
                return await runtime.packer.publish(batch.segments[0].org, batch)
            except (Pressure, LogFull):
                await asyncio.sleep(Pressure.retry_after_s)

    async def pack(event: Any, before: asyncio.Task[None] | None) -> None:
        """Publishes at once, so that neighbours share an envelope; acks in order, after the one before."""
        with runtime.guard("ingest"):
            message = event.message
            position = [RAW, message.partition, message.offset]
            raw = event.value or b""
            try:
                decoded = decode_cloudevents(raw, org=None, now_ms=runtime.clock(), batched=False)
            except Rejected as error:
                decoded = Decoded(None, [Refusal(0, None, None, error, raw[:4096])], 1)
            if decoded.refused:
                await runtime.dead_letter_at(position, decoded.refused)
            if decoded.batch is not None:
                await publish(decoded.batch)
            if before is not None:
                await before
            event.ack()

    @app.agent(runtime.raw_topic(RAW), concurrency=1, name="ingest")
    async def ingest(stream: Any) -> None:
        last: dict[int, asyncio.Task[None]] = {}
        async for event in stream.noack().events():
            partition = event.message.partition
            task = last[partition] = asyncio.create_task(pack(event, last.get(partition)))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            if len(under_way) >= MOST_UNDER_WAY:
                await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
