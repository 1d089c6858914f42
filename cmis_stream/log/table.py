"""The Faust table whose changelog holds the checkpoints. Nothing is kept here: recovery hands over what it read, once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Iterable
from typing import Any

import faust
from faust.types import TP, EventT

from cmis_stream.log.checkpoint import Write

# Kafka compacts only segments that are full: with its default of 1 GB a recovery would read all of that. (The embedded log
# compacts as it writes.)
CHANGELOG_CONFIG = {
    "segment.bytes": str(16 << 20),
    "min.cleanable.dirty.ratio": "0.2",
    "delete.retention.ms": str(600_000),
}


class CheckpointTable(faust.Table[bytes, bytes]):
    """Written with an explicit partition (Faust would take it from the current event, which is wrong for held ones)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"extra_topic_configs": CHANGELOG_CONFIG, **kwargs})
        self._recovered: dict[int, dict[bytes, bytes]] = defaultdict(dict)

    async def put(self, partition: int, writes: Iterable[Write]) -> list[Awaitable[Any]]:
        """Appends records to the changelog, in order; each awaitable completes when its record is durable."""
        name = self.changelog_topic.get_topic_name()
        return [await self.app.producer.send(name, key, value, partition, None, None) for key, value in writes]

    def take(self, partition: int) -> dict[bytes, bytes]:
        """What recovery read for a partition: key -> latest value. Handed over once, and only in `on_recover` callbacks."""
        return self._recovered.pop(partition, {})

    async def on_rebalance(self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0) -> None:
        """Forget what a recovery has read that was broken off; the next one reads it anew."""
        self._recovered.clear()
        await super().on_rebalance(assigned, revoked, newly_assigned, generation_id)

    async def on_recovery_completed(self, active_tps: set[TP], standby_tps: set[TP]) -> None:
        """Call the callbacks, and drop what none of them has taken."""
        await super().on_recovery_completed(active_tps, standby_tps)
        self._recovered.clear()

    def apply_changelog_batch(self, batch: Iterable[EventT[Any]]) -> None:
        for event in batch:
            records, key = self._recovered[event.message.partition], event.message.key or b""
            if event.message.value is None:
                records.pop(key, None)
            else:
                records[key] = event.message.value
