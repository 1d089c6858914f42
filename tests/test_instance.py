"""An instance's life: in which order it opens and closes, and that a start that fails leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

from cmis_stream.core.channels import Channel
from cmis_stream.core.errors import CmisError, ConfigError
from cmis_stream.core.time import rfc3339
from cmis_stream.instance import Instance
from cmis_stream.log.packer import MOST_WAITING
from cmis_stream.runtime import RAW, ROLLUPS
from cmis_stream.settings import Settings
from cmis_stream.store.signing import new_key
from tests.e2e.support import Processes, Up, free_port


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    started = Processes(tmp_path / "processes")
    yield started
    started.end()


def settings(folder: Path) -> Settings:
    return Settings(data_dir=folder, port=free_port(), gateway_port=free_port())


def is_free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return one.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("turns", [1, 5, 50, 500])
async def test_a_start_that_is_cancelled_gives_back_the_lock_and_the_ports(tmp_path: Path, turns: int) -> None:
    given = settings(tmp_path)
    starting = asyncio.create_task(Instance(given).__aenter__())
    for _ in range(turns):
        await asyncio.sleep(0)
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await (await starting).close()  # it was faster
    assert is_free(given.port) and is_free(given.gateway_port or 0) and not (tmp_path / "instance.json").exists()
    async with Instance(given) as instance:
        assert (instance.port, instance.gateway_port) == (given.port, given.gateway_port)


async def test_on_the_folder_of_another_process_it_does_not_start_and_keeps_no_port(tmp_path: Path, processes: Processes) -> None:
    up = Up(processes, tmp_path / "data").ready()
    given = settings(tmp_path / "data")
    with pytest.raises(CmisError, match=str(up.process.popen.pid)):
        await Instance(given).__aenter__()
    assert is_free(given.port) and is_free(given.gateway_port or 0)
    assert json.loads((tmp_path / "data/instance.json").read_text())["url"] == up.url


async def test_with_a_damaged_key_it_says_so_and_keeps_no_port(tmp_path: Path) -> None:
    given = settings(tmp_path)
    (tmp_path / "gateway.key").write_bytes(b"?")
    with pytest.raises(ConfigError, match=r"gateway\.key"):
        Instance(given)
    assert is_free(given.port)


async def test_with_keys_that_are_given_none_lies_in_the_data_folder(tmp_path: Path) -> None:
    given = replace(settings(tmp_path), gateway_key=new_key(), secret_keys=new_key())
    with pytest.raises(ConfigError, match="CMIS_GATEWAY_KEY"):
        Instance(replace(given, gateway_key="c2hvcnQ="))
    async with Instance(given):
        assert not list(tmp_path.rglob("*.key"))
    assert not [key for key in (given.gateway_key, given.secret_keys) if str(key) in repr(given)]


async def test_it_ends_while_browsers_hold_connections_open(tmp_path: Path) -> None:
    instance = await Instance(settings(tmp_path)).__aenter__()
    async with httpx.AsyncClient(base_url=instance.url, trust_env=False) as browser:
        assert (await browser.get("/healthz")).status_code == 200
        idle = await asyncio.open_connection("127.0.0.1", instance.port)
        half = await asyncio.open_connection("127.0.0.1", instance.port)
        half[1].write(b"POST /api/session HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n")
        half[1].write(b"Content-Type: application/json\r\n\r\n{")
        await half[1].drain()
        sockets = [await connect(instance.gateway_url, proxy=None) for _ in range(3)]
        await asyncio.wait_for(instance.close(), 30)
        assert await idle[0].read() == b""
        for one in sockets:
            await one.wait_closed()
            assert one.close_code == 3001  # come back later
        assert is_free(instance.port) and is_free(instance.gateway_port)
        idle[1].close()
        half[1].close()


def raw_event(at_ms: int) -> bytes:
    """Of acme, as a foreign producer writes it."""
    event = {
        "specversion": "1.0", "id": "e1", "source": "//meta/act_7", "type": "cmis.ads.metrics.v1", "orgid": "acme",
        "time": rfc3339(at_ms), "data": {"platform": "meta", "campaign_id": "c1", "clicks": 3},
    }  # fmt: skip
    return json.dumps(event).encode()


async def test_raw_events_wait_while_too_much_waits_to_be_written(tmp_path: Path) -> None:
    async with Instance(settings(tmp_path)) as instance:
        runtime = instance.runtime
        runtime.packer.waiting += MOST_WAITING
        await (await runtime.send(RAW, 0, raw_event(runtime.clock())))
        await asyncio.sleep(0.5)  # several tries; none may end the process
        assert not runtime.failed.done() and sum(owner.engine.events for owner in instance.owners) == 0
        runtime.packer.waiting -= MOST_WAITING
        async with asyncio.timeout(30):
            while sum(owner.engine.events for owner in instance.owners) != 1:
                await asyncio.sleep(0.02)


async def test_there_is_no_snapshot_of_an_owner_that_is_behind_what_clients_have_been_told(tmp_path: Path) -> None:
    async with Instance(settings(tmp_path)) as instance:
        runtime, channel = instance.runtime, Channel("acme", "metrics")
        runtime.ticking = False
        await (await runtime.send(RAW, 0, raw_event(runtime.clock())))
        async with asyncio.timeout(30):
            while (owner := runtime.owner_of("acme")) is None or runtime.delivery.passed(ROLLUPS, owner.partition) < 0:
                await asyncio.sleep(0.02)
        assert await runtime.snapshots.snapshot(channel) is not None
        owner.position = (
            runtime.delivery.passed(ROLLUPS, owner.partition) - 1
        )  # as after a move, before the rest is applied again
        assert await runtime.snapshots.snapshot(channel) is None
