"""History in a running instance: it follows what the instance takes, and one query answers from it as from the panes."""

from __future__ import annotations

import asyncio
import random
import sys
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path
from typing import Any

import httpx
import pytest

from cmis_stream.core.time import HOUR_MS, rfc3339
from cmis_stream.instance import Instance
from tests.history.bound_process import SEGMENT_S, client_of, send, settings


async def ask(client: httpx.AsyncClient, dataset: str, start_ms: int, end_ms: int) -> list[Any]:
    query = {
        "dataset": dataset, "measures": ["events", "clicks", "spend_micros"], "dimensions": ["time", "campaign"], "step": "1m",
        "from": rfc3339(start_ms), "to": rfc3339(end_ms), "sort": "time,campaign",
    }  # fmt: skip
    response = await client.post("/api/orgs/acme/query", json=query)
    assert response.status_code == 200, response.text
    rows: list[Any] = response.json()["rows"]
    return rows


async def until_alike(instance: Instance, client: httpx.AsyncClient) -> int:
    """Returns once history says of each minute what the panes say; how many events that are."""
    await instance.drained()
    now_ms = instance.runtime.clock()
    span = now_ms // HOUR_MS * HOUR_MS - HOUR_MS, now_ms // HOUR_MS * HOUR_MS + HOUR_MS
    async with asyncio.timeout(60):
        while (rows := await ask(client, "history", *span)) != await ask(client, "panes", *span):
            await asyncio.sleep(0.1)
    return sum(row[3] for row in rows)


async def test_history_answers_by_minute_as_the_panes_do(tmp_path: Path) -> None:
    async with Instance(settings(tmp_path)) as instance, client_of(instance) as client:
        instance.runtime.history.segment_s = SEGMENT_S
        for number in range(0, 400, 40):
            await send(instance, client, number, 40)
        assert await until_alike(instance, client) == 400
        await send(instance, client, 400, 40)
        assert await until_alike(instance, client) == 440
    assert list((tmp_path / "history" / "events" / "org=acme").rglob("*.parquet"))


@pytest.mark.slow
async def test_history_answers_as_the_panes_do_however_often_the_process_was_killed(tmp_path: Path) -> None:
    before = 0
    for _ in range(3):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.history.bound_process", str(tmp_path), stdout=PIPE, stderr=DEVNULL
        )
        assert process.stdout is not None
        try:
            assert await asyncio.wait_for(process.stdout.readline(), 60) == b"kept\n"
            await asyncio.sleep(random.random())
        finally:
            process.kill()
            await process.wait()
        async with Instance(settings(tmp_path)) as instance, client_of(instance) as client:
            instance.runtime.history.segment_s = SEGMENT_S
            events = await until_alike(instance, client)
        assert events > before
        before = events
