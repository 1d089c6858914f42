"""Connections over real sockets: tokens, origins, pings, limits, revocation, the end."""

from __future__ import annotations

import asyncio
import json
import socket
import urllib.error
import urllib.request
from contextlib import AsyncExitStack

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cmis_stream.gateway import codes
from cmis_stream.gateway.asyncapi import asyncapi_document
from cmis_stream.gateway.codes import CommandError
from cmis_stream.gateway.limits import Limits
from cmis_stream.gateway.ports import Grant
from tests.gateway.conftest import Start
from tests.gateway.world import INCIDENTS, METRICS, World, incident, until

SUBSCRIBE = {"subscribe": {"channel": INCIDENTS}}


async def test_a_token_connects_and_the_reply_says_what_an_sdk_needs(world: World) -> None:
    async with world.client() as client:
        reply = await client.ask(connect={"token": world.doors.open("acme"), "name": "js"})
        said = reply["connect"]
        assert len(said.pop("client")) == 36 and said.pop("version")
        assert said == {"node": "gateway", "ping": 25, "pong": True}


async def test_no_token_and_a_wrong_one_end_the_connection_for_good(world: World) -> None:
    for token in ("", "wrong"):
        async with world.client() as client:
            await client.send({"id": 1, "connect": {"token": token}})
            assert await client.closed() == (3500, "invalid token")


@pytest.mark.spec("GTW-E12")
async def test_an_expired_token_is_answered_with_an_error_that_makes_clients_fetch_a_new_one(world: World) -> None:
    token = world.doors.open("acme", expires_at_ms=world.now_ms() - 1)
    async with world.client() as client:
        reply = await client.ask(connect={"token": token})
        assert reply["error"] == {"code": 109, "message": "token expired"}
        await client.send({"id": 7, "presence": {"channel": METRICS}})
        assert await client.closed() == (3501, "bad request: expected nothing more, the connection was refused")


@pytest.mark.spec("GTW-E12")
async def test_a_token_is_refreshed_over_the_open_connection_or_the_connection_ends_after_a_grace(start: Start) -> None:
    world = await start(Limits(watch_s=0.02, expiry_grace_s=60))
    token = world.doors.open("acme", expires_at_ms=world.now_ms() + 300_000)
    async with world.client() as client:
        assert (await client.ask(connect={"token": token}))["connect"]["ttl"] == 300
        newer = world.doors.open("acme", expires_at_ms=world.now_ms() + 600_000)
        refreshed = await client.ask(refresh={"token": newer})
        assert (refreshed["refresh"]["expires"], refreshed["refresh"]["ttl"]) == (True, 600)
        gone = world.doors.open("acme", expires_at_ms=world.now_ms() - 1)
        assert (await client.ask(refresh={"token": gone}))["error"]["code"] == 109
        assert "subscribe" in await client.ask(**SUBSCRIBE)
    short = await start(Limits(watch_s=0.02, expiry_grace_s=0.05))
    async with short.client(short.doors.open("acme", expires_at_ms=short.now_ms() + 1_000)) as client:
        assert await client.closed() == (3005, "connection expired")


@pytest.mark.parametrize("token", ["of somebody else", "wrong"])
async def test_a_refresh_with_a_token_that_is_not_ones_own_ends_the_connection(world: World, token: str) -> None:
    other = world.doors.open("acme", subject="ben") if token == "of somebody else" else token
    async with world.client(world.doors.open("acme", subject="ann")) as client:
        await client.send({"id": 5, "refresh": {"token": other}})
        assert (await client.closed())[0] == 3500


async def test_a_revoked_session_is_closed_for_good_within_a_second(world: World) -> None:
    token = world.doors.open("acme")
    async with world.client(token) as client, world.client(token) as second, world.client(world.doors.open("acme")) as other:
        world.doors.revoke(token)
        assert await client.closed() == await second.closed() == (3500, "invalid token: revoked")
        assert "subscribe" in await other.ask(**SUBSCRIBE)


async def test_an_org_that_is_lost_unsubscribes_its_channels_only(world: World) -> None:
    token = world.doors.open("acme", "globex")
    async with world.client(token) as client:
        for channel in (INCIDENTS, "org:globex:incidents", METRICS):
            assert "subscribe" in await client.ask(subscribe={"channel": channel})
        world.doors.move(token, "globex")
        pushes = [await client.push(), await client.push()]
        assert {push["channel"] for push in pushes} == {INCIDENTS, METRICS}
        assert all(push["unsubscribe"] == {"code": 2000, "reason": "permission denied"} for push in pushes)
        assert (await client.ask(**SUBSCRIBE))["error"]["code"] == 103
        await world.publish(INCIDENTS, incident(1))
        await world.publish("org:globex:incidents", incident(2))
        assert (await client.push())["channel"] == "org:globex:incidents"


async def test_an_org_that_is_gained_reaches_older_connections_of_the_session_whatever_newer_ones_hold(world: World) -> None:
    token = world.doors.open("acme")
    async with AsyncExitStack() as tabs:
        old = await tabs.enter_async_context(world.client(token))
        world.doors.move(token, "acme", "globex")
        for _ in range(8):
            await tabs.enter_async_context(world.client(token))
        asked = world.doors.asked
        while world.doors.asked < asked + 2:
            await asyncio.sleep(0.01)
        assert "subscribe" in await old.ask(subscribe={"channel": "org:globex:incidents"})


async def test_access_that_cannot_be_checked_for_a_while_stays_as_it_was(world: World) -> None:
    token = world.doors.open("acme")
    async with world.client(token) as client:
        world.doors.broken, asked = True, world.doors.asked
        await until(lambda: world.doors.asked > asked + 1)
        assert "subscribe" in await client.ask(**SUBSCRIBE)
        world.doors.broken = False
        world.doors.revoke(token)
        assert (await client.closed())[0] == 3500


@pytest.mark.spec("GTW-E08")
async def test_a_foreign_page_is_refused_before_the_handshake_and_a_program_is_not(start: Start) -> None:
    world = await start(allowed_origins=["http://127.0.0.1:8600"])
    async with world.client(world.doors.open("acme"), origin="http://127.0.0.1:8600") as client:
        assert "subscribe" in await client.ask(**SUBSCRIBE)
    async with world.client(world.doors.open("acme")) as client:
        assert "subscribe" in await client.ask(**SUBSCRIBE)
    for origin in ("https://evil.example", "http://127.0.0.1:8601", "null"):
        with pytest.raises(InvalidStatus) as refused:
            await connect(world.url, origin=origin)  # type: ignore[arg-type]
        assert refused.value.response.status_code == 403
    assert not world.gateway.hub.clients


@pytest.mark.spec("GTW-E04")
async def test_a_client_is_pinged_and_closed_when_it_does_not_answer(start: Start) -> None:
    world = await start(Limits(watch_s=0.01, ping_s=0.05, pong_s=1.0))
    async with world.client(world.doors.open("acme")) as client:
        for _ in range(3):
            await client.ping()
            await client.send({})
        assert await client.closed() == (3012, "no pong")


async def test_a_connection_that_says_nothing_is_closed(start: Start) -> None:
    world = await start(Limits(watch_s=0.01, connect_s=0.1))
    async with world.client() as client:
        assert await client.closed() == (3502, "stale: expected connect within 0.1 s")


@pytest.mark.spec("GTW-E11")
@pytest.mark.spec("GTW-E05")
async def test_a_client_that_sends_too_many_commands_is_closed(start: Start) -> None:
    world = await start(Limits(watch_s=0.02, commands_per_s=1, commands_burst=5))
    async with world.client(world.doors.open("acme")) as client:
        await client.send(*[{"id": number, "presence": {"channel": METRICS}} for number in range(10, 20)])
        assert await client.closed() == (3013, "too many requests: expected at most 1 commands a second")


@pytest.mark.spec("GTW-E09")
async def test_a_message_that_is_too_large_ends_the_connection(start: Start) -> None:
    world = await start(Limits(watch_s=0.02, message_bytes=1_000))
    async with world.client(world.doors.open("acme")) as client:
        await client.send({"id": 9, "rpc": {"data": "x" * 2_000}})
        assert (await client.closed())[0] == 1009


async def test_binary_frames_are_of_another_protocol(world: World) -> None:
    async with world.client(world.doors.open("acme")) as client:
        await client.websocket.send(b"\x00\x01")
        assert await client.closed() == (3506, "inappropriate protocol: expected JSON in text frames, got binary")


@pytest.mark.spec("GTW-E10")
async def test_connections_are_limited_by_org_and_in_all(start: Start) -> None:
    world = await start(Limits(watch_s=0.02, connections_per_org=2, connections=3))
    async with world.client(world.doors.open("acme")), world.client(world.doors.open("acme", "globex")):
        async with world.client() as third:
            await third.send({"id": 1, "connect": {"token": world.doors.open("acme")}})
            assert await third.closed() == (3504, "connection limit: expected at most 2 of an org")
        async with world.client(world.doors.open("globex")):
            with pytest.raises(InvalidStatus) as refused:
                await connect(world.url)
            assert refused.value.response.status_code == 503
            assert (await asyncio.to_thread(fetched, world, "/readyz"))[0] == 503
    await until(lambda: not world.gateway.hub.clients)
    async with world.client(world.doors.open("acme")) as client:
        assert "subscribe" in await client.ask(**SUBSCRIBE)


@pytest.mark.spec("GTW-E10")
async def test_subscriptions_are_limited_by_client_and_by_org(start: Start) -> None:
    world = await start(Limits(watch_s=0.02, subscriptions=2, subscriptions_per_org=3))
    async with world.client(world.doors.open("acme")) as client, world.client(world.doors.open("acme")) as second:
        for channel in (INCIDENTS, METRICS):
            assert "subscribe" in await client.ask(subscribe={"channel": channel})
        error = (await client.ask(subscribe={"channel": METRICS + ":USD"}))["error"]
        assert error == {"code": 106, "message": "limit exceeded: expected at most 2 subscriptions"}
        assert "subscribe" in await second.ask(**SUBSCRIBE)
        error = (await second.ask(subscribe={"channel": METRICS}))["error"]
        assert error == {"code": 106, "message": "limit exceeded: expected at most 3 subscriptions of an org"}
        assert "unsubscribe" in await client.ask(unsubscribe={"channel": METRICS})
        assert "subscribe" in await second.ask(subscribe={"channel": METRICS})


@pytest.mark.spec("GTW-E13")
async def test_messages_are_compressed_for_those_who_ask_for_it_and_for_nobody_else(world: World) -> None:
    token = world.doors.open("acme")
    async with world.client(token, compression="deflate") as plain:
        assert plain.websocket.protocol.extensions == []
        async with world.client(token, path="?compress=1", compression="deflate") as client:
            assert [type(extension).__name__ for extension in client.websocket.protocol.extensions] == ["PerMessageDeflate"]
            for reader in (plain, client):
                assert "subscribe" in await reader.ask(**SUBSCRIBE)
            for number in range(3):
                await world.publish(INCIDENTS, incident(number, text="long " * number * 20_000))
            for reader in (plain, client):
                got = [(await reader.push())["pub"]["data"]["items"][0]["text"] for _ in range(3)]
                assert got == ["long " * number * 20_000 for number in range(3)]


async def test_rpc_calls_the_methods_there_are(start: Start) -> None:
    async def greet(grant: Grant, data: bytes) -> bytes:
        if data == b"null":
            raise CommandError(codes.BAD_REQUEST, "expected a name, got null")
        return json.dumps({"to": json.loads(data), "from": grant.subject}, indent=1).encode()

    world = await start(methods={"greet": greet})
    async with world.client(world.doors.open("acme", subject="ann")) as client:
        assert (await client.ask(rpc={"method": "greet", "data": "ben"}))["rpc"]["data"] == {"to": "ben", "from": "ann"}
        assert (await client.ask(rpc={"method": "greet", "data": None}))["error"]["message"].endswith("expected a name, got null")
        assert (await client.ask(rpc={"method": "nope", "data": {}}))["error"]["code"] == 104


async def test_what_fails_within_a_command_costs_that_command_only(start: Start) -> None:
    async def fail(grant: Grant, data: bytes) -> bytes:
        raise KeyError("a bug")

    world = await start(methods={"fail": fail})
    async with world.client(world.doors.open("acme")) as client:
        error = (await client.ask(rpc={"method": "fail"}))["error"]
        assert error == {"code": 100, "message": "internal server error", "temporary": True}
        assert "subscribe" in await client.ask(**SUBSCRIBE)


async def test_methods_that_the_gateway_does_not_offer_are_refused(world: World) -> None:
    async with world.client(world.doors.open("acme")) as client:
        assert (await client.ask(publish={"channel": INCIDENTS, "data": {}}))["error"] == {
            "code": 103, "message": "permission denied",
        }  # fmt: skip
        assert (await client.ask(sub_refresh={"channel": INCIDENTS, "token": "t"}))["error"]["code"] == 108
        await client.send({"send": {"data": {}}})
        assert "presence" in await client.ask(presence={"channel": INCIDENTS})


def fetched(world: World, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{world.port}{path}", timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.spec("GTW-E14")
async def test_health_and_metrics_are_plain_http_on_the_same_port(world: World) -> None:
    assert await asyncio.to_thread(fetched, world, "/healthz") == (200, "ok\n")
    assert await asyncio.to_thread(fetched, world, "/readyz") == (200, "ok\n")
    assert (await asyncio.to_thread(fetched, world, "/elsewhere"))[0] == 404
    _, document = await asyncio.to_thread(fetched, world, "/asyncapi.json")
    assert json.loads(document) == asyncapi_document(world.url)
    async with world.client(world.doors.open("acme")) as client:
        assert "subscribe" in await client.ask(**SUBSCRIBE)
        assert (await client.ask(rpc={"method": "nope"}))["error"]["code"] == 104
        await world.publish(INCIDENTS, incident(1))
        await client.push()
        _, text = await asyncio.to_thread(fetched, world, "/metrics")
        for line in (
            "cmis_gateway_connections 1", "cmis_gateway_subscriptions 1", "cmis_gateway_publications_total 1",
            "cmis_gateway_messages_total 1", "cmis_gateway_commands_total 3", "cmis_gateway_queue_bytes 0",
            'cmis_gateway_errors_total{code="104"} 1', "# TYPE cmis_gateway_bytes_total counter",
        ):  # fmt: skip
            assert line in text.splitlines()
        world.doors.revoke("token-1")
        await client.closed()
    _, text = await asyncio.to_thread(fetched, world, "/metrics")
    assert 'cmis_gateway_closes_total{code="3500"} 1' in text.splitlines()


@pytest.mark.spec("GTW-E15")
async def test_the_gateway_stops_by_telling_everyone_to_come_back(start: Start) -> None:
    world = await start(Limits(watch_s=0.02, drain_s=0.2))
    token = world.doors.open("acme")
    connections = [await connect(world.url) for _ in range(30)]
    for connection in connections[:25]:
        await connection.send(json.dumps({"id": 1, "connect": {"token": token}}))
        await connection.recv()
    stopping = asyncio.create_task(world.gateway.stop())
    for connection in connections:
        with pytest.raises(ConnectionClosed):
            await connection.recv()
    assert {connection.close_code for connection in connections} == {3001}
    await stopping
    with pytest.raises(OSError):
        await connect(world.url)


async def test_a_connection_that_asks_for_nothing_does_not_hold_up_the_end(start: Start) -> None:
    world = await start(Limits(watch_s=0.02, connect_s=3_600))
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    await asyncio.to_thread(fetched, world, "/healthz")  # so it has been accepted
    async with asyncio.timeout(20):
        await world.gateway.stop()
        assert await reader.read() == b""
    writer.close()


HANDSHAKE = (
    b"GET /connection/websocket HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def frame(opcode: int, payload: bytes) -> bytes:
    """Masked, with zeros."""
    return bytes([0x80 | opcode, 0x80 | len(payload), 0, 0, 0, 0]) + payload


async def test_nothing_follows_the_close_frame_of_a_client_that_stays(start: Start) -> None:
    """And it does not disturb the others: pings go on."""
    world = await start(Limits(watch_s=0.01, ping_s=0.05, pong_s=60, close_s=60))
    token = world.doors.open("acme")
    async with world.client(token) as other:
        assert "subscribe" in await other.ask(**SUBSCRIBE)
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        writer.write(HANDSHAKE + frame(1, b'{"id":1,"connect":{"token":"%b"}}' % token.encode()))
        writer.write(frame(1, b'{"id":2,"subscribe":{"channel":"%b"}}' % INCIDENTS.encode()))
        await reader.readuntil(b'"id":2')
        writer.write(frame(8, (1000).to_bytes(2)))
        assert (await reader.read()).endswith(b"\x88\x02\x03\xe8")
        for _ in range(3):
            await other.ping()
        await world.publish(INCIDENTS, incident(1))
        assert (await other.push())["pub"]["offset"] == 1
        assert world.gateway.hub.figures.closes[codes.SERVER_ERROR] == 0
        writer.close()


async def test_small_pushes_are_sent_at_once_and_the_kernel_holds_little_for_who_does_not_read(start: Start) -> None:
    world = await start(Limits(socket_bytes=20_000))
    async with world.client(world.doors.open("acme")):
        (client,) = world.gateway.hub.clients
        sock = client.socket._connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 40_000  # Linux counts its own part in


async def test_a_client_that_does_not_take_part_in_closing_does_not_hold_up_the_end(start: Start) -> None:
    world = await start(Limits(watch_s=0.02, drain_s=0.05, close_s=0.1))
    _, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(HANDSHAKE)
    await until(lambda: len(world.gateway.hub.clients) == 1)
    async with asyncio.timeout(20):
        await world.gateway.stop()
    writer.close()
