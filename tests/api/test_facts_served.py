"""Commands on facts through a whole instance: REST, the log, the agent, the store, and back; also after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

from cmis_stream import stores
from cmis_stream.core.ids import fact_id
from cmis_stream.instance import Instance
from cmis_stream.live.commands import COMMANDS
from cmis_stream.modules.discovery import all_kinds
from cmis_stream.settings import Settings
from cmis_stream.store.facts import Change
from tests.store.fact_support import NOW, TRIAL

FINDING = fact_id(NOW, "f")
PATH = f"/api/orgs/acme/trial/findings/{FINDING}"


@pytest.fixture(autouse=True)
def with_one_more_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "all_kinds", partial(all_kinds, [TRIAL]))


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[Instance, httpx.AsyncClient]]:
    """With a token of acme, whose org is there from then on."""
    async with Instance(Settings(data_dir=folder, port=0, gateway_port=0)) as instance:
        tokens = instance.runtime.tokens
        if tokens.org("acme") is None:
            tokens.create_org("acme", "Acme")
        _, text = tokens.create("acme", ["read", "write"])
        headers = {"Authorization": f"Bearer {text}"}
        async with httpx.AsyncClient(base_url=instance.url, headers=headers, trust_env=False, timeout=30) as client:
            yield instance, client


async def test_commands_are_carried_out_and_stay_so(tmp_path: Path) -> None:
    async with served(tmp_path) as (instance, client):
        change = Change("acme", "finding", FINDING, NOW, lambda _: {"name": "a"})
        assert await asyncio.to_thread(instance.runtime.facts.write, [change], "w", "e", {("t", 0): 0}, {})
        answers = await asyncio.gather(*(client.post(f"{PATH}/add", json={"note": f"n{number}"}) for number in range(20)))
        for answer in answers:
            done = answer
            if answer.status_code == 202:  # on a machine that is very busy
                done = await carried_out(client, answer.headers["location"])
            assert done.status_code == 200, done.text
    async with served(tmp_path) as (_, client):
        found = (await client.get(PATH)).json()
        assert (found["version"], found["count"]) == (21, 20) and set(found["notes"]) == {f"n{number}" for number in range(20)}
        again = await client.post(f"{PATH}/add", json={"note": "after"})
        assert again.status_code in (200, 202)


async def carried_out(client: httpx.AsyncClient, where: str) -> httpx.Response:
    async with asyncio.timeout(60):
        while (answer := await client.get(where)).status_code == 404:
            await asyncio.sleep(0.05)
    return answer


async def test_what_is_no_command_is_a_dead_letter_and_holds_nothing_up(tmp_path: Path) -> None:
    async with served(tmp_path) as (instance, client):
        runtime = instance.runtime
        for partition in range(runtime.partitions):
            await (await runtime.send(COMMANDS, partition, b"{"))
        async with asyncio.timeout(60):
            while runtime.dead_letters["malformed"] < runtime.partitions:
                await asyncio.sleep(0.02)
        change = Change("acme", "finding", FINDING, NOW, lambda _: {"name": "a"})
        assert await asyncio.to_thread(runtime.facts.write, [change], "w", "e", {("t", 0): 0}, {})
        answer = await client.post(f"{PATH}/add", json={"note": "x"}, headers={"Idempotency-Key": "k"})
        if answer.status_code == 202:
            await carried_out(client, answer.headers["location"])
        assert (await client.get(PATH)).json()["notes"] == ["x"] and not runtime.failed.done()
