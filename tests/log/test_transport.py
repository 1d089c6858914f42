"""Faust over the embedded log, beyond test_contract.py: real apps in a temporary folder, started and stopped."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any

import faust
import pytest
from yarl import URL

from cmis_stream.core.errors import ConfigError
from cmis_stream.log import transport as transport_module
from cmis_stream.log.embedded import EmbeddedLog, LogWriteFailed
from cmis_stream.log.topics import load_topics
from cmis_stream.log.transport import PromptTableManager, Transport, broker_url
from tests.log.backends import PARTITIONS, Received, collect, running


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


def make_app(path: Path, name: str = "app", **options: Any) -> Any:
    options = {
        "broker": broker_url(path),
        "store": "memory://",
        "topic_partitions": PARTITIONS,
        "web_enabled": False,
        "datadir": str(path.parent / "data"),
        "TableManager": PromptTableManager,
        "broker_commit_interval": 0.05,
        **options,
    }
    return faust.App(name, **options)


def raw_topic(app: Any, name: str = "events", **options: Any) -> Any:
    return app.topic(
        name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw", **options
    )  # fmt: skip


async def fill(path: Path, counts: dict[int, int], topic: str = "events", start: int = 0) -> None:
    """Append without Faust: counts[partition] records each, values counting up from ``start``."""
    log = EmbeddedLog.open(path)
    log.create_topic(topic, PARTITIONS)
    await asyncio.gather(
        *(log.append(topic, p, b"key", b"%d" % (start + i)) for p, count in counts.items() for i in range(count))
    )
    await log.aclose()


def committed(path: Path, group: str, topic: str = "events") -> dict[int, int]:
    log = EmbeddedLog.open(path, read_only=True)
    offsets = log.groups().get(group, {})
    log.close()
    return {partition: offset for (name, partition), offset in offsets.items() if name == topic}


# -- sending and receiving --------------------------------------------------------------------------------------------


async def test_more_records_than_the_buffers_hold_all_arrive_and_no_partition_starves(path: Path) -> None:
    await fill(path, {0: 3000, 3: 300, 7: 3})
    app, received = make_app(path, stream_buffer_maxsize=16, broker_max_poll_records=50), Received()

    async def slow(stream: Any) -> None:
        async for event in stream.events():
            await asyncio.sleep(0)
            received.add(event)

    app.agent(raw_topic(app), name="slow")(slow)
    async with running(app):
        await received.reach(3303)
    assert len(set(received.positions)) == 3303
    order = [partition for partition, _ in received.positions]
    assert order.index(7) < 200
    assert max(at for at, partition in enumerate(order) if partition == 3) < 2000


async def test_a_topic_added_to_a_running_app_is_subscribed_soon(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module.EmbeddedConductor, "_resubscribe_sleep_lock_seconds", 0.01)
    app, received, later = make_app(path), Received(), Received()
    collect(app, raw_topic(app), received)
    await fill(path, {1: 10})
    async with running(app):
        await received.reach(10)
        await fill(path, {2: 5}, topic="added")
        collect(app, raw_topic(app, "added"), later, "later")
        await app.agents["later"].start()
        await later.reach(5)
        await fill(path, {1: 10})
        await received.reach(20)
    assert set(received.positions) == {(1, offset) for offset in range(20)}
    assert later.positions == [(2, offset) for offset in range(5)]


# -- commits and restarts ---------------------------------------------------------------------------------------------


async def test_gaps_that_compaction_leaves_do_not_hold_up_the_commit(path: Path) -> None:
    log = EmbeddedLog.open(path)
    log.create_topic("events", PARTITIONS, compact=True)
    for i in range(30):
        await log.append("events", 0, b"k%d" % (i % 3 if i < 20 else i), b"%d" % i)
    await log.aclose()
    app, received = make_app(path), Received()
    collect(app, raw_topic(app), received)
    async with running(app):
        await received.reach(13)
    assert [offset for _, offset in received.positions] == [17, 18, 19, *range(20, 30)]
    assert committed(path, "app") == {0: 30}


async def test_records_that_retention_took_before_they_were_read_are_skipped(path: Path) -> None:
    app, received = make_app(path), Received()
    collect(app, raw_topic(app), received)
    await fill(path, {0: 5})
    async with running(app):
        await received.reach(5)
    log = EmbeddedLog.open(path)
    log.create_topic("events", PARTITIONS, retention_ms=1000)
    await asyncio.gather(*(log.append("events", 0, None, b"old", ts_ms=1) for _ in range(20)))
    log.maintain(log.read("events", 0, 0, 1, 1)[0].ts_ms + 5_000)
    await log.append("events", 0, None, b"young")
    await log.aclose()
    app, received = make_app(path), Received()
    collect(app, raw_topic(app), received)
    async with running(app):
        await received.reach(1)
    assert received.positions == [(0, 25)]
    assert committed(path, "app") == {0: 26}


async def test_latest_starts_at_the_end_of_what_is_there(path: Path) -> None:
    await fill(path, {0: 10})
    app, received = make_app(path, consumer_auto_offset_reset="latest"), Received()
    collect(app, raw_topic(app), received)
    async with running(app):
        await fill(path, {0: 2}, start=10)
        await received.reach(2)
    assert [event.value for event in received.events] == [b"10", b"11"]


# -- tables -----------------------------------------------------------------------------------------------------------


def count_into_table(app: Any, received: Received, topic: str = "events") -> Any:
    table = app.Table("counts", default=int, partitions=PARTITIONS)

    async def agent(stream: Any) -> None:
        async for event in stream.events():
            table[event.message.partition] += 1
            received.add(event)

    app.agent(raw_topic(app, topic), name="count")(agent)
    return table


async def test_an_emptied_changelog_does_not_block_recovery(path: Path) -> None:
    await fill(path, {0: 10})
    app, received = make_app(path), Received()
    count_into_table(app, received)
    async with running(app):
        await received.reach(10)
    db = sqlite3.connect(path)
    db.execute("delete from records where value is not null and key is not null and headers is null and size < 20")
    db.commit()
    db.close()
    await fill(path, {0: 1})
    app, received = make_app(path), Received()
    table = count_into_table(app, received)
    async with running(app):
        await received.reach(1)
        assert dict(table.items()) == {0: 1}


# -- stopping and failing ---------------------------------------------------------------------------------------------


async def test_a_stop_leaves_no_task_and_no_thread_and_frees_the_log(path: Path) -> None:
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    for _ in range(2):
        app, received = make_app(path), Received()
        count_into_table(app, received)
        await fill(path, {0: 10, 1: 10})
        async with running(app):
            await received.reach(20)
        assert asyncio.all_tasks() == tasks
        assert set(threading.enumerate()) == threads
        assert EmbeddedLog._open_logs == {}
    log = EmbeddedLog.open(path)
    log.close()


async def test_a_write_that_fails_reaches_the_sender_and_the_app_goes_on(path: Path) -> None:
    app, received = make_app(path), Received()
    topic = raw_topic(app)
    collect(app, topic, received)
    async with running(app):
        limit_pages(app, 2)
        sent = await topic.send(key=b"k", value=bytes(1_000_000))
        with pytest.raises(LogWriteFailed, match="full"):
            await sent
        limit_pages(app, 10_000)
        await (await topic.send(key=b"k", value=b"fits"))
        await received.reach(1)
        assert not app.should_stop
    assert received.events[0].value == b"fits"


async def test_a_failed_write_nobody_waits_for_crashes_the_app_and_commits_nothing(path: Path) -> None:
    await fill(path, {0: 1})
    app, received = make_app(path, broker_commit_interval=60), Received()
    table = app.Table("blobs", default=bytes, partitions=PARTITIONS, key_type=bytes, value_type=bytes)

    async def agent(stream: Any) -> None:
        async for event in stream.events():
            limit_pages(app, 2)
            table[b"k"] = bytes(1_000_000)
            received.add(event)

    app.agent(raw_topic(app), name="blobs")(agent)
    async with running(app):
        await received.reach(1)
        async with asyncio.timeout(10):
            await app.producer._crashed.wait()
        assert app.should_stop
        limit_pages(app, 10_000)


def limit_pages(app: Any, pages: int) -> None:
    db = app.producer.embedded._writing()._db
    db.execute(f"pragma max_page_count = {db.execute('pragma page_count').fetchone()[0] + pages}")


# -- configuration ----------------------------------------------------------------------------------------------------


async def test_declared_topics_are_created_as_declared(path: Path) -> None:
    app = make_app(path, topic_partitions=3)
    collect(app, raw_topic(app, "cmis.metrics.v1", partitions=5), Received())
    changes = raw_topic(app, "cmis.changes.v1")
    undeclared = raw_topic(app, "undeclared", partitions=5)
    async with running(app):
        await changes.send(key=b"org", value=b"v")
        await undeclared.send(key=b"org", value=b"v")
        await changes.declare()
    log = EmbeddedLog.open(path, read_only=True)
    spec = load_topics()["cmis.metrics.v1"]
    metrics = log.topics["cmis.metrics.v1"]
    assert metrics.partitions == spec.partitions == 8
    assert (metrics.retention_ms, metrics.retention_bytes) == (spec.retention_ms, spec.retention_bytes)
    assert log.topics["cmis.changes.v1"].compact
    assert log.topics["undeclared"].partitions == 3
    log.close()


def test_the_broker_url_says_where_the_log_is_and_how_it_syncs(tmp_path: Path) -> None:
    path = tmp_path / "with space & ümlaut" / "Log.db"
    transport = Transport([URL(broker_url(path, sync="full"))], app=None)
    assert (transport.path, transport.sync) == (path, "full")
    relative = Transport([URL("embedded://./Data/log.db")], app=None)
    assert (relative.path, relative.sync) == (Path("Data/log.db"), "normal")


@pytest.mark.parametrize("url", ["embedded://host/log.db", "embedded:///", "embedded://"])
def test_a_broker_url_without_a_path_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="expected embedded:///absolute"):
        Transport([URL(url)], app=None)
