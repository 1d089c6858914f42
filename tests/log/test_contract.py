"""What Faust apps may rely on, whichever log they run on: one suite over the embedded log and a real Apache Kafka."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faust.tables import TableManager
from faust.types import TP

from cmis_stream.core.errors import CmisError, ConfigError
from cmis_stream.log.topics import partition_for
from tests.log.backends import PARTITIONS, Embedded, OnKafka, Received, Rig, checkpoints, collect, running

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.slow)])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    if request.param == "embedded":
        return Rig(Embedded(tmp_path), tmp_path)
    return Rig(OnKafka(request.getfixturevalue("kafka").bootstrap), tmp_path)


# --- sending and receiving ---------------------------------------------------------------------------------------------


async def test_an_agent_receives_what_was_sent_on_eight_partitions_in_order_of_each(rig: Rig) -> None:
    await rig.create()
    app, received = rig.app(), Received()
    topic = rig.topic(app)
    collect(app, topic, received)
    async with running(app):
        for i in range(400):
            await topic.send(key=b"org-%d" % (i % 40), value=b"%d" % i, headers={"n": b"%d" % i}, timestamp=i + 0.5)
        metadata = await (await topic.send(key=b"org-0", value=b"400", partition=5))
        await received.reach(401)
    assert metadata.topic == rig.named("events") and metadata.topic_partition == TP(rig.named("events"), 5)
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


async def test_a_send_is_done_only_when_the_record_is_durable(rig: Rig) -> None:
    await rig.create()
    app = rig.app()
    topic = rig.topic(app)
    collect(app, topic, Received())
    async with running(app):
        metadata = await (await topic.send(key=b"k", value=b"v"))
        assert (metadata.partition, metadata.offset) == (partition_for(b"k", PARTITIONS), 0)
        assert await rig.values("events", metadata.partition) == [b"v"]


async def test_flush_covers_sends_nobody_waited_for(rig: Rig) -> None:
    await rig.create()
    app = rig.app()
    topic = rig.topic(app)
    collect(app, topic, Received())
    early = topic.send_soon(key=b"k", value=b"before the producer runs")
    async with running(app):
        sent = [topic.send_soon(key=b"k", value=bytes(1000)) for _ in range(300)]
        await app.producer.flush()
        assert [future.result().offset for future in (early, *sent)] == list(range(301))


async def test_senders_that_crowd_one_partition_are_served_in_their_order(rig: Rig) -> None:
    """Records larger than what a batch may still take, so that senders have to wait."""
    await rig.create()
    app = rig.app()
    collect(app, rig.topic(app), Received())
    values = [b"%03d" % i + bytes(300_000) for i in range(40)]
    async with running(app):

        async def send(value: bytes) -> None:
            await (await app.producer.send(rig.named("events"), None, value, 3, None, None))

        sending = []
        for value in values:
            sending.append(asyncio.create_task(send(value)))
            await asyncio.sleep(0)
        await asyncio.gather(*sending)
    assert [value[:3] for value in await rig.values("events", 3) if value] == [value[:3] for value in values]


async def test_two_topics_with_one_agent_each_get_their_own(rig: Rig) -> None:
    await rig.create("one")
    await rig.create("two")
    app, first, second = rig.app(), Received(), Received()
    one, two = rig.topic(app, "one"), rig.topic(app, "two")
    collect(app, one, first, "first")
    collect(app, two, second, "second")
    async with running(app):
        for i in range(100):
            await one.send(key=b"%d" % i, value=b"one")
            await two.send(key=b"%d" % i, value=b"two")
        await asyncio.gather(first.reach(100), second.reach(100))
    assert {event.value for event in first.events} == {b"one"}
    assert {event.value for event in second.events} == {b"two"}


async def test_an_agent_can_send_to_a_topic_another_app_reads(rig: Rig) -> None:
    await rig.create("source")
    await rig.create("results")
    front, back, received = rig.app("front"), rig.app("back"), Received()
    source, results = rig.topic(front, "source"), rig.topic(front, "results")

    async def double(stream: Any) -> None:
        async for event in stream.events():
            await results.send(key=event.key, value=event.value * 2)

    front.agent(source, name="double")(double)
    collect(back, rig.topic(back, "results"), received)
    async with running(back, front):
        for i in range(50):
            await source.send(key=b"%d" % i, value=b"%d" % i)
        await received.reach(50)
    assert sorted(event.value for event in received.events) == sorted(b"%d%d" % (i, i) for i in range(50))


async def test_more_records_than_the_buffers_hold_all_arrive_once(rig: Rig) -> None:
    await rig.create()
    await rig.fill({0: 3000, 3: 300, 7: 3})
    app, received = rig.app(stream_buffer_maxsize=16, broker_max_poll_records=50), Received()

    async def slow(stream: Any) -> None:
        async for event in stream.events():
            await asyncio.sleep(0)
            received.add(event)

    app.agent(rig.topic(app), name="slow")(slow)
    async with running(app):
        await received.reach(3303)
    assert len(received.positions) == len(set(received.positions)) == 3303


# --- commits and restarts ----------------------------------------------------------------------------------------------


async def test_a_restart_resumes_after_what_was_processed(rig: Rig) -> None:
    await rig.create()
    positions: list[tuple[int, int]] = []
    for turn in range(3):
        app, received = rig.app(), Received()
        collect(app, rig.topic(app), received)
        await rig.fill({p: 20 for p in range(PARTITIONS)}, start=turn * 20)
        async with running(app):
            await received.reach(160)
        positions += received.positions
        assert await rig.committed() == {p: 20 * (turn + 1) for p in range(PARTITIONS)}
    assert Counter(positions) == Counter((p, o) for p in range(PARTITIONS) for o in range(60))


async def test_deferred_acks_are_committed_at_stop_and_only_the_unacked_come_again(rig: Rig) -> None:
    await rig.create()
    await rig.fill({0: 25, 1: 25})

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

        app.agent(rig.topic(app), name="held")(agent)

    # Held events are never acknowledged while nothing new comes, so the stop must not wait for them.
    first_app, first = rig.app(stream_wait_empty=False, broker_commit_interval=60), Received()
    attach(first_app, first)
    async with running(first_app):
        await first.reach(50)
    acked = set(first.positions[:40])
    offsets = await rig.committed()
    committed = {(p, o) for p in offsets for o in range(offsets[p])}
    assert committed == acked

    second_app, second = rig.app(stream_wait_empty=False), Received()
    attach(second_app, second)
    async with running(second_app):
        await second.reach(10)
    assert sorted(second.positions) == sorted(set(first.positions) - acked)


async def test_a_commit_never_passes_a_message_that_is_not_acknowledged(rig: Rig) -> None:
    await rig.create()
    await rig.fill({0: 10})
    app, received = rig.app(stream_wait_empty=False), Received()
    keep_unacked(rig, app, received)
    async with running(app):
        await received.reach(10)
        for offset, expected in ((1, None), (3, None), (0, 2), (2, 4), (9, 4)):
            received.events[offset].ack()
            await app.consumer.commit()
            assert (await rig.committed()).get(0) == expected
    assert await rig.committed() == {0: 4}


async def test_a_seek_while_stopping_does_not_lose_acknowledged_offsets(rig: Rig) -> None:
    await rig.create()
    await rig.fill({0: 10})
    app, received = rig.app(stream_wait_empty=False, broker_commit_interval=60), Received()
    keep_unacked(rig, app, received)
    async with running(app):
        await received.reach(10)
        for event in received.events[:7]:
            event.ack()
        app.consumer.stop_flow()
        await app.consumer.perform_seek()  # Faust does, when a fetch ends while the flow is stopped
    assert await rig.committed() == {0: 7}


async def test_a_seek_to_the_committed_offsets_goes_back_to_the_first_record_where_none_is_committed(rig: Rig) -> None:
    await rig.create()
    await rig.fill({0: 5, 1: 5})
    app, received = rig.app(stream_wait_empty=False), Received()
    keep_unacked(rig, app, received)
    async with running(app):
        await received.reach(10)
        for partition, offset in ((0, 0), (0, 1)):
            next(e for e in received.events if (e.message.partition, e.message.offset) == (partition, offset)).ack()
        await app.consumer.commit()
        await app.consumer.perform_seek()
        await received.reach(18)
    assert sorted(received.positions[10:]) == [(0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4)]


def keep_unacked(rig: Rig, app: Any, received: Received) -> None:
    async def agent(stream: Any) -> None:
        async for event in stream.noack().events():
            received.add(event)

    app.agent(rig.topic(app), name="noack")(agent)


async def test_highwaters_and_positions_are_those_of_the_next_record(rig: Rig) -> None:
    await rig.create()
    await rig.fill({0: 7, 2: 1})
    app, received = rig.app(), Received()
    collect(app, rig.topic(app), received)
    first, second, empty = (TP(rig.named("events"), p) for p in (0, 2, 5))
    async with running(app):
        await received.reach(8)
        assert await app.consumer.highwaters(first, second, empty) == {first: 7, second: 1, empty: 0}
        assert await app.consumer.earliest_offsets(first, empty) == {first: 0, empty: 0}
        assert await app.consumer.position(first) == 7
        assert app.consumer.topic_partitions(rig.named("events")) == PARTITIONS
        assert app.consumer.key_partition(rig.named("events"), b"acme") == partition_for(b"acme", PARTITIONS)
        assert app.producer.key_partition(rig.named("events"), b"acme").partition == partition_for(b"acme", PARTITIONS)


async def test_generations_go_up_over_restarts(rig: Rig) -> None:
    await rig.create()
    generations = []
    for _ in range(3):
        app = rig.app()
        collect(app, rig.topic(app), Received())
        async with running(app):
            generations.append(app.consumer_generation_id)
    assert generations == sorted(set(generations))


# --- kill -9 -----------------------------------------------------------------------------------------------------------

CHILD = """
import asyncio, sys
from pathlib import Path
from tests.log.backends import Embedded, OnKafka, Rig

async def main(kind, where, mark, folder):
    rig = Rig(Embedded(Path(where)) if kind == "embedded" else OnKafka(where), Path(folder))
    rig._mark = mark
    app = rig.app(stream_wait_empty=False)

    async def agent(stream):
        async for event in stream.noack().events():
            await (await app.producer.send(rig.named("seen"), event.key, event.value, event.message.partition, None, None))
            print(event.message.partition, event.message.offset, flush=True)
            if event.message.offset % 3 == 0:
                event.ack()
            await asyncio.sleep(0.002)

    app.agent(rig.topic(app), name="agent")(agent)
    await app.start()
    await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_after_kill_9_everything_that_was_not_committed_comes_again_and_nothing_is_lost(rig: Rig, tmp_path: Path) -> None:
    await rig.create()
    await rig.create("seen")
    await rig.fill({0: 40, 1: 40})
    where = str(tmp_path) if rig.backend.name == "embedded" else rig.backend.options["broker"].removeprefix("kafka://")
    committed: dict[int, int] = {}
    for kill_after in (15, 40):
        child = await asyncio.to_thread(start_child, rig.backend.name, where, rig._mark, str(tmp_path))
        seen = [tuple(map(int, (await asyncio.to_thread(child.stdout.readline)).split())) for _ in range(kill_after)]
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        firsts = {p: min(o for q, o in seen if q == p) for p in {p for p, _ in seen}}
        assert firsts == {p: committed.get(p, 0) for p in firsts}, "each partition begins at what was committed"
        committed = await rig.committed()
    app, received = rig.app(stream_wait_empty=False), Received()
    keep_unacked(rig, app, received)
    rest = 80 - sum(committed.values())
    async with running(app):
        await received.reach(rest)
    assert sorted(received.positions) == [(p, o) for p in (0, 1) for o in range(committed.get(p, 0), 40)]
    for partition in (0, 1):
        sent = [int(value or b"") for value in await rig.values("seen", partition)]
        assert set(sent) >= set(range(committed.get(partition, 0)))


def start_child(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )


# --- tables ------------------------------------------------------------------------------------------------------------


def count_into_table(rig: Rig, app: Any, received: Received) -> Any:
    table = app.Table("counts", default=int, partitions=PARTITIONS)

    async def agent(stream: Any) -> None:
        async for event in stream.events():
            table[event.message.partition] += 1
            received.add(event)

    app.agent(rig.topic(app), name="count")(agent)
    return table


async def test_a_table_recovers_from_its_changelog_before_the_app_is_started(rig: Rig) -> None:
    await rig.create()
    for turn in range(2):
        await rig.fill({p: 50 for p in range(PARTITIONS)})
        app, received = rig.app(), Received()
        table = count_into_table(rig, app, received)
        async with running(app):
            await received.reach(400)
            assert dict(table.items()) == {p: 50 * (turn + 1) for p in range(PARTITIONS)}
    app = rig.app()
    table = count_into_table(rig, app, Received())
    async with running(app):
        assert dict(table.items()) == {p: 100 for p in range(PARTITIONS)}


async def test_records_that_wait_or_arrive_during_recovery_are_neither_lost_nor_doubled(rig: Rig) -> None:
    await rig.create()
    total = 0
    for _turn in range(5):
        await rig.fill({0: 7, 5: 3}, start=total)
        app, received = rig.app(), Received()
        table = count_into_table(rig, app, received)
        arriving = asyncio.create_task(append_while(rig, lambda app=app: app.rebalancing or not app.started))
        async with running(app):
            count = await arriving
            await received.reach(10 + count)
            await app.consumer.commit()
            total += 10 + count
            assert sum(table.values()) == total
        assert sum((await rig.committed()).values()) == total


async def append_while(rig: Rig, condition: Callable[[], bool]) -> int:
    count = 0
    while condition() and count < 500:
        await rig.backend.append(rig.named("events"), count % PARTITIONS, [(None, b"during")])
        count += 1
    return count


async def test_an_app_with_tables_begins_to_fetch_only_when_its_recover_callbacks_are_done(rig: Rig) -> None:
    await rig.create()
    await rig.fill({0: 3})
    app, received = rig.app(), Received()
    collect(app, rig.topic(app), received)
    table = checkpoints(app)
    proceed, called = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        called.set()
        await proceed.wait()

    table.on_recover(wait)
    starting = asyncio.create_task(app.start())
    try:
        async with asyncio.timeout(20):
            await called.wait()
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert not received.events
        proceed.set()
        await received.reach(3)
        await starting
    finally:
        await app.stop()


async def test_the_checkpoint_table_hands_over_the_latest_value_of_each_key_once(rig: Rig) -> None:
    await rig.create()
    taken: list[dict[bytes, bytes]] = []

    async def turn(writes: dict[int, list[tuple[bytes, bytes | None]]]) -> None:
        app = rig.app()
        collect(app, rig.topic(app), Received())
        table = checkpoints(app)

        async def take() -> None:
            taken.append({p: table.take(p) for p in range(PARTITIONS)})
            assert table.take(1) == {}, "once"

        table.on_recover(take)
        async with running(app):
            for partition, own in writes.items():
                await asyncio.gather(*await table.put(partition, own))

    await turn({1: [(b"a", b"1"), (b"b", bytes(900_000)), (b"a", b"2")], 6: [(b"a", b"6")]})
    await turn({1: [(b"b", None), (b"c", b"3")]})
    await turn({})
    empty: dict[bytes, bytes] = {}
    assert taken[0] == {p: empty for p in range(PARTITIONS)}
    assert taken[1] == {p: empty for p in range(PARTITIONS)} | {1: {b"a": b"2", b"b": bytes(900_000)}, 6: {b"a": b"6"}}
    assert taken[2] == {p: empty for p in range(PARTITIONS)} | {1: {b"a": b"2", b"c": b"3"}, 6: {b"a": b"6"}}


async def test_what_no_callback_takes_is_not_kept(rig: Rig) -> None:
    await rig.create()
    for _ in range(2):
        app = rig.app()
        collect(app, rig.topic(app), Received())
        table = checkpoints(app)
        async with running(app):
            await asyncio.gather(*await table.put(6, [(b"a", b"6")]))
            assert table.take(6) == {}


async def test_a_recover_callback_that_fails_ends_the_app_and_nothing_is_fetched(rig: Rig) -> None:
    await rig.create()
    await rig.fill({0: 3})
    app, received = rig.app(), Received()
    collect(app, rig.topic(app), received)

    async def fail() -> None:
        raise CmisError("no checkpoint is complete")

    checkpoints(app).on_recover(fail)
    starting = asyncio.create_task(app.start())
    try:
        async with asyncio.timeout(20):
            await app._crashed.wait()
        assert isinstance(app.crash_reason, CmisError) and not received.events
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await app.stop()


# --- stopping, and what is refused -------------------------------------------------------------------------------------


async def test_a_stop_leaves_no_task_and_no_thread(rig: Rig) -> None:
    await rig.create()
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    for _ in range(2):
        app, received = rig.app(), Received()
        count_into_table(rig, app, received)
        await rig.fill({0: 10, 1: 10})
        async with running(app):
            await received.reach(20)
        assert asyncio.all_tasks() == tasks
        assert set(threading.enumerate()) == threads


async def test_an_app_that_never_received_anything_stops_too(rig: Rig) -> None:
    await rig.create()
    app = rig.app()
    collect(app, rig.topic(app), Received())
    async with running(app):
        pass


async def test_exactly_once_threaded_producers_and_fausts_table_manager_are_refused(rig: Rig) -> None:
    await rig.create()
    for options, error, message in (
        ({"processing_guarantee": "exactly_once"}, ConfigError, "expected at_least_once"),
        ({"TableManager": TableManager}, CmisError, "got TableManager, expected PromptTableManager"),
    ):
        app = rig.app(**options)
        collect(app, rig.topic(app), Received())
        with pytest.raises(error, match=message):
            async with running(app):
                pass
    with pytest.raises(ConfigError, match="producer_threaded: got true"):
        _ = rig.app(producer_threaded=True).producer
