"""What Redis and its connections may do to the backplane on it, with a server of its own each time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from redis.asyncio import Redis as Client

from cmis_stream.backplane.contract import Publication, Unready
from cmis_stream.backplane.redis import RedisBackplane
from scripts.redis import Redis
from tests.backplane import support
from tests.backplane.support import EPOCH, OTHER, TOPIC, Heard, Worker, offsets, redis_backplane
from tests.gateway.world import INCIDENTS, Log, incident, until

pytestmark = pytest.mark.slow

STREAM = f"cmis:{{{TOPIC}/0}}:{INCIDENTS}"


class Node:
    """A log, a worker's backplane, a gateway's, and a client that has been there from the beginning."""

    def __init__(self, server: Redis, opened: AsyncExitStack) -> None:
        self.server, self.log, self._opened = server, Log(), opened

    async def start(self) -> None:
        self.worker = Worker(await self.backplane(), self.log)
        await self.worker.begin()
        self.gateway = await self.backplane()
        self.client = await self.joined()

    async def backplane(self, **options: Any) -> RedisBackplane:
        return await redis_backplane(self._opened, self.server.url, self.log, **{"prefix": "cmis", **options})

    async def joined(self, after: int = -1) -> support.Client:
        client = support.Client(self.gateway, after=after)
        await client.join()
        return client

    async def redis(self) -> Client:
        return await self._opened.enter_async_context(Client.from_url(self.server.url))

    def published(self, after: int = -1) -> list[int]:
        return [entry.offset for _, channel, entry in self.log.records[TOPIC] if channel == INCIDENTS and entry.offset > after]


@pytest.fixture
async def node(own_redis: Redis) -> AsyncIterator[Node]:
    async with AsyncExitStack() as opened:
        made = Node(own_redis, opened)
        await made.start()
        yield made


@pytest.mark.spec("GTW-M07", partial="the backplane's part")
async def test_emptied_while_records_flow_and_gateways_read_everyone_gets_everything_once(node: Node) -> None:
    redis = await node.redis()
    clients, enough = [node.client], asyncio.Event()

    async def flow() -> None:
        while not enough.is_set():
            await node.worker.flow(10)

    flowing = asyncio.create_task(flow())
    for _ in range(15):
        await redis.flushall()
        clients.append(await node.joined(after=node.log.next_offset[TOPIC] // 2))
    enough.set()
    await flowing
    last = await node.worker.flow(3)
    for client in clients:
        after = client.got[0]
        assert await client.until(last) == node.published(after)
        assert client.gaps == 0


async def test_restarted_from_an_older_snapshot_it_is_brought_up_to_date(node: Node) -> None:
    await node.worker.flow(30)
    node.server.command("SAVE")
    last = await node.worker.flow(30)
    assert await node.client.until(last) == node.published()
    node.server.kill()
    await asyncio.to_thread(node.server.start)
    joining = asyncio.create_task(node.joined(after=10))
    last = await node.worker.flow(31)
    assert await node.client.until(last) == node.published()
    assert await (await joining).until(last) == node.published(10)


async def test_a_snapshot_that_is_older_than_the_newest_records_leaves_a_hole_that_the_log_fills(node: Node) -> None:
    await node.worker.flow(3)
    node.server.command("SAVE")
    await node.worker.flow(200)
    node.server.kill()
    await asyncio.to_thread(node.server.start)
    last = await node.worker.flow(5)
    assert await (await node.joined()).until(last) == node.published()
    assert await node.client.until(last) == node.published()


async def test_killed_and_restarted_it_goes_on_and_what_is_asked_meanwhile_is_told_to_ask_again(node: Node) -> None:
    await node.worker.flow(21)
    assert node.gateway.connected and node.gateway.reconnects == 0
    node.server.kill()
    with pytest.raises(Unready, match="Redis does not answer"):
        await node.gateway.position(INCIDENTS)
    with pytest.raises(Unready):
        await (await node.backplane(patience_s=0.1)).listen(OTHER, lambda *_: None)
    flowing = asyncio.create_task(node.worker.flow(21))
    await asyncio.sleep(0.2)
    assert not flowing.done(), "nothing counts as published while Redis is away"
    await asyncio.to_thread(node.server.start)
    last = await flowing
    assert await node.client.until(last) == node.published()
    assert (await node.gateway.position(INCIDENTS)).offset == last
    await until(lambda: node.gateway.connected and node.gateway.reconnects == 1)


async def test_paused_for_longer_than_an_answer_takes_nothing_is_lost_or_repeated(node: Node) -> None:
    await node.worker.flow(21)
    node.server.pause()
    flowing = asyncio.create_task(node.worker.flow(21))
    await asyncio.sleep(4)
    node.server.resume()
    last = await flowing
    assert await node.client.until(last) == node.published()


async def test_a_connection_that_is_cut_while_records_flow_is_made_again_and_caught_up_with(node: Node) -> None:
    redis = await node.redis()
    flowing = asyncio.create_task(node.worker.flow(601))
    for _ in range(8):
        await redis.client_kill_filter(_type="pubsub")
        await asyncio.sleep(0.05)
    last = await flowing
    assert await node.client.until(last) == node.published()


async def test_a_message_that_got_lost_is_noticed_though_no_other_follows(node: Node) -> None:
    """Redis is emptied of its subscription behind the gateway's back: the connection stays, the message does not come."""
    listener = node.gateway._listener
    assert listener._pubsub is not None
    await listener._pubsub.unsubscribe(STREAM)
    redis = await node.redis()
    while dict(await redis.pubsub_numsub(STREAM))[STREAM.encode()]:
        await asyncio.sleep(0.01)
    last = await node.worker.flow(1)
    assert await node.client.until(last) == [last]


async def test_what_a_position_includes_has_reached_the_listeners_before_somebody_is_told_of_it(node: Node) -> None:
    """Its messages are late for ever here, and nothing else would notice that."""
    gateway, heard = await node.backplane(look_s=3600), Heard()
    await gateway.listen(INCIDENTS, heard)
    assert gateway._listener._pubsub is not None
    await gateway._listener._pubsub.unsubscribe(STREAM)
    redis = await node.redis()
    while dict(await redis.pubsub_numsub(STREAM))[STREAM.encode()] > 1:  # the other one is the client's
        await asyncio.sleep(0.01)
    for asked in (
        lambda: gateway.position(INCIDENTS),
        lambda: gateway.recover(INCIDENTS, node.log.next_offset[TOPIC] - 1, EPOCH, 10),
        lambda: gateway.newest(INCIDENTS, 1),
    ):
        await node.worker.flow(3)
        await asked()
        assert heard.offsets == node.published()


async def test_a_zombie_that_is_behind_moves_nothing_back(node: Node) -> None:
    zombie = Worker(await node.backplane(), node.log)
    await zombie.begin()
    last = await node.worker.flow(11)
    for offset in (0, 3):
        await zombie.deliver(offset)
        assert (await node.gateway.position(INCIDENTS)).offset == last


async def test_an_owner_and_a_zombie_that_write_the_same_records_give_each_once(node: Node) -> None:
    zombie = Worker(await node.backplane(), node.log)
    await zombie.begin()
    for _ in range(40):
        start = node.log.next_offset[TOPIC]
        for number in range(5):
            node.worker.append(INCIDENTS if number % 2 else OTHER)
        late = range(max(0, start - 3), start + 2)
        await asyncio.gather(
            *(node.worker.deliver(offset) for offset in range(start, start + 5)), *(zombie.deliver(offset) for offset in late)
        )
    last = await node.worker.flow(1)
    assert await node.client.until(last) == node.published()
    assert offsets((await node.gateway.recover(INCIDENTS, -1, EPOCH, 1000)).publications) == node.published()


async def test_under_another_epoch_everything_is_forgotten(node: Node) -> None:
    await node.worker.flow(11)
    node.log = Log()
    other = await redis_backplane(node._opened, node.server.url, node.log, "epoch-2", prefix="cmis", patience_s=0.05)
    with pytest.raises(Unready):
        await other.position(INCIDENTS)
    worker = Worker(other, node.log)
    await worker.begin()
    last = await worker.flow(3)
    assert await other.position(INCIDENTS) == (last, "epoch-2")
    assert offsets((await other.recover(INCIDENTS, -1, "epoch-2", 100)).publications) == node.published()
    assert (await other.recover(INCIDENTS, 3, EPOCH, 100)).publications is None
    with pytest.raises(Unready):
        await (await node.backplane(patience_s=0.05)).position(INCIDENTS)


async def test_streams_are_trimmed_and_expire_and_the_log_has_the_rest(node: Node) -> None:
    redis = await node.redis()
    worker = Worker(await node.backplane(per_channel=50), node.log)
    await worker.begin_again(1)
    last = await worker.flow(401)
    assert await redis.xlen(STREAM) == 50
    assert 0 < await redis.ttl(STREAM) <= 86_400
    assert offsets((await node.gateway.recover(INCIDENTS, -1, EPOCH, 1000)).publications) == node.published()
    await redis.delete(STREAM)  # as it expires
    assert offsets((await node.gateway.recover(INCIDENTS, last - 20, EPOCH, 1000)).publications) == node.published(last - 20)
    assert offsets((await node.gateway.recover(INCIDENTS, 100, EPOCH, 1000)).publications) == node.published(100)
    assert offsets((await node.gateway.newest(INCIDENTS, 10)).publications) == []
    last = await worker.flow(1)
    assert offsets((await node.gateway.newest(INCIDENTS, 10)).publications) == [last]
    assert offsets((await node.gateway.recover(INCIDENTS, 100, EPOCH, 1000)).publications) == node.published(100)


async def test_what_the_log_does_not_hold_any_more_is_a_gap_that_listeners_are_told_of(node: Node) -> None:
    await node.worker.flow(3)
    for _ in range(3):
        node.worker.append(INCIDENTS)  # which nobody publishes
    node.log.earliest[TOPIC] = node.log.next_offset[TOPIC]
    await node.worker.begin()
    last = await node.worker.flow(1)
    await node.client.until(last)
    assert node.client.gaps == 1


async def test_orgs_never_mix(node: Node) -> None:
    orgs = ["acme", "acme2", "a%3Ab", "org", "last", "{acme}"]
    heard: dict[str, list[str]] = {f"org:{org}:incidents": [] for org in orgs}

    def hear(channel: str, publication: Publication) -> None:
        heard[channel] += [item.entity for item in publication.items]

    for name in tuple(heard):
        await node.gateway.listen(name, hear)
    for number in range(60):
        channel = f"org:{orgs[number % len(orgs)]}:incidents"
        await node.worker.deliver(node.worker.append(channel, item=incident(number, entity=channel)))
    async with asyncio.timeout(30):
        while sum(map(len, heard.values())) < 60:
            await asyncio.sleep(0.005)
    for channel, entities in heard.items():
        assert entities == [channel] * 10
        found = (await node.gateway.recover(channel, -1, EPOCH, 1000)).publications
        assert [item.entity for publication in found or () for item in publication.items] == [channel] * 10
