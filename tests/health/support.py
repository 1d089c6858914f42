"""A log, partitions and a backplane as health sees them, which are where a test puts them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from cmis_stream.core.engine import Engine
from cmis_stream.health.ports import Parts
from cmis_stream.log.reader import LogAway, Record

NOW = 1_767_225_600_000
METRICS, TRANSITIONS = "cmis.metrics.v1", "cmis.transitions.v1"


@dataclass
class Held:
    """A partition that stands where it is put."""

    partition: int = 3
    position: int = -1
    begun: int = -1
    acked: int = -1
    unacked: int = 0
    generation: str = "1"
    topic: str = METRICS
    saved_at: float = field(default_factory=time.monotonic)
    saving_s: float = 0.0
    engine: Engine = field(default_factory=Engine)


@dataclass
class Log:
    """What a reader of a log says. away: why it does not answer."""

    end: dict[str, dict[int, int]] = field(default_factory=dict)
    start: dict[str, dict[int, int]] = field(default_factory=dict)
    done: dict[str, dict[int, int]] = field(default_factory=dict)
    stamp_ms: int = NOW
    away: str = ""
    asked: int = 0

    async def ends(self, topic: str) -> dict[int, int]:
        self.asked += 1
        if self.away:
            raise LogAway(self.away)
        return self.end.get(topic, {})

    async def starts(self, topic: str) -> dict[int, int]:
        return self.start.get(topic, dict.fromkeys(self.end.get(topic, {}), 0))

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        assert group == "cmis"
        return self.done.get(topic, {})

    async def read(self, topic: str, partition: int, offset: int, records: int, max_bytes: int) -> list[Record]:
        return [Record(offset, self.stamp_ms, None, b"", [])]


@dataclass
class Link:
    kind: str = "redis"
    connected: bool = True
    reconnects: int = 0


class World:
    """A worker with these partitions on a log."""

    def __init__(self, *held: Any, **more: Any) -> None:
        self.log, self.held, self.now_ms, self.flows = Log(), list(held), NOW, True
        self.parts = Parts(
            role="worker", clock=lambda: self.now_ms, log=self.log, topics=(METRICS, TRANSITIONS),
            partitions=lambda: self.held, flowing=lambda: self.flows, **more,
        )  # fmt: skip
