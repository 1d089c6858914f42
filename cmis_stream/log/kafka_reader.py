"""Reading Kafka from outside any group: `KafkaReader` for whoever looks in, and a partition's whole past in one go for recovery.

`KafkaReader` speaks the protocol without aiokafka's consumer: that one fetches ahead for the partitions assigned to it, one
fetch per broker at a time, so readings of many partitions would have to take turns and fetch what nobody wants.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.client import AIOKafkaClient  # type: ignore[import-untyped]
from aiokafka.consumer.fetcher import READ_UNCOMMITTED, PartitionRecords  # type: ignore[import-untyped]
from aiokafka.errors import (  # type: ignore[import-untyped]
    KafkaError,
    LeaderNotAvailableError,
    NodeNotReadyError,
    OffsetOutOfRangeError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.commit import OffsetFetchRequest  # type: ignore[import-untyped]
from aiokafka.protocol.coordination import FindCoordinatorRequest  # type: ignore[import-untyped]
from aiokafka.protocol.fetch import FetchRequest  # type: ignore[import-untyped]
from aiokafka.protocol.metadata import MetadataRequest  # type: ignore[import-untyped]
from aiokafka.protocol.offset import OffsetRequest  # type: ignore[import-untyped]
from aiokafka.record.memory_records import MemoryRecords  # type: ignore[import-untyped]
from aiokafka.structs import ConsumerRecord  # type: ignore[import-untyped]

from cmis_stream.core.errors import CmisError
from cmis_stream.log.reader import LogAway, Record

FETCH_BYTES = 4 << 20
FETCH_WAIT_MS = 100
STOP_S = 10.0
RETRY_S, MOST_RETRY_S = 0.1, 1.0
ATTEMPTS = 3
"""So many requests that nobody answers fit into a reading's patience: one whose connection is dead gets another one."""
_END, _START = -1, -2  # in the place of a time, as the protocol has it

T = TypeVar("T")


class KafkaReader:
    """`LogReader` over a cluster: one connection per broker, shared by readings. Each is tried again until it succeeds or
    `request_timeout_ms` of the client settings is over; so it lives through restarts of brokers and changes of leaders."""

    @classmethod
    async def open(cls, client: Mapping[str, Any]) -> Self:
        """client: settings as `client_settings` returns them. `LogAway` when no broker answers."""
        reader = cls(client)
        try:
            await reader._client.bootstrap()
            reader._epoch = (await reader._asked(reader._cluster)).cluster_id
        except KafkaError as error:
            await reader.close()
            raise LogAway(f"no broker answers at {reader._addresses}: {error}") from error
        except BaseException:  # it is raised again
            await reader.close()
            raise
        return reader

    def __init__(self, client: Mapping[str, Any]) -> None:
        """Use `open`."""
        patience_ms = int(client.get("request_timeout_ms", 30_000))
        self._patience_s = patience_ms / 1000
        self._addresses = _shown(client["bootstrap_servers"])
        self._client = AIOKafkaClient(**{**client, "request_timeout_ms": patience_ms // ATTEMPTS})
        self._epoch = ""
        self._closed = False
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def epoch(self) -> str:
        return self._epoch

    async def topics(self) -> dict[str, int]:
        return await self._asked(self._topics)

    async def ends(self, topic: str) -> dict[int, int]:
        return await self._asked(lambda: self._offsets(topic, _END))

    async def starts(self, topic: str) -> dict[int, int]:
        return await self._asked(lambda: self._offsets(topic, _START))

    async def read(self, topic: str, partition: int, offset: int, records: int, max_bytes: int) -> list[Record]:
        if records <= 0:
            return []
        return await self._asked(lambda: self._read(topic, partition, max(0, offset), records, max_bytes))

    async def offset_at(self, topic: str, partition: int, at_ms: int) -> int:
        return await self._asked(lambda: self._offset_at(topic, partition, max(0, at_ms)))

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        return await self._asked(lambda: self._committed(group, topic))

    async def close(self) -> None:
        self._closed = True
        try:
            async with asyncio.timeout(STOP_S):
                await self._idle.wait()
        except TimeoutError:
            pass  # nobody answers; closing the connections ends those readings
        try:
            async with asyncio.timeout(STOP_S):
                await self._client.close()
        except TimeoutError:
            pass  # what it could not say to a broker is of no interest

    # -- one attempt each ---------------------------------------------------------------------------------------------

    async def _cluster(self) -> Any:
        return await self._send(self._client.get_random_node(), MetadataRequest([]))

    async def _topics(self) -> dict[str, int]:
        try:
            cluster = await self._client.fetch_all_metadata()
        except KafkaError as error:  # it knows only one, and says that it is for good
            raise NodeNotReadyError(str(error)) from error
        names = sorted(cluster.topics(exclude_internal_topics=True))
        return {name: len(cluster.partitions_for_topic(name) or ()) for name in names}

    async def _partitions(self, topic: str) -> set[int]:
        """Of a topic; empty when it is not there. All topics are known to the client; new ones are asked for."""
        partitions: set[int] | None = self._client.cluster.partitions_for_topic(topic)
        if partitions is None:
            if not await self._client.force_metadata_update():
                raise NodeNotReadyError("no broker tells what topics there are")
            partitions = self._client.cluster.partitions_for_topic(topic)
        return partitions or set()

    def _leader(self, topic: str, partition: int) -> int:
        leader: int | None = self._client.cluster.leader_for_partition(TopicPartition(topic, partition))
        if leader is None or leader < 0:
            raise LeaderNotAvailableError(f"{topic}/{partition}")
        return leader

    async def _offsets(self, topic: str, at: int, partitions: Iterable[int] | None = None) -> dict[int, int]:
        by_leader: dict[int, list[int]] = {}
        for partition in sorted(await self._partitions(topic) if partitions is None else partitions):
            by_leader.setdefault(self._leader(topic, partition), []).append(partition)
        found: dict[int, int] = {}
        for leader, own in by_leader.items():
            request = OffsetRequest(-1, READ_UNCOMMITTED, [(topic, [(partition, at) for partition in own])])
            for partition, code, _stamp, offset in (await self._send(leader, request)).topics[0][1]:
                _check(code)
                found[partition] = offset
        return dict(sorted(found.items()))

    async def _offset_at(self, topic: str, partition: int, at_ms: int) -> int:
        if partition not in await self._partitions(topic):
            return 0
        end = (await self._offsets(topic, _END, [partition]))[partition]  # before looking: what comes later does not count
        offset = (await self._offsets(topic, at_ms, [partition]))[partition]
        return offset if offset >= 0 else end

    async def _read(self, topic: str, partition: int, offset: int, records: int, max_bytes: int) -> list[Record]:
        if partition not in await self._partitions(topic):
            return []
        while True:
            try:
                found, end, following = await self._fetch(topic, partition, offset, records, max_bytes)
            except OffsetOutOfRangeError:
                start = (await self._offsets(topic, _START, [partition]))[partition]
                if offset >= start:
                    return []  # beyond the end
                offset = start
                continue
            if found or following >= end:
                return found
            if following == offset:
                await asyncio.sleep(RETRY_S)  # the broker had nothing at hand
            offset = following  # behind a hole, or marks that nobody sees

    async def _fetch(
        self, topic: str, partition: int, offset: int, records: int, max_bytes: int
    ) -> tuple[list[Record], int, int]:
        """Records, the partition's end, and where to go on. The broker answers at once, and with a batch at least."""
        size = max(1, min(max_bytes, FETCH_BYTES))
        request = FetchRequest(0, 1, size, READ_UNCOMMITTED, [(topic, [(partition, offset, size)])])
        response = await self._send(self._leader(topic, partition), request)
        if not response.topics:
            raise UnknownTopicOrPartitionError(f"{topic}/{partition}")
        _, code, end, *_, batches = response.topics[0][1][0]
        _check(code)
        batch = PartitionRecords(
            TopicPartition(topic, partition), MemoryRecords(batches), [], offset, None, None, True, READ_UNCOMMITTED
        )
        found: list[Record] = []
        size = 0
        for one in batch:
            size += len(one.key or b"") + len(one.value or b"")
            if found and size > max_bytes:
                break
            found.append(Record(one.offset, one.timestamp, one.key, one.value, list(one.headers)))
            if len(found) >= records:
                break
        return found, end, batch.next_fetch_offset

    async def _committed(self, group: str, topic: str) -> dict[int, int]:
        partitions = sorted(await self._partitions(topic))
        if not partitions:
            return {}
        coordinator = await self._send(self._client.get_random_node(), FindCoordinatorRequest(group, 0))
        _check(coordinator.error_code)
        response = await self._send(coordinator.coordinator_id, OffsetFetchRequest(group, [(topic, partitions)]))
        _check(response.error_code)
        found = {}
        for partition, offset, _metadata, code in response.topics[0][1]:
            _check(code)
            if offset >= 0:
                found[partition] = offset
        return found

    async def _send(self, node: int | None, request: Any) -> Any:
        if node is None:
            raise NodeNotReadyError("no broker is known")
        return await self._client.send(node, request)

    async def _asked(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What an attempt returns, as soon as one succeeds."""
        last: KafkaError | None = None
        self._under_way += 1
        self._idle.clear()
        try:
            delay = RETRY_S
            async with asyncio.timeout(self._patience_s):
                while not self._closed:
                    try:
                        return await attempt()
                    except KafkaError as error:
                        last = error
                    if not last.retriable:
                        raise CmisError(f"the cluster at {self._addresses} refuses to be read: {last}") from last
                    self._client.force_metadata_update()  # leaders may be others now
                    await asyncio.sleep(delay)
                    delay = min(2 * delay, MOST_RETRY_S)
            raise LogAway(f"the reader of the log at {self._addresses} has been closed") from last
        except TimeoutError:
            reason = f": {last}" if last is not None else ""
            raise LogAway(f"no answer from {self._addresses} within {self._patience_s:g} s{reason}") from last
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()


def _check(code: int) -> None:
    error = for_code(code)
    if code:
        raise error()


def _shown(addresses: str | list[str]) -> str:
    return addresses if isinstance(addresses, str) else ", ".join(addresses)


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
