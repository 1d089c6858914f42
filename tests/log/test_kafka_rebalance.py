"""Groups on a real Apache Kafka: workers that come and go while records flow, and a broker that does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.errors import KafkaError

from cmis_stream.core.errors import ConfigError
from cmis_stream.log import kafka_producer, kafka_reader
from scripts.kafka import Kafka
from tests.log.backends import PARTITIONS, OnKafka, Received, Rig, checkpoints, collect, running

pytestmark = pytest.mark.slow
CHECKPOINT_EVERY = 5


@pytest.fixture
def rig(kafka: Kafka, tmp_path: Path) -> Rig:
    return Rig(OnKafka(kafka.bootstrap), tmp_path)


class Worker:
    """Adds up the records of its partitions, with checkpoints as the metrics agent has them.

    state of a partition: [offset of the last record in it, how many records, their sum]
    """

    def __init__(self, rig: Rig, **options: Any) -> None:
        self.app = rig.app("workers", broker_commit_interval=0.2, **options)
        self.table = checkpoints(self.app)
        self.source = rig.named("events")
        self.states: dict[int, list[int]] = {}
        self.recoveries = 0
        self.begun = 0
        self.gate: asyncio.Event | None = None
        self.leaving: asyncio.Event | None = None
        self.table.on_recover(self._take_over)
        self.app.on_partitions_revoked.connect(self._let_go, weak=False)
        self.app.agent(rig.topic(self.app), name="sum")(self._sum)

    async def _take_over(self) -> None:
        self.begun += 1
        if self.gate is not None:
            await self.gate.wait()
        for tp in sorted(self.app.assignor.assigned_actives()):
            if tp.topic == self.source:
                stored = self.table.take(tp.partition).get(b"state")
                self.states[tp.partition] = orjson.loads(stored) if stored else [-1, 0, 0]
        self.recoveries += 1

    async def _let_go(self, _app: Any, /, *_sent: Any, **_named: Any) -> None:
        self.states.clear()
        if self.leaving is not None:
            await self.leaving.wait()

    async def _sum(self, stream: Any) -> None:
        held: dict[int, list[Any]] = {}
        async for event in stream.noack().events():
            partition, offset = event.message.partition, event.message.offset
            state = self.states.get(partition)
            if state is None:
                continue
            if offset <= state[0]:
                event.ack()
                continue
            assert offset == state[0] + 1, f"lost: {partition} goes from {state[0]} to {offset}"
            state[:] = [offset, state[1] + 1, state[2] + int(event.value)]
            own = held.setdefault(partition, [])
            own.append(event)
            if len(own) >= CHECKPOINT_EVERY:
                await asyncio.gather(*await self.table.put(partition, [(b"state", orjson.dumps(state))]))
                for each in own:
                    each.ack()
                own.clear()


@asynccontextmanager
async def sending(kafka: Kafka, topic: str) -> AsyncIterator[Callable[[], int]]:
    """Records on all partitions, without a pause, until the end; tells how many."""
    sent = 0
    stop = asyncio.Event()

    async def send(producer: AIOKafkaProducer) -> None:
        nonlocal sent
        while not stop.is_set():
            futures = [
                await producer.send(topic, b"%d" % (sent + p), partition=p) for p in range(PARTITIONS)
            ]  # fmt: skip
            sent += PARTITIONS
            await asyncio.gather(*futures)
            await asyncio.sleep(0.005)

    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, enable_idempotence=True)
    await producer.start()
    task = asyncio.create_task(send(producer))
    try:
        yield lambda: sent
    finally:
        stop.set()
        await task
        await producer.stop()


async def until(condition: Callable[[], Any], what: str, patience_s: float = 60) -> None:
    try:
        async with asyncio.timeout(patience_s):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"waited {patience_s:g} s for {what}")


def summed(*workers: Worker) -> list[int]:
    states = [state for worker in workers for state in worker.states.values()]
    return [sum(state[1] for state in states), sum(state[2] for state in states)]


def everything(sent: int) -> list[int]:
    return [sent, sum(range(sent))]


async def have_everything(sent: int, *workers: Worker) -> None:
    await until(lambda: summed(*workers)[0] >= sent, f"all {sent} records; have {summed(*workers)}")
    assert summed(*workers) == everything(sent)
    assert sorted(p for worker in workers for p in worker.states) == list(range(PARTITIONS))


async def test_workers_that_join_and_leave_under_load_lose_nothing_and_count_nothing_twice(rig: Rig, kafka: Kafka) -> None:
    await rig.create()
    workers = [Worker(rig) for _ in range(3)]
    async with AsyncExitStack() as stack:
        async with sending(kafka, rig.named("events")) as sent:
            await stack.enter_async_context(running(workers[0].app))
            await until(lambda: summed(workers[0])[0] > 200, "the first to work")
            for worker in workers[1:]:
                await stack.enter_async_context(running(worker.app))
                await until(lambda worker=worker: summed(worker)[0] > 0, "the next to work")
            before = sent()
            await until(lambda: sent() > before + 400, "more records")
        await have_everything(sent(), *workers)
        assert {len(worker.states) for worker in workers} == {2, 3}
    # And what is durable is the same: a worker alone takes it all over.
    last = Worker(rig)
    async with running(last.app):
        await have_everything(sent(), last)


async def test_a_partition_that_comes_back_has_the_state_its_other_owner_gave_it(rig: Rig) -> None:
    await rig.create()
    first, second = Worker(rig), Worker(rig)
    async with running(first.app):
        await rig.fill({p: 7 for p in range(PARTITIONS)})
        await until(lambda: summed(first)[0] == 56, "the first records")
        async with running(second.app):
            await until(lambda: len(second.states) == 4, "half the partitions")
            moved = set(second.states)
            await rig.fill({p: 20 for p in moved}, start=100)
            await until(lambda: all(second.states[p][1] == 27 for p in moved), "the second's records")
        await until(lambda: set(first.states) == set(range(PARTITIONS)), "them back")
        await until(lambda: all(first.states[p][1] == 27 for p in moved), "the state of the other")
        assert {p: first.states[p] for p in moved} == {p: [26, 27, sum(range(7)) + sum(range(100, 120))] for p in moved}


async def test_a_rebalance_while_another_ones_recovery_is_under_way_begins_recovery_anew(rig: Rig, kafka: Kafka) -> None:
    await rig.create()
    first, second, third = Worker(rig), Worker(rig), Worker(rig)
    async with AsyncExitStack() as stack:
        async with sending(kafka, rig.named("events")) as sent:
            await stack.enter_async_context(running(first.app))
            await until(lambda: summed(first)[0] > 100, "the first to work")
            first.gate = second.gate = asyncio.Event()  # their next recoveries stay in the middle
            begun = first.begun
            starting = asyncio.create_task(second.app.start())
            stack.push_async_callback(second.app.stop)
            await until(lambda: first.begun > begun and second.begun, "both to be recovering")
            assert not first.states and not second.states
            begun = first.begun
            await stack.enter_async_context(running(third.app))
            await until(lambda: first.begun > begun, "the first to begin anew")
            assert not first.states
            first.gate.set()
            await starting
            await until(lambda: first.states and second.states and third.states, "all to work")
        await have_everything(sent(), first, second, third)


async def test_a_recovery_does_not_end_after_its_assignment_was_revoked(rig: Rig) -> None:
    """The group is held up by a member that is slow to leave: its neighbour has no partitions any more and none yet."""
    await rig.create()
    await rig.fill({p: 3 for p in range(PARTITIONS)})
    first, second = Worker(rig), Worker(rig)
    async with running(first.app, second.app):
        await until(lambda: len(first.states) == len(second.states) == 4, "both to work")
        first.gate, begun = asyncio.Event(), first.begun
        rejoin(first)
        await until(lambda: first.begun > begun and len(second.states) == 4, "the first to be recovering")
        second.leaving, begun, rebalances = asyncio.Event(), first.begun, first.app.rebalancing_count
        rejoin(first)
        await until(lambda: first.app.rebalancing_count > rebalances and not second.states, "both to be revoked")
        first.gate.set()
        for _ in range(20):
            await asyncio.sleep(0.01)
        assert not first.states and first.begun == begun
        second.leaving.set()
        await until(lambda: summed(first, second) == [3 * PARTITIONS, 3 * PARTITIONS], "all of it")


async def test_an_ack_from_an_earlier_assignment_counts_for_nothing(rig: Rig) -> None:
    await rig.create()
    await rig.fill({0: 5})
    app, received = rig.app(), Received()

    async def keep(stream: Any) -> None:
        async for event in stream.noack().events():
            received.add(event)

    app.agent(rig.topic(app), name="keep")(keep)
    async with running(app):
        await received.reach(5)
        app.consumer._kafka._coordinator.request_rejoin()
        await received.reach(10)
        for event in received.events[:5]:
            event.ack()
        await app.consumer.commit()
        assert await rig.committed() == {}
        for event in received.events[5:8]:
            event.ack()
    assert await rig.committed() == {0: 3}


async def test_a_changelog_record_that_the_broker_refuses_ends_the_app_before_its_source_is_committed(rig: Rig) -> None:
    await rig.create()
    await rig.backend.create(f"{rig.named('app')}-blobs-changelog", max_message_bytes="2000")
    await rig.fill({0: 1})
    app, received = rig.app(broker_commit_interval=60), Received()
    table = app.Table("blobs", default=bytes, partitions=PARTITIONS, key_type=bytes, value_type=bytes)

    async def agent(stream: Any) -> None:
        async for event in stream.events():
            table[b"k"] = bytes(10_000)
            received.add(event)

    app.agent(rig.topic(app), name="blobs")(agent)
    async with running(app):
        async with asyncio.timeout(20):
            await app._crashed.wait()
    assert received.events and "MessageSizeTooLarge" in repr(app.crash_reason)
    assert await rig.committed() == {}


async def test_senders_that_crowd_one_partition_never_overtake_each_other(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of one record: every sender waits for the one before, and new ones come by whenever a batch is taken."""
    monkeypatch.setattr(kafka_producer, "BATCH_BYTES", 1_000)
    await rig.create()
    app = rig.app()
    collect(app, rig.topic(app), Received())
    async with running(app):

        async def send(value: bytes) -> None:
            await (await app.producer.send(rig.named("events"), None, value, 3, None, None))

        sending = []
        for i in range(600):
            sending.append(asyncio.create_task(send(b"%03d" % i + bytes(700))))
            await asyncio.sleep(0)
        await asyncio.gather(*sending)
    assert [int((value or b"")[:3]) for value in await rig.values("events", 3)] == list(range(600))


def rejoin(worker: Worker) -> None:
    worker.app.consumer._kafka._coordinator.request_rejoin()


async def test_a_broker_that_restarts_ends_nobody_and_sends_meanwhile_arrive_once_and_in_order(rig: Rig, kafka: Kafka) -> None:
    await rig.create()
    await rig.create("out")
    worker = Worker(rig)
    async with running(worker.app):
        async with sending(kafka, rig.named("events")) as sent:
            await until(lambda: summed(worker)[0] > 100, "the worker to work")
            producing = asyncio.create_task(in_order(worker.app, rig.named("out"), 300))
            await asyncio.to_thread(kafka.restart)
            before = sent()
            await until(lambda: sent() > before + 200, "records after the restart")
            await producing
        await have_everything(sent(), worker)
        assert not worker.app.should_stop
    assert await rig.values("out", 4) == [b"%d" % i for i in range(300)]


async def in_order(app: Any, topic: str, count: int) -> None:
    sent = []
    for i in range(count):
        sent.append(await app.producer.send(topic, None, b"%d" % i, 4, None, None))
        await asyncio.sleep(0.01)
    await asyncio.gather(*sent)


async def test_a_broker_that_hangs_for_longer_than_the_session_ends_nobody(rig: Rig, kafka: Kafka) -> None:
    await rig.create()
    worker = Worker(rig)
    async with running(worker.app):
        async with sending(kafka, rig.named("events")) as sent:
            await until(lambda: summed(worker)[0] > 100, "the worker to work")
            kafka.pause()
            try:
                loop = asyncio.get_running_loop()
                until_s = loop.time() + 5  # the session is 3 s: it has to be over for them
                await until(lambda: loop.time() > until_s, "the session to be over")
            finally:
                kafka.resume()
            before = sent()
            await until(lambda: sent() > before + 200, "records afterwards")
        await have_everything(sent(), worker)
        assert not worker.app.should_stop


async def test_an_app_stops_although_no_broker_takes_what_it_has_sent(
    rig: Rig, kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (kafka_producer, kafka_reader):
        monkeypatch.setattr(module, "STOP_S", 1.0)
    await rig.create()
    await rig.fill({0: 3})
    tasks = asyncio.all_tasks()
    app, received = rig.app(broker_commit_interval=0.1), Received()
    collect(app, rig.topic(app), received)
    await app.start()
    try:
        await received.reach(3)
        kafka.pause()
        async with asyncio.timeout(5):  # also the first to a topic needs no answer
            sent = await app.producer.send(rig.named("events"), None, b"never", 0, None, None)
        unsent = rig.topic(app).send_soon(key=b"k", value=b"never")
        received.events[-1].ack()
    finally:
        async with asyncio.timeout(30):
            await app.stop()
        kafka.resume()
    assert isinstance(sent.exception(), KafkaError)
    assert unsent.done() and unsent.exception() is not None
    await until(lambda: asyncio.all_tasks() == tasks, "its tasks to end")


async def test_a_commit_of_a_generation_that_is_over_is_refused_and_ends_nobody(rig: Rig) -> None:
    await rig.create()
    worker = Worker(rig)
    async with running(worker.app):
        await rig.fill({p: 10 for p in range(PARTITIONS)})
        await until(lambda: summed(worker)[0] == 80, "the records")
        recoveries = worker.recoveries
        worker.app.consumer._kafka._coordinator.generation -= 1
        assert await worker.app.consumer._commit({tp: 3 for tp in worker.app.consumer.assignment()}) is False
        await until(lambda: worker.recoveries > recoveries, "it to join again")
        await rig.fill({p: 10 for p in range(PARTITIONS)}, start=10)
        await until(lambda: summed(worker)[0] == 160, "the rest")
        assert summed(worker)[1] == PARTITIONS * sum(range(20))


async def test_an_assignor_that_fails_ends_the_app_instead_of_leaving_it_without_partitions(rig: Rig) -> None:
    await rig.create()
    worker = Worker(rig)

    def fail(*_: Any) -> None:
        raise RuntimeError("no assignment")

    async with running(worker.app):
        await until(lambda: len(worker.states) == PARTITIONS, "its partitions")
        worker.app.assignor.assign = fail
        rejoin(worker)
        async with asyncio.timeout(20):
            await worker.app._crashed.wait()
    assert isinstance(worker.app.crash_reason, KafkaError) and "no assignment" in str(worker.app.crash_reason)


async def test_a_topic_that_is_missing_or_has_other_partitions_is_refused_with_what_helps(rig: Rig) -> None:
    await rig.create("narrow", partitions=3)
    for name, message in (("absent", "got nothing, expected 8"), ("narrow", "got 3 partitions, expected 8 partitions")):
        app = rig.app()
        collect(app, rig.topic(app, name), Received())
        starting = asyncio.create_task(app.start())
        try:
            async with asyncio.timeout(20):
                await app._crashed.wait()
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await app.stop()
        assert isinstance(app.crash_reason, ConfigError)
        assert message in str(app.crash_reason) and "cmis topics apply" in str(app.crash_reason)


@pytest.mark.parametrize("keep", [0, 3])
async def test_a_changelog_whose_beginning_or_all_is_gone_is_recovered_as_far_as_it_goes(
    rig: Rig, kafka: Kafka, keep: int
) -> None:
    await rig.create()
    app = rig.app("workers")
    changelog = f"{rig.named('workers')}-state-changelog"
    await rig.backend.create(changelog, cleanup_policy="compact,delete")
    await rig.backend.append(changelog, 2, [(b"k%d" % i, b"%d" % i) for i in range(10)])
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
    await admin.start()
    await admin.delete_records({TopicPartition(changelog, 2): RecordsToDelete(before_offset=10 - keep)})
    await admin.close()
    taken: dict[bytes, bytes] = {}
    collect(app, rig.topic(app), Received())
    table = checkpoints(app)

    async def take() -> None:
        taken.update(table.take(2))

    table.on_recover(take)
    async with running(app):
        assert taken == {b"k%d" % i: b"%d" % i for i in range(10 - keep, 10)}


async def in_transactions(kafka: Kafka, topic: str, partition: int, rows: list[tuple[bytes, bytes]]) -> None:
    """Each record in a transaction of its own, whose marker takes an offset that nobody ever sees."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, transactional_id=topic)
    await producer.start()
    for key, value in rows:
        async with producer.transaction():
            await producer.send_and_wait(topic, value, key=key, partition=partition)
    await producer.stop()


async def test_a_changelog_that_ends_in_an_offset_without_a_record_is_recovered(rig: Rig, kafka: Kafka) -> None:
    """Faust waits for the record before the highwater, and so for ever."""
    await rig.create()
    app = rig.app("workers")
    changelog = f"{rig.named('workers')}-state-changelog"
    await rig.backend.create(changelog, cleanup_policy="compact")
    await in_transactions(kafka, changelog, 0, [(b"a", b"1"), (b"b", b"2")])
    taken: dict[bytes, bytes] = {}
    collect(app, rig.topic(app), Received())
    table = checkpoints(app)

    async def take() -> None:
        taken.update(table.take(0))

    table.on_recover(take)
    async with running(app):
        assert taken == {b"a": b"1", b"b": b"2"}


async def test_offsets_without_a_record_do_not_hold_up_the_commit(rig: Rig, kafka: Kafka) -> None:
    await rig.create()
    await in_transactions(kafka, rig.named("events"), 0, [(b"k", b"%d" % i) for i in range(5)])
    app, received = rig.app(), Received()
    collect(app, rig.topic(app), received)
    async with running(app):
        await received.reach(5)
    assert received.positions == [(0, offset) for offset in (0, 2, 4, 6, 8)]
    assert await rig.committed() == {0: 9}


async def test_a_partition_is_read_from_an_offset_to_the_end_it_has_now(rig: Rig, kafka: Kafka) -> None:
    await rig.create()
    await rig.fill({1: 10, 2: 3})
    client, topic = {"bootstrap_servers": kafka.bootstrap}, rig.named("events")
    assert await kafka_reader.ends(client, topic, [0, 1, 2]) == {0: 0, 1: 10, 2: 3}
    for start, expected in ((None, list(range(10))), (7, [7, 8, 9]), (10, [])):
        steps = [step async for step in kafka_reader.read_to_end(client, topic, 1, start)]
        assert [record.offset for step in steps for record in step] == expected
