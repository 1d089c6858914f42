"""`cmis status` against processes that are really asked over HTTP."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from starlette.requests import Request

from cmis_stream.api.app import plain_app
from cmis_stream.api.operations import Authorize, local_or, operations_router
from cmis_stream.cli_status import status
from cmis_stream.core.errors import ConfigError
from cmis_stream.health.health import Health
from cmis_stream.serving import HttpServer, listening_socket
from cmis_stream.store.database import Database, driver_url, shown_url
from cmis_stream.store.signing import OPERATOR, PeerTokens, gateway_key, new_key
from tests.health.support import METRICS, NOW, Held, World

LOCAL = local_or(lambda _: False)


@asynccontextmanager
async def served(world: World, authorize: Authorize = LOCAL) -> AsyncIterator[str]:
    health = Health(world.parts, lambda sick: None)
    sock = listening_socket("127.0.0.1", 0)
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    server = HttpServer(plain_app([operations_router(health, authorize)]), sock)
    await server.start()
    try:
        yield url
    finally:
        await server.stop()


async def told(*arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, status, arguments)


def worker(behind_ms: int = 0) -> World:
    held = Held(position=9, acked=9)
    held.engine.now_ms = NOW - behind_ms
    world = World(held, dead_letters=lambda: {"too_late": 3})
    world.log.end = {METRICS: {3: 10 if not behind_ms else 1_210}}
    return world


async def test_a_healthy_process_is_told_so_and_the_command_ends_with_0() -> None:
    async with served(worker()) as url:
        result = await told("--url", url)
    assert result.exit_code == 0, result.output
    assert result.output.startswith(f"HEALTHY  worker at {url}, version ")
    assert "Behind: this process is 0 s behind, 0 records wait\n" in result.output
    assert "Dead letters: 3 too_late" in result.output


async def test_one_that_lags_is_told_how_far_and_where_and_the_command_ends_with_1() -> None:
    async with served(worker()) as well, served(worker(behind_ms=7_380_000)) as behind:
        result = await told("--url", well, "--url", behind)
    assert result.exit_code == 1
    assert f"NOT HEALTHY  worker at {behind}" in result.output and f"\nHEALTHY  worker at {well}" in f"\n{result.output}"
    assert "Behind: this process is 2 h 3 min behind, 1,200 records wait, most in cmis.metrics.v1, partition 3" in result.output
    assert "! cmis.metrics.v1, partition 3: 7,380 s behind" in result.output


async def test_json_is_the_document_itself() -> None:
    async with served(worker()) as url:
        result = await told("--url", url, "--json")
    document = json.loads(result.output)
    assert document["url"] == url and document["role"] == "worker" and document["partitions"][0]["position"] == 9


async def test_a_process_that_does_not_answer_is_not_healthy(tmp_path: Path) -> None:
    sock = listening_socket("127.0.0.1", 0)
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    sock.close()
    result = await told("--url", url)
    assert result.exit_code == 1 and f"! {url} does not answer" in result.output
    (tmp_path / "instance.json").write_text(json.dumps({"url": url}))
    assert (await told("--data-dir", str(tmp_path))).exit_code == 1


@pytest.mark.parametrize("given", [True, False], ids=["by the environment", "in the folder"])
async def test_it_asks_with_the_installations_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool) -> None:
    key, asked = new_key(), list[str]()
    if given:
        monkeypatch.setenv("CMIS_GATEWAY_KEY", key)
    else:
        (tmp_path / "gateway.key").write_bytes(gateway_key(key, tmp_path / "none"))

    def authorize(request: Request) -> None:
        token = request.headers["Authorization"].removeprefix("Bearer ")
        asked.append(PeerTokens(gateway_key(key, tmp_path / "none")).read(token, time.time_ns() // 1_000_000))

    async with served(worker(), authorize) as url:
        result = await told("--url", url, "--data-dir", str(tmp_path))
    assert result.exit_code == 0 and asked == [OPERATOR]
    monkeypatch.setenv("CMIS_GATEWAY_KEY", "c2hvcnQ=")
    refused = await told("--url", url, "--data-dir", str(tmp_path))
    assert isinstance(refused.exception, ConfigError) and "c2hvcnQ" not in str(refused.exception)


async def test_it_says_which_store_it_is_without_the_password_and_whether_it_can_be_written(tmp_path: Path) -> None:
    with closing(Database(f"sqlite:///{tmp_path / 'store.db'}")) as database:
        world = worker()
        world.parts.store = database
        async with served(world) as url:
            assert f"Store: sqlite:///{tmp_path / 'store.db'} can be written\n" in (await told("--url", url)).output
            with closing(sqlite3.connect(tmp_path / "store.db")) as other:
                other.execute("begin exclusive")
                while (locked := await told("--url", url, "--json")).exit_code == 0:  # what was found is believed for a second
                    await asyncio.sleep(0.1)
        assert json.loads(locked.output)["store"] == {"url": f"sqlite:///{tmp_path / 'store.db'}", "writable": False}
    secret = driver_url("postgresql://cmis_app:hidden@db:5433/cmis?sslmode=require&password=hidden")
    assert shown_url(secret) == "postgresql://cmis_app@db:5433/cmis"


async def test_without_an_instance_it_says_how_to_name_one(tmp_path: Path) -> None:
    result = await told("--data-dir", str(tmp_path))
    assert "no instance is running" in str(result.exception) and "--url" in str(result.exception)
