"""The queue before a producer, flushed to the end and in order: Faust's gives up after 0.1 s without progress."""

from __future__ import annotations

import asyncio

from faust.transport.producer import ProducerBuffer
from faust.types.tuples import FutureMessage
from mode import Service


class SendBuffer(ProducerBuffer):
    """Messages of ``send_soon``, handed to the producer one after the other by a task, or by whoever flushes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._arrived = asyncio.Event()
        self._sending = asyncio.Lock()

    def put(self, fut: FutureMessage) -> None:
        """Add a message."""
        super().put(fut)
        self._arrived.set()

    @Service.task
    async def _handle_pending(self) -> None:
        while not self.should_stop:
            await self._arrived.wait()
            self._arrived.clear()
            await self.flush()

    async def flush(self) -> None:
        """Send everything, the message in hand included. One at a time: a second sender could overtake the first."""
        async with self._sending:
            while self.size:
                await self._send(self.pending.get_nowait())

    async def _send(self, message: FutureMessage) -> None:
        await self._send_pending(message)
