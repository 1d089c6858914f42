"""The endpoint behind a real uvicorn on loopback: streams, limits while reading, compressed bombs."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from cmis_stream.api import ingest

NOW = 1_767_225_600_000
LINE = json.dumps({"id": "e", "ts": NOW, "platform": "meta", "campaign": "c", "impressions": 1}).encode() + b"\n"


async def test_a_streamed_body_without_a_length_is_taken(world: Any) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield LINE * 100
            await asyncio.sleep(0)

    async with world.served() as url, httpx.AsyncClient(trust_env=False) as client:
        response = await client.post(f"{url}/api/orgs/acme/events", content=parts(), headers=world.headers())
        assert response.status_code == 200 and response.json()["accepted"] == 2_000


@pytest.mark.parametrize("compressed", [False, True])
async def test_a_body_over_the_limit_is_refused_while_it_is_read(
    world: Any, monkeypatch: pytest.MonkeyPatch, compressed: bool
) -> None:
    monkeypatch.setattr(ingest, "LARGEST_COMPRESSED", 100_000)
    monkeypatch.setattr(ingest, "LARGEST_BODY", 100_000)
    more = {"Content-Encoding": "gzip"} if compressed else {}
    sent = 0

    async with world.served() as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = {"Host": host, "Transfer-Encoding": "chunked", **world.headers(), **more}
        writer.write(
            b"POST /api/orgs/acme/events HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in head.items()).encode() + b"\r\n"
        )
        answer = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
        try:
            while not answer.done() and sent < 50_000_000:
                writer.write(b"%x\r\n%s\r\n" % (10_000, b"x" * 10_000))
                sent += 10_000
                await writer.drain()
                await asyncio.sleep(0)
        except ConnectionError:
            pass
        assert (await answer).startswith(b"HTTP/1.1 413") and sent < 40_000_000
        writer.close()


async def test_a_declared_length_over_the_limit_is_refused_at_once(world: Any) -> None:
    async with world.served() as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = {"Host": host, "Content-Length": str(ingest.LARGEST_BODY + 1), **world.headers()}
        writer.write(
            b"POST /api/orgs/acme/events HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in head.items()).encode() + b"\r\n"
        )
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 413")
        writer.close()


async def test_a_bomb_is_refused_without_memory_growth(world: Any) -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(b" " * (1 << 20)) for _ in range(2_000)) + packer.flush()
    assert len(bomb) < ingest.LARGEST_COMPRESSED
    async with world.served() as url, httpx.AsyncClient(trust_env=False, timeout=30) as client:
        tracemalloc.start()
        try:
            headers = world.headers(Content_Encoding="gzip")
            response = await client.post(f"{url}/api/orgs/acme/events", content=bomb, headers=headers)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert response.status_code == 413 and response.json()["type"] == "/problems/too_large"
    assert peak < 30 << 20


async def test_large_bodies_leave_the_event_loop(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    original = ingest._decoded

    def noted(*args: Any) -> Any:
        threads.append(threading.current_thread().name)
        return original(*args)

    monkeypatch.setattr(ingest, "_decoded", noted)
    async with world.served() as url, httpx.AsyncClient(trust_env=False) as client:
        for body, headers in (
            (LINE, world.headers()),
            (LINE * 5_000, world.headers()),
            (
                gzip.compress(b"".join(LINE.replace(b'"e"', b'"e%d"' % i) for i in range(20_000))),
                world.headers(Content_Encoding="gzip"),
            ),
        ):
            response = await client.post(f"{url}/api/orgs/acme/events", content=body, headers=headers)
            assert response.status_code == 200
    main = threading.main_thread().name
    assert threads[0] == main and main not in threads[1:] and len(threads) == 3


async def test_a_sender_that_hangs_up_harms_nobody(world: Any) -> None:
    async with world.served() as url:
        host, port = url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = {"Host": host, "Content-Length": "1000", **world.headers()}
        writer.write(
            b"POST /api/orgs/acme/events HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in head.items()).encode() + b"\r\nx"
        )
        await writer.drain()
        writer.close()
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"{url}/openapi.json")).status_code == 200
    assert not world.log.batches and not world.log.dead


async def test_small_requests_are_cheap(world: Any) -> None:
    """An upper bound that only a mistake exceeds: the house's figure is in the measurements, not here."""
    transport = httpx.ASGITransport(world.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        await client.post("/api/orgs/acme/events", content=LINE, headers=world.headers())
        start = time.process_time()
        for _ in range(100):
            await client.post("/api/orgs/acme/events", content=LINE, headers=world.headers())
        assert (time.process_time() - start) / 100 < 0.02
