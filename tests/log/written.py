"""The two logs as something to read: filled, trimmed and compacted from outside, opened as a `LogReader`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.errors import TopicAlreadyExistsError, for_code
from yarl import URL

from cmis_stream.log.embedded import EmbeddedLog
from cmis_stream.log.embedded_reader import EmbeddedReader
from cmis_stream.log.kafka import client_settings
from cmis_stream.log.kafka_reader import KafkaReader
from cmis_stream.log.kafka_topics import appeared
from cmis_stream.log.reader import LogReader

NOW = 1_767_225_600_000
KEPT_MS, HOUR_MS = 1000, 3_600_000
Row = tuple[bytes | None, bytes | None]


class Written(Protocol):
    """A log with a writer. Times are stamps in epoch ms."""

    async def reader(self) -> LogReader: ...

    async def create(self, topic: str, partitions: int, *, compact: bool = False) -> None:
        """Empty, also when it was there."""

    async def append(self, topic: str, partition: int, *rows: Row, ts_ms: int = NOW) -> int:
        """The offset of the last one; durable. Rows are key and value."""

    async def trim(self, topic: str, partition: int, before_ms: int) -> None:
        """Retention takes what is older."""

    async def compact(self, topic: str, partition: int) -> None:
        """Only the newest record of each key is left, besides some of the key b"filler", an hour behind NOW."""

    async def commit(self, group: str, topic: str, offsets: dict[int, int]) -> None: ...


class WrittenEmbedded:
    def __init__(self, folder: Path) -> None:
        self.log = EmbeddedLog.open(folder / "log.db")

    async def reader(self) -> LogReader:
        return EmbeddedReader.open(self.log.path)

    async def create(self, topic: str, partitions: int, *, compact: bool = False) -> None:
        self.log.create_topic(topic, partitions, compact, None if compact else KEPT_MS)
        await self.log.flush()

    async def append(self, topic: str, partition: int, *rows: Row, ts_ms: int = NOW) -> int:
        return (await asyncio.gather(*(self.log.append(topic, partition, *row, ts_ms=ts_ms) for row in rows)))[-1]

    async def trim(self, topic: str, partition: int, before_ms: int) -> None:
        await asyncio.to_thread(self.log.maintain, before_ms + KEPT_MS)

    async def compact(self, topic: str, partition: int) -> None:
        await self.append(topic, partition, (b"filler", b""), ts_ms=NOW + HOUR_MS)  # appending does it

    async def commit(self, group: str, topic: str, offsets: dict[int, int]) -> None:
        await self.log.commit_offsets(group, {(topic, partition): offset for partition, offset in offsets.items()})


class WrittenKafka:
    def __init__(self, url: str, admin: AIOKafkaAdminClient, producer: AIOKafkaProducer) -> None:
        self.client, self.admin, self.producer = client_settings([URL(url)]), admin, producer

    async def reader(self) -> LogReader:
        return await KafkaReader.open(self.client)

    async def create(self, topic: str, partitions: int, *, compact: bool = False) -> None:
        if topic in await self.admin.list_topics():
            await self.admin.delete_topics([topic])
        quick = {"cleanup.policy": "compact", "segment.ms": "50", "min.cleanable.dirty.ratio": "0.001"}
        new = NewTopic(topic, partitions, 1, topic_configs={"max.message.bytes": str(16 << 20), **(quick if compact else {})})
        async with asyncio.timeout(60):
            while (code := (await self.admin.create_topics([new])).topic_errors[0][1]) == TopicAlreadyExistsError.errno:
                await asyncio.sleep(0.05)  # what was there is still being deleted
        assert code == 0, for_code(code)
        await appeared(self.admin, {topic})
        await self.producer.client.force_metadata_update()

    async def append(self, topic: str, partition: int, *rows: Row, ts_ms: int = NOW) -> int:
        sent = [await self.producer.send(topic, value, key=key, partition=partition, timestamp_ms=ts_ms) for key, value in rows]
        return (await asyncio.gather(*sent))[-1].offset

    async def trim(self, topic: str, partition: int, before_ms: int) -> None:
        tp = TopicPartition(topic, partition)
        found = (await self._moments({tp: before_ms}))[tp]
        await self.admin.delete_records({tp: RecordsToDelete(before_offset=-1 if found is None else found.offset)})

    async def _moments(self, moments: dict[TopicPartition, int]) -> dict[TopicPartition, Any]:
        """By aiokafka's own consumer, not by what is tested."""
        async with AIOKafkaConsumer(**self.client) as consumer:
            found: dict[TopicPartition, Any] = await consumer.offsets_for_times(moments)
            return found

    async def compact(self, topic: str, partition: int) -> None:
        """The cleaner takes what is not in the active segment: new ones are begun until it has come by."""
        tp = TopicPartition(topic, partition)
        async with asyncio.timeout(120), AIOKafkaConsumer(**self.client, enable_auto_commit=False) as consumer:
            consumer.assign([tp])
            for moment in range(NOW + HOUR_MS, NOW + 2 * HOUR_MS, 1000):  # by their stamps segments are old enough
                end = await self.append(topic, partition, (b"filler", b""), ts_ms=moment)
                consumer.seek(tp, 0)
                keys: list[bytes] = []
                while await consumer.position(tp) <= end:
                    keys += [r.key for r in (await consumer.getmany(tp, timeout_ms=100)).get(tp, []) if r.key != b"filler"]
                if len(keys) == len(set(keys)):
                    return
                await asyncio.sleep(0.2)

    async def commit(self, group: str, topic: str, offsets: dict[int, int]) -> None:
        tps = {TopicPartition(topic, partition): offset for partition, offset in offsets.items()}
        async with AIOKafkaConsumer(**self.client, group_id=group, enable_auto_commit=False) as consumer:
            consumer.assign(list(tps))
            await consumer.commit(tps)


@asynccontextmanager
async def written_embedded(folder: Path) -> AsyncIterator[WrittenEmbedded]:
    written = WrittenEmbedded(folder)
    try:
        yield written
    finally:
        await written.log.aclose()


@asynccontextmanager
async def written_kafka(url: str) -> AsyncIterator[WrittenKafka]:
    client = client_settings([URL(url)])
    admin, producer = AIOKafkaAdminClient(**client), AIOKafkaProducer(**client, acks="all", max_request_size=16 << 20)
    try:
        await admin.start()
        await producer.start()
        yield WrittenKafka(url, admin, producer)
    finally:
        await producer.stop()
        await admin.close()
