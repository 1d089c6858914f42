"""`Auth.authorize`, as the routes of one org use it: who gets in by token or cookie, and with which scopes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from cmis_stream.api.app import create_app
from cmis_stream.api.auth import COOKIE
from cmis_stream.api.ingest import ApiPorts
from tests.api.test_ingest import assert_problem

NOW = 1_767_225_600_000
PATH = "/api/orgs/acme/thing"


@pytest.fixture
async def client(world: Any) -> AsyncIterator[httpx.AsyncClient]:
    """An app whose one route of an org needs `read` to GET and `write` to POST."""
    router = APIRouter()

    @router.api_route("/api/orgs/{org}/thing", methods=["GET", "POST"])
    async def thing(request: Request, org: str) -> JSONResponse:
        caller = world.auth.authorize(request, org, "read" if request.method == "GET" else "write")
        return JSONResponse([caller.id, caller.org, sorted(caller.scopes), caller.expires_at_ms])

    app = create_app(ApiPorts(world.auth, world.log.publish, world.log.dead_letter, world.now), [router])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8600") as client:
        yield client


def cookie(world: Any, *orgs: str) -> dict[str, str]:
    text = world.sessions.exchange(world.sessions.make_code(orgs or None, now_ms=NOW), NOW)[1]
    return {"Cookie": f"{COOKIE}={text}"}


def bearer(world: Any, org: str, *scopes: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {world.tokens.create(org, scopes)[1]}"}


OWN = {"Origin": "http://localhost:8600"}


async def test_a_session_reads_and_changes_its_orgs_and_sends_no_events(client: httpx.AsyncClient, world: Any) -> None:
    headers = cookie(world, "acme")
    (session,) = world.sessions.list()
    expected = [session.id, "acme", ["admin", "read", "write"], session.expires_at_ms]
    assert (await client.get(PATH, headers=headers)).json() == expected
    assert (await client.post(PATH, headers=headers | OWN)).json() == expected
    assert_problem(await client.post(PATH, headers=headers), 403, "foreign_origin")
    assert_problem(await client.get("/api/orgs/globex/thing", headers=headers), 404, "not_found")
    assert (await client.get("/api/orgs/globex/thing", headers=cookie(world))).json()[1] == "globex"
    assert_problem(await client.get("/api/orgs/nobody/thing", headers=cookie(world)), 404, "not_found")


@pytest.mark.spec("TEN-M02", partial="ingest, read, write and admin over REST; scopes per module come with the modules")
async def test_a_token_does_what_its_scopes_say_from_anywhere(client: httpx.AsyncClient, world: Any) -> None:
    reader, writer = bearer(world, "acme", "read"), bearer(world, "acme", "write")
    assert (await client.get(PATH, headers=reader | {"Host": "cmis.internal"})).json()[1:] == ["acme", ["read"], None]
    assert (await client.post(PATH, headers=writer | {"Origin": "http://evil.example"})).status_code == 200
    assert assert_problem(await client.post(PATH, headers=reader), 403, "forbidden")["scope"] == "write"
    assert assert_problem(await client.get(PATH, headers=writer), 403, "forbidden")["scope"] == "read"
    assert_problem(await client.get("/api/orgs/globex/thing", headers=reader), 404, "not_found")


async def test_a_token_counts_before_a_cookie_and_other_schemes_do_not(client: httpx.AsyncClient, world: Any) -> None:
    everything, reader = cookie(world), bearer(world, "acme", "read")
    assert_problem(await client.get("/api/orgs/globex/thing", headers=everything | reader), 404, "not_found")
    assert_problem(await client.get(PATH, headers=everything | {"Authorization": "Bearer cmis_x_y"}), 401, "unauthorized")
    assert (await client.get(PATH, headers=everything | {"Authorization": "Basic cHJveHk6cHJveHk="})).status_code == 200


async def test_a_session_is_no_session_under_a_foreign_name(client: httpx.AsyncClient, world: Any) -> None:
    assert_problem(await client.get(PATH, headers=cookie(world) | {"Host": "evil.example"}), 400, "invalid")
    assert_problem(await client.get(PATH), 401, "unauthorized")
