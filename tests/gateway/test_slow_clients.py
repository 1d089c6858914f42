"""Clients that do not read: bounded memory, the right close, and nothing lost that was promised."""

from __future__ import annotations

import asyncio
import os
import struct

import pytest

from cmis_stream.gateway.client import Client
from cmis_stream.gateway.limits import Limits
from tests.gateway.conftest import Start
from tests.gateway.test_connecting import HANDSHAKE
from tests.gateway.world import INCIDENTS, METRICS, Program, World, incident, metric, until

LIMITS = Limits(watch_s=0.02, lossless_bytes=300_000, socket_bytes=32_768)
KEYS = 60


def served(world: World) -> Client:
    (client,) = world.gateway.hub.clients
    return client


def stop_reading(client: Program) -> None:
    client.websocket.transport.pause_reading()


def read_on(client: Program) -> None:
    client.websocket.transport.resume_reading()


async def fill(world: World) -> None:
    """Publishes metrics until the kernel takes nothing more for this client, not even a little later."""
    number = 0
    while served(world).outbox.conflated_items < 2_000:
        await world.publish(METRICS, *[metric(f"USD/filler{number}/{key}") for key in range(200)])
        await asyncio.sleep(0.001)
        number += 1


@pytest.mark.spec("GTW-E02")
@pytest.mark.spec("GTW-E03")
@pytest.mark.spec("GTW-M07")
async def test_a_client_that_cannot_keep_up_with_incidents_is_closed_and_recovers_them_all(start: Start) -> None:
    world = await start(LIMITS)
    token = world.doors.open("acme")
    async with world.client(token, max_queue=None) as client:
        assert "subscribe" in await client.ask(subscribe={"channel": INCIDENTS})
        stop_reading(client)
        waiting, number = [0], 0
        while not world.gateway.hub.figures.closes[3008]:
            await world.publish(INCIDENTS, incident(number, text="x" * 20_000))
            await asyncio.sleep(0)
            waiting += [other.outbox.lossless_bytes for other in world.gateway.hub.clients]
            number += 1
        assert 250_000 < max(waiting) <= 300_000
        read_on(client)
        code, reason = await client.closed()
        assert (code, reason[:28]) == (3008, "slow: expected at most 30000")
    await until(lambda: not world.gateway.hub.subscriptions)
    async with world.client(token) as client:
        again = (await client.ask(subscribe={"channel": INCIDENTS, "recover": True, "epoch": "epoch-1", "offset": 1}))[
            "subscribe"
        ]
        got = len(again["publications"])
        while got < number - 1:
            assert (await client.push())["pub"]["data"]["items"][0]["id"] == f"i{got + 1}"
            got += 1


@pytest.mark.spec("GTW-E01")
@pytest.mark.spec("GTW-E02")
async def test_newer_metrics_replace_older_ones_while_incidents_all_wait(start: Start) -> None:
    world = await start(LIMITS)
    async with world.client(world.doors.open("acme"), max_queue=None) as client:
        for channel in (INCIDENTS, METRICS):
            assert "subscribe" in await client.ask(subscribe={"channel": channel})
        stop_reading(client)
        await fill(world)
        kept = served(world).outbox.conflated_items
        for number in range(500):
            await world.publish(METRICS, *[metric(f"USD/k{key}", events=number) for key in range(number % 2, KEYS)])
            if number % 50 == 0:
                await world.publish(INCIDENTS, incident(number))
            await asyncio.sleep(0)
        assert served(world).outbox.conflated_items <= kept + KEYS
        assert 0 < served(world).outbox.lossless_bytes < 10_000
        assert world.gateway.hub.figures.conflated_drops > 400 * KEYS
        last = await world.publish(METRICS, metric("USD/end"))
        read_on(client)
        values: dict[str, int] = {}
        incidents: list[str] = []
        offsets: list[int] = []
        while "USD/end" not in values:
            push = await client.push()
            if push["channel"] == INCIDENTS:
                incidents += [item["id"] for item in push["pub"]["data"]["items"]]
            else:
                offsets.append(push["pub"]["offset"])
                values.update((item["entity"], item["sums"][0]) for item in push["pub"]["data"]["items"])
        assert incidents == [f"i{number}" for number in range(0, 500, 50)]
        assert [values[f"USD/k{key}"] for key in range(KEYS)] == [498, *[499] * (KEYS - 1)]
        assert offsets == sorted(set(offsets)) and offsets[-1] == last


async def test_metrics_of_too_many_keys_close_a_client_that_does_not_read(start: Start) -> None:
    world = await start(Limits(watch_s=0.02, conflated_items=3_000, socket_bytes=32_768))
    async with world.client(world.doors.open("acme"), max_queue=None) as client:
        assert "subscribe" in await client.ask(subscribe={"channel": METRICS})
        stop_reading(client)
        await fill(world)
        for number in range(31):
            await world.publish(METRICS, *[metric(f"USD/n{number}/{key}") for key in range(100)])
        await until(lambda: world.gateway.hub.figures.closes[3008] == 1)
        read_on(client)
        assert (await client.closed())[0] == 3008


async def test_what_waits_for_a_client_is_forgotten_when_it_unsubscribes(start: Start) -> None:
    world = await start(LIMITS)
    async with world.client(world.doors.open("acme"), max_queue=None) as client:
        assert "subscribe" in await client.ask(subscribe={"channel": METRICS})
        stop_reading(client)
        await fill(world)
        await world.publish(METRICS, metric("USD/late"))
        await client.send({"id": 90, "unsubscribe": {"channel": METRICS}})
        await until(lambda: served(world).outbox.conflated_items == 0)
        read_on(client)
        await client.reply(90)
        assert "USD/late" not in str(client.order)


async def test_a_client_that_pings_and_does_not_read_the_pongs_is_cut_off(start: Start) -> None:
    world = await start(Limits(watch_s=0.02, connect_s=3_600))
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(HANDSHAKE)
    await until(lambda: len(world.gateway.hub.clients) == 1)
    reader._transport.pause_reading()  # type: ignore[attr-defined]
    ping = struct.pack("!BB", 0x89, 0x80 | 125) + bytes(4) + os.urandom(125)
    with pytest.raises(ConnectionError):
        async with asyncio.timeout(60):
            while True:
                writer.write(ping * 500)
                await writer.drain()
    await until(lambda: not world.gateway.hub.clients)
