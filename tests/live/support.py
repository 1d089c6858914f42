"""A real log with results in it, as a partition's owner writes them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson

from cmis_stream.core.ids import fact_id, incident_key
from cmis_stream.core.rollups import Rollup
from cmis_stream.live.jobs import JOBS
from cmis_stream.live.tail import LogTail
from cmis_stream.log import rollup
from cmis_stream.log.owner import ROLLUPS, TRANSITIONS
from cmis_stream.log.reader import LogReader
from cmis_stream.log.topics import partition_for
from cmis_stream.modules.alerts.incidents import INCIDENT
from cmis_stream.store.database import Database
from cmis_stream.store.facts import Facts
from cmis_stream.store.kinds import Kinds, Manifest
from tests.log.written import Written

NOW = 1_767_225_600_000
METRICS = "cmis.metrics.v1"
PARTITIONS = 8
ACME = partition_for(b"acme", PARTITIONS)
INCIDENTS, FIGURES = "org:acme:incidents", "org:acme:metrics"
SUMS = {"events": 1, "impressions": 2, "clicks": 3, "spend": 4, "conversions": 5, "revenue": 6}


KINDS = Kinds([Manifest("alerts", (), facts=(INCIDENT,))])


class ProcessFacts(Facts):
    """As one process has them, in a file."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(_empty())
        super().__init__(Database(f"sqlite:///{path}"), KINDS)

    def close(self) -> None:
        self._database.close()


@cache
def _empty() -> bytes:
    """A file with all tables: making them takes longer than most tests."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        Facts(database := Database(f"sqlite:///{path}"), KINDS)
        database.close()
        assert not path.with_name("store.db-wal").exists()
        return path.read_bytes()


def line(
    source: int, index: int = 0, *, state: str = "firing", campaign: str = "c", org: str = "acme", opened: str = ""
) -> dict[str, Any]:
    """The transition `index` of the source record at this offset; opened: the id of the one that opened its incident."""
    own = f"{METRICS}/{ACME}/{source}/{index}"
    at = NOW + 1000 * source
    began = NOW + 1000 * int(opened.split("/")[2]) if opened else at
    path = {"currency": "USD", "platform": "meta", "account": "", "campaign": campaign, "ad_set": "", "ad": ""}
    return {
        "key": incident_key(org, "r", "campaign", list(path.values())), "org": org, "rule": "r", "severity": "high",
        "level": "campaign", **path, "at": at, "state": state, "value": 2.5, "window": "5m", "sums": SUMS, "id": own,
        "incident": fact_id(began, opened or own), "events": [f"e{source}"],
    }  # fmt: skip


def transitions(source: int, *lines: dict[str, Any]) -> bytes:
    """A record of cmis.transitions.v1 told at this position."""
    return orjson.dumps({"source": [METRICS, ACME, source], "stamp": NOW, "transitions": list(lines or [line(source)])})


def figures(source: int, **orgs: int) -> bytes:
    """A record of cmis.rollups.v1: one pane of each org's USD with so many events."""
    counts = orgs or {"acme": source + 1}
    n = len(counts)
    sums = np.zeros((6, n), np.int64)
    sums[0] = list(counts.values())
    told = Rollup(
        list(counts), list(range(n + 1)), ["USD"] * n, np.arange(n, dtype=np.int32), np.full(n, NOW), np.full(n, 10_000),
        np.zeros(n, bool), sums,
    )  # fmt: skip
    return rollup.encode((METRICS, ACME, source), NOW + source, told)


class Results:
    """The log of an instance, its results topics, and a tail that reads it."""

    def __init__(self, written: Written, reader: LogReader) -> None:
        self.written, self.reader = written, reader
        self.tail = LogTail(reader, PARTITIONS)

    async def append(self, topic: str, *values: bytes, ts_ms: int = NOW, partition: int = ACME) -> int:
        """The offset of the last one; durable."""
        offset = -1
        for value in values:
            offset = await self.written.append(topic, partition, (None, value), ts_ms=ts_ms)
        return offset

    async def trim(self) -> None:
        """Retention takes everything that was appended at NOW."""
        for topic in (TRANSITIONS, ROLLUPS):
            await self.written.trim(topic, ACME, NOW + 1)


@asynccontextmanager
async def results(opening: AbstractAsyncContextManager[Written]) -> AsyncIterator[Results]:
    async with opening as written:
        for topic in (TRANSITIONS, ROLLUPS, JOBS):
            await written.create(topic, PARTITIONS)
        reader = await written.reader()
        try:
            yield Results(written, reader)
        finally:
            await reader.close()
