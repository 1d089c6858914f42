"""Reading Kafka from outside any group: a partition up to its end of now, where partitions end, which cluster it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]
from aiokafka.protocol.metadata import MetadataRequest  # type: ignore[import-untyped]
from aiokafka.structs import ConsumerRecord  # type: ignore[import-untyped]

FETCH_BYTES = 4 << 20
FETCH_WAIT_MS = 100
STOP_S = 10.0


async def read_to_end(
    client: Mapping[str, Any], topic: str, partition: int, start: int | None = None
) -> AsyncIterator[list[ConsumerRecord]]:
    """All records from an offset (None: the first that is there) up to the end that the partition has now, in steps.

    client: settings as `Transport.client_settings` returns them. By position, not by record: those before the end may have
    been compacted away, or be marks of transactions that nobody sees.
    """
    tp = TopicPartition(topic, partition)
    async with _reader(client, [tp]) as reader:
        end = (await reader.end_offsets([tp]))[tp]
        if start is None:
            await reader.seek_to_beginning(tp)
        else:
            reader.seek(tp, start)
        while await reader.position(tp) < end:
            found = (await reader.getmany(tp, timeout_ms=FETCH_WAIT_MS)).get(tp, [])
            if records := [record for record in found if record.offset < end]:
                yield records


async def ends(client: Mapping[str, Any], topic: str, partitions: Iterable[int]) -> dict[int, int]:
    """Partition -> the offset that its next record will get."""
    tps = [TopicPartition(topic, partition) for partition in partitions]
    async with _reader(client, tps) as reader:
        return {tp.partition: offset for tp, offset in (await reader.end_offsets(tps)).items()}


async def cluster_id(client: Mapping[str, Any]) -> str:
    """What tells this cluster's offsets from another's: made by Kafka when the cluster was."""
    async with _reader(client, []) as reader:
        response: Any = await reader._client.send(reader._client.get_random_node(), MetadataRequest([]))
    return str(response.cluster_id)


@asynccontextmanager
async def _reader(client: Mapping[str, Any], tps: list[TopicPartition]) -> AsyncIterator[AIOKafkaConsumer]:
    reader = AIOKafkaConsumer(
        **client, enable_auto_commit=False, auto_offset_reset="earliest", max_partition_fetch_bytes=FETCH_BYTES
    )  # fmt: skip
    await reader.start()
    try:
        if tps:
            reader.assign(tps)
        yield reader
    finally:
        await stop(reader)


async def stop(kafka: Any) -> None:
    """Leave the group and disconnect; a broker that does not answer must not hold up the end of the process."""
    try:
        async with asyncio.timeout(STOP_S):
            await kafka.stop()
    except (TimeoutError, KafkaError):  # the group notices by its session
        await kafka._client.close()
        if kafka._coordinator is not None:
            for task in (kafka._coordinator._coordination_task, kafka._coordinator._heartbeat_task):
                if task is not None:
                    task.cancel()
        await kafka._fetcher.close()
