"""Faust's producer over Kafka: idempotent, acknowledged by all replicas, in order, and flushed to the end."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Awaitable, Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aiokafka.errors import KafkaConnectionError  # type: ignore[import-untyped]
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, RecordMetadata
from faust.types.tuples import FutureMessage

from cmis_stream.core.errors import ConfigError
from cmis_stream.log.buffer import OneWayProducer, Outgoing, SendBuffer
from cmis_stream.log.kafka_topics import MESSAGE_BYTES
from cmis_stream.log.topics import partition_for

if TYPE_CHECKING:
    from cmis_stream.log.kafka import Transport

BATCH_BYTES = 1 << 20
REQUEST_S = 30.0
"""A broker that has not answered a request by then is tried again, or another is."""
LOOK_S = 0.5
STOP_S = 10.0
"""How long an app that stops waits for a broker that does not answer."""
SEND_S = 600.0
"""How long a send waits for its partition's turn while no broker answers, before it fails."""


class KafkaBuffer(SendBuffer):
    """Nobody need look at the result of ``send_soon``: when one fails the app crashes, and nothing is committed any more."""

    producer: KafkaProducer
    failure: BaseException | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._unsettled: set[FutureMessage] = set()

    def put(self, fut: FutureMessage) -> None:
        """Add a message."""
        self._unsettled.add(fut)
        fut.add_done_callback(self._settle)
        super().put(fut)

    def _settle(self, sent: FutureMessage) -> None:
        self._unsettled.discard(sent)
        error = None if sent.cancelled() else sent.exception()
        if error is not None and self.failure is None:
            self.failure = error
            self.add_future(self.crash(error))

    async def settled(self) -> None:
        """Wait until the outcome of every message that was sent is known."""
        while self._unsettled:
            await asyncio.wait(self._unsettled)


class KafkaProducer(OneWayProducer, driver.Producer):
    """One producer of one process: within a partition, records are in the order of ``send``, each once."""

    transport: Transport
    buffer: KafkaBuffer
    buffer_type = KafkaBuffer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.partitioner = _partitioner
        self._transaction_producers = {}  # Faust's is one dict for all apps of the process
        self._turns: defaultdict[tuple[str, int | None], asyncio.Lock] = defaultdict(asyncio.Lock)

    def create_threaded_producer(self) -> Any:
        """Refuse ``producer_threaded``."""
        raise ConfigError("producer_threaded: got true, expected false: the app's loop sends")

    def _settings_default(self) -> Mapping[str, Any]:
        return {
            **super()._settings_default(),
            **self.transport.client_settings(),
            "acks": "all",
            "enable_idempotence": True,
            "max_batch_size": BATCH_BYTES,
            "max_request_size": MESSAGE_BYTES,
            "request_timeout_ms": int(REQUEST_S * 1000),
        }

    def _settings_extra(self) -> Mapping[str, Any]:
        return {}

    def _new_producer(self, transactional_id: str | None = None) -> Any:
        producer: Any = super()._new_producer(transactional_id)
        # aiokafka has one timeout for a request and for a send that waits for its turn; the latter has to outlast an outage.
        producer._request_timeout_ms = int(SEND_S * 1000)
        producer._message_accumulator._batch_ttl = SEND_S
        return producer

    async def on_start(self) -> None:
        """Connect; raises KafkaConnectionError when no broker answers."""
        await super().on_start()
        await self.transport.learn_topics()

    async def know(self, topics: Iterable[str]) -> None:
        """Learn who leads these topics now: the first send to a topic asks for that, and could not while no broker answers."""
        client: Any = self._ensure_producer().client
        for topic in topics:
            client.add_topic(topic)
        await client.force_metadata_update()

    async def hand_over(self, record: Outgoing) -> Awaitable[RecordMetadata]:
        """Give a record to aiokafka; the returned future holds its metadata once all replicas have it.

        Waits while the partition's batch is full. Senders to a partition wait in line: aiokafka wakes them all at once
        when a batch is taken, and whoever comes by then is first.
        """
        async with self._turns[record.topic, record.partition]:
            return await driver.Producer.send(self, *record)

    async def flush(self) -> None:
        """Wait until nothing is under way, however long that takes, unless the app stops and no broker answers.

        Faust commits source offsets after this. aiokafka's own flush waits for what is there when it is called.
        """
        try:
            await unless_stopping(self.app, self._flush())
        except TimeoutError as error:
            self.buffer.failure = self.buffer.failure or error

    async def _flush(self) -> None:
        await self.buffer.flush()
        while self._producer is not None and self._under_way():
            await self._producer.flush()
        await self.buffer.settled()

    async def on_stop(self) -> None:
        """Send what is left; what no broker takes fails."""
        producer: Any = self._producer
        try:
            async with asyncio.timeout(STOP_S):
                await super().on_stop()
        except TimeoutError:
            self.log.warning("No broker takes what is left to send: it is given up")
            await producer.client.close()  # first: the sender waits for the answer to its request
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await producer._sender.close()
            producer._message_accumulator.fail_all(KafkaConnectionError("the producer has stopped"))

    @property
    def failure(self) -> BaseException | None:
        """What became of a send that nobody waited for; sources that rest on it must not be committed."""
        return self.buffer.failure

    def _under_way(self) -> bool:
        accumulator: Any = self._ensure_producer()._message_accumulator
        return bool(accumulator._batches or accumulator._pending_batches)

    def key_partition(self, topic: str, key: bytes) -> TP:
        """Return the partition a key goes to."""
        return TP(topic, partition_for(key, self.transport.partition_counts[topic]))

    def supports_headers(self) -> bool:
        """Headers are kept."""
        return True


async def unless_stopping(app: Any, work: Coroutine[Any, Any, Any]) -> Any:
    """The work's result; TimeoutError when it is not done `STOP_S` after the app has begun to stop."""
    doing = asyncio.ensure_future(work)
    patience_s = STOP_S
    try:
        while not doing.done() and patience_s > 0:
            await asyncio.wait({doing}, timeout=LOOK_S)
            if app.should_stop:
                patience_s -= LOOK_S
        if not doing.done():
            raise TimeoutError("the app stops, and no broker answers")
        return doing.result()
    finally:
        doing.cancel()


def _partitioner(key: bytes | None, partitions: Sequence[int], available: Sequence[int]) -> int:
    """Ours for records with a key; one without goes to any partition that has a leader."""
    del available  # a key's partition does not depend on who is up
    return sorted(partitions)[partition_for(key or b"", len(partitions))]
