"""The unmodified PyPI client `centrifuge-python` against the gateway, through a network that can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from centrifuge import (
    Client,
    ClientEventHandler,
    ClientState,
    PublicationContext,
    StreamPosition,
    SubscribedContext,
    SubscriptionEventHandler,
    UnsubscribedContext,
)
from centrifuge.exceptions import ReplyError

from cmis_stream.gateway.limits import Limits
from cmis_stream.gateway.ports import Grant, Snapshot
from tests.gateway.conftest import Start
from tests.gateway.world import INCIDENTS, METRICS, World, incident, until


class Network:
    """A TCP proxy in front of the gateway."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    @asynccontextmanager
    async def up(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        yield self._world.url.replace(str(self._world.port), str(self.port))
        server.close()
        self.cut()

    def cut(self) -> None:
        """Every connection is lost, without a farewell."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self._world.port)
            self._writers |= {writer, back}
            await asyncio.gather(self._pass(reader, back), self._pass(there, writer))
        writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


class Subscriber(SubscriptionEventHandler):
    def __init__(self) -> None:
        self.offsets: list[int] = []
        self.items: list[dict[str, Any]] = []
        self.subscribed: list[SubscribedContext] = []
        self.unsubscribed: list[UnsubscribedContext] = []

    async def on_publication(self, ctx: PublicationContext) -> None:
        self.offsets.append(ctx.pub.offset)
        self.items += ctx.pub.data["items"]

    async def on_subscribed(self, ctx: SubscribedContext) -> None:
        self.subscribed.append(ctx)

    async def on_unsubscribed(self, ctx: UnsubscribedContext) -> None:
        self.unsubscribed.append(ctx)


class Watcher(ClientEventHandler):
    def __init__(self) -> None:
        self.disconnected: list[tuple[int, str]] = []

    async def on_disconnected(self, ctx: Any) -> None:
        self.disconnected.append((ctx.code, ctx.reason))


@asynccontextmanager
async def sdk(url: str, **options: Any) -> AsyncIterator[Client]:
    client = Client(url, min_reconnect_delay=0.01, max_reconnect_delay=0.1, **options)
    await client.connect()
    await client.ready()
    try:
        yield client
    finally:
        await client.disconnect()


async def subscribe(client: Client, channel: str, **options: Any) -> Subscriber:
    subscriber = Subscriber()
    subscription = client.new_subscription(channel, events=subscriber, min_resubscribe_delay=0.01, **options)
    await subscription.subscribe()
    return subscriber


@pytest.mark.spec("GTW-M05", partial="npm and PyPI; the Swift and Kotlin SDKs speak Protobuf only")
@pytest.mark.spec("GTW-M06")
async def test_the_sdk_loses_its_network_while_publications_flow_and_has_each_of_them_once(world: World) -> None:
    network = Network(world)
    async with network.up() as url, sdk(url, token=world.doors.open("acme")) as client:
        seen = {channel: await subscribe(client, channel) for channel in (INCIDENTS, METRICS, INCIDENTS + ":USD%2Fmeta")}
        await until(lambda: all(subscriber.subscribed for subscriber in seen.values()))
        for number in range(1, 301):
            await world.publish(INCIDENTS, incident(number))
            await world.publish(METRICS, incident(number))
            await asyncio.sleep(0.001)
            if number % 60 == 0:
                network.cut()
        await until(lambda: all(subscriber.offsets[-1:] == [300] for subscriber in seen.values()))
        for subscriber in seen.values():
            assert subscriber.offsets == list(range(1, 301))
            assert len(subscriber.subscribed) > 3
            assert all(context.recovered for context in subscriber.subscribed[1:])


async def test_the_sdk_outlives_a_restart_of_the_gateway(world: World) -> None:
    async with sdk(world.url, token=world.doors.open("acme")) as client:
        seen = await subscribe(client, INCIDENTS)
        await until(lambda: bool(seen.subscribed))
        for number in range(1, 4):
            await world.publish(INCIDENTS, incident(number))
        await until(lambda: len(seen.offsets) == 3)
        await world.restart()
        await world.publish(INCIDENTS, incident(4))
        await until(lambda: len(seen.offsets) == 4)
        assert seen.offsets == [1, 2, 3, 4] and seen.subscribed[-1].recovered


@pytest.mark.spec("GTW-M06")
async def test_the_sdk_is_told_when_it_cannot_recover_and_gets_a_snapshot(start: Start) -> None:
    world = await start(memory={"per_channel": 1})
    network = Network(world)
    async with network.up() as url, sdk(url, token=world.doors.open("acme")) as client:
        seen = await subscribe(client, INCIDENTS)
        await until(lambda: bool(seen.subscribed))
        world.pictures.held[INCIDENTS] = Snapshot(b'{"items":[{"id":"i3"}]}')
        world.port, port = 1, world.port  # the network leads nowhere for a while
        network.cut()
        for number in range(1, 4):
            await world.publish(INCIDENTS, incident(number))
        world.log.earliest["cmis.transitions.v1"] = 2
        world.port = port
        await until(lambda: len(seen.subscribed) == 2)
        again = seen.subscribed[-1]
        assert (again.was_recovering, again.recovered, again.data) == (True, False, {"items": [{"id": "i3"}]})
        await world.publish(INCIDENTS, incident(4))
        await until(lambda: seen.offsets == [4])


@pytest.mark.spec("GTW-E12")
async def test_the_sdk_refreshes_its_token_and_stays(start: Start) -> None:
    world = await start(Limits(watch_s=0.02, expiry_grace_s=1.0))
    given: list[str] = []

    async def get_token() -> str:
        given.append(world.doors.open("acme", expires_at_ms=world.now_ms() + 1_000))
        return given[-1]

    watcher = Watcher()
    async with sdk(world.url, get_token=get_token, events=watcher) as client:
        (connection,) = world.gateway.hub.clients
        await until(lambda: len(given) > 2 and connection.grant == world.doors.grants[given[-1]])
        assert client.state == ClientState.CONNECTED and watcher.disconnected == []


async def test_the_sdk_fetches_another_token_when_the_first_is_expired(world: World) -> None:
    given: list[str] = []

    async def get_token() -> str:
        given.append(world.doors.open("acme", expires_at_ms=world.now_ms() + (60_000 if given else -1)))
        return given[-1]

    client = Client(world.url, get_token=get_token, min_reconnect_delay=0.01)
    await client.connect()
    await until(lambda: client.state == ClientState.CONNECTED)
    assert len(given) == 2
    await client.disconnect()


async def test_the_sdk_does_not_come_back_when_its_session_is_revoked(world: World) -> None:
    watcher, token = Watcher(), world.doors.open("acme")
    async with sdk(world.url, token=token, events=watcher) as client:
        world.doors.revoke(token)
        await until(lambda: client.state == ClientState.DISCONNECTED)
        assert watcher.disconnected == [(3500, "invalid token: revoked")]


async def test_the_sdk_is_unsubscribed_from_a_foreign_channel_for_good(world: World) -> None:
    async with sdk(world.url, token=world.doors.open("acme")) as client:
        seen = await subscribe(client, "org:globex:incidents")
        await until(lambda: bool(seen.unsubscribed))
        assert (seen.unsubscribed[0].code, seen.unsubscribed[0].reason) == (103, "permission denied")


async def test_presence_history_and_rpc_as_the_sdk_offers_them(start: Start) -> None:
    async def twice(grant: Grant, data: bytes) -> bytes:
        return b"[%b,%b]" % (data, data)

    world = await start(methods={"twice": twice})
    for number in range(1, 6):
        await world.publish(INCIDENTS, incident(number))
    async with sdk(world.url, token=world.doors.open("acme", subject="ann")) as client:
        await subscribe(client, INCIDENTS)
        subscription = client.get_subscription(INCIDENTS)
        assert subscription is not None
        present = await subscription.presence()
        assert [info.user for info in present.clients.values()] == ["ann"]
        stats = await subscription.presence_stats()
        assert (stats.num_clients, stats.num_users) == (1, 1)
        history = await subscription.history(limit=2, since=StreamPosition(2, "epoch-1"))
        assert ([entry.offset for entry in history.publications], history.offset, history.epoch) == ([3, 4], 5, "epoch-1")
        assert (await client.rpc("twice", {"a": 1})).data == [{"a": 1}, {"a": 1}]
        for refused, code in ((client.rpc("nope", {}), 104), (client.publish(INCIDENTS, {}), 103)):
            with pytest.raises(ReplyError) as error:
                await refused
            assert error.value.code == code
        await subscription.unsubscribe()
        await until(lambda: len(world.gateway.hub.subscriptions) == 0)


async def test_the_sdk_filters_with_its_subscription_data(world: World) -> None:
    async with sdk(world.url, token=world.doors.open("acme")) as client:
        seen = await subscribe(client, INCIDENTS, data={"filter": {"entities": ["EUR"]}})
        await until(lambda: bool(seen.subscribed))
        await world.publish(INCIDENTS, incident(1, entity="USD"))
        await world.publish(INCIDENTS, incident(2, entity="USD"), incident(3, entity="EUR"))
        await until(lambda: bool(seen.items))
        assert [item["id"] for item in seen.items] == ["i3"]
