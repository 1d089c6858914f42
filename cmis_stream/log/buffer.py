"""What the producers of both logs share: one way for every record, and the queue before it.

The queue is flushed to the end and in order: Faust's gives up after 0.1 s without progress.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Awaitable
from typing import Any, ClassVar, NamedTuple

from faust.transport import base
from faust.transport.producer import ProducerBuffer
from faust.types import RecordMetadata
from faust.types.core import HeadersArg
from faust.types.tuples import FutureMessage
from mode import Service


class SendBuffer(ProducerBuffer):
    """Messages of ``send_soon``, handed to the producer one after the other by a task, or by whoever flushes."""

    producer: base.Producer

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


class Outgoing(NamedTuple):
    """A record to send. partition: None for the key's. timestamp: seconds, None for now."""

    topic: str
    key: bytes | None
    value: bytes | None
    partition: int | None
    timestamp: float | None
    headers: HeadersArg | None


class OneWayProducer(base.Producer, abc.ABC):
    """Faust's ways of sending lead to `hand_over`, without transactions."""

    buffer_type: ClassVar[type[SendBuffer]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.buffer = self.buffer_type(loop=self.loop, beacon=self.beacon)
        self.buffer.app = self.app
        self.buffer.producer = self

    @abc.abstractmethod
    async def hand_over(self, record: Outgoing) -> Awaitable[RecordMetadata]:
        """Give a record to the log; the returned future holds its metadata once it is durable."""

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: HeadersArg | None,
        *,
        transactional_id: str | None = None,
    ) -> Awaitable[RecordMetadata]:
        """Send a record; the returned future holds its metadata once it is durable. ``timestamp`` is in seconds."""
        return await self.hand_over(Outgoing(topic, key, value, partition, timestamp, headers))

    async def send_and_wait(self, *record: Any, **options: Any) -> RecordMetadata:
        """Send a record and wait until it is durable; arguments as of ``send``."""
        return await (await self.send(*record, **options))
