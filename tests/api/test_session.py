"""Signing in and out over real HTTP, as a browser does it, and every way to be refused."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from cmis_stream.core.time import DAY_MS, MINUTE_MS, parse_rfc3339
from tests.api.test_ingest import assert_problem

NOW = 1_767_225_600_000
SESSION, TOKEN = "/api/session", "/api/session/gateway-token"


class Browser:
    """A client that says where its requests come from, as browsers do."""

    def __init__(self, client: httpx.AsyncClient, world: Any) -> None:
        self.client, self.world = client, world
        self.origin = str(client.base_url).rstrip("/")

    async def send(self, method: str, path: str, **given: Any) -> httpx.Response:
        headers = {"Origin": self.origin, "Sec-Fetch-Site": "same-origin", **given.pop("headers", {})}
        kept = {name: value for name, value in headers.items() if value is not None}
        return await self.client.request(method, path, headers=kept, **given)

    async def get(self, path: str, **given: Any) -> httpx.Response:
        return await self.send("GET", path, **given)

    async def post(self, path: str, **given: Any) -> httpx.Response:
        return await self.send("POST", path, **given)

    async def sign_in(self, *orgs: str) -> httpx.Response:
        """With a link of these orgs, or of all."""
        code = self.world.sessions.make_code(orgs or None, now_ms=self.world.now())
        response = await self.post(SESSION, json={"code": code})
        assert response.status_code == 200, response.text
        return response


@pytest.fixture
async def browser(world: Any) -> AsyncIterator[Browser]:
    async with world.served() as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        yield Browser(client, world)


def elsewhere(world: Any, session_id: str) -> None:
    """Another process revokes the session."""
    code = "import sys; from cmis_stream.cli import main; main()"
    arguments = ["session", "revoke", session_id, "--data-dir", str(world.folder)]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=Path(__file__).parents[2], capture_output=True)


# --- signing in ------------------------------------------------------------------------------------------------------


async def test_a_code_is_exchanged_for_a_cookie_that_only_this_site_and_no_script_gets(browser: Browser) -> None:
    response = await browser.sign_in()
    name, *flags = response.headers["set-cookie"].split("; ")
    assert name.startswith("cmis_session=") and len(name.partition("=")[2]) == 43
    assert {flag.lower() for flag in flags} == {"httponly", "samesite=strict", "path=/", f"max-age={14 * 86_400}"}
    assert response.headers["cache-control"] == "no-store"
    assert (await browser.get(SESSION)).json() == response.json()


async def test_behind_https_the_cookie_is_secure_and_the_gateway_wss(browser: Browser) -> None:
    code = browser.world.sessions.make_code(now_ms=NOW)
    headers = {"X-Forwarded-Proto": "https", "Host": "stream.example", "Origin": "https://stream.example"}
    response = await browser.post(SESSION, json={"code": code}, headers=headers)
    assert response.status_code == 200 and "; secure" in response.headers["set-cookie"].lower()
    assert response.json()["gateway"] == {"url": "wss://stream.example:8601/connection/websocket"}


async def test_the_session_says_who_what_is_open_and_where_the_gateway_is(browser: Browser) -> None:
    await browser.sign_in()
    answer = (await browser.get(SESSION)).json()
    assert answer == {
        "user": {"id": "operator", "name": "Operator"},
        "orgs": [{"id": "acme", "name": "Acme", "role": "owner"}, {"id": "globex", "name": "Globex", "role": "owner"}],
        "gateway": {"url": "ws://127.0.0.1:8601/connection/websocket"},
        "expires_at": "2026-01-15T00:00:00.000Z",
        "server_time": "2026-01-01T00:00:00.000Z",
    }


async def test_an_org_made_later_is_open_to_a_session_of_all_and_not_to_one_of_some(browser: Browser) -> None:
    await browser.sign_in()
    everything = dict(browser.client.cookies)
    browser.client.cookies.clear()
    await browser.sign_in("acme", "globex")
    browser.world.tokens.create_org("initech", "Initech")
    assert [org["id"] for org in (await browser.get(SESSION)).json()["orgs"]] == ["acme", "globex"]
    browser.client.cookies.clear()
    answer = await browser.get(SESSION, headers={"Cookie": f"cmis_session={everything['cmis_session']}"})
    assert [org["id"] for org in answer.json()["orgs"]] == ["acme", "globex", "initech"]


async def test_the_gateway_is_on_the_host_that_the_browser_used(browser: Browser) -> None:
    for host in ("localhost", "127.0.0.1", "[::1]", "STREAM.example", "stream.example"):
        code = browser.world.sessions.make_code(now_ms=NOW)
        headers = {"Host": f"{host}:8600", "Origin": f"http://{host.lower()}:8600"}
        response = await browser.post(SESSION, json={"code": code}, headers=headers)
        assert response.json()["gateway"] == {"url": f"ws://{host.lower()}:8601/connection/websocket"}


async def test_a_used_an_expired_and_an_unknown_code_look_the_same(browser: Browser) -> None:
    sessions = browser.world.sessions
    used, expired = sessions.make_code(now_ms=NOW), sessions.make_code(now_ms=NOW - 15 * MINUTE_MS)
    assert (await browser.post(SESSION, json={"code": used})).status_code == 200
    browser.client.cookies.clear()
    answers = []
    for code in (used, expired, "x" * 43, ""):
        response = await browser.post(SESSION, json={"code": code}, headers={"Request-Id": "same"})
        assert_problem(response, 401, "code_not_valid")
        answers.append(response.content)
        assert "set-cookie" not in response.headers
    assert len(set(answers)) == 1 and len(sessions.list()) == 1


async def test_of_two_requests_with_the_same_code_one_is_signed_in(browser: Browser) -> None:
    code = browser.world.sessions.make_code(now_ms=NOW)
    answers = await asyncio.gather(*(browser.post(SESSION, json={"code": code}) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] + [401] * 7
    assert len(browser.world.sessions.list()) == 1


async def test_a_body_that_is_no_code_is_refused(browser: Browser) -> None:
    form, json = "application/x-www-form-urlencoded", "application/json"
    for body, kind, status, code in (
        (b'{"code": 5}', json, 400, "malformed"),
        (b'{"code": "x", "org": "acme"}', json, 400, "malformed"),
        (b"{}", json, 400, "malformed"),
        (b"[", f"{json}; charset=utf-8", 400, "malformed"),
        (b'{"code": "\xff"}', json, 400, "malformed"),
        (b"", json, 400, "malformed"),
        (b"code=x", form, 415, "unsupported_media"),
        (b'{"code": "x"}', "text/plain", 415, "unsupported_media"),
        (b'{"code": "x"}', "", 415, "unsupported_media"),
        (b'{"code": "' + b"x" * 5_000 + b'"}', json, 413, "too_large"),
    ):
        assert_problem(await browser.post(SESSION, content=body, headers={"Content-Type": kind}), status, code)


@pytest.mark.spec("TEN-E01", partial="sign-in attempts per address; users, tokens and orgs come with their limits")
async def test_an_address_that_tries_too_often_has_to_wait(browser: Browser) -> None:
    code = browser.world.sessions.make_code(now_ms=NOW)
    for _ in range(10):
        assert_problem(await browser.post(SESSION, json={"code": "x"}), 401, "code_not_valid")
    refused = await browser.post(SESSION, json={"code": code})
    assert_problem(refused, 429, "rate_limited")
    assert refused.headers["retry-after"] == "6"
    browser.world.log.now_ms += 5_999
    assert (await browser.post(SESSION, json={"code": code})).headers["retry-after"] == "1"
    browser.world.log.now_ms += 1
    assert (await browser.post(SESSION, json={"code": code})).status_code == 200


# --- being signed in -------------------------------------------------------------------------------------------------


async def test_without_a_session_it_is_401(browser: Browser) -> None:
    for cookie in (None, b"", b"x" * 43, b"\xff"):
        headers = {"Cookie": None if cookie is None else b"cmis_session=" + cookie}
        for method, path in (("GET", SESSION), ("DELETE", SESSION), ("POST", TOKEN)):
            assert_problem(await browser.send(method, path, headers=headers), 401, "unauthorized")
    assert_problem(await browser.get(SESSION, headers={"Authorization": f"Bearer {browser.world.text}"}), 401, "unauthorized")


async def test_a_session_ends_after_14_days(browser: Browser) -> None:
    await browser.sign_in()
    browser.world.log.now_ms += 14 * DAY_MS - 1
    assert (await browser.get(SESSION)).status_code == 200
    browser.world.log.now_ms += 1
    assert_problem(await browser.get(SESSION), 401, "unauthorized")


async def test_a_session_revoked_by_another_process_ends_at_once(browser: Browser) -> None:
    await browser.sign_in()
    (session,) = browser.world.sessions.list()
    await asyncio.to_thread(elsewhere, browser.world, session.id)
    for method, path in (("GET", SESSION), ("POST", TOKEN), ("DELETE", SESSION)):
        assert_problem(await browser.send(method, path), 401, "unauthorized")


async def test_signing_out_ends_this_session_and_takes_the_cookie_back(browser: Browser) -> None:
    await browser.sign_in()
    other = dict(browser.client.cookies)["cmis_session"]
    browser.client.cookies.clear()
    await browser.sign_in()
    kept = dict(browser.client.cookies)["cmis_session"]
    response = await browser.send("DELETE", SESSION)
    assert response.status_code == 204 and response.content == b""
    assert "max-age=0" in response.headers["set-cookie"].lower() and "cmis_session" not in browser.client.cookies
    assert (await browser.get(SESSION, headers={"Cookie": f"cmis_session={kept}"})).status_code == 401
    assert (await browser.get(SESSION, headers={"Cookie": f"cmis_session={other}"})).status_code == 200


# --- gateway tokens --------------------------------------------------------------------------------------------------


@pytest.mark.spec(
    "GTW-E12", partial="tokens of five minutes; expiry and refresh on the connection are shown by the gateway's tests"
)
async def test_the_page_gets_a_gateway_token_of_five_minutes_for_its_session(browser: Browser) -> None:
    await browser.sign_in("acme")
    answer = (await browser.post(TOKEN)).json()
    (session,) = browser.world.sessions.list()
    assert browser.world.gateway_tokens.read(answer["token"]) == (session.id, NOW + 5 * MINUTE_MS)
    assert parse_rfc3339(answer["expires_at"]) == NOW + 5 * MINUTE_MS
    browser.world.log.now_ms = session.expires_at_ms - 10_000
    assert parse_rfc3339((await browser.post(TOKEN)).json()["expires_at"]) == session.expires_at_ms


async def test_a_program_buys_a_gateway_token_with_a_token_that_reads(browser: Browser) -> None:
    token, text = browser.world.tokens.create("acme", ["read"])
    path, headers = "/api/orgs/acme/gateway-token", {"Authorization": f"Bearer {text}", "Origin": None, "Sec-Fetch-Site": None}
    answer = await browser.post(path, headers=headers)
    assert answer.status_code == 200 and answer.headers["cache-control"] == "no-store"
    assert jwt.decode(answer.json()["token"], options={"verify_signature": False})["sub"] == token.id
    ingest = {**headers, "Authorization": f"Bearer {browser.world.text}"}
    assert assert_problem(await browser.post(path, headers=ingest), 403, "forbidden")["scope"] == "read"
    same = {**headers, "Request-Id": "same"}
    foreign = [await browser.post(f"/api/orgs/{org}/gateway-token", headers=same) for org in ("globex", "nobody")]
    assert_problem(foreign[0], 404, "not_found")
    assert foreign[0].content == foreign[1].content
    await browser.sign_in()
    assert_problem(await browser.post(path), 401, "unauthorized")


async def test_the_ingest_takes_no_session(browser: Browser) -> None:
    await browser.sign_in()
    headers = {"Content-Type": "application/x-ndjson"}
    assert_problem(await browser.post("/api/orgs/acme/events", content=b"{}", headers=headers), 401, "unauthorized")
    assert not browser.world.log.batches


# --- foreign pages and names -----------------------------------------------------------------------------------------


@pytest.mark.spec("TEN-M07", partial="CSRF-safe browser sessions; validation is shown endpoint by endpoint")
async def test_another_page_changes_nothing_with_our_cookie(browser: Browser) -> None:
    await browser.sign_in()
    no_page: dict[str, str | None] = {"Sec-Fetch-Site": None, "Origin": None}
    for headers in (
        {"Sec-Fetch-Site": None, "Origin": "http://evil.example"},
        {"Sec-Fetch-Site": None, "Origin": "http://127.0.0.1:9"},  # the same site, another port
        {"Sec-Fetch-Site": None, "Origin": browser.origin.replace("http:", "https:")},
        {"Sec-Fetch-Site": None, "Origin": "null"},
        {"Sec-Fetch-Site": None, "Origin": ""},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": None},
        {"Sec-Fetch-Site": "none", "Origin": None},
        {"Sec-Fetch-Site": ""},
        no_page,
    ):
        for method, path in (("DELETE", SESSION), ("POST", TOKEN)):
            assert_problem(await browser.send(method, path, headers=headers), 403, "foreign_origin")
        if headers is not no_page:
            code = browser.world.sessions.make_code(now_ms=NOW)
            assert_problem(await browser.post(SESSION, json={"code": code}, headers=headers), 403, "foreign_origin")
    assert (await browser.get(SESSION)).status_code == 200, "still signed in"


async def test_one_sign_of_our_own_page_is_enough(browser: Browser) -> None:
    await browser.sign_in()
    for headers in ({"Origin": None}, {"Origin": "null"}, {"Sec-Fetch-Site": None}):
        assert (await browser.post(TOKEN, headers=headers)).status_code == 200


async def test_a_program_without_a_page_may_sign_in(browser: Browser) -> None:
    code = browser.world.sessions.make_code(now_ms=NOW)
    response = await browser.post(SESSION, json={"code": code}, headers={"Origin": None, "Sec-Fetch-Site": None})
    assert response.status_code == 200


FOREIGN = [
    "evil.example", "evil.example:8600", "127.0.0.1.evil.example", "localhost.evil.example", "localhost@evil.example",
    "localhost,evil.example", "localhost:8600/x", "localhost:x", "local host", "192.0.2.1", "0.0.0.0", "[::]", "127.1",
    "127.0.0.2", "a" * 300, "",
]  # fmt: skip


async def test_under_a_foreign_name_there_is_neither_page_nor_session(browser: Browser) -> None:
    await browser.sign_in()
    cookie = f"cmis_session={browser.client.cookies['cmis_session']}"
    for host in FOREIGN:
        headers = {"Cookie": cookie, "Host": host, "Origin": f"http://{host}"}
        code = browser.world.sessions.make_code(now_ms=NOW)
        for response in (
            await browser.get(SESSION, headers=headers),
            await browser.post(TOKEN, headers=headers),
            await browser.send("DELETE", SESSION, headers=headers),
            await browser.post(SESSION, json={"code": code}, headers=headers),
            await browser.get("/", headers=headers),
            await browser.get("/sign-in", headers=headers),
        ):
            document = assert_problem(response, 400, "invalid")
            assert "--public-host" in document["detail"] and "set-cookie" not in response.headers
    assert (await browser.get(SESSION)).status_code == 200


async def test_programs_with_a_token_may_use_any_name(browser: Browser) -> None:
    headers = {**browser.world.headers(), "Host": "cmis.internal"}
    line = b'{"id": "e", "ts": 1767225600000, "platform": "meta", "campaign": "c", "impressions": 1}\n'
    assert (await browser.post("/api/orgs/acme/events", content=line, headers=headers)).status_code == 200


async def test_nothing_redirects_anywhere(browser: Browser) -> None:
    await browser.sign_in()
    for path in ("/sign-in?next=http://evil.example", "//evil.example/", "/api/session/", "//evil.example/api/session/",
                 "/api/session?url=//evil.example", "/healthz/", "/\\evil.example"):  # fmt: skip
        for method in ("GET", "POST"):
            response = await browser.send(method, path)
            assert not 300 <= response.status_code < 400 and "location" not in response.headers, path
