"""A peer path opens with a peer token for its org and with nothing else; a peer token opens nothing else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from cmis_stream.api.app import create_app
from cmis_stream.api.auth import COOKIE
from cmis_stream.api.ingest import ApiPorts
from cmis_stream.api.query import query_router
from cmis_stream.api.session import session_router
from cmis_stream.core.channels import Channel
from cmis_stream.gateway.access import StoreAccess
from cmis_stream.gateway.ports import Refused
from cmis_stream.live.snapshots import MetricSnapshots
from cmis_stream.peer import server
from cmis_stream.peer.client import RemotePanes, RemoteSnapshots
from cmis_stream.peer.server import peer_router
from cmis_stream.store.rights import Rights
from cmis_stream.store.signing import PEER_LASTS_MS, PeerTokens, signing_key
from tests.api.conftest import World
from tests.peer.support import EVENTS, QUERY, Map, Worker, peers
from tests.query.test_panes import World as PanesWorld

PATHS = [("POST", "/peer/orgs/acme/query"), ("GET", "/peer/orgs/acme/snapshots/metrics")]


class Process:
    """One that is everything: the API, and peers' paths beside it."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.key = signing_key(folder / "gateway.key")
        self.tokens = PeerTokens(self.key)
        self.panes = PanesWorld(EVENTS)
        auth = self.world.auth
        self.app = create_app(
            ApiPorts(auth, self.world.log.publish, self.world.log.dead_letter, self.world.now),
            [
                session_router(auth, self.world.gateway_tokens),
                query_router(self.panes.queries, auth.admitted),
                peer_router(self.panes.queries, MetricSnapshots(lambda _: self.panes.owner), self.tokens, self.world.now),
            ],
        )
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")

    async def asked(self, authorization: str | None, **headers: str) -> list[httpx.Response]:
        given = {**headers, **({} if authorization is None else {"Authorization": authorization})}
        return [
            await self.client.request(method, path, headers=given, json=QUERY if method == "POST" else None)
            for method, path in PATHS
        ]

    def forged(self, key: bytes | None = None, algorithm: str = "HS256", **claims: Any) -> str:
        now_s = self.world.now() // 1000
        said = {"sub": "acme", "aud": "cmis-peer", "iat": now_s, "exp": now_s + 60, **claims}
        kept = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(kept, None if algorithm == "none" else key or self.key, algorithm)


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    made = Process(tmp_path)
    async with made.client:
        yield made
    made.world.close()


async def test_a_peer_token_opens_the_peer_paths_of_its_org_for_a_minute(process: Process) -> None:
    bearer = f"Bearer {process.tokens.issue('acme', process.world.now())}"
    assert [response.status_code for response in await process.asked(bearer)] == [200, 200]
    assert [response.status_code for response in await process.asked(f"Bearer {process.forged()}")] == [200, 200]
    process.world.log.now_ms += PEER_LASTS_MS
    assert PEER_LASTS_MS == 60_000 and [response.status_code for response in await process.asked(bearer)] == [401, 401]


@pytest.mark.spec("TEN-M01", partial="of the paths between processes; every path has a test of its own")
async def test_nothing_else_opens_them(process: Process) -> None:
    world = process.world
    session, secret = world.sessions.exchange(world.sessions.make_code(now_ms=world.now()), world.now())
    bearers = {
        "nothing": None,
        "empty": "Bearer ",
        "an API token": f"Bearer {world.tokens.create('acme', ['read'])[1]}",
        "a gateway token": f"Bearer {world.gateway_tokens.issue(session.id, world.now())[0]}",
        "a gateway token for the org's name": f"Bearer {world.gateway_tokens.issue('acme', world.now())[0]}",
        "a session": f"Bearer {secret}",
        "another scheme": f"Basic {process.forged()}",
        "another key": f"Bearer {process.forged(bytes(32))}",
        "no signature": f"Bearer {process.forged(algorithm='none')}",
        "another algorithm": f"Bearer {process.forged(bytes(64), 'HS384')}",
        "another org": f"Bearer {process.tokens.issue('globex', world.now())}",
        "expired": f"Bearer {process.tokens.issue('acme', world.now() - 60_000)}",
        "without end": f"Bearer {process.forged(exp=None)}",
        "for nobody": f"Bearer {process.forged(sub=None)}",
        "another audience": f"Bearer {process.forged(aud='peer')}",
        "cut": f"Bearer {process.forged()[:-2]}",
    }
    cookie = {"Cookie": f"{COOKIE}={secret}", "Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"}
    peer_cookie = {**cookie, "Cookie": f"{COOKIE}={process.forged()}"}
    for name, bearer in bearers.items():
        for headers in ({}, cookie, peer_cookie):
            for response in await process.asked(bearer, **headers):
                assert response.status_code == 401, name
                assert response.json()["type"] == "/problems/unauthorized" and b"USD" not in response.content
                assert response.headers["content-type"] == "application/problem+json"
    assert (await process.client.post("/api/orgs/acme/query", json=QUERY, headers=cookie)).status_code == 200, "a good session"


async def test_a_peer_token_opens_neither_the_api_nor_the_gateway(process: Process) -> None:
    world, text = process.world, process.tokens.issue("acme", process.world.now())
    for headers in ({"Authorization": f"Bearer {text}"}, {"Cookie": f"{COOKIE}={text}", "Origin": "http://127.0.0.1"}):
        assert (await process.client.post("/api/orgs/acme/query", json=QUERY, headers=headers)).status_code == 401
        assert (await process.client.get("/api/session", headers=headers)).status_code == 401
        assert (await process.client.post("/api/orgs/acme/events", content=b"{}", headers=headers)).status_code == 401
    rights = Rights(world.database)
    access = StoreAccess(rights, world.tokens, world.gateway_tokens, world.now)
    session = world.sessions.exchange(world.sessions.make_code(now_ms=world.now()), world.now())[0]
    for holder in ("acme", session.id):
        with pytest.raises(Refused):
            await access.verify(process.tokens.issue(holder, world.now()))
    assert await access.verify(world.gateway_tokens.issue(session.id, world.now())[0]), "the same under the right audience"


@pytest.mark.spec("TEN-M05", partial="of what processes ask each other; other paths have tests of their own")
async def test_an_org_s_answers_have_nothing_of_another_org_in_the_same_partition() -> None:
    worker = Worker()
    async with worker.served() as address, peers(Map(address)) as made:
        query = {**QUERY, "dimensions": ["currency", "platform", "account", "campaign"], "measures": ["events", "clicks"]}
        answer = await RemotePanes(made).answer("acme", query)
        assert b"c1" in answer and b"theirs" not in answer and b"globex" not in answer
        named = {**query, "filters": {"campaign": ["theirs"]}}
        assert json.loads(await RemotePanes(made).answer("acme", named))["rows"] == []
        found = await RemoteSnapshots(made).snapshot(Channel("acme", "metrics"))
        assert found is not None and b"c1" in found.json and b"theirs" not in found.json


async def test_the_paths_are_not_in_the_api_s_document_and_a_body_has_a_limit(process: Process) -> None:
    assert not [path for path in process.app.openapi()["paths"] if "peer" in path]
    headers = {"Authorization": f"Bearer {process.forged()}"}
    large = await process.client.post(PATHS[0][1], content=b" " * (server.LARGEST_BODY + 1), headers=headers)
    broken = await process.client.post(PATHS[0][1], content=b"{", headers=headers)
    assert (large.status_code, broken.status_code) == (413, 400)
    assert (await process.client.get("/peer/orgs/acme/snapshots/incidents", headers=headers)).status_code == 404
