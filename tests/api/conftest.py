"""A real app over a real token store, and a log that remembers, kept in memory; over ASGI and over a loopback port."""

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
from cmis_stream.api.ingest import ApiPorts
from cmis_stream.core.batch import Batch
from cmis_stream.feeds.decode import Refusal
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
    def __init__(self, tokens: TokenStore) -> None:
        self.tokens, self.log = tokens, Log()
        for slug in ("acme", "globex"):
            tokens.create_org(slug, slug.title())
        self.token, self.text = tokens.create("acme", ["ingest"])
        self.ports = ApiPorts(tokens, self.log.publish, self.log.dead_letter, lambda: self.log.now_ms)
        self.app: FastAPI = create_app(self.ports)

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
    tokens = TokenStore.open(tmp_path / "store.db")
    yield World(tokens)
    tokens.close()


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(world.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
