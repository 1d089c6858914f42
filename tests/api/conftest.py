"""A real app over real stores, and a log that remembers, kept in memory; over ASGI and over a loopback port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from cmis_stream.api.app import create_app
from cmis_stream.api.auth import Auth
from cmis_stream.api.hosts import Hosts
from cmis_stream.api.ingest import ApiPorts
from cmis_stream.api.page import Page
from cmis_stream.api.session import session_router
from cmis_stream.core.batch import Batch
from cmis_stream.feeds.decode import Refusal
from cmis_stream.store.database import Database
from cmis_stream.store.sessions import SessionStore
from cmis_stream.store.signing import GatewayTokens, signing_key
from cmis_stream.store.tokens import TokenStore

NOW = 1_767_225_600_000


class Log:
    """What was published, and an error to answer with instead."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, Batch]] = []
        self.dead: list[tuple[str, list[Refusal], str]] = []
        self.error: Exception | None = None
        self.now_ms = NOW

    async def publish(self, org: str, batch: Batch) -> None:
        if self.error is not None:
            raise self.error
        self.batches.append((org, batch))

    async def dead_letter(self, org: str, refusals: list[Refusal], source: str) -> None:
        if self.error is not None:
            raise self.error
        self.dead.append((org, refusals, source))


class World:
    """The app with its session routes and a page in `page`, a folder that is still empty."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, Log()
        self.database = Database(f"sqlite:///{folder / 'store.db'}")
        self.tokens = TokenStore(self.database)
        self.sessions = SessionStore(self.database, self.tokens)
        self.gateway_tokens = GatewayTokens(signing_key(folder / "gateway.key"))
        self.page = folder / "page"
        for slug in ("acme", "globex"):
            self.tokens.create_org(slug, slug.title())
        self.token, self.text = self.tokens.create("acme", ["ingest"])
        hosts = Hosts(public=["stream.example"], gateway_port=8601)
        self.auth = Auth(self.tokens, self.sessions, hosts, self.now)
        ports = ApiPorts(self.auth, self.log.publish, self.log.dead_letter, self.now)
        self.app: FastAPI = create_app(ports, [session_router(self.auth, self.gateway_tokens)], Page(hosts, self.page))

    def now(self) -> int:
        return self.log.now_ms

    def close(self) -> None:
        self.sessions.close()
        self.tokens.close()
        self.database.close()

    def headers(self, **more: str) -> dict[str, str]:
        given = {name.replace("_", "-"): value for name, value in more.items()}
        return {"Authorization": f"Bearer {self.text}", "Content-Type": "application/x-ndjson", **given}

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        """The app behind uvicorn on a free loopback port."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            server = uvicorn.Server(uvicorn.Config(self.app, log_level="error", lifespan="off"))
            task = asyncio.create_task(server.serve([listener]))
            while not server.started:
                await asyncio.sleep(0.01)
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                server.should_exit = True
                await task


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(world.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
