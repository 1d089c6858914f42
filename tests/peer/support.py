"""Workers that serve the panes of real owners on loopback ports, and those who ask them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from cmis_stream.api.problems import Problem, on_problem
from cmis_stream.live.snapshots import MetricSnapshots
from cmis_stream.log.topics import partition_for
from cmis_stream.peer.client import Peers
from cmis_stream.peer.server import peer_router
from cmis_stream.serving import HttpServer, listening_socket
from cmis_stream.store.signing import PeerTokens
from tests.core.support import event
from tests.query.test_panes import World

KEY = bytes(32)
NOW = 1_767_225_600_000
PARTITIONS = 8
ACME = partition_for(b"acme", PARTITIONS)
QUERY = {"dataset": "panes", "measures": ["clicks", "spend_micros"], "dimensions": ["campaign"], "from": "-15m"}
EVENTS = [event(0, clicks=3, spend=1.5), event(0, org="globex", campaign="theirs", clicks=9)]


class Worker:
    """Owns the partition of both orgs while its `panes.here` is true. port: as served last."""

    def __init__(self, *, key: bytes = KEY) -> None:
        self.panes = World(EVENTS, partition=ACME)
        self.now_ms, self.port, self.requests = NOW, 0, 0
        metrics = MetricSnapshots(lambda _: self.panes.owner if self.panes.here else None)
        self.app = FastAPI()
        self.app.add_exception_handler(Problem, on_problem)
        self.app.include_router(peer_router(self.panes.queries, metrics, PeerTokens(key), lambda: self.now_ms))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        listening = listening_socket("127.0.0.1", self.port)
        self.port = listening.getsockname()[1]
        server = HttpServer(self, listening)
        await server.start()
        try:
            yield self.url
        finally:
            await server.stop()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.requests += 1
        await self.app(scope, receive, send)


class Map:
    """`peer.client.Owners` as the test says: what is known, and what the group says when it is asked again."""

    def __init__(self, known: str | None, said: str | None = None) -> None:
        self.known, self.said = known, said

    async def owner(self, partition: int, *, instead_of: str | None = None) -> str | None:
        assert partition == ACME
        if instead_of is not None and self.known == instead_of:
            self.known = self.said
        return self.known


@asynccontextmanager
async def peers(owners: Map, key: bytes = KEY) -> AsyncIterator[Peers]:
    made = Peers(owners, PeerTokens(key), PARTITIONS, lambda: NOW)
    try:
        yield made
    finally:
        await made.close()
