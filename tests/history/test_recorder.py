"""Following a real log: what is assigned, what is not, what waits, how long it is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cmis_stream.core.time import rfc3339
from cmis_stream.history import layout, recorder
from cmis_stream.history.layout import EVENTS, ROLLUPS, Place
from cmis_stream.history.recorder import TOPICS, History
from cmis_stream.log.reader import LogReader
from tests.core.reference import Event
from tests.core.support import DAY, HOUR, MINUTE, NOW, SECOND, START, event
from tests.history.support import Told, ask
from tests.log.written import WrittenEmbedded, written_embedded


@pytest.fixture
async def written(tmp_path: Path) -> AsyncIterator[WrittenEmbedded]:
    async with written_embedded(tmp_path) as made:
        for topic in TOPICS.values():
            made.log.create_topic(topic, 2, False, 400 * DAY)
        await made.log.flush()
        yield made


async def append(written: WrittenEmbedded, told: Told, events: list[Event], partition: int = 0) -> None:
    seen = len(told.told)
    told.take(events)
    await written.append(TOPICS[EVENTS], partition, (None, told.metrics[-1].value), ts_ms=NOW)
    for row in told.told[seen:]:
        await written.append(TOPICS[ROLLUPS], partition, (None, row.value), ts_ms=NOW)


@asynccontextmanager
async def running(reader: LogReader, root: Path, **options: Any) -> AsyncIterator[History]:
    history = History(reader, root, 1, lambda: NOW, segment_s=0.05, quiet_s=0.1, **options)
    await history.begin({0})
    task = asyncio.create_task(history.run())
    try:
        yield history
        assert not task.done(), task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def test_what_is_in_the_log_is_soon_in_the_history(written: WrittenEmbedded, tmp_path: Path) -> None:
    reader, root, told = await written.reader(), tmp_path / "h", Told()
    async with running(reader, root) as history:
        for number in range(5):
            await append(written, told, [event(number * MINUTE, clicks=2)])
            await until(lambda n=number: history.reached.get((TOPICS[ROLLUPS], 0), 0) == n + 1)  # type: ignore[misc]
            found = await asyncio.to_thread(ask, root, measures=["clicks"], epoch=reader.epoch)
            assert (found["rows"], found["position"]["offset"]) == ([[2 * (number + 1)]], number)
    await reader.close()


async def test_another_run_goes_on_where_the_last_one_was(written: WrittenEmbedded, tmp_path: Path) -> None:
    reader, root, told = await written.reader(), tmp_path / "h", Told()
    await append(written, told, [event(0, clicks=1)])
    for run in range(3):
        async with running(reader, root) as history:
            await until(lambda n=run: history.reached.get((TOPICS[EVENTS], 0)) == n + 1)  # type: ignore[misc]
            await append(written, told, [event((run + 1) * MINUTE, clicks=1)])
            await until(lambda n=run: history.reached.get((TOPICS[EVENTS], 0)) == n + 2)  # type: ignore[misc]
            await until(lambda n=run: history.reached.get((TOPICS[ROLLUPS], 0)) == n + 2)  # type: ignore[misc]
    names = [name for name in layout.listed(layout.day_folder(root, EVENTS, "acme", layout.day_of(NOW))) if name[0] != "."]
    ranges = [(part.start, part.end) for name in names if (part := layout.parse_part(root, name))]
    assert len(ranges) == len(set(ranges)) and max(ranges)[1] == 4
    assert ask_clicks(await asyncio.to_thread(ask, root, measures=["clicks"], epoch=reader.epoch)) == 4
    await reader.close()


def ask_clicks(found: dict[str, Any]) -> int:
    return sum(row[-1] for row in found["rows"])


async def test_partitions_that_are_not_assigned_or_revoked_are_left_alone(written: WrittenEmbedded, tmp_path: Path) -> None:
    reader, root, told, other = await written.reader(), tmp_path / "h", Told(), Told()
    await append(written, told, [event(0, clicks=1)])
    await append(written, other, [event(0, org="beta", clicks=1)], partition=1)
    history = History(reader, root, 2, lambda: NOW)
    await history.begin({0})
    for dataset in TOPICS:
        await history.follow_once(dataset, flush=True)
    assert set(history.reached) == {(TOPICS[EVENTS], 0), (TOPICS[ROLLUPS], 0)}
    assert layout.orgs_of(root, EVENTS) == ["acme"]
    history.end({0})
    await append(written, told, [event(MINUTE, clicks=1)])
    for dataset in TOPICS:
        await history.follow_once(dataset, flush=True)
    assert layout.read_reached(root, ROLLUPS, Place(reader.epoch, 0)).end == 1
    await history.begin({0, 1})
    for dataset in TOPICS:
        await history.follow_once(dataset, flush=True)
    assert history.reached == {(topic, partition): 2 - partition for topic in TOPICS.values() for partition in (0, 1)}
    await reader.close()


async def test_records_that_are_none_are_passed_over(written: WrittenEmbedded, tmp_path: Path) -> None:
    reader, root, told = await written.reader(), tmp_path / "h", Told()
    for topic in TOPICS.values():
        await written.append(topic, 0, (None, b"nonsense"), (None, b""), (None, None), ts_ms=NOW)
    await append(written, told, [event(0, clicks=3)])
    history = History(reader, root, 1, lambda: NOW)
    await history.begin({0})
    for dataset in TOPICS:
        await history.follow_once(dataset, flush=True)
    assert set(history.reached.values()) == {4}
    assert (await asyncio.to_thread(ask, root, measures=["clicks"], epoch=reader.epoch))["rows"] == [[3]]
    await reader.close()


async def test_what_retention_took_before_it_was_read_is_told(written: WrittenEmbedded, tmp_path: Path) -> None:
    reader, root, told = await written.reader(), tmp_path / "h", Told()
    history = History(reader, root, 1, lambda: NOW)
    await history.begin({0})
    await append(written, told, [event(0, clicks=1)])
    await history.follow_once(EVENTS, flush=True)
    written.log.create_topic(TOPICS[EVENTS], 2, False, 1000)
    for number in range(1, 4):
        await append(written, told, [event(number * MINUTE, clicks=1)])
    await asyncio.to_thread(written.log.maintain, NOW + 2000)
    body = told.metrics[-1].value
    await written.append(TOPICS[EVENTS], 0, (None, body), ts_ms=NOW + HOUR)
    start = (await reader.starts(TOPICS[EVENTS]))[0]
    assert start > 1, "nothing was taken: the test shows nothing"
    await history.follow_once(EVENTS, flush=True)
    assert layout.read_reached(root, EVENTS, Place(reader.epoch, 0)).lost == ((1, start),)
    await reader.close()


async def test_a_full_disk_makes_it_wait_and_it_goes_on_when_there_is_room(
    written: WrittenEmbedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, root, told = await written.reader(), tmp_path / "h", Told()
    monkeypatch.setattr(recorder, "RETRY_S", 0.05)
    root.mkdir()
    (root / ROLLUPS).write_bytes(b"")  # a file where a folder has to be: every write fails with an OSError
    async with running(reader, root) as history:
        await append(written, told, [event(0, clicks=1)])
        await until(lambda: history.reached.get((TOPICS[EVENTS], 0)) == 1)
        assert history.reached.get((TOPICS[ROLLUPS], 0), 0) == 0
        (root / ROLLUPS).unlink()
        await until(lambda: history.reached.get((TOPICS[ROLLUPS], 0)) == 1)
    await reader.close()


async def test_days_older_than_the_setting_are_deleted(
    written: WrittenEmbedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, root, told = await written.reader(), tmp_path / "h", Told()
    monkeypatch.setattr(recorder, "MERGE_S", 0.05)
    await append(written, told, [event(0, clicks=1)])
    await append(written, told, [event(20 * DAY, clicks=1)])
    await append(written, told, [event(20 * DAY + 20 * SECOND, clicks=1)])
    history = History(reader, root, 1, lambda: START + 21 * DAY, keep_days=10)
    await history.begin({0})
    await history.follow_once(ROLLUPS, flush=True)
    assert layout.days_of(root, ROLLUPS, "acme") == ["2026-01-01", "2026-01-21"]
    task = asyncio.create_task(history.run())
    await until(lambda: layout.days_of(root, ROLLUPS, "acme") == ["2026-01-21"])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    found = await asyncio.to_thread(ask, root, measures=["clicks"], epoch=reader.epoch, **{"from": rfc3339(START + 15 * DAY)})
    assert found["rows"] == [[2]]
    await reader.close()
