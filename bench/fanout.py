"""Fan-out alone: CPU of a gateway process per publication and client, against `websockets.broadcast` and bare sockets.

python -m bench.fanout gateway200 | gateway1000 | gateway1000burst | broadcast200 | broadcast1000 | sockets1000

One org's publications of about 500 bytes go to all clients, one each 20 ms, or (burst) eight at a time. The clients are one
other process, which reads and counts; what is measured is the server's process. `sockets` writes the same bytes with a bare
loop of `send`: what the kernel alone costs. Exact: every client got every byte, up to the last publication.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection

from websockets.asyncio.server import ServerConnection, broadcast, serve

from bench.measure import Report, Stopwatch, job_arguments
from cmis_stream.backplane.contract import Item, Publication
from cmis_stream.backplane.memory import MemoryBackplane
from cmis_stream.core.channels import Channel
from cmis_stream.gateway.limits import Limits
from cmis_stream.gateway.ports import Grant, Snapshot
from cmis_stream.gateway.server import PATH, Gateway

JOBS = {
    "gateway200": ("gateway", 200, 1),
    "gateway1000": ("gateway", 1_000, 1),
    "gateway1000burst": ("gateway", 1_000, 8),
    "broadcast200": ("broadcast", 200, 1),
    "broadcast1000": ("broadcast", 1_000, 1),
    "sockets1000": ("sockets", 1_000, 1),
}
CHANNEL = "org:acme:metrics"
WARM_UP, STEPS, EVERY_S = 10, 100, 0.02
FIRST_OFFSET = 1_000_000
SUBSCRIBED = 7
"""Id of the subscribe command, which the clients wait for."""


class OneOrg:
    """Everyone may see acme; there is no snapshot."""

    async def verify(self, token: str) -> Grant:
        return Grant("bench", token, frozenset({"acme"}), None, None)

    async def changed(self, grants: Collection[Grant]) -> dict[str, Grant | None]:
        return {}

    async def snapshot(self, channel: Channel) -> Snapshot | None:
        return None


def item(number: int) -> Item:
    """About 500 bytes as JSON."""
    entity = f"USD/meta/act_7/campaign_{number:06d}"
    body = {"entity": entity, "at": 1_767_225_600_000 + number, "text": "x" * 390}
    return Item(entity, entity, json.dumps(body, separators=(",", ":")).encode())


Publish = Callable[[int], Awaitable[None]]


@contextlib.asynccontextmanager
async def gateway(listening: socket.socket) -> AsyncIterator[Publish]:
    backplane, port = MemoryBackplane("e", lambda _: ("cmis.rollups.v1", 0)), OneOrg()
    served = Gateway(backplane, port, port, Limits())
    await backplane.reached("cmis.rollups.v1", 0, FIRST_OFFSET - 1)
    await served.start(listening)

    async def publish(number: int) -> None:
        await backplane.publish(CHANNEL, Publication(FIRST_OFFSET + number, [item(number)]))
        await backplane.reached("cmis.rollups.v1", 0, FIRST_OFFSET + number)

    yield publish
    await served.stop()


@contextlib.asynccontextmanager
async def broadcasting(listening: socket.socket) -> AsyncIterator[Publish]:
    """The library alone: a set of connections and its broadcast, of frames as large as the gateway's."""
    connections: set[ServerConnection] = set()

    async def handler(connection: ServerConnection) -> None:
        await connection.recv()
        connections.add(connection)
        await connection.send(json.dumps({"id": SUBSCRIBED}))
        await connection.wait_closed()

    async def publish(number: int) -> None:
        broadcast(connections, _push(number).decode())

    async with serve(handler, sock=listening, compression=None, ping_interval=None):
        yield publish


@contextlib.asynccontextmanager
async def sockets(listening: socket.socket) -> AsyncIterator[Publish]:
    listening.setblocking(False)
    accepted: list[socket.socket] = []

    async def accept() -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listening)
            await loop.sock_recv(connection, 1 << 16)
            connection.send(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + json.dumps({"id": SUBSCRIBED}).encode())
            accepted.append(connection)

    async def publish(number: int) -> None:
        data = b"\x81\x7e\x00\x00" + _push(number)
        for connection in accepted:
            connection.send(data)

    accepting = asyncio.create_task(accept())
    yield publish
    accepting.cancel()
    for connection in accepted:
        connection.close()


def _push(number: int) -> bytes:
    data = Publication(0, [item(number)]).data()
    return b'{"push":{"channel":"%b","pub":{"data":%b,"offset":%d}}}' % (CHANNEL.encode(), data, FIRST_OFFSET + number + 1)


SERVERS = {"gateway": gateway, "broadcast": broadcasting, "sockets": sockets}


async def measured(kind: str, clients: int, at_once: int) -> Report:
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted ones take it over: the same for all jobs
    expected = (WARM_UP + STEPS) * at_once * (len(_push(0)) + 4)
    async with SERVERS[kind](listening) as publish:
        port = listening.getsockname()[1]
        command = [sys.executable, "-m", "bench.fanout", "clients", f"{port}-{clients}-{expected}"]
        other = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        assert other.stdout is not None
        await other.stdout.readline()  # all are subscribed
        number = 0
        for step in range(WARM_UP + STEPS):
            if step == WARM_UP:
                watch = Stopwatch()
            for _ in range(at_once):
                await publish(number)
                number += 1
            await asyncio.sleep(EVERY_S)
        messages = STEPS * at_once * clients
        report = watch.report(0)
        got = (await other.stdout.readline()).decode().strip()
        await other.wait()
    report.exact = got == "all"
    report.note = "" if report.exact else f"clients say: {got}"
    report.extra = {"us_per_message": report.cpu_s / messages * 1e6}
    return report


# --- the other process ------------------------------------------------------------------------------------------------


def clients(port: int, count: int, expected: int) -> None:
    """Subscribes `count` connections, says so, and reads until each has `expected` bytes of publications."""
    request = f"GET {PATH} HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    request += "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    commands = {"id": 1, "connect": {"token": "t"}}, {"id": SUBSCRIBED, "subscribe": {"channel": CHANNEL}}
    payload = "\n".join(json.dumps(command) for command in commands).encode()
    frame = bytes([0x81, 0x80 | 126, *len(payload).to_bytes(2), 0, 0, 0, 0]) + payload  # masked with zeros
    selector = selectors.DefaultSelector()
    got: dict[socket.socket, int] = {}
    for _ in range(count):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(request.encode() + frame)
        seen = b""
        while b'"id":%d' % SUBSCRIBED not in seen.replace(b" ", b""):
            seen += connection.recv(1 << 16)
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ)
        got[connection] = 0
    print("subscribed", flush=True)
    deadline = time.monotonic() + 60
    missing = count
    while missing and time.monotonic() < deadline:
        for key, _ in selector.select(timeout=1):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            size = len(connection.recv(1 << 18))
            got[connection] += size
            if got[connection] >= expected:
                missing -= 1
                selector.unregister(connection)
    wrong = sum(size != expected for size in got.values())
    print("all" if not wrong else f"{wrong} of {count} got another number of bytes than {expected}", flush=True)


def main() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4_096), hard), hard))
    if sys.argv[1] == "clients":
        clients(*(int(part) for part in sys.argv[2].split("-")))
        return
    name, _ = job_arguments(JOBS)
    asyncio.run(measured(*JOBS[name])).print()


if __name__ == "__main__":
    main()
