"""The gateway's server: websockets on a port of its own, beside them /healthz, /readyz, /metrics, /status and
/asyncapi.json.

Frames are built once for all and written straight to the transport (`frames.py`). Connections with permessage-deflate, which
costs 2.7 times the CPU, go through the library; a client asks for it with `?compress=1`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Protocol, cast
from urllib.parse import parse_qs, urlsplit

import msgspec
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.http11 import Request, Response
from websockets.protocol import OPEN

from cmis_stream.backplane.contract import Backplane
from cmis_stream.gateway import codes
from cmis_stream.gateway.asyncapi import asyncapi_document
from cmis_stream.gateway.client import Client
from cmis_stream.gateway.codes import Disconnect
from cmis_stream.gateway.figures import prometheus
from cmis_stream.gateway.frames import payloads
from cmis_stream.gateway.hub import Hub, Method
from cmis_stream.gateway.limits import Limits
from cmis_stream.gateway.ports import Access, Snapshots

PATH = "/connection/websocket"
ABNORMAL = 1006
"""The close code of a connection that ended without one."""
UNREAD_BYTES = 4 << 20
"""Of a socket that a client may leave unread; what fills it beyond our queues is answers to pings that it keeps sending."""
DRAIN_STEPS = 10
_EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


class ProcessHealth(Protocol):
    """`health.health.Health`; troubles are sentences when they are written."""

    def dead(self) -> Sequence[object]: ...

    async def not_ready(self) -> Sequence[object]: ...

    async def exposition(self) -> bytes: ...

    async def status(self) -> dict[str, Any]: ...


class _Connection(ServerConnection):
    """A websocket that tells its client's outbox when the socket is full. The library does not learn of it: it would wait for
    room before it closes, and one that reads nothing would never be closed."""

    client: Client | None = None

    def __init__(self, *arguments: Any, handshaking: set[_Connection], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._handshaking = handshaking

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._handshaking.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._handshaking.discard(self)

    def opened(self, client: Client) -> None:
        self._handshaking.discard(self)
        self.client = client

    def pause_writing(self) -> None:
        if self.client is not None:
            self.client.outbox.pause()

    def resume_writing(self) -> None:
        if self.client is not None:
            self.client.outbox.resume()

    def send_data(self) -> None:
        super().send_data()
        if self.client is not None and self.protocol.state is not OPEN:
            self.client.outbox.stop()  # nothing may follow a close frame

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.get_write_buffer_size() > UNREAD_BYTES:
            self.transport.abort()


class _Socket:
    """`client.Socket` over a connection."""

    def __init__(self, connection: _Connection, close_s: float) -> None:
        self._connection, self._close_s = connection, close_s
        self._closing: asyncio.Task[None] | None = None
        self.write: Callable[[bytes], None] = connection.transport.write
        if connection.protocol.extensions:
            self.write = self._write_compressed

    def _write_compressed(self, frames: bytes) -> None:
        for payload in payloads(frames):
            self._connection.protocol.send_text(payload)
        self._connection.send_data()

    def close(self, code: int, reason: str) -> None:
        self._closing = asyncio.create_task(self._connection.close(code, reason))


def _limit_buffer(sock: socket.socket, buffer_bytes: int) -> None:
    # A large one would take in megabytes before anything counts as waiting.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)


class Gateway:
    """Serves a node's hub. Made in a running event loop or before; from `start` to `stop`."""

    def __init__(
        self,
        backplane: Backplane,
        access: Access,
        snapshots: Snapshots,
        limits: Limits | None = None,
        *,
        allowed_origins: Collection[str] = (),
        node: str = "gateway",
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        methods: Mapping[str, Method] | None = None,
        health: ProcessHealth | None = None,
        is_operator: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """allowed_origins: of pages that may connect, as browsers write them; programs send none. node: this one's name among
        others. clock: epoch ms. methods: what rpc commands call, by name. health: of the process; None: the gateway's own
        figures are all. is_operator: whether a bearer token may read /status."""
        self._health, self._is_operator = health, is_operator
        self.limits = limits or Limits()
        self.hub = Hub(
            backplane, access, snapshots, self.limits,
            node=node, version=version("cmis-stream"), clock=clock, methods=methods or {},
        )  # fmt: skip
        self._origins = {origin.lower() for origin in allowed_origins}
        self._server: Server | None = None
        self._handshaking: set[_Connection] = set()
        self._draining = False

    async def start(self, listening: socket.socket) -> int:
        """Accepts connections on a listening socket, which is the gateway's from then on; returns its port."""
        limits = self.limits
        self._server = await serve(
            self._serve,
            sock=listening,
            # Called like the class that it is typed as.
            create_connection=cast(type[ServerConnection], partial(_Connection, handshaking=self._handshaking)),
            process_request=self._respond,
            compression=None,  # see `_respond`
            server_header=None,
            open_timeout=limits.connect_s,
            close_timeout=limits.close_s,
            ping_interval=None,  # the protocol has its own
            max_size=limits.message_bytes,
            write_limit=0,  # so that `pause_writing` means: not everything has been taken
            logger=logging.getLogger("cmis.gateway.websockets"),
        )
        await self.hub.start()
        port: int = listening.getsockname()[1]
        return port

    async def stop(self) -> None:
        """Accepts nothing more and closes all connections with 3001, a few at a time, so that they do not all come back at
        once; within drain_s + close_s. Without `start` it does nothing."""
        if self._server is None:
            return
        self._draining = True
        self._server.close(close_connections=False)
        for connection in list(self._handshaking):
            connection.transport.abort()
        clients = list(self.hub.clients)
        for step in range(DRAIN_STEPS):
            for client in clients[step::DRAIN_STEPS]:
                self.hub.disconnect(client, Disconnect(codes.SHUTDOWN))
            if len(clients) > DRAIN_STEPS:
                await asyncio.sleep(self.limits.drain_s / DRAIN_STEPS)
        await self._server.wait_closed()
        await self.hub.stop()

    # --- one connection -----------------------------------------------------------------------------------------------

    async def _serve(self, connection: ServerConnection) -> None:
        assert isinstance(connection, _Connection)
        client = self.hub.opened(_Socket(connection, self.limits.close_s))
        connection.opened(client)
        try:
            _limit_buffer(connection.transport.get_extra_info("socket"), self.limits.socket_bytes)
            while True:
                message = await connection.recv()
                if isinstance(message, str):
                    await self.hub.receive(client, message)
                else:
                    self.hub.disconnect(
                        client, Disconnect(codes.INAPPROPRIATE_PROTOCOL, "expected JSON in text frames, got binary")
                    )
        except (ConnectionClosed, OSError):
            pass
        finally:
            self.hub.closed(client, connection.close_code or ABNORMAL)

    # --- plain HTTP ---------------------------------------------------------------------------------------------------

    async def _respond(self, connection: ServerConnection, request: Request) -> Response | None:
        """None: the handshake may go on."""
        url = urlsplit(request.path)
        match url.path:
            case "/healthz":
                return _told(connection, [] if self._health is None else self._health.dead())
            case "/readyz":
                troubles = [] if self._health is None else await self._health.not_ready()
                if not self._takes_connections:
                    troubles = [*troubles, "no connections are taken now"]
                return _told(connection, troubles)
            case "/metrics":
                return await self._metrics(connection)
            case "/status" if self._health is not None:
                scheme, _, token = request.headers.get("Authorization", "").partition(" ")
                if scheme.lower() != "bearer" or not self._is_operator(token.strip()):
                    return connection.respond(HTTPStatus.FORBIDDEN, "the status is told with a peer token\n")
                return _response(connection, msgspec.json.encode(await self._health.status()).decode(), "application/json")
            case "/asyncapi.json":
                document = asyncapi_document(f"ws://{request.headers.get('Host', '')}{PATH}")
                return _response(connection, msgspec.json.encode(document).decode(), "application/json")
            case _ if url.path != PATH:
                return connection.respond(HTTPStatus.NOT_FOUND, f"expected {PATH}, got {url.path}\n")
        foreign = [origin for origin in request.headers.get_all("Origin") if origin.lower() not in self._origins]
        if foreign:
            return connection.respond(HTTPStatus.FORBIDDEN, "this page may not connect here\n")
        if not self._takes_connections:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "no connections are taken now\n")
        if parse_qs(url.query).get("compress") == ["1"]:
            connection.protocol.available_extensions = [
                ServerPerMessageDeflateFactory(server_max_window_bits=12, client_max_window_bits=12)
            ]
        return None

    @property
    def _takes_connections(self) -> bool:
        return not self._draining and len(self.hub.clients) < self.limits.connections

    async def _metrics(self, connection: ServerConnection) -> Response:
        if self._health is not None:
            return _response(connection, (await self._health.exposition()).decode(), _EXPOSITION)
        outboxes = [client.outbox for client in self.hub.clients]
        text = prometheus(
            self.hub.figures,
            connections=len(outboxes),
            subscriptions=len(self.hub.subscriptions),
            queue_bytes=sum(outbox.lossless_bytes for outbox in outboxes),
            conflated_items=sum(outbox.conflated_items for outbox in outboxes),
        )
        return _response(connection, text, _EXPOSITION)


def _told(connection: ServerConnection, troubles: Collection[object]) -> Response:
    status = HTTPStatus.SERVICE_UNAVAILABLE if troubles else HTTPStatus.OK
    return connection.respond(status, "".join(f"{trouble}\n" for trouble in troubles) or "ok\n")


def _response(connection: ServerConnection, text: str, content_type: str) -> Response:
    response = connection.respond(HTTPStatus.OK, text)
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = content_type
    return response
