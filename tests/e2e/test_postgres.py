"""Roles as processes on Kafka, Redis and PostgreSQL that share no folder. The database goes away, its sessions are cut off."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import centrifuge
import httpx
import pytest
from click.testing import CliRunner

from cmis_stream.cli_db import new_keys
from scripts.kafka import Kafka
from scripts.redis import Redis
from tests.e2e.support import COMMAND, Processes, Up
from tests.e2e.support import until as wait_until
from tests.faults.cluster import Part, until
from tests.servers.kafka import own_kafka
from tests.servers.postgres import Urls, postgres, postgres_urls
from tests.servers.redis import own_redis

__all__ = ["own_kafka", "own_redis", "postgres", "postgres_urls"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
AWAY_S = 10.0
"""Longer than everybody's patience with the database (store.database.LOCK_S), and than any connection is believed to live."""
RULE = {
    "key": "spends",
    "name": "Spends",
    "severity": "high",
    "when": {"metric": "spend", "window": "5m", "op": "gt", "value": 10},
}
OTHER = {**RULE, "key": "spends-too", "name": "Spends, too"}


class Roles:
    """A worker, an api and a gateway, each with a data folder of its own. They have the servers and two keys in common."""

    def __init__(self, folder: Path, kafka: Kafka, redis: Redis, urls: Urls) -> None:
        self.folder, self.urls = folder, urls
        self.program = ["env", *CliRunner().invoke(new_keys).output.split(), *COMMAND]
        log, backplane, store = ["--log", kafka.url], ["--backplane", redis.url], ["--store", urls.app]
        self.api = self._part("api", *log, *store)
        self.worker = self._part("worker", *log, *backplane, *store, "--store-relay", urls.relay)
        self.gateway = self._part("gateway", *log, *backplane, *store, "--page-port", self.api.port)
        self.parts = [self.api, self.worker, self.gateway]

    def _part(self, role: str, *arguments: object) -> Part:
        return Part(self.folder, role, self.program, [role, "--data-dir", self.folder / f"data-{role}", *arguments])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.api.port}"

    @property
    def gateway_url(self) -> str:
        return f"ws://127.0.0.1:{self.gateway.port}/connection/websocket"

    def must_run(self) -> bool:
        for part in self.parts:
            part.must_run()
        return True

    async def ready(self) -> list[str]:
        """What /readyz says of those that are not."""
        async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
            answers = [await client.get(f"http://127.0.0.1:{part.port}/readyz") for part in self.parts]
        return [answer.text for answer in answers if answer.status_code != 200]

    def end(self) -> None:
        for part in self.parts:
            if part.run.running:
                part.run.kill()


@pytest.fixture
async def roles(
    tmp_path: Path, own_kafka: Kafka, own_redis: Redis, postgres_urls: Urls, processes: Processes
) -> AsyncIterator[Roles]:
    applied = processes.cmis("topics", "apply", "--log", own_kafka.url)
    assert applied.ended() == 0, applied.text
    made = Roles(tmp_path, own_kafka, own_redis, postgres_urls)
    try:
        for part in made.parts:
            await part.ready()
        yield made
    finally:
        made.end()


class Org:
    """What people and programs of one org have: a token made by the command line, REST."""

    def __init__(self, name: str, processes: Processes, roles: Roles) -> None:
        self.name, self._roles = name, roles
        store = ["--store", roles.urls.app]
        for command in (["org", "create", name], ["token", "create", name, "--scope=ingest", "--scope=read", "--scope=write"]):
            process = processes.cmis(*command, *store, "--data-dir", processes.folder / "unused")
            assert process.ended() == 0, process.text
        self.token = process.text.split()[-1]
        self.client = httpx.AsyncClient(
            base_url=f"{roles.url}/api/orgs/{name}",
            headers={"Authorization": f"Bearer {self.token}"},
            trust_env=False,
            timeout=60,
        )
        self.fed: list[str] = []
        """Campaigns whose spend was taken."""
        self.refused = Counter[int]()
        self._numbers = itertools.count()

    async def create(self, rule: dict[str, Any]) -> None:
        answer = await self.client.post("/alerts/rules", json=rule)
        assert answer.status_code == 201, answer.text

    @asynccontextmanager
    async def feeding(self) -> AsyncIterator[None]:
        """A new campaign that spends, some 20 times a second; sent again until it is taken."""
        task = asyncio.create_task(self._feed())
        try:
            yield
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _feed(self) -> None:
        while True:
            campaign = f"c{next(self._numbers)}"
            event = {"id": campaign, "platform": "meta", "campaign": campaign, "currency": "EUR", "spend": 99}
            while True:
                answer = await self.client.post("/events", json={**event, "ts": time.time_ns() // 1_000_000})
                if answer.status_code == 200:
                    break
                assert answer.status_code in (429, 503), answer.text
                self.refused[answer.status_code] += 1
                await asyncio.sleep(0.1)
            self.fed.append(campaign)
            await asyncio.sleep(0.05)

    async def more(self, count: int) -> None:
        wanted = len(self.fed) + count
        await until(lambda: len(self.fed) >= wanted, f"{count} more campaigns")

    async def incidents(self, rule: str) -> Counter[str]:
        """Campaign -> its incidents of this rule."""
        found, cursor = Counter[str](), dict[str, str]()
        while True:
            answer = await self.client.get("/alerts/history", params={"limit": "500", "filter[rule]": rule, **cursor})
            assert answer.status_code == 200, answer.text
            page = answer.json()
            found.update(item["campaign"] for item in page["items"])
            if page["next"] is None:
                return found
            cursor = {"cursor": page["next"]}

    async def all_fired(self, rule: str, campaigns: list[str]) -> None:
        wanted = Counter(campaigns)
        give_up_at = time.monotonic() + 90
        while (found := await self.incidents(rule)) != wanted:
            assert time.monotonic() < give_up_at, f"missing {sorted(wanted - found)}, too much {sorted(found - wanted)}"
            await asyncio.sleep(0.2)


class Heard(centrifuge.SubscriptionEventHandler):
    def __init__(self) -> None:
        self.fired = Counter[tuple[str, str]]()
        """(rule, campaign)"""
        self.recovered: list[bool] = []
        self.data: list[Any] = []
        self.codes: list[int] = []

    async def on_subscribed(self, ctx: centrifuge.SubscribedContext) -> None:
        self.recovered.append(ctx.recovered)
        self.data.append(ctx.data)

    async def on_publication(self, ctx: centrifuge.PublicationContext) -> None:
        self.fired.update((item["rule"], item["campaign"]) for item in ctx.pub.data["items"] if item.get("state") == "firing")

    async def on_unsubscribed(self, ctx: centrifuge.UnsubscribedContext) -> None:
        self.codes.append(ctx.code)


async def listening(roles: Roles, token: str, channel: str) -> tuple[centrifuge.Client, Heard]:
    """Connecting; it goes on trying."""
    heard = Heard()
    client = centrifuge.Client(roles.gateway_url, token=token, min_reconnect_delay=0.1, max_reconnect_delay=1.0)
    await client.new_subscription(channel, heard, min_resubscribe_delay=0.1, max_resubscribe_delay=1.0).subscribe()
    await client.connect()
    return client, heard


async def test_they_work_as_one_and_nothing_is_lost_when_a_worker_is_killed_and_the_database_goes_away(
    roles: Roles, processes: Processes
) -> None:
    acme, globex = Org("acme", processes, roles), Org("globex", processes, roles)
    answer = await acme.client.post("/gateway-token")  # signed by the api, read by the gateway
    assert answer.status_code == 200, answer.text
    client, heard = await listening(roles, answer.json()["token"], "org:acme:incidents")
    foreign, refused = await listening(roles, globex.token, "org:acme:incidents")
    await until(lambda: heard.recovered and refused.codes == [103], "one to be subscribed and the other to be refused")
    await acme.create(RULE)
    server = roles.urls.server
    async with acme.feeding():
        await until(lambda: heard.fired, "the first incident at the client")
        await acme.more(20)

        await roles.worker.restart()
        await acme.more(20)

        server.stop()
        try:
            away_until = time.monotonic() + AWAY_S
            late, late_heard = await listening(roles, acme.token, "org:acme:incidents")
            refusal = await acme.client.get("/alerts/rules")
            assert refusal.status_code == 503 and refusal.headers["Content-Type"] == "application/problem+json", refusal.text
            assert refusal.json()["type"] == "/problems/unavailable" and int(refusal.headers["Retry-After"]) >= 1
            lost = await acme.client.post("/alerts/rules", json=OTHER)
            assert lost.status_code == 503, lost.text
            while len(reasons := await roles.ready()) < len(roles.parts):
                assert time.monotonic() < away_until + 30, reasons
                await asyncio.sleep(0.2)
            assert all("store" in reason for reason in reasons), reasons
            await asyncio.sleep(max(0.0, away_until - time.monotonic()))
            assert roles.must_run() and heard.codes == [] and late_heard.recovered == []
        finally:
            server.start()
        while await roles.ready():
            assert roles.must_run()
            await asyncio.sleep(0.2)
        await until(lambda: late_heard.recovered, "the client that came meanwhile")
        assert acme.refused[503] > 0, "the feed has met it"
        await acme.more(20)

        for _ in range(3):
            cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity where usename like 'cmis%' and datname = "
            assert int(roles.urls.execute(f"{cut}'{roles.urls.name}'")) > 3
            await acme.more(10)
            assert roles.must_run()
        await acme.create(OTHER)  # also in force: relay and catalog have come back
        first = len(acme.fed) + 5
        await acme.more(20)
    fed = list(acme.fed)
    await acme.all_fired("spends", fed)
    await until(
        lambda: sum(count for (rule, _), count in heard.fired.items() if rule == "spends") >= len(fed), "all at the client"
    )
    assert {campaign: n for (rule, campaign), n in heard.fired.items() if rule == "spends"} == dict.fromkeys(fed, 1)
    assert set((await acme.incidents("spends-too")).values()) == {1}
    assert set(fed[first:]) <= (await acme.incidents("spends-too")).keys()

    query = {"dataset": "panes", "measures": ["events"], "from": "-1h", "to": "now", "step": "1h"}
    figures = (await acme.client.post("/query", json=query)).json()
    assert sum(row[-1] for row in figures["rows"]) == len(fed), figures
    kept = (await acme.client.post("/query", json={**query, "dataset": "history"})).json()
    assert (kept["rows"], kept["watermark"], kept["provisional"]) == ([], None, True), (
        "it has no folder, and says that it knows nothing"
    )
    metrics, seen = await listening(roles, acme.token, "org:acme:metrics")
    await until(lambda: seen.data and seen.data[0], "the figures that the gateway asks the worker for")

    assert (await globex.client.get("/alerts/history")).json()["items"] == []
    assert (await globex.client.get("/alerts/rules")).json()["items"] == []
    assert (await globex.client.get(f"{roles.url}/api/orgs/acme/alerts/history")).status_code == 404
    assert refused.fired == Counter()
    for one in (client, foreign, late, metrics):
        await one.disconnect()
    for org in (acme, globex):
        await org.client.aclose()
    for part in reversed(roles.parts):
        assert await part.end() == 0, part.text
    assert not re.search(r"Traceback|a mistake", "".join(part.text for part in roles.parts))
    assert not [file for part in ("api", "worker", "gateway") for file in (roles.folder / f"data-{part}").glob("*.key")]


def test_a_dump_that_is_restored_goes_on_with_a_new_log(processes: Processes, tmp_path: Path, postgres_urls: Urls) -> None:
    """As docs/operations.md says it: pg_dump as a superuser, since row security holds for the owner, too."""
    if shutil.which("pg_dump") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("pg_dump is not installed")
    server, name = postgres_urls.server, postgres_urls.name
    dump, restored = tmp_path / "cmis.dump", f"{name}_restored"

    def said(*command: object) -> str:
        process = processes.cmis(*command, "--store", postgres_urls.app, "--data-dir", tmp_path / "unused")
        assert process.ended() == 0, process.text
        return process.text

    def up(folder: str, database: str) -> Up:
        stores = ["--store", server.url("cmis_app", database), "--store-relay", server.url("cmis_relay", database)]
        return Up(processes, tmp_path / folder, *stores).ready()

    def asking(running: Up) -> httpx.Client:
        return httpx.Client(base_url=f"{running.url}/api/orgs/acme", headers={"Authorization": f"Bearer {token}"}, timeout=60)

    def incidents(client: httpx.Client, campaign: str) -> list[dict[str, Any]]:
        answer = client.get("/alerts/history", params={"filter[campaign]": campaign})
        return list(answer.raise_for_status().json()["items"])

    def spends(client: httpx.Client, campaign: str) -> None:
        event = {"id": campaign, "ts": time.time_ns() // 1_000_000, "platform": "meta", "campaign": campaign, "spend": 99}
        client.post("/events", json={**event, "currency": "EUR"}).raise_for_status()

    said("org", "create", "acme")
    token = said("token", "create", "acme", "--scope=ingest", "--scope=read", "--scope=write").split()[-1]
    running = up("first", name)
    with asking(running) as client:
        client.post("/alerts/rules", json=RULE).raise_for_status()
        spends(client, "before")
        wait_until(lambda: incidents(client, "before"), "the incident")
    running.stop()

    refused = subprocess.run(["pg_dump", "-Fc", "-f", dump, postgres_urls.owner], capture_output=True, text=True, check=False)
    assert refused.returncode and "row-level security" in refused.stderr
    subprocess.run(["pg_dump", "-Fc", "-f", dump, server.url("postgres", name)], check=True)
    server.execute(f"create database {restored} owner cmis_owner", database="postgres")
    try:
        subprocess.run(["pg_restore", "--exit-on-error", "-d", server.url("postgres", restored), dump], check=True)
        assert server.execute("select count(*) from documents", role="cmis_app", database=restored) == "0\n", "in no org"
        running = up("second", restored)
        with asking(running) as client:
            spends(client, "after")  # the same token
            wait_until(lambda: incidents(client, "after"), "an incident by the rule that was restored")
            (before,) = incidents(client, "before")
            assert (before["state"], before["reason"]) == ("resolved", "log_replaced")
        running.stop()
    finally:
        server.execute(f"drop database {restored} with (force)", database="postgres")
