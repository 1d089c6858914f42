"""Secrets over REST: given, never shown."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import httpx
import pytest

from cmis_stream.core.time import parse_rfc3339
from cmis_stream.store.database import Unavailable
from cmis_stream.store.secrets import LONGEST
from tests.api.primitives import Primitives, database, places, postgres, postgres_urls, primitives, problem

__all__ = ["database", "places", "postgres", "postgres_urls", "primitives"]  # fixtures
VALUE = "hunter2-7f3a-very-secret"


@pytest.fixture
async def client(primitives: Primitives) -> AsyncIterator[httpx.AsyncClient]:
    async with primitives.client() as client:
        yield client


async def test_what_modules_need_and_what_is_set_is_listed(primitives: Primitives, client: httpx.AsyncClient) -> None:
    nothing = {"set": False, "updated_at": None}
    assert (await client.get("/secrets")).json()["items"] == [
        {"name": "meta/token", "title": "Meta access token", **nothing}, {"name": "slack", "title": "Slack webhook", **nothing},
    ]  # fmt: skip
    told = await client.put("/secrets/meta/token", json={"value": VALUE})
    assert (told.status_code, told.json()["name"], told.json()["set"]) == (200, "meta/token", True)
    assert parse_rfc3339(told.json()["updated_at"]) == primitives.world.now()
    assert (await client.put("/secrets/own%2Fone:1", json={"value": VALUE})).json()["name"] == "own/one:1"
    listed = (await client.get("/secrets")).json()
    assert [(one["name"], one["title"], one["set"]) for one in listed["items"]] == [
        ("meta/token", "Meta access token", True), ("own/one:1", None, True), ("slack", "Slack webhook", False),
    ]  # fmt: skip
    assert (listed["next"], listed["total_estimate"]) == (None, 3)
    kept = primitives.secrets.reveal("acme", "meta/token")
    assert kept is not None and kept.text() == VALUE


async def test_a_deleted_secret_is_not_set_any_more(primitives: Primitives, client: httpx.AsyncClient) -> None:
    await client.put("/secrets/slack", json={"value": VALUE})
    assert (await client.delete("/secrets/slack")).status_code == 204
    assert (await client.delete("/secrets/slack")).status_code == 404
    assert not primitives.secrets.status("acme", "slack").set
    assert [one["set"] for one in (await client.get("/secrets")).json()["items"]] == [False, False]


async def test_secrets_of_another_org_are_not_there(primitives: Primitives, client: httpx.AsyncClient) -> None:
    await client.put("/secrets/slack", json={"value": VALUE})
    async with primitives.client("globex") as theirs:
        assert not any(one["set"] for one in (await theirs.get("/secrets")).json()["items"])
        assert (await theirs.delete("/secrets/slack")).status_code == 404
        await theirs.put("/secrets/slack", json={"value": "theirs"})
    kept = primitives.secrets.reveal("acme", "slack")
    assert kept is not None and kept.text() == VALUE


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_only_who_has_the_scope_admin_gets_near(primitives: Primitives, method: str) -> None:
    async with primitives.client("acme", "read", "write") as client:
        path = "/secrets" if method == "GET" else "/secrets/slack"
        assert problem(await client.request(method, path, json={"value": VALUE}))["scope"] == "admin"
    assert not primitives.secrets.status("acme", "slack").set


JSON = {"Content-Type": "application/json"}
REFUSED = {
    "no JSON": (f'{{"value": {VALUE}'.encode(), JSON, 400),
    "text": (f'"{VALUE}"'.encode(), JSON, 422),
    "array": (f'["{VALUE}"]'.encode(), JSON, 422),
    "object": (f'{{"value": {{"a": "{VALUE}"}}}}'.encode(), JSON, 422),
    "another name": (f'{{"{VALUE}": "x", "value": "{VALUE}"}}'.encode(), JSON, 422),
    "no name": (b"{}", JSON, 422),
    "empty": (b'{"value": ""}', JSON, 422),
    "long": (f'{{"value": "{VALUE * (LONGEST // len(VALUE) + 1)}"}}'.encode(), JSON, 422),
    "longer": (f'{{"value": "{VALUE * 10_000}"}}'.encode(), JSON, 413),
    "half a pair": (f'{{"value": "{VALUE}\\ud800"}}'.encode(), JSON, 400),
    "form": (f"value={VALUE}".encode(), {"Content-Type": "application/x-www-form-urlencoded"}, 415),
    "nothing": (b"", JSON, 400),
    "no type": (b"", {}, 415),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_a_value_that_is_refused_is_not_repeated(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    body, headers, status = REFUSED[what]
    with caplog.at_level(logging.DEBUG):
        response = await client.put("/secrets/slack", content=body, headers=headers)
    assert response.status_code == status and problem(response)["detail"]
    assert VALUE not in response.text + str(response.headers) + caplog.text


async def test_a_value_that_is_kept_is_in_no_answer_and_no_log(
    primitives: Primitives, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        answers = [await client.put("/secrets/slack", json={"value": VALUE}), await client.get("/secrets")]
        answers += [await client.put("/secrets/NOT A NAME", json={"value": VALUE}), await client.delete("/secrets/slack")]
    assert [one.status_code for one in answers] == [200, 200, 422, 204]
    assert not any(VALUE in one.text + str(one.headers) for one in answers) and VALUE not in caplog.text


@pytest.mark.parametrize("error", [RuntimeError("a mistake of ours"), Unavailable("the database is away")])
async def test_when_it_fails_the_value_is_in_no_log(
    primitives: Primitives, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:  # fmt: skip
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(primitives.secrets._database, "transaction", fail)
    with caplog.at_level(logging.DEBUG):
        response = await client.put("/secrets/slack", json={"value": VALUE})
    assert response.status_code == (503 if isinstance(error, Unavailable) else 500)
    assert VALUE not in response.text + caplog.text
    assert isinstance(error, Unavailable) or "a mistake of ours" in caplog.text, "the log is where one would find it"


@pytest.mark.parametrize("name", ["A", "-a", "a b", "%00", "a" * 201])
async def test_a_name_that_is_none_is_refused(client: httpx.AsyncClient, name: str) -> None:
    assert problem(await client.put(f"/secrets/{name}", json={"value": "x"}))["errors"][0]["parameter"] == "name"
    assert (await client.delete(f"/secrets/{name}")).status_code == 404
