"""Faust's consumer over Kafka: an aiokafka group member in the app's own loop. docs/design/kafka.md has the reasons."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.abc import ConsumerRebalanceListener  # type: ignore[import-untyped]
from aiokafka.errors import CommitFailedError, ConsumerStoppedError, IllegalStateError  # type: ignore[import-untyped]
from aiokafka.structs import ConsumerRecord, OffsetAndMetadata  # type: ignore[import-untyped]
from faust.exceptions import ConsumerNotStarted
from faust.transport import base
from faust.types import TP, ConsumerMessage
from faust.types.enums import ProcessingGuarantee
from mode import Service

from cmis_stream.core.errors import ConfigError
from cmis_stream.log.drain import DirectDrain
from cmis_stream.log.kafka_producer import unless_stopping
from cmis_stream.log.kafka_reader import FETCH_BYTES, FETCH_WAIT_MS, read_to_end, stop
from cmis_stream.log.recovery import require_table_manager
from cmis_stream.log.topics import partition_for

if TYPE_CHECKING:
    from cmis_stream.log.kafka import Transport

WATCH_S = 1.0


class KafkaConsumer(DirectDrain, base.Consumer):
    """A member of the group `app.conf.id`; see docs/design/kafka.md for the states of an assignment."""

    transport: Transport
    consumer_stopped_errors = (ConsumerStoppedError,)
    _kafka: AIOKafkaConsumer | None = None

    async def on_start(self) -> None:
        """Connect; raises KafkaConnectionError when no broker answers."""
        conf = self.app.conf
        guarantee: Any = conf.processing_guarantee  # Faust declares the setting as the enum's class
        if guarantee is ProcessingGuarantee.EXACTLY_ONCE:
            raise ConfigError("processing_guarantee: got exactly_once, expected at_least_once (checkpoints make it exact)")
        if conf.consumer_auto_offset_reset != "earliest":
            raise ConfigError(f"consumer_auto_offset_reset: got {conf.consumer_auto_offset_reset}, expected earliest")
        require_table_manager(self.app)
        await super().on_start()
        self._kafka = self._new_member()
        await self._kafka.start()

    async def on_shutdown(self) -> None:
        """Leave the group; by now the last acknowledged offsets are committed and every task has ended."""
        await super().on_shutdown()
        kafka, self._kafka = self._kafka, None
        if kafka is not None:
            await stop(kafka)

    @Service.task
    async def _watch_member(self) -> None:
        """Raise what ended aiokafka's tasks, which ends the app. Its own getmany tells whoever calls it; Faust never does."""
        while not self.should_stop:
            member: Any = self._member
            await asyncio.wait(
                {member._coordinator._coordination_task, member._fetcher._fetch_task},
                timeout=WATCH_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if self.should_stop:
                return
            member._coordinator.check_errors()
            if member._fetcher._fetch_task.done():
                member._fetcher._fetch_task.result()
                raise ConsumerStoppedError("aiokafka has stopped fetching")

    def close(self) -> None:
        """Wake whoever waits for records."""
        self.fetch_wake.set()

    def _new_member(self) -> AIOKafkaConsumer:
        conf = self.app.conf
        return AIOKafkaConsumer(
            **self.transport.client_settings(),
            group_id=conf.id,
            group_instance_id=conf.consumer_group_instance_id,
            # Not only with tables, as Faust has it: all of an org's topics belong in one process.
            partition_assignment_strategy=[self.app.assignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=conf.broker_max_poll_records,
            max_poll_interval_ms=_ms(conf.broker_max_poll_interval or 1000.0),
            max_partition_fetch_bytes=max(conf.consumer_max_fetch_size, FETCH_BYTES),
            # How long a broker holds a fetch that finds nothing. There is one per broker under way, so a partition that becomes
            # fetchable meanwhile waits for it: Faust's 1500 is its consumption lag.
            fetch_max_wait_ms=FETCH_WAIT_MS,
            check_crcs=conf.broker_check_crcs,
            session_timeout_ms=_ms(conf.broker_session_timeout),
            rebalance_timeout_ms=_ms(conf.broker_rebalance_timeout),
            heartbeat_interval_ms=_ms(conf.broker_heartbeat_interval),
            metadata_max_age_ms=conf.consumer_metadata_max_age_ms,
        )

    # -- membership ---------------------------------------------------------------------------------------------------

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Join the group with these topics; refused when one is missing or has too few partitions."""
        wanted = set(topics)
        await self.transport.require_topics(wanted)
        self._member.subscribe(topics=wanted, listener=_Listener(self))

    async def _assigned(self, assigned: set[TP]) -> None:
        member: Any = self._member
        self.app.consumer_generation_id = generation = member._coordinator.generation
        member.pause(*(TopicPartition(*tp) for tp in assigned if self._is_changelog_tp(tp)))  # recovery reads them apart
        await self.on_partitions_assigned(assigned, generation)

    def assignment(self) -> set[TP]:
        """Return the partitions assigned, changelogs included; none before the consumer runs."""
        if self._kafka is None:
            raise ConsumerNotStarted("the consumer is not running")
        return {TP(*tp) for tp in self._kafka.assignment()}

    def topic_partitions(self, topic: str) -> int | None:
        """Return a topic's partition count, or None if it is not known."""
        return len(self._member.partitions_for_topic(topic) or ()) or None

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        """Return the partition a key goes to."""
        count = self.topic_partitions(topic)
        if count is None or partition is not None:
            return partition
        return partition_for(key, count) if key is not None else None

    async def create_topic(self, topic: str, partitions: int, replication: int, **options: Any) -> None:
        """Create a topic if it is not there."""
        await self.app.producer.create_topic(topic, partitions, replication, **options)

    # -- fetching -----------------------------------------------------------------------------------------------------

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> dict[TP, list[ConsumerRecord]]:
        """Return the next records of the active partitions, waiting at most ``timeout`` seconds for the first."""
        member: Any = self._member
        fetcher, subscriptions = member._fetcher, member._subscription
        deadline = self.loop.time() + timeout
        # A copy: partitions may be paused while we wait. Never empty: that means all partitions to aiokafka.
        active = {TopicPartition(*tp) for tp in active_partitions or ()}
        while active and self.flow_active and not self.should_stop:
            if not subscriptions.reassignment_in_progress:
                with subscriptions.fetch_context():  # what tells aiokafka that we are not idle
                    records = await fetcher.fetched_records(active, timeout=0, max_records=member._max_poll_records)
                if records:
                    return {TP(*tp): found for tp, found in records.items()}
            left = deadline - self.loop.time()
            if left <= 0:
                break
            await self._wait_for_records(fetcher, left)
            if self.fetch_wake.is_set():
                self.fetch_wake.clear()
                break  # the active partitions are others now
        return {}

    async def _wait_for_records(self, fetcher: Any, timeout: float) -> None:
        arrived = fetcher._create_fetch_waiter()
        woken = asyncio.ensure_future(self.fetch_wake.wait())
        try:
            await asyncio.wait({arrived, woken}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if arrived.done():
                arrived.result()  # not authorised, or another error of the group
        finally:
            woken.cancel()
            arrived.cancel()

    def _to_message(self, tp: TP, record: ConsumerRecord[Any, Any]) -> ConsumerMessage:
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            record.offset,
            timestamp=record.timestamp / 1000,
            timestamp_type=record.timestamp_type,
            headers=record.headers,
            key=record.key,
            value=record.value,
            checksum=record.checksum,
            serialized_key_size=record.serialized_key_size,
            serialized_value_size=record.serialized_value_size,
            tp=tp,
            generation_id=self.app.consumer_generation_id,
        )

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)

    async def read_changelog(self, tp: TP) -> AsyncIterator[list[ConsumerMessage]]:
        """All records of a partition up to the end that it has now, by a reader outside the group."""
        async for records in read_to_end(self.transport.client_settings(), *tp):
            yield [self._to_message(tp, record) for record in records]

    # -- offsets ------------------------------------------------------------------------------------------------------

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit; False when the group has moved on: the partitions' new owners read those records again.

        False, too, after a send has failed that nobody waited for, and when the app stops and no broker answers.
        """
        producer: Any = self.app.producer
        if producer.failure is not None:
            return False
        wanted = {TopicPartition(*tp): OffsetAndMetadata(offset, "") for tp, offset in offsets.items()}
        try:
            await unless_stopping(self.app, self._member.commit(wanted))
        except (CommitFailedError, IllegalStateError, TimeoutError) as error:
            self.log.info("Offsets are not committed: %s", error)
            return False
        return True

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek all source partitions to their committed offsets, or to their first record where there is none."""
        member: Any = self._member
        sources = [TopicPartition(*tp) for tp in self.assignment() if not self._is_changelog_tp(tp)]
        committed = await member._coordinator.fetch_committed_offsets(sources)
        sought = {tp: committed[tp].offset for tp in sources if tp in committed and committed[tp].offset >= 0}
        if fresh := [tp for tp in sources if tp not in sought]:
            sought.update(await member.beginning_offsets(fresh))
        for tp, offset in sought.items():
            member.seek(tp, offset)
        return {TP(*tp): offset for tp, offset in sought.items()}

    async def _seek(self, partition: TP, offset: int) -> None:
        self._member.seek(TopicPartition(*partition), offset)
        self.fetch_wake.set()

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Seek; records below what was read before count again, so that is forgotten too."""
        for tp, offset in partitions.items():
            self._member.seek(TopicPartition(*tp), offset)
            self._read_offset[tp] = offset or None
        self.fetch_wake.set()

    async def position(self, tp: TP) -> int | None:
        """Return the offset read next."""
        position: int = await self._member.position(TopicPartition(*tp))
        return position

    def highwater(self, tp: TP) -> int:
        """Return the offset the next record will get, as of the last fetch; 0 when it is not known."""
        partition = TopicPartition(*tp)
        member: Any = self._member
        known: int | None = member.highwater(partition) if partition in member.assignment() else None
        return known or 0

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        """Return the offsets the next records will get."""
        return _by_tp(await self._member.end_offsets([TopicPartition(*tp) for tp in partitions]))

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        """Return the lowest offsets still there."""
        return _by_tp(await self._member.beginning_offsets([TopicPartition(*tp) for tp in partitions]))

    @property
    def _member(self) -> AIOKafkaConsumer:
        if self._kafka is None:
            raise ConsumerStoppedError
        return self._kafka


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Called by aiokafka while it joins; it goes on when these return."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        app: Any = self._consumer.app
        app.on_rebalance_start()
        await self._consumer.on_partitions_revoked({TP(*tp) for tp in revoked})

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        await self._consumer._assigned({TP(*tp) for tp in assigned})


def _by_tp(offsets: Mapping[TopicPartition, int]) -> dict[TP, int]:
    return {TP(*tp): offset for tp, offset in offsets.items()}


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
