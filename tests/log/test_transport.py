"""Faust over the embedded log: real apps in a temporary folder, started, stopped and started again."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import faust
import pytest
from faust.tables import TableManager
from faust.types import TP
from yarl import URL

from cmis_stream.core.errors import ConfigError
from cmis_stream.log import transport as transport_module
from cmis_stream.log.embedded import EmbeddedLog, LogWriteFailed
from cmis_stream.log.topics import load_topics, partition_for
from cmis_stream.log.transport import PromptTableManager, Transport, broker_url

PARTITIONS = 8


class Received:
    """What an agent got, and a way to wait for it."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self._changed = asyncio.Event()

    def add(self, event: Any) -> None:
        self.events.append(event)
        self._changed.set()

    async def reach(self, count: int) -> None:
        async with asyncio.timeout(15):
            while len(self.events) < count:
                self._changed.clear()
                await self._changed.wait()

    @property
    def positions(self) -> list[tuple[int, int]]:
        return [(event.message.partition, event.message.offset) for event in self.events]


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


@asynccontextmanager
async def running(*apps: Any) -> AsyncIterator[None]:
    try:
        for app in apps:
            await app.start()
        yield
    finally:  # an app that is not stopped keeps asyncio.run from ending
        for app in reversed(apps):
            await app.stop()


def collect(app: Any, topic: Any, received: Received, name: str = "collect") -> None:
    async def agent(stream: Any) -> None:
        async for event in stream.events():
            received.add(event)

    app.agent(topic, name=name)(agent)


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


async def test_an_agent_receives_what_was_sent_on_eight_partitions_in_order_of_each(path: Path) -> None:
    app, received = make_app(path), Received()
    topic = raw_topic(app)
    collect(app, topic, received)
    async with running(app):
        for i in range(400):
            await topic.send(key=b"org-%d" % (i % 40), value=b"%d" % i, headers={"n": b"%d" % i}, timestamp=i + 0.5)
        explicit = await topic.send(key=b"org-0", value=b"400", partition=5)
        metadata = await explicit
        await received.reach(401)
    assert (metadata.topic, metadata.partition, metadata.topic_partition) == ("events", 5, TP("events", 5))
    by_partition: dict[int, list[int]] = {}
    for event in received.events:
        by_partition.setdefault(event.message.partition, []).append(int(event.value))
        if event.value != b"400":
            assert event.message.partition == partition_for(event.key, PARTITIONS)
            assert dict(event.headers) == {"n": event.value}
            assert event.message.timestamp == int(event.value) + 0.5
    assert len(by_partition) == PARTITIONS
    assert all(values == sorted(values) for values in by_partition.values())
    assert metadata.offset == len(by_partition[5]) - 1


async def test_a_send_is_done_only_when_the_record_is_durable(path: Path) -> None:
    app = make_app(path)
    topic = raw_topic(app)
    collect(app, topic, Received())
    async with running(app):
        metadata = await topic.send(key=b"k", value=b"v")
        await metadata
        log = EmbeddedLog.open(path, read_only=True)
        assert log.highwater("events", partition_for(b"k", PARTITIONS)) == 1
        log.close()


async def test_flush_covers_sends_nobody_waited_for(path: Path) -> None:
    app = make_app(path)
    topic = raw_topic(app)
    collect(app, topic, Received())
    early = topic.send_soon(key=b"k", value=b"before the producer runs")
    async with running(app):
        sent = [topic.send_soon(key=b"k", value=bytes(1000)) for _ in range(300)]
        await app.producer.flush()
        assert [future.result().offset for future in (early, *sent)] == list(range(301))


async def test_two_topics_with_one_agent_each_get_their_own(path: Path) -> None:
    app, first, second = make_app(path), Received(), Received()
    one, two = raw_topic(app, "one"), raw_topic(app, "two")
    collect(app, one, first, "first")
    collect(app, two, second, "second")
    async with running(app):
        for i in range(100):
            await one.send(key=b"%d" % i, value=b"one")
            await two.send(key=b"%d" % i, value=b"two")
        await asyncio.gather(first.reach(100), second.reach(100))
    assert {event.value for event in first.events} == {b"one"}
    assert {event.value for event in second.events} == {b"two"}


async def test_an_agent_can_send_to_a_topic_another_app_reads(path: Path) -> None:
    front, back, received = make_app(path, "front"), make_app(path, "back"), Received()
    source, results = raw_topic(front, "source"), raw_topic(front, "results")

    async def double(stream: Any) -> None:
        async for event in stream.events():
            await results.send(key=event.key, value=event.value * 2)

    front.agent(source, name="double")(double)

    collect(back, raw_topic(back, "results"), received)
    async with running(back, front):
        for i in range(50):
            await source.send(key=b"%d" % i, value=b"%d" % i)
        await received.reach(50)
    assert sorted(event.value for event in received.events) == sorted(b"%d%d" % (i, i) for i in range(50))


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


async def test_a_restart_resumes_after_what_was_processed(path: Path) -> None:
    positions: list[tuple[int, int]] = []
    for turn in range(3):
        app, received = make_app(path), Received()
        collect(app, raw_topic(app), received)
        await fill(path, {p: 20 for p in range(PARTITIONS)}, start=turn * 20)
        async with running(app):
            await received.reach(160)
        positions += received.positions
        assert committed(path, "app") == {p: 20 * (turn + 1) for p in range(PARTITIONS)}
    assert Counter(positions) == Counter((p, o) for p in range(PARTITIONS) for o in range(60))


async def test_deferred_acks_are_committed_at_stop_and_only_the_unacked_come_again(path: Path) -> None:
    await fill(path, {0: 25, 1: 25})

    def attach(app: Any, received: Received) -> None:
        async def agent(stream: Any) -> None:
            held: list[Any] = []
            async for event in stream.noack().events():
                held.append(event)
                if len(held) == 20:
                    await asyncio.sleep(0)
                    for each in held:
                        each.ack()
                    held.clear()
                received.add(event)

        app.agent(raw_topic(app), name="held")(agent)

    # Held events are never acknowledged while nothing new comes, so the stop must not wait for them.
    first_app, first = make_app(path, stream_wait_empty=False, broker_commit_interval=60), Received()
    attach(first_app, first)
    async with running(first_app):
        await first.reach(50)
    acked = set(first.positions[:40])
    offsets = committed(path, "app")
    assert {(p, o) for p in offsets for o in range(offsets[p])} == acked

    second_app, second = make_app(path, stream_wait_empty=False), Received()
    attach(second_app, second)
    async with running(second_app):
        await second.reach(10)
    assert sorted(second.positions) == sorted(set(first.positions) - acked)


async def test_a_commit_never_passes_a_message_that_is_not_acknowledged(path: Path) -> None:
    await fill(path, {0: 10})
    app, received = make_app(path, stream_wait_empty=False), Received()

    async def agent(stream: Any) -> None:
        async for event in stream.noack().events():
            received.add(event)

    app.agent(raw_topic(app), name="noack")(agent)
    async with running(app):
        await received.reach(10)
        for offset, expected in ((1, None), (3, None), (0, 2), (2, 4), (9, 4)):
            received.events[offset].ack()
            await app.consumer.commit()
            assert committed(path, "app").get(0) == expected
    assert committed(path, "app") == {0: 4}


async def test_a_seek_while_stopping_does_not_lose_acknowledged_offsets(path: Path) -> None:
    await fill(path, {0: 10})
    app, received = make_app(path, stream_wait_empty=False, broker_commit_interval=60), Received()

    async def agent(stream: Any) -> None:
        async for event in stream.noack().events():
            received.add(event)

    app.agent(raw_topic(app), name="noack")(agent)
    async with running(app):
        await received.reach(10)
        for event in received.events[:7]:
            event.ack()
        app.consumer.stop_flow()
        await app.consumer.perform_seek()  # Faust does, when a fetch ends while the flow is stopped
    assert committed(path, "app") == {0: 7}


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


async def test_generations_go_up_over_restarts(path: Path) -> None:
    generations = []
    for _ in range(3):
        app = make_app(path)
        collect(app, raw_topic(app), Received())
        async with running(app):
            generations.append(app.consumer_generation_id)
    assert generations == [1, 2, 3]


# -- tables -----------------------------------------------------------------------------------------------------------


def count_into_table(app: Any, received: Received, topic: str = "events") -> Any:
    table = app.Table("counts", default=int, partitions=PARTITIONS)

    async def agent(stream: Any) -> None:
        async for event in stream.events():
            table[event.message.partition] += 1
            received.add(event)

    app.agent(raw_topic(app, topic), name="count")(agent)
    return table


@pytest.mark.parametrize("table_manager", [PromptTableManager, TableManager])
async def test_a_table_recovers_from_its_changelog(path: Path, table_manager: type[TableManager]) -> None:
    for turn in range(2):
        await fill(path, {p: 50 for p in range(PARTITIONS)})
        app, received = make_app(path, TableManager=table_manager), Received()
        table = count_into_table(app, received)
        async with running(app):
            await received.reach(400)
            assert dict(table.items()) == {p: 50 * (turn + 1) for p in range(PARTITIONS)}
    log = EmbeddedLog.open(path, read_only=True)
    assert log.topics["app-counts-changelog"].compact
    assert len(log.read("app-counts-changelog", 0, 0, 100, 1 << 20)) == 1
    log.close()


async def test_an_app_is_started_only_when_its_tables_are_recovered(path: Path) -> None:
    await fill(path, {p: 10 for p in range(PARTITIONS)})
    app, received = make_app(path), Received()
    count_into_table(app, received)
    async with running(app):
        await received.reach(80)
    app = make_app(path)
    table = count_into_table(app, Received())
    async with running(app):
        assert dict(table.items()) == {p: 10 for p in range(PARTITIONS)}


async def test_records_that_wait_or_arrive_during_recovery_are_neither_lost_nor_doubled(path: Path) -> None:
    total = 0
    for _turn in range(10):
        await fill(path, {0: 7, 5: 3}, start=total)
        app, received = make_app(path), Received()
        table = count_into_table(app, received)
        log = EmbeddedLog.open(path)
        arriving = asyncio.create_task(append_while(log, partial(starting, app)))
        async with running(app):
            count = await arriving
            await received.reach(10 + count)
            await app.consumer.commit()
            total += 10 + count
            assert sum(table.values()) == total
        await log.aclose()
        assert sum(committed(path, "app").values()) == total


def starting(app: Any) -> bool:
    return bool(app.rebalancing or not app.started)


async def append_while(log: EmbeddedLog, condition: Callable[[], bool]) -> int:
    count = 0
    while condition() and count < 500:
        await log.append("events", count % PARTITIONS, None, b"during")
        count += 1
    return count


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


async def test_an_app_that_never_received_anything_stops_too(path: Path) -> None:
    app = make_app(path)
    collect(app, raw_topic(app), Received())
    async with running(app):
        pass
    assert EmbeddedLog._open_logs == {}


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


async def test_exactly_once_and_threaded_producers_are_refused(path: Path) -> None:
    app = make_app(path, processing_guarantee="exactly_once")
    collect(app, raw_topic(app), Received())
    with pytest.raises(ConfigError, match="expected at_least_once"):
        async with running(app):
            pass
    with pytest.raises(ConfigError, match="producer_threaded: got true"):
        _ = make_app(path, producer_threaded=True).producer
