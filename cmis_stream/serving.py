"""An HTTP server inside this process, and sockets on free ports."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from cmis_stream.core.errors import ConfigError

PORTS_TRIED = 20
STOPS_WITHIN_S = 1


class _Uvicorn(uvicorn.Server):
    """Without signal handlers: this process has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Serves an app on a listening socket, from `start` to `stop`; the socket is its own then."""

    def __init__(self, app: ASGIApp, listening: socket.socket) -> None:
        # Websockets have a server of their own; an upgrade here is an ordinary request.
        config = uvicorn.Config(app, lifespan="off", ws="none", log_level="warning", access_log=False, backlog=2048)
        config.timeout_graceful_shutdown = STOPS_WITHIN_S
        self._server, self._socket = _Uvicorn(config), listening
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when requests are answered; raises what kept the server from starting."""
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
                raise ConfigError("the HTTP server ended while it was starting; cmis.log in the data folder says why")
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """New requests are refused, those under way have a second to be answered."""
        self._server.should_exit = True
        if self._serving is not None:
            await asyncio.wait([self._serving])
        self._socket.close()


def listening_socket(host: str, port: int, option: str = "--port") -> socket.socket:
    """A socket on `port`, or on the next free one when it is taken (0: any). ConfigError when none is; it names `option`."""
    last = min(port + PORTS_TRIED - 1, 65_535) if port else 0
    for candidate in range(port, last + 1):
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # What it accepts inherits this. asyncio sets it only where a socket names its protocol, which these do not: small
        # answers then wait 40 ms for the other side's acknowledgement.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            sock.bind((host, candidate))
            sock.listen(2048)
        except OSError as error:
            sock.close()
            if error.errno != errno.EADDRINUSE:
                raise ConfigError(f"cannot listen on {host}:{candidate}: {error.strerror}") from None
        else:
            return sock
    raise ConfigError(f"ports {port} to {last} on {host} are all taken; choose another with {option}")
