"""History under kill -9: at every moment it says what the events up to the position that it names add up to."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path

import pytest

from cmis_stream.core.time import rfc3339
from cmis_stream.history import layout
from cmis_stream.history.events import read_events
from cmis_stream.history.layout import EVENTS, ROLLUPS, Place
from cmis_stream.history.recorder import TOPICS, History
from cmis_stream.log.embedded_reader import EmbeddedReader
from tests.core.reference import Event
from tests.core.support import DAY, HOUR, MINUTE, NOW, SECOND, START, event
from tests.history.support import Told, ask
from tests.log.written import WrittenEmbedded, written_embedded

RECORDS = 600


def sent(seed: int) -> list[list[Event]]:
    """A day of events of two orgs; some come late, from seconds to half a day."""
    draw = random.Random(seed)
    records, now = [], 0
    for _ in range(RECORDS):
        now += draw.randint(1, 280) * SECOND
        ages = [
            draw.choice([0, 0, 0, 3 * SECOND, 40 * SECOND, 20 * MINUTE, 7 * HOUR, 13 * HOUR]) for _ in range(draw.randint(1, 6))
        ]
        records.append([
            event(max(START, START + now - age), org=draw.choice(["acme", "beta"]), campaign=f"c{draw.randint(1, 5)}",
                  clicks=draw.randint(1, 9))
            for age in ages
        ])  # fmt: skip
    return records


class World:
    def __init__(self, written: WrittenEmbedded, root: Path) -> None:
        self.written, self.root, self.told = written, root, Told()
        self.clicks: list[dict[str, int]] = []  # by position: all clicks of each org so far

    async def append(self, record: list[Event]) -> None:
        before = self.clicks[-1] if self.clicks else {"acme": 0, "beta": 0}
        self.clicks.append({org: n + sum(e.values[1] for e in record if e.org == org) for org, n in before.items()})
        told = len(self.told.told)
        self.told.take(record)
        await self.written.append(TOPICS[EVENTS], 0, (None, self.told.metrics[-1].value), ts_ms=NOW)
        for row in self.told.told[told:]:
            await self.written.append(TOPICS[ROLLUPS], 0, (None, row.value), ts_ms=NOW)

    async def begin(self) -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.history.process", str(self.written.log.path), str(self.root), stdout=PIPE, stderr=DEVNULL
        )
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 60) == b"begun\n"
        return process

    async def check(self) -> int:
        """What is there is the truth of one position, whatever is being written; returns the position."""
        position = -1
        for org in ("acme", "beta"):
            span = {"from": rfc3339(START), "to": rfc3339(START + 5 * DAY)}
            for query in ({}, {"dimensions": ["time"], "step": "1h"}, {"dimensions": ["time", "campaign"], "step": "1d"}):
                found = await asyncio.to_thread(
                    ask, self.root, org, measures=["clicks"], epoch=self.written_epoch, **span, **query
                )
                position = found["position"]["offset"]
                expected = self.clicks[position][org] if position >= 0 else 0
                assert sum(row[-1] for row in found["rows"]) == expected, (org, query, position)
        return position

    written_epoch = ""


@pytest.mark.parametrize("kills", [3, pytest.param(25, marks=pytest.mark.slow)])
async def test_sums_are_those_of_an_undisturbed_engine_however_often_it_is_killed(tmp_path: Path, kills: int) -> None:
    draw = random.Random(kills)
    async with written_embedded(tmp_path) as written:
        for topic in TOPICS.values():
            written.log.create_topic(topic, 1, False, 400 * DAY)
        await written.log.flush()
        reader = await written.reader()
        world = World(written, tmp_path / "history")
        world.written_epoch = reader.epoch
        records = sent(kills)
        share = -(-len(records) // kills)
        for first in range(0, len(records), share):
            moved = layout.read_reached(world.root, ROLLUPS, Place(reader.epoch, 0)).end
            process = await world.begin()
            zombie = await world.begin() if draw.random() < 0.3 else None
            for record in records[first : first + share]:
                await world.append(record)
            if zombie is not None:
                await asyncio.sleep(draw.random() / 2)
                os.kill(zombie.pid, signal.SIGSTOP)
            await world.check()
            async with asyncio.timeout(120):
                while layout.read_reached(world.root, ROLLUPS, Place(reader.epoch, 0)).end <= moved:
                    await asyncio.sleep(0.02)
            await asyncio.sleep(draw.random() / 2)
            process.kill()
            await process.wait()
            await world.check()
            if zombie is not None:
                os.kill(zombie.pid, signal.SIGCONT)
                await asyncio.sleep(draw.random())
                await world.check()
                zombie.kill()
                await zombie.wait()
        await finish(reader, world.root)
        assert await world.check() == RECORDS - 1
        for org in ("acme", "beta"):
            rows = [row for table in read_events(world.root, org, 0, NOW, NOW + 1) for row in table.to_pylist()]
            assert sum(row["clicks"] for row in rows) == world.clicks[-1][org]
            assert len({(row["offset"], row["row"]) for row in rows}) == len(rows)
            assert len(list((world.root / ROLLUPS / f"org={org}").rglob("*.rollups.parquet"))) <= 4
        await reader.close()


async def finish(reader: EmbeddedReader, root: Path) -> None:
    history = History(reader, root, 1, lambda: NOW)
    await history.begin([0])
    for dataset in TOPICS:
        while await history.follow_once(dataset, flush=True):
            pass
    await history.merge_due(all_quiet=True)
