"""What a process says about itself over HTTP: alive, ready, metrics, status; real engines and owners behind it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cmis_stream.api.app import plain_app
from cmis_stream.api.operations import local_or, operations_router
from cmis_stream.core.engine import Engine
from cmis_stream.core.entities import LEVELS
from cmis_stream.core.time import HOUR_MS, WINDOWS
from cmis_stream.gateway.client import Client
from cmis_stream.gateway.figures import Figures
from cmis_stream.gateway.limits import Limits as GatewayLimits
from cmis_stream.gateway.ports import Grant
from cmis_stream.health.health import Health
from cmis_stream.health.store import StoreProbe
from cmis_stream.log.owner import Owner
from cmis_stream.store.database import Database
from tests.health.support import METRICS, NOW, TRANSITIONS, Held, Link, World
from tests.log.support import World as OwnerWorld
from tests.log.support import events

ORGS = ("acme", "globex-secret")


def health_of(world: World, **options: Any) -> Health:
    return Health(world.parts, lambda sick: pytest.fail(str(sick)), **options)


@asynccontextmanager
async def asking(health: Health, client: str = "127.0.0.1", token: str = "peer") -> AsyncIterator[httpx.AsyncClient]:
    app = plain_app([operations_router(health, local_or(lambda text: text == token))])
    transport = httpx.ASGITransport(app, client=(client, 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8610") as http:
        yield http


def samples(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Sample name -> label values in the order of the labels' names -> value."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(value for _, value in sorted(sample.labels.items()))] = sample.value
    return found


async def owner_with_events(world: OwnerWorld) -> Owner:
    """Two orgs, one of them busier, in a checkpoint up to offset 1; offset 2 is applied only."""
    owner = Owner(
        METRICS, 3, Engine(LEVELS, live_windows=tuple(WINDOWS.values())), generation="7-a", send=world.send, store=world.store,
    )  # fmt: skip
    busy = [("c1", HOUR_MS + i, 1.0) for i in range(5)]
    await owner.apply(0, events(*busy, org=ORGS[0]), lambda: None)
    await owner.apply(1, events(*busy[:2], org=ORGS[1]), lambda: None)
    await owner.checkpoint(wait=True)
    await owner.apply(2, events(*busy[:2], org=ORGS[1]), lambda: None)  # the same numbers: duplicates
    return owner


async def test_metrics_say_what_live_owners_hold_and_parse_as_prometheus_reads_them() -> None:
    world = World(await owner_with_events(OwnerWorld()), waiting_events=lambda: 12, dead_letters=lambda: {"too_late": 4})
    world.parts.projected, world.parts.backplane = (lambda: {3: 30}), Link(reconnects=2)
    world.now_ms = NOW + 2 * HOUR_MS
    world.log.end, world.log.done = {METRICS: {3: 5}, TRANSITIONS: {3: 41}}, {METRICS: {3: 2}, TRANSITIONS: {3: 41}}
    async with asking(health_of(world)) as http:
        answer = await http.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    got = samples(answer.text)
    assert got["cmis_lag_records"] == {("3", METRICS): 2, ("3", TRANSITIONS): 0}
    assert got["cmis_lag_seconds"]["3", METRICS] == 3600  # the envelopes' stamp is an hour ago
    assert got["cmis_applied_offset"]["3",] == 2 and got["cmis_records_unacked"]["3",] == 1
    assert got["cmis_checkpoint_age_seconds"]["3",] > 0 and got["cmis_checkpoint_duration_seconds"]["3",] > 0
    assert got["cmis_watermark_lag_seconds"]["3",] == pytest.approx(3600, abs=30)
    assert got["cmis_projection_lag_records"]["3",] == 10
    assert got["cmis_packer_waiting_events"][()] == 12 and got["cmis_dead_letters_total"]["too_late",] == 4
    assert got["cmis_backplane_connected"]["redis",] == 1 and got["cmis_backplane_reconnects_total"][()] == 2
    assert got["cmis_partitions_held"][()] == 1 and got["cmis_log_answers"][()] == 1
    assert got["cmis_process_resident_memory_bytes"][()] > 1e6 and got["cmis_process_start_time_seconds"][()] > 1e9
    assert got["cmis_memory_limit_bytes"][()] > 1e8
    ((role, version),) = got["cmis_build_info"]
    assert {role, version} > {"worker"}


async def test_counters_count_from_the_assignment_and_go_on_when_a_partition_has_moved_away() -> None:
    writes = OwnerWorld()
    owner = await owner_with_events(writes)
    world = World(owner)
    health = health_of(world)
    health.look()  # what it had counted before was another's
    await owner.apply(3, events(("c1", HOUR_MS + 9, 1.0), first=100, org=ORGS[0]), lambda: None)
    async with asking(health) as http:
        before = samples((await http.get("/metrics")).text)
        world.held.clear()
        after = samples((await http.get("/metrics")).text)
    assert before["cmis_events_applied_total"] == after["cmis_events_applied_total"] == {("3",): 1}
    assert after["cmis_records_applied_total"] == {("3",): 1} and after["cmis_events_duplicate_total"] == {("3",): 0}
    assert "cmis_applied_offset" in before and "cmis_applied_offset" not in after


async def test_no_org_is_named_in_metrics_health_or_readiness_and_the_status_names_the_busiest() -> None:
    owner = await owner_with_events(OwnerWorld())
    world = World(owner)
    world.now_ms = NOW + 9 * HOUR_MS
    world.log.end = {METRICS: {3: 900}}
    async with asking(health_of(world)) as http:
        public = [(await http.get(path)).text for path in ("/metrics", "/healthz", "/readyz")]
        document = (await http.get("/status")).json()
    assert not [org for org in ORGS for text in public if org in text]
    assert document["busiest_orgs"] == [
        {"org": "acme", "events": 5, "partition": 3},
        {"org": "globex-secret", "events": 2, "partition": 3},
    ]
    assert document["partitions"][0]["slowest_org"]["org"] in ORGS
    assert document["lag"]["slowest"] == {"topic": METRICS, "partition": 3, "records": 897, "seconds": 8 * 3600}


async def test_two_processes_in_one_interpreter_do_not_share_a_metric() -> None:
    one, other = World(Held(partition=1)), World(Held(partition=2))
    texts = []
    for world in (one, other):
        async with asking(health_of(world)) as http:
            texts.append(samples((await http.get("/metrics")).text))
    assert [list(text["cmis_applied_offset"]) for text in texts] == [[("1",)], [("2",)]]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda w: setattr(w, "flows", False), "recovering"),
        (lambda w: setattr(w.log, "away", "no broker answers"), "log_away"),
        (lambda w: w.log.end.update({METRICS: {3: 100}}), "lagging"),
        (lambda w: setattr(w.parts, "unready", lambda: [("no_worker", "no worker answers")]), "no_worker"),
        (lambda w: setattr(w.parts, "failed", lambda: "metrics failed"), "failed"),
    ],
)
async def test_a_process_that_cannot_do_its_role_says_why_and_is_alive_unless_it_has_failed(change: Any, code: str) -> None:
    held = Held(position=9)
    held.engine.now_ms = NOW - 61_000
    world = World(held)
    world.log.end = {METRICS: {3: 10}}
    async with asking(health_of(world)) as http:
        good = await http.get("/readyz")
    assert (good.status_code, good.json()) == (200, {"status": "ready"})
    change(world)
    async with asking(health_of(world)) as http:
        ready, alive, status = [await http.get(path) for path in ("/readyz", "/healthz", "/status")]
    assert ready.status_code == 503 and [reason["code"] for reason in ready.json()["reasons"]] == [code]
    assert ready.json()["reasons"][0]["detail"] and ready.headers["retry-after"]
    assert alive.status_code == (503 if code == "failed" else 200)
    assert not status.json()["healthy"] and status.json()["problems"] == ready.json()["reasons"]


async def test_a_locked_store_makes_a_process_unready_until_it_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmis_stream.store.database.LOCK_S", 0.05)
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    world = World(store=database)
    other.execute("begin immediate")
    async with asking(health_of(world)) as http:
        locked = await http.get("/readyz")
    other.execute("rollback")
    async with asking(health_of(world)) as http:
        free = await http.get("/readyz")
    other.close()
    database.close()
    detail = "the store cannot be written: another transaction took longer than 0.05 s"
    assert locked.json()["reasons"] == [{"code": "store_locked", "detail": detail}]
    assert free.status_code == 200


async def test_who_asks_about_a_store_that_does_not_answer_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And asks it once, however often that is asked."""
    monkeypatch.setattr("cmis_stream.health.store.BUSY_S", 0.02)
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    probe = StoreProbe(database)
    with database.transaction(None, writes=True):
        for _ in range(3):
            await probe.refresh(0)
            assert probe.problem == "the store cannot be written: no answer within 0.02 s"
            await asyncio.sleep(0.05)
        assert len(database._writer._waiting) == 1  # type: ignore[union-attr]
    while probe.problem is not None:
        await asyncio.sleep(0.05)
        await probe.refresh(0)
    database.close()


async def test_a_backplane_that_is_away_makes_only_a_gateway_unready_and_is_everybodys_problem() -> None:
    for role, status in (("worker", 200), ("gateway", 503)):
        world = World(backplane=Link(connected=False))
        world.parts.role = role
        async with asking(health_of(world)) as http:
            assert (await http.get("/readyz")).status_code == status
            assert [problem["code"] for problem in (await http.get("/status")).json()["problems"]] == ["backplane_away"]


class Hub:
    """Three connections, of which two are behind."""

    def __init__(self) -> None:
        self.figures, self.subscriptions = Figures(connections=7), ["one"]
        self.clients = [Client(self, GatewayLimits(), self.figures, 0.0, lambda *_: None) for _ in range(3)]
        for size, client in zip((50, 0, 500), self.clients, strict=True):
            client.grant = Grant("t", "s", frozenset(("acme",)), None, None)
            if size:
                client.outbox.pause()
                client.outbox.send(b"x" * size)

    def write(self, frames: bytes) -> None: ...

    def close(self, code: int, reason: str) -> None: ...


async def test_effects_that_were_given_up_are_told_and_keep_no_process_from_its_role() -> None:
    world = World(troubles=lambda: [("effects_failed", "3 effects were given up")], failed_effects=lambda: 3)
    async with asking(health_of(world)) as http:
        status, ready = (await http.get("/status")).json(), await http.get("/readyz")
        assert samples((await http.get("/metrics")).text)["cmis_failed_effects"] == {(): 3}
    assert status["problems"] == [{"code": "effects_failed", "detail": "3 effects were given up"}]
    assert status["ready"] and not status["healthy"] and ready.status_code == 200


async def test_the_slowest_clients_stand_in_the_status_and_their_sum_in_the_metrics() -> None:
    hub = Hub()
    world = World(gateway=hub)
    async with asking(health_of(world)) as http:
        got, document = samples((await http.get("/metrics")).text), (await http.get("/status")).json()
    assert got["cmis_gateway_queue_bytes"][()] == 550 and got["cmis_gateway_connections"][()] == 3
    assert got["cmis_gateway_connections_total"][()] == 7
    assert [one["client"] for one in document["slowest_clients"]] == [hub.clients[2].id, hub.clients[0].id]
    assert document["slowest_clients"][0]["orgs"] == ["acme"]


@pytest.mark.parametrize(
    ("client", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("127.0.0.1", {"Host": "localhost:8610"}, 200),
        ("::1", {"Host": "[::1]:8610"}, 200),
        ("192.0.2.9", {}, 403),
        ("192.0.2.9", {"Authorization": "Bearer peer"}, 200),
        ("192.0.2.9", {"Authorization": "Bearer guess"}, 403),
        ("127.0.0.1", {"X-Forwarded-For": "192.0.2.9"}, 403),
        ("127.0.0.1", {"Forwarded": "for=192.0.2.9"}, 403),
        ("127.0.0.1", {"Host": "evil.example"}, 403),
        ("127.0.0.1", {"Host": "[::1"}, 403),
        ("127.0.0.1", {"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
async def test_the_status_is_told_to_this_machine_or_for_a_peer_token_only(
    client: str, headers: dict[str, str], status: int
) -> None:
    async with asking(health_of(World()), client) as http:
        answer = await http.get("/status", headers=headers)
    assert answer.status_code == status
    assert status != 403 or answer.json()["type"] == "/problems/forbidden"


async def test_operations_are_in_the_openapi_document() -> None:
    async with asking(health_of(World())) as http:
        paths = (await http.get("/openapi.json")).json()["paths"]
    assert {path: sorted(methods["get"]["responses"]) for path, methods in paths.items()} == {
        "/healthz": ["200", "503"],
        "/readyz": ["200", "503"],
        "/metrics": ["200"],
        "/status": ["200", "403"],
    }
