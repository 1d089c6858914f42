"""Faust's producer over the embedded log: a send is an append, done when the record is durable."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from faust.topics import Topic
from faust.types import TP, RecordMetadata
from faust.types.tuples import FutureMessage
from mode.utils.times import Seconds, want_seconds

from cmis_stream.core.errors import ConfigError
from cmis_stream.log.buffer import OneWayProducer, Outgoing, SendBuffer
from cmis_stream.log.embedded import EmbeddedLog, LogClosed, LogError
from cmis_stream.log.topics import partition_for

if TYPE_CHECKING:
    from cmis_stream.log.transport import Transport

PENDING_BYTES = 64 << 20  # senders wait while more than this is not durable yet


class EmbeddedBuffer(SendBuffer):
    """Messages sent before the producer runs; later ones go straight to the log. Back-pressure comes from the log."""

    producer: EmbeddedProducer

    async def wait_until_ebb(self) -> None:
        """Hold deliveries to agents back while too much is not durable."""
        await self.producer.wait_until_ebb()


class EmbeddedProducer(OneWayProducer):
    """Appends to the log; a send is done when its record is durable."""

    transport: Transport
    buffer_type = EmbeddedBuffer
    embedded: EmbeddedLog | None = None  # while it runs

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._round_robin = 0

    def create_threaded_producer(self) -> None:
        """Refuse ``producer_threaded``."""
        raise ConfigError("producer_threaded: got true, expected false: the embedded log has its own writer thread")

    async def on_start(self) -> None:
        """Open the log."""
        self.embedded = self.transport.open_log()
        await super().on_start()

    async def on_stop(self) -> None:
        """Wait until all is durable."""
        await self.flush()

    async def on_shutdown(self) -> None:
        """Let go of the log, after every task of ours has ended."""
        embedded, self.embedded = self.embedded, None
        if embedded is not None:
            await embedded.aclose()

    async def hand_over(self, record: Outgoing) -> Awaitable[RecordMetadata]:
        """Append a record; the returned future holds its metadata once it is durable."""
        if self._log().pending_bytes > PENDING_BYTES:
            await self.wait_until_ebb()
        return self._append(record)

    def send_soon(self, fut: FutureMessage) -> None:
        """Append a record now, without a queue and a task in between: in order with ``send``, and seen by ``flush``.

        Nobody needs to look at the result, a table's changelog for one, so a failed write crashes the app rather than
        leaving state ahead of its changelog.
        """
        message = fut.message
        if self.embedded is None or not isinstance(message.channel, Topic):
            self.buffer.put(fut)
            return
        topic: Any = message.channel
        name, key, value = topic.get_topic_name(), _bytes(message.key), _bytes(message.value)
        state = self.app.sensors.on_send_initiated(
            self, name, message=message, keysize=len(key or b""), valsize=len(value or b"")
        )
        written = self._append(Outgoing(name, key, value, message.partition, message.timestamp, message.headers))
        written.add_done_callback(partial(topic._on_published, message=fut, producer=self, state=state))
        written.add_done_callback(self._crash_if_failed)
        fut.add_done_callback(_look_at)

    def _crash_if_failed(self, written: asyncio.Future[RecordMetadata]) -> None:
        error = None if written.cancelled() else written.exception()
        if error is not None:
            self.add_future(self.crash(error))

    async def wait_until_ebb(self) -> None:
        """Wait until less than ``PENDING_BYTES`` is on its way."""
        while self.embedded is not None and self.embedded.pending_bytes > PENDING_BYTES:
            await self.embedded.flush()

    async def flush(self) -> None:
        """Wait until everything sent before is durable; raises ``LogWriteFailed`` if the last of it is not.

        Faust commits source offsets after this, so it must not come back early.
        """
        await self.buffer.flush()
        if self.embedded is not None:
            await self.embedded.flush()
            await asyncio.sleep(0)  # the callbacks that pass results on to the senders' futures come first

    async def create_topic(
        self,
        topic: str,
        partitions: int,
        replication: int,
        *,
        config: Mapping[str, Any] | None = None,
        timeout: Seconds = 1000.0,
        retention: Seconds | None = None,
        compacting: bool | None = None,
        deleting: bool | None = None,
        ensure_created: bool = False,
    ) -> None:
        """Create a topic if it is not there; a topic of topics.yaml is made as declared, whatever is asked here."""
        retention_ms = int(want_seconds(retention) * 1000) if retention else None
        self.transport.create_topic(self._log(), topic, partitions, bool(compacting), retention_ms)

    def key_partition(self, topic: str, key: bytes) -> TP:
        """Return the partition a key goes to."""
        return TP(topic, self._partition(topic, key))

    def supports_headers(self) -> bool:
        """Headers are kept."""
        return True

    def _append(self, record: Outgoing) -> asyncio.Future[RecordMetadata]:
        topic, key, value, partition, timestamp, headers = record
        if partition is None:
            partition = self._partition(topic, key)
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers) if headers else None
        ts_ms = int(timestamp * 1000) if timestamp else None
        self.transport.require_topic(self._log(), topic)
        appended = self._log().append(topic, partition, key, value, pairs, ts_ms)
        sent: asyncio.Future[RecordMetadata] = self.app.loop.create_future()
        appended.add_done_callback(partial(_tell_metadata, sent, TP(topic, partition), timestamp))
        return sent

    def _partition(self, topic: str, key: bytes | None) -> int:
        count = self.transport.require_topic(self._log(), topic)
        if key is not None:
            return partition_for(key, count)
        self._round_robin += 1
        return self._round_robin % count

    def _log(self) -> EmbeddedLog:
        if self.embedded is None:
            raise LogClosed("the producer is not running: start the app before sending")
        return self.embedded


def _look_at(fut: asyncio.Future[RecordMetadata]) -> None:
    """Take note of an error, or asyncio complains that nobody did; the app has been told by then."""
    if not fut.cancelled():
        fut.exception()


def _tell_metadata(sent: asyncio.Future[RecordMetadata], tp: TP, timestamp: float | None, appended: asyncio.Future[int]) -> None:
    error = appended.exception()
    if sent.done():
        return
    if error is not None:
        sent.set_exception(error)
    else:
        sent.set_result(RecordMetadata(tp.topic, tp.partition, tp, appended.result(), timestamp, 0))


def _bytes(content: Any) -> bytes | None:
    if content is None or isinstance(content, bytes):
        return content
    raise LogError(f"got {type(content).__name__}, expected bytes: give the topic a serializer")
