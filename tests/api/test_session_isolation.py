"""Every path of a running instance, as its OpenAPI document lists them: closed without credentials, and to other orgs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cmis_stream.instance import Instance
from cmis_stream.settings import Settings

PUBLIC = {("post", "/api/session"), *(("get", path) for path in ("/files/{token}", "/healthz", "/readyz", "/metrics", "/status"))}
"""The last one only to this machine itself (tests/health)."""
"""What nobody has to be known for: whether the process lives, and signing in."""
BEARER_ONLY = {"/api/orgs/{org}/events", "/api/orgs/{org}/gateway-token"}


@pytest.fixture
async def instance(tmp_path: Path) -> AsyncIterator[Instance]:
    async with Instance(Settings(data_dir=tmp_path, port=0)) as instance:
        for org in ("acme", "globex"):
            instance.runtime.tokens.create_org(org, org.title())
        yield instance


@pytest.fixture
async def client(instance: Instance) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Origin": instance.url, "Request-Id": "same", "Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=instance.url, headers=headers, trust_env=False) as client:
        yield client


async def operations(client: httpx.AsyncClient) -> list[tuple[str, str]]:
    paths: dict[str, Any] = (await client.get("/openapi.json")).json()["paths"]
    return [(method, path) for path, methods in paths.items() for method in methods]


async def sign_in(client: httpx.AsyncClient, instance: Instance, *orgs: str) -> None:
    code = instance.sessions.make_code(orgs or None)
    assert (await client.post("/api/session", json={"code": code})).status_code == 200


def filled(path: str, org: str) -> str:
    """The path with this org; every other parameter is `x`."""
    return "/".join(org if part == "{org}" else "x" if part.startswith("{") else part for part in path.split("/"))


@pytest.mark.spec(
    "TEN-M01", partial="REST: every documented operation but health and signing in; the page and its description are public"
)
async def test_no_operation_answers_without_credentials(client: httpx.AsyncClient) -> None:
    asked = [operation for operation in await operations(client) if operation not in PUBLIC]
    assert {path for _, path in asked} >= {"/api/session", "/api/session/gateway-token", *BEARER_ONLY}
    for headers in ({}, {"Authorization": "Bearer cmis_x_y"}, {"Cookie": f"cmis_session={'x' * 43}"}):
        for method, path in asked:
            response = await client.request(method, filled(path, "acme"), content=b"{}", headers=headers)
            assert response.status_code == 401 and response.json()["type"] == "/problems/unauthorized", (method, path)


@pytest.mark.spec(
    "TEN-M05",
    partial="every path of REST, the gateway's channels, sessions and tokens of both orgs; SQLite has no row-level security",
)
async def test_a_foreign_org_looks_like_one_that_does_not_exist_on_every_path(
    client: httpx.AsyncClient, instance: Instance
) -> None:
    of_an_org = [(method, path) for method, path in await operations(client) if "{org}" in path]
    token = instance.runtime.tokens.create("acme", ["ingest", "read", "write", "admin"])[1]
    for method, path in of_an_org:
        answers = [
            await client.request(method, filled(path, org), content=b"{}", headers={"Authorization": f"Bearer {token}"})
            for org in ("globex", "nobody")
        ]
        assert answers[0].status_code == 404 and answers[0].content == answers[1].content, (method, path)
    await sign_in(client, instance, "acme")
    for method, path in of_an_org:
        answers = [await client.request(method, filled(path, org), content=b"{}") for org in ("globex", "nobody")]
        assert answers[0].status_code == (401 if path in BEARER_ONLY else 404), (method, path)
        assert answers[0].content == answers[1].content, (method, path)
    assert b"globex" not in (await client.get("/api/session")).content.lower()


async def test_another_sites_page_changes_nothing_on_any_path(client: httpx.AsyncClient, instance: Instance) -> None:
    await sign_in(client, instance)
    for method, path in await operations(client):
        if method not in ("get", "head") and path not in BEARER_ONLY:
            for origin in ("http://evil.example", "http://127.0.0.1:1"):
                response = await client.request(method, filled(path, "acme"), content=b"{}", headers={"Origin": origin})
                assert response.status_code == 403 and response.json()["type"] == "/problems/foreign_origin", (method, path)
    assert (await client.get("/api/session")).status_code == 200
