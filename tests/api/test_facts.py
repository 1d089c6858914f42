"""REST of facts and of commands on them, over the real stores and the agent's part of it; the log is the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cmis_stream.api import facts as facts_module
from cmis_stream.api.app import create_app
from cmis_stream.api.facts import FactPorts, facts_router
from cmis_stream.api.ingest import ApiPorts
from cmis_stream.core.errors import ConfigError
from cmis_stream.core.ids import fact_id
from cmis_stream.live.commands import CommandsOnFacts, decode
from cmis_stream.store.database import Database
from cmis_stream.store.fact_commands import FactCommands
from cmis_stream.store.fact_kinds import FactKind
from cmis_stream.store.facts import Change, Facts
from cmis_stream.store.kinds import Kind, Kinds, Manifest
from tests.api.conftest import World
from tests.store.fact_support import FINDING, NOW, Finding, fact_kinds

FINDINGS = "/api/orgs/acme/trial/findings"
MINE, THEIRS = fact_id(NOW, "mine"), fact_id(NOW, "theirs")


class Desk:
    """An app, a finding of acme and one of globex, and an agent that carries out what is sent while it is `working`."""

    def __init__(self, world: World, database: Database) -> None:
        self.facts = Facts(database, fact_kinds())
        commands = FactCommands(database, fact_kinds(), self.facts)
        for org, identity in (("acme", MINE), ("globex", THEIRS)):
            change = Change(org, "finding", identity, NOW, lambda _: {"name": "a"})
            assert self.facts.write([change], "w", org, {("t", 0): 0}, {})
        self.agent = CommandsOnFacts(commands, self.facts, "e", self._guard)
        self.records: list[bytes] = []
        self.working, self.silent = True, False
        self.error: Exception | None = None
        router = facts_router(FactPorts(self.facts, commands, fact_kinds(), world.auth, self.send, world.now))
        ports = ApiPorts(world.auth, world.log.publish, world.log.dead_letter, world.now)
        self.app = create_app(ports, [router], schemas=router.schemas)
        self.ann, self.adam, self.eve, self.gus = (
            self._caller(world.tokens.create(org, scopes)[1])
            for org, scopes in (
                ("acme", ["read", "write"]), ("acme", ["read", "write", "admin"]), ("acme", ["read"]),
                ("globex", ["read", "write"]),
            )
        )  # fmt: skip

    def _caller(self, text: str) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {text}", "Request-Id": "same"}
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test", headers=headers)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        yield

    async def send(self, org: str, value: bytes) -> None:
        if self.error is not None:
            raise self.error
        if self.silent:
            await asyncio.Event().wait()
        self.records.append(value)
        if self.working:
            await self.work()

    async def work(self) -> None:
        """Carries out all that was sent, what was before, too, as after a restart of the agent."""
        for offset, value in enumerate(self.records):
            await self.agent.put(0, offset, value, lambda: None)
        await self.agent.settled()


@pytest.fixture
async def desk(world: World, tmp_path: Path) -> AsyncIterator[Desk]:
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    made = Desk(world, database)
    yield made
    for client in (made.ann, made.adam, made.eve, made.gus):
        await client.aclose()
    database.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_module, "WAIT_S", 0.05)


def add(note: str = "x") -> dict[str, Any]:
    return {"json": {"note": note}}


async def test_a_command_is_answered_with_the_fact_as_it_is_then(desk: Desk) -> None:
    before = await desk.ann.get(f"{FINDINGS}/{MINE}")
    assert before.headers["etag"] == '"1"' and before.json()["notes"] == []
    response = await desk.ann.post(f"{FINDINGS}/{MINE}/add", **add("seen"))
    assert response.status_code == 200 and response.headers["etag"] == '"2"'
    body = response.json()
    assert body["touched"] == [{"kind": "finding", "id": MINE, "version": 2}]
    assert body["item"] == {
        "id": MINE, "version": 2, "at": "2026-01-01T00:00:00.000Z", "name": "a", "count": 1, "notes": ["seen"],
        "closed_at": None, "size": "small",
    }  # fmt: skip
    assert (await desk.ann.get(f"{FINDINGS}/{MINE}")).json() == body["item"]
    closed = await desk.adam.post(f"{FINDINGS}/{MINE}/close")
    assert closed.json()["item"]["closed_at"] == "2026-01-01T00:00:00.000Z"


async def test_what_the_command_s_decision_refuses_is_a_problem(desk: Desk) -> None:
    await desk.adam.post(f"{FINDINGS}/{MINE}/close")
    response = await desk.ann.post(f"{FINDINGS}/{MINE}/add", **add())
    assert response.status_code == 409 and response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == "/problems/finding_closed" and response.json()["title"] == "The finding is closed"


@pytest.mark.parametrize(
    ("path", "more", "status", "code"),
    [
        (f"{MINE}/add", {}, 422, "missing"),
        (f"{MINE}/add", {"json": {"note": ""}}, 422, "invalid"),
        (f"{MINE}/add", {"json": {"note": "a", "more": 1}}, 422, "invalid"),
        (f"{MINE}/add", {"json": []}, 422, "wrong_type"),
        (f"{MINE}/add", {"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "malformed"),
        (f"{MINE}/add", {"content": b"{}", "headers": {"Content-Type": "text/plain"}}, 415, "unsupported_media"),
        (f"{MINE}/add", add("a\0b"), 422, "invalid"),
        (f"{MINE}/close", {"content": b" " * 300_000, "headers": {"Content-Type": "application/json"}}, 403, "forbidden"),
        (f"{MINE}/add", {"content": b" " * 300_000, "headers": {"Content-Type": "application/json"}}, 413, "too_large"),
        (f"{MINE}/add?x=1", add(), 400, "invalid"),
        (f"{MINE}/jump", add(), 404, "not_found"),
        (f"{MINE}/close", {}, 403, "forbidden"),
        (f"{fact_id(NOW, 'none')}/add", add(), 404, "not_found"),
        (f"{THEIRS}/add", add(), 404, "not_found"),
        (f"{THEIRS}/add", {"json": {"note": ""}}, 422, "invalid"),
    ],
)
async def test_what_is_wrong_with_a_request_is_said_before_anything_is_sent(
    desk: Desk, path: str, more: dict[str, Any], status: int, code: str
) -> None:
    response = await desk.ann.post(f"{FINDINGS}/{path}", **more)
    assert (response.status_code, response.json()["type"]) == (status, f"/problems/{code}")
    assert desk.records == []


async def test_a_version_that_is_not_there_is_stale(desk: Desk) -> None:
    stale = await desk.ann.post(f"{FINDINGS}/{MINE}/add", **add(), headers={"If-Match": '"7"'})
    assert stale.status_code == 412 and stale.headers["etag"] == '"1"'
    fine = await desk.ann.post(f"{FINDINGS}/{MINE}/add", **add(), headers={"If-Match": '"1"'})
    assert fine.status_code == 200


async def test_the_same_key_has_the_same_result_and_is_carried_out_once(desk: Desk) -> None:
    key = {"Idempotency-Key": "k"}
    first = await desk.ann.post(f"{FINDINGS}/{MINE}/add", **add(), headers=key)
    await desk.ann.post(f"{FINDINGS}/{MINE}/add", **add("y"))
    again = await desk.ann.post(f"{FINDINGS}/{MINE}/add", **add(), headers=key)
    assert again.status_code == 200 and again.headers["idempotency-replayed"] == "true"
    assert again.json()["touched"] == first.json()["touched"] and again.json()["item"]["notes"] == ["x", "y"]
    other = await desk.ann.post(f"{FINDINGS}/{MINE}/add", **add("z"), headers=key)
    assert (other.status_code, other.json()["type"]) == (422, "/problems/key_reused")
    # The key of somebody else is another one, and so is the same one for another command.
    assert (await desk.adam.post(f"{FINDINGS}/{MINE}/add", **add("w"), headers=key)).json()["item"]["notes"] == ["x", "y", "w"]
    assert (await desk.adam.post(f"{FINDINGS}/{MINE}/close", headers=key)).status_code == 200


async def test_a_rejection_is_the_result_of_its_key_too(desk: Desk) -> None:
    key = {"Idempotency-Key": "k", "If-Match": '"7"'}
    for _ in range(2):
        assert (await desk.ann.post(f"{FINDINGS}/{MINE}/add", **add(), headers=key)).status_code == 412
    assert len(desk.records) == 1


async def test_requests_with_the_same_key_at_the_same_time_are_one_command(desk: Desk) -> None:
    posts = [desk.ann.post(f"{FINDINGS}/{MINE}/add", **add(), headers={"Idempotency-Key": "k"}) for _ in range(5)]
    answers = await asyncio.gather(*posts)
    assert [one.status_code for one in answers] == [200] * 5
    assert (await desk.ann.get(f"{FINDINGS}/{MINE}")).json()["count"] == 1


async def test_what_is_not_carried_out_in_time_can_be_asked_for_later(desk: Desk, impatient: None) -> None:
    desk.working = False
    key = {"Idempotency-Key": "k"}
    response = await desk.ann.post(f"/api/orgs/acme/trial/findings/{MINE}/add", **add(), headers=key)
    assert response.status_code == 202 and response.json()["status"] == "waiting"
    where = response.headers["location"]
    assert where == f"/api/orgs/acme/commands/{response.json()['id']}"
    assert (await desk.ann.get(where)).status_code == 404
    again = await desk.ann.post(f"{FINDINGS}/{MINE}/add", **add(), headers=key)
    assert again.status_code == 202 and again.headers["location"] == where
    await desk.work()
    result = (await desk.eve.get(where)).json()
    assert result == {
        "id": response.json()["id"], "kind": "finding", "fact": MINE, "status": "applied", "version": 2,
        "at": "2026-01-01T00:00:00.000Z",
    }  # fmt: skip
    assert (await desk.ann.post(f"{FINDINGS}/{MINE}/add", **add(), headers=key)).status_code == 200
    assert (await desk.ann.get(f"{FINDINGS}/{MINE}")).json()["count"] == 1


async def test_why_a_command_was_rejected_can_be_asked_for_later(desk: Desk, impatient: None) -> None:
    desk.working = False
    stale = await desk.ann.post(f"{FINDINGS}/{MINE}/add", **add(), headers={"If-Match": '"7"'})
    await desk.work()
    result = (await desk.ann.get(stale.headers["location"])).json()
    assert (result["status"], result["version"]) == ("rejected", None)
    assert (result["problem"]["type"], result["problem"]["status"]) == ("/problems/stale", 412)


async def test_another_org_s_results_are_not_there(desk: Desk) -> None:
    await desk.ann.post(f"{FINDINGS}/{MINE}/add", **add(), headers={"Idempotency-Key": "k"})
    identity = decode(desk.records[0]).id
    assert (await desk.ann.get(f"/api/orgs/acme/commands/{identity}")).status_code == 200
    assert (await desk.ann.get("/api/orgs/acme/commands/a%00b")).status_code == 404
    assert (await desk.gus.get(f"/api/orgs/acme/commands/{identity}")).status_code == 404
    assert (await desk.gus.get(f"/api/orgs/globex/commands/{identity}")).status_code == 404
    assert (await desk.gus.post(f"/api/orgs/globex/trial/findings/{MINE}/add", **add())).status_code == 404


async def test_a_log_that_cannot_be_written_is_said(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.error = OSError("no space left")
    response = await desk.ann.post(f"{FINDINGS}/{MINE}/add", **add())
    assert response.status_code == 503 and response.headers["retry-after"] == "1"
    monkeypatch.setattr(facts_module, "SEND_S", 0.01)
    desk.error, desk.silent = None, True
    assert (await desk.ann.post(f"{FINDINGS}/{MINE}/add", **add())).status_code == 503


async def test_lists_are_those_of_every_kind(desk: Desk) -> None:
    await desk.ann.post(f"{FINDINGS}/{MINE}/add", **add())
    for query, many in (("filter[count][gte]=1", 1), ("filter[count]=0", 0), ("filter[size]=small&sort=-size", 1)):
        assert len((await desk.eve.get(f"{FINDINGS}?{query}")).json()["items"]) == many
    assert (await desk.eve.get(f"{FINDINGS}?filter[size]=huge")).status_code == 400


async def test_openapi_describes_commands_and_what_they_take(desk: Desk) -> None:
    document = desk.app.openapi()
    operation = document["paths"]["/api/orgs/{org}/trial/findings/{id}/add"]["post"]
    assert operation["operationId"] == "add_finding" and {"200", "202", "404", "409", "422"} <= operation["responses"].keys()
    sent = operation["requestBody"]
    assert sent["required"] and sent["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/FindingAdd"}
    assert {"Finding", "FindingAdd", "Problem"} <= document["components"]["schemas"].keys()
    assert "requestBody" not in document["paths"]["/api/orgs/{org}/trial/findings/{id}/close"]["post"]
    body = (await desk.ann.post(f"{FINDINGS}/{MINE}/add", **add())).json()
    assert body["item"].keys() == document["components"]["schemas"]["Finding"]["properties"].keys()


@pytest.mark.parametrize("path", ["trial/findings", "trial/findings/old", "commands"])
def test_a_path_that_another_kind_has_is_refused(world: World, tmp_path: Path, path: str) -> None:
    twin = FactKind("twin", Finding, path=path if path == "commands" else "trial/findings")
    kinds = Kinds([Manifest("trial", (Kind("paper", Finding, path=path if path != "commands" else "x"),), facts=(FINDING, twin))])
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    facts = Facts(database, kinds)

    async def send(org: str, value: bytes) -> None: ...

    with pytest.raises(ConfigError, match="is in the way of"):
        facts_router(FactPorts(facts, FactCommands(database, kinds, facts), kinds, world.auth, send, world.now))
    database.close()
