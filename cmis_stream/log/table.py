"""The Faust table whose changelog holds the checkpoints. Faust makes and recovers the changelog; nothing is kept here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Iterable
from typing import Any

import faust
from faust.types import EventT

from cmis_stream.log.checkpoint import Write


class CheckpointTable(faust.Table[bytes, bytes]):
    """Written with an explicit partition (Faust would take it from the current event, which is wrong for held ones)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._recovered: dict[int, dict[bytes, bytes]] = defaultdict(dict)

    async def put(self, partition: int, writes: Iterable[Write]) -> list[Awaitable[Any]]:
        """Appends records to the changelog, in order; each awaitable completes when its record is durable."""
        name = self.changelog_topic.get_topic_name()
        return [await self.app.producer.send(name, key, value, partition, None, None) for key, value in writes]

    def take(self, partition: int) -> dict[bytes, bytes]:
        """What recovery read for a partition: key -> latest value. Handed over once."""
        return self._recovered.pop(partition, {})

    def apply_changelog_batch(self, batch: Iterable[EventT[Any]]) -> None:
        for event in batch:
            records, key = self._recovered[event.message.partition], event.message.key or b""
            if event.message.value is None:
                records.pop(key, None)
            else:
                records[key] = event.message.value
