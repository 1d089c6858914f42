"""Faust's consumer over the embedded log: the only member of its group, in the app's own loop, without a thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from faust.transport import base
from faust.types import TP, ConsumerMessage
from faust.types.enums import ProcessingGuarantee

from cmis_stream.core.errors import ConfigError
from cmis_stream.log.drain import DirectDrain
from cmis_stream.log.embedded import EmbeddedLog, LogClosed, Record
from cmis_stream.log.recovery import require_table_manager
from cmis_stream.log.topics import partition_for

if TYPE_CHECKING:
    from cmis_stream.log.transport import Transport

FETCH_RECORDS = 4_000  # a fetch takes at most so many records of a partition, unless broker_max_poll_records says
FETCH_BYTES = 4 << 20  # … and about so many bytes over all partitions: a few milliseconds of the loop's time
FETCH_BYTES_PARTITION = 256 << 10  # … but this much of each, however many there are


class EmbeddedConsumer(DirectDrain, base.Consumer):
    """Reads the log for an app that is the only member of its group."""

    transport: Transport
    embedded: EmbeddedLog | None = None  # while it runs

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._subscription: frozenset[str] = frozenset()
        self._assignment: frozenset[TP] = frozenset()
        self._position: dict[TP, int] = {}
        self._uncommitted_start: dict[TP, int] = {}  # where a partition without a committed offset began
        self._served = 0  # fetches so far: each begins with another partition
        self._rebalance_lock = asyncio.Lock()
        self._max_records: int = self.app.conf.broker_max_poll_records or FETCH_RECORDS

    async def on_start(self) -> None:
        """Open the log."""
        guarantee: Any = self.app.conf.processing_guarantee  # Faust declares the setting as the enum's class
        if guarantee is ProcessingGuarantee.EXACTLY_ONCE:
            raise ConfigError("processing_guarantee: got exactly_once, expected at_least_once (checkpoints make it exact)")
        require_table_manager(self.app)
        await super().on_start()
        self.embedded = self.transport.open_log()
        self.embedded.listen(self.fetch_wake.set)

    async def on_shutdown(self) -> None:
        """Let go of the log; by now the last acknowledged offsets are committed and every task has ended."""
        await super().on_shutdown()
        embedded, self.embedded = self.embedded, None
        if embedded is not None:
            embedded.unlisten(self.fetch_wake.set)
            await embedded.aclose()

    def close(self) -> None:
        """Wake whoever waits for records."""
        self.fetch_wake.set()

    # -- membership ---------------------------------------------------------------------------------------------------

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Subscribe, and rebalance soon: a rebalance waits for the conductor to hear that subscribing is done."""
        wanted = frozenset(topics)
        if wanted == self._subscription:
            return
        for topic in wanted:
            self.transport.require_topic(self._log(), topic)
        self._subscription = wanted
        self.add_future(self._rebalance())

    async def _rebalance(self) -> None:
        async with self._rebalance_lock:
            app: Any = self.app
            app.on_rebalance_start()
            metadata = app.assignor.metadata(set(self._subscription))
            mine = app.assignor.assign(self, {"embedded": metadata})["embedded"]
            assigned = frozenset(TP(topic, p) for topic, numbers in mine.assignment for p in numbers)
            # Only what really goes is revoked: Faust forgets the acks of revoked partitions before it commits them.
            await self.on_partitions_revoked(set(self._assignment - assigned))
            app.assignor.on_assignment(mine)
            # Faust compares this with what each message and each recovery carries, and drops what differs.
            app.consumer_generation_id = generation = self._log().next_generation(app.conf.id)
            self._assignment = assigned
            for tp in self._assignment:
                self._position.setdefault(tp, self._start_offset(tp))
            await self.on_partitions_assigned(set(self._assignment), generation)

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        """Return a topic's partitions; all that the assignor wants of a cluster."""
        count = self.topic_partitions(topic)
        return None if count is None else set(range(count))

    def assignment(self) -> set[TP]:
        """Return the partitions assigned, changelogs included."""
        return set(self._assignment)

    async def create_topic(self, topic: str, partitions: int, replication: int, **options: Any) -> None:
        """Create a topic if it is not there."""
        await self.app.producer.create_topic(topic, partitions, replication, **options)

    def topic_partitions(self, topic: str) -> int | None:
        """Return a topic's partition count, or None if there is no such topic."""
        info = self._log().topics.get(topic)
        return info.partitions if info is not None else None

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        """Return the partition a key goes to."""
        count = self.topic_partitions(topic)
        if count is None or partition is not None:
            return partition
        return partition_for(key, count) if key is not None else None

    # -- fetching -----------------------------------------------------------------------------------------------------

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> dict[TP, list[Record]]:
        """Return the next records of the active partitions, waiting at most ``timeout`` seconds for the first."""
        deadline = self.loop.time() + timeout
        while self.flow_active and not self.should_stop:
            records = self._read(self._assignment if active_partitions is None else active_partitions)
            left = deadline - self.loop.time()
            if records or left <= 0:
                return records
            await self.wait_for_wake(left)
        return {}

    def _read(self, active: Iterable[TP]) -> dict[TP, list[Record]]:
        log = self._log()
        behind = sorted(tp for tp in active if tp in self._position and self._position[tp] < log.highwater(*tp))
        if not behind:
            return {}
        # Each fetch begins with the next partition and gives every partition its share, so none starves.
        self._served += 1
        first = self._served % len(behind)
        share = max(FETCH_BYTES_PARTITION, FETCH_BYTES // len(behind))
        budget = FETCH_BYTES
        records = {}
        for tp in behind[first:] + behind[:first]:
            found = log.read(*tp, self._position[tp], self._max_records, min(share, budget))
            if found:
                records[tp] = found
                self._position[tp] = found[-1].offset + 1
                budget -= sum(len(record.value or b"") for record in found)
            else:  # compaction left nothing up to the highwater
                self._position[tp] = log.highwater(*tp)
            if budget <= 0:
                break
        return records

    async def read_changelog(self, tp: TP) -> AsyncIterator[list[ConsumerMessage]]:
        """All records of a partition up to the end that it has now."""
        log = self._log()
        position, end = log.earliest(*tp), log.highwater(*tp)
        while position < end:
            found = log.read(*tp, position, FETCH_RECORDS, FETCH_BYTES)
            if not found:
                return  # compaction left nothing up to the end
            position = found[-1].offset + 1
            yield [self._to_message(tp, record) for record in found]
            await asyncio.sleep(0)

    def _to_message(self, tp: TP, record: Record) -> ConsumerMessage:
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            record.offset,
            timestamp=record.ts_ms / 1000,
            timestamp_type=0,
            headers=record.headers,
            key=record.key,
            value=record.value,
            checksum=None,
            tp=tp,
            generation_id=self.app.consumer_generation_id,
        )

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)

    # -- offsets ------------------------------------------------------------------------------------------------------

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        await self._log().commit_offsets(self.app.conf.id, {(tp.topic, tp.partition): o for tp, o in offsets.items()})
        return True

    def _start_offset(self, tp: TP) -> int:
        committed = self._log().committed(self.app.conf.id, *tp)
        if committed is not None:
            return committed
        if tp not in self._uncommitted_start:  # remembered, or a second rebalance under 'latest' would skip records
            latest = self.app.conf.consumer_auto_offset_reset == "latest"
            self._uncommitted_start[tp] = (self._log().highwater if latest else self._log().earliest)(*tp)
        return self._uncommitted_start[tp]

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek all source partitions to their committed offsets; changelogs are recovery's."""
        sought = {tp: self._start_offset(tp) for tp in self._assignment if not self._is_changelog_tp(tp)}
        self._position.update(sought)
        self.fetch_wake.set()
        return sought

    async def _seek(self, partition: TP, offset: int) -> None:
        self._position[partition] = offset
        self.fetch_wake.set()

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Seek; records below what was read before count again, so that is forgotten too."""
        for tp, offset in partitions.items():
            self._position[tp] = offset
            self._read_offset[tp] = offset or None
        self.fetch_wake.set()

    async def position(self, tp: TP) -> int | None:
        """Return the offset read next."""
        return self._position.get(tp)

    def highwater(self, tp: TP) -> int:
        """Return the offset the next record will get."""
        return self._log().highwater(*tp)

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        """Return the offsets the next records will get; recovery subtracts one."""
        return {tp: self._log().highwater(*tp) for tp in partitions}

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        """Return the lowest offsets still there."""
        return {tp: self._log().earliest(*tp) for tp in partitions}

    def _log(self) -> EmbeddedLog:
        if self.embedded is None:
            raise LogClosed("the consumer is not running")
        return self.embedded
