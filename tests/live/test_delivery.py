"""Results on their way to the backplane: each once, before a restart or after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cmis_stream.backplane.contract import Backplane, Unready
from cmis_stream.backplane.memory import MemoryBackplane
from cmis_stream.backplane.redis import RedisBackplane
from cmis_stream.live import delivery as delivery_module
from cmis_stream.live.delivery import Delivery
from cmis_stream.log.owner import ROLLUPS, TRANSITIONS
from scripts.redis import Redis
from tests.gateway.world import until
from tests.live.support import ACME, FIGURES, INCIDENTS, PARTITIONS, Results, figures, line, transitions
from tests.servers.redis import own_redis

__all__ = ["own_redis"]  # a fixture


class Node:
    """A process that has just started on the log."""

    def __init__(self, world: Results, backplane: Backplane | None = None) -> None:
        self.world, tail = world, world.tail
        self.backplane = backplane or MemoryBackplane("e", tail.place, tail.read, tail.moment, patience_s=0.01)
        self.lines: list[dict[str, Any]] = []
        self.delivery = Delivery(self.backplane, world.tail, self.lines.extend)
        self.got: list[tuple[str, int]] = []

    async def begin(self) -> Node:
        await self.delivery.begin(range(PARTITIONS))
        for channel in (INCIDENTS, FIGURES):
            await self.backplane.listen(channel, lambda channel, publication: self.got.append((channel, publication.offset)))
        return self

    async def take(self, topic: str, *values: bytes) -> None:
        """Appends records and delivers them, as the agent does."""
        for value in values:
            offset = await self.world.append(topic, value)
            await self.delivery.take(topic, ACME, offset, value)


async def test_each_result_is_published_once_with_its_offset_and_told_to_listeners_here(world: Results) -> None:
    node = await Node(world).begin()
    await node.take(TRANSITIONS, transitions(0), transitions(1), transitions(0), transitions(1), transitions(2))
    await node.take(ROLLUPS, figures(0), figures(0), figures(2))
    assert node.got == [(INCIDENTS, 0), (INCIDENTS, 1), (INCIDENTS, 4), (FIGURES, 0), (FIGURES, 2)]
    assert [one["events"] for one in node.lines] == [["e0"], ["e1"], ["e2"]]


async def test_the_position_of_a_channel_moves_with_its_partition_also_without_publications(world: Results) -> None:
    node = await Node(world).begin()
    assert (await node.backplane.position(INCIDENTS)).offset == -1
    await node.take(TRANSITIONS, transitions(0, line(0, org="globex")), transitions(0))
    assert (await node.backplane.position(INCIDENTS)).offset == 1
    assert node.got == []


async def test_a_node_that_starts_knows_what_the_log_holds(world: Results) -> None:
    before = await Node(world).begin()
    await before.take(TRANSITIONS, *[transitions(source) for source in range(5)])
    node = await Node(world).begin()
    found = await node.backplane.recover(INCIDENTS, 1, "e", 100)
    assert (found.position.offset, [p.offset for p in found.publications or ()]) == (4, [2, 3, 4])


@pytest.mark.spec("GTW-M07", partial="between the log and the backplane; the gateway's part has tests of its own")
async def test_what_is_read_again_after_a_restart_is_published_once(world: Results) -> None:
    """Of records 0 to 4 the consumer had committed two; after a crash of the owner 3 and 4 come again, then 5."""
    before = await Node(world).begin()
    await before.take(TRANSITIONS, *[transitions(source) for source in range(5)])
    node = await Node(world).begin()
    for offset in range(2, 5):
        await node.delivery.take(TRANSITIONS, ACME, offset, transitions(offset))
    await node.take(TRANSITIONS, transitions(3), transitions(4), transitions(5))
    assert node.got == [(INCIDENTS, 7)]
    found = await node.backplane.recover(INCIDENTS, -1, "e", 100)
    assert [p.offset for p in found.publications or ()] == [0, 1, 2, 3, 4, 7]


async def test_a_client_goes_on_over_a_restart_beyond_what_memory_holds(world: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "REMEMBERED", {TRANSITIONS: (1, 1), ROLLUPS: (1, 1)})
    before = await Node(world).begin()
    await before.take(TRANSITIONS, *[transitions(source) for source in range(130)])
    node = await Node(world).begin()
    assert [p.offset for p in (await node.backplane.newest(INCIDENTS, 1000)).publications or ()] == list(range(80, 130))
    found = await node.backplane.recover(INCIDENTS, 9, "e", 1000)
    assert [p.offset for p in found.publications or ()] == list(range(10, 130))


async def test_the_start_of_a_log_that_retention_has_emptied_is_behind_what_was_there(world: Results) -> None:
    await world.append(TRANSITIONS, transitions(0), transitions(1))
    await world.trim()
    node = await Node(world).begin()
    assert (await node.backplane.position(INCIDENTS)).offset == 1
    assert (await node.backplane.recover(INCIDENTS, -1, "e", 10)).publications is None, "two are gone: no silent gap"


async def test_records_taken_together_are_published_in_order(world: Results) -> None:
    node = await Node(world).begin()
    values = [transitions(source) for source in (0, 1, 1, 2, 3, 2, 4)]
    taking = [(await world.append(TRANSITIONS, value), value) for value in values]
    await asyncio.gather(*(node.delivery.take(TRANSITIONS, ACME, *record) for record in taking))
    assert node.got == [(INCIDENTS, offset) for offset in (0, 1, 3, 4, 6)]


async def test_an_assignment_begins_with_what_others_have_written_meanwhile(world: Results) -> None:
    """Of its records some come again, repeats of the metrics agent among them; listeners here hear of each once."""
    node = await Node(world).begin()
    await node.take(TRANSITIONS, transitions(0), transitions(1))
    await world.append(TRANSITIONS, *[transitions(source) for source in range(2, 6)])  # while another worker has the partition
    await node.delivery.begin({ACME})
    for offset in range(1, 6):
        await node.delivery.take(TRANSITIONS, ACME, offset, transitions(offset))
    await node.take(TRANSITIONS, transitions(4), transitions(5), transitions(6))
    assert node.got == [(INCIDENTS, offset) for offset in (0, 1, 2, 3, 4, 5, 8)]
    assert [one["events"] for one in node.lines] == [[f"e{source}"] for source in range(7)]


@pytest.fixture
async def on_redis(world: Results, own_redis: Redis) -> AsyncIterator[Callable[[], RedisBackplane]]:
    """Opens backplanes of processes of their own."""
    opened: list[RedisBackplane] = []

    def open_() -> RedisBackplane:
        made = RedisBackplane(own_redis.url, "e", world.tail.place, world.tail.read, world.tail.moment, patience_s=10)
        opened.append(made)
        return made

    yield open_
    for backplane in opened:
        await backplane.close()


OnRedis = Callable[[], RedisBackplane]


@pytest.mark.slow
async def test_redis_forgets_everything_while_records_come_and_while_none_come(
    world: Results, own_redis: Redis, on_redis: OnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "LOOK_S", 0.05)
    node = Node(world, on_redis())
    await node.backplane.open()
    await node.begin()
    watching = asyncio.create_task(node.delivery.watch())
    records = [(await world.append(TRANSITIONS, value), value) for value in map(transitions, range(200))]
    for first in range(0, 200, 50):
        taking = [asyncio.create_task(node.delivery.take(TRANSITIONS, ACME, *one)) for one in records[first : first + 50]]
        await asyncio.sleep(0)
        own_redis.command("FLUSHALL")
        await asyncio.gather(*taking)
    await until(lambda: node.got[-1:] == [(INCIDENTS, 199)])
    assert node.got == [(INCIDENTS, offset) for offset in range(200)]
    own_redis.command("FLUSHALL")
    gateway = on_redis()  # nothing is written any more, and yet it learns where everything is
    async with asyncio.timeout(60):
        while True:
            try:
                found = await gateway.recover(INCIDENTS, 99, "e", 1000)
                break
            except Unready:
                continue
    assert [p.offset for p in found.publications or ()] == list(range(100, 200))
    assert (await gateway.newest(INCIDENTS, 1000)).publications, "the stream is filled again, not only its floor"
    assert (await gateway.position(FIGURES)).offset == -1
    watching.cancel()
    await node.delivery.close()


@pytest.mark.slow
async def test_an_assignment_does_not_wait_for_a_redis_that_is_away_and_its_records_do(
    world: Results, own_redis: Redis, on_redis: OnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery_module, "BEGIN_S", 0.05)
    await world.append(TRANSITIONS, *[transitions(source) for source in range(5)])
    own_redis.kill()
    backplane = on_redis()
    node = Node(world, backplane)
    await node.delivery.begin({ACME})
    offset = await world.append(TRANSITIONS, transitions(5))
    taking = asyncio.create_task(node.delivery.take(TRANSITIONS, ACME, offset, transitions(5)))
    await asyncio.sleep(0.1)
    assert not taking.done()
    await asyncio.to_thread(own_redis.start)
    await taking
    assert [p.offset for p in (await backplane.newest(INCIDENTS, 100)).publications or ()] == list(range(6))
    await node.delivery.close()


@pytest.mark.slow
async def test_results_are_handed_from_a_worker_to_the_next_without_a_repeat(world: Results, on_redis: OnRedis) -> None:
    """The first is a zombie that goes on with what it has in hand."""
    gateway = on_redis()
    await gateway.open()
    first, second = Node(world, on_redis()), Node(world, on_redis())
    got: list[int] = []
    await gateway.listen(INCIDENTS, lambda _, publication: got.append(publication.offset))
    await first.delivery.begin({ACME})
    await first.take(TRANSITIONS, *[transitions(source) for source in range(20)])
    records = [(await world.append(TRANSITIONS, value), value) for value in map(transitions, range(20, 40))]
    await second.delivery.begin({ACME})
    await asyncio.gather(
        *(node.delivery.take(TRANSITIONS, ACME, *record) for node in (first, second) for record in records),
        second.take(TRANSITIONS, transitions(38), transitions(39), transitions(40)),
    )
    await until(lambda: got[-1:] == [42])
    assert got == [*range(40), 42]
    for node in (first, second):
        await node.delivery.close()


async def test_how_far_results_have_been_told_is_known_at_once_in_the_next_process(world: Results) -> None:
    first = await Node(world).begin()
    await first.take(ROLLUPS, figures(7), figures(9))
    assert first.delivery.passed(ROLLUPS, ACME) == 9
    after = await Node(world).begin()
    assert (after.delivery.passed(ROLLUPS, ACME), after.delivery.passed(TRANSITIONS, ACME)) == (9, -1)
