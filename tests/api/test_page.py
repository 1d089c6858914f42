"""The built page over real HTTP: which paths are its own, caching, encodings, headers, and no way out of its folder."""

from __future__ import annotations

import asyncio
import gzip
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.test_ingest import assert_problem

INDEX = b'<!doctype html><script type="module" src="/assets/index-4f2a.js"></script>'
SCRIPT = b"console.log('a long script');" * 200


@pytest.fixture
def built(world: Any) -> Path:
    folder: Path = world.page
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_bytes(INDEX)
    (folder / "favicon.svg").write_text("<svg/>")
    (folder / ".fingerprint").write_text("secret")
    (folder / "assets/index-4f2a.js").write_bytes(SCRIPT)
    (folder / "assets/other-1.css").write_text("b{}")
    (folder / "assets/other-1.css.br").write_bytes(b"brotli")
    (folder / "assets/other-1.css.gz").write_bytes(b"gzipped before")
    (folder / "assets/inter-9.woff2").write_bytes(b"font" * 1000)
    (folder.parent / "secret.txt").write_text("secret")
    (folder.parent / "page-other").mkdir()
    (folder.parent / "page-other/x.txt").write_text("secret")
    return folder


@pytest.fixture
async def client(world: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with world.served() as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        yield client


async def raw(client: httpx.AsyncClient, target: str) -> bytes:
    """The answer to a request line as it stands here: no client has tidied the path."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer


async def test_every_path_of_the_pages_own_is_the_page(client: httpx.AsyncClient, built: Path) -> None:
    for path in (
        "/",
        "/sign-in",
        "/index.html",
        "/live?org=acme",
        "/incidents/abc",
        "/orgs/a%2Fb",
        "/apiary",
        "/%2e%2e",
        "//",
        "/.fingerprint",
    ):
        response = await client.get(path)
        assert (response.status_code, response.content) == (200, INDEX), path
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache"


async def test_what_is_not_the_pages_stays_a_problem(client: httpx.AsyncClient, built: Path) -> None:
    for path in ("/api", "/api/", "/api/nothing", "/api/session/x", "/assets", "/assets/", "/assets/gone.js", "/healthz/x",
                 "/openapi.json/x", "/asyncapi.json/x"):  # fmt: skip
        for method in ("GET", "POST", "HEAD"):
            response = await client.request(method, path)
            assert response.status_code == 404 and response.headers["content-type"] == "application/problem+json", path
    assert_problem(await client.get("/api/orgs/acme/events"), 405, "method_not_allowed")
    refused = await client.post("/sign-in")
    assert_problem(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == "GET, HEAD"
    assert (await client.get("/openapi.json")).json()["openapi"]
    assert (await client.get("/asyncapi.json")).json()["servers"]["gateway"]["protocol"] == "ws"


async def test_assets_are_kept_for_ever_and_the_rest_is_asked_for_again(client: httpx.AsyncClient, built: Path) -> None:
    script = await client.get("/assets/index-4f2a.js")
    assert script.content == SCRIPT and script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert script.headers["cache-control"] == "public, max-age=31536000, immutable"
    icon = await client.get("/favicon.svg")
    assert icon.headers["cache-control"] == "no-cache" and icon.headers["content-type"] == "image/svg+xml"
    for path in ("/", "/live", "/favicon.svg", "/assets/index-4f2a.js"):
        etag = (await client.get(path)).headers["etag"]
        for given in (etag, etag.removeprefix("W/"), f'"x", {etag}', "*"):
            known = await client.get(path, headers={"If-None-Match": given})
            assert known.status_code == 304 and known.content == b"" and known.headers["etag"] == etag
        assert (await client.get(path, headers={"If-None-Match": '"x"'})).status_code == 200


async def test_what_a_client_understands_is_sent_compressed(client: httpx.AsyncClient, built: Path) -> None:
    async def answered(path: str, accepted: str) -> tuple[str | None, bytes]:
        async with client.stream("GET", path, headers={"Accept-Encoding": accepted}) as response:
            assert response.status_code == 200 and response.headers["vary"] == "Accept-Encoding"
            return response.headers.get("content-encoding"), b"".join([part async for part in response.aiter_raw()])

    encoding, body = await answered("/assets/index-4f2a.js", "gzip, deflate, br, zstd")
    assert encoding == "gzip" and gzip.decompress(body) == SCRIPT and len(body) < len(SCRIPT) / 10
    assert await answered("/assets/index-4f2a.js", "") == (None, SCRIPT)
    assert await answered("/assets/index-4f2a.js", "gzip;q=0") == (None, SCRIPT)
    assert await answered("/assets/other-1.css", "gzip, br") == ("br", b"brotli")
    assert await answered("/assets/other-1.css", "gzip") == ("gzip", b"gzipped before")
    assert await answered("/assets/inter-9.woff2", "gzip, br") == (None, b"font" * 1000)
    assert (await client.get("/assets/other-1.css.br")).status_code == 404


async def test_head_is_get_without_the_body(client: httpx.AsyncClient, built: Path) -> None:
    for path in ("/", "/assets/index-4f2a.js"):
        get, head = await client.get(path), await client.head(path)
        assert head.status_code == 200 and head.content == b""
        assert head.headers["content-length"] == get.headers["content-length"] and head.headers["etag"] == get.headers["etag"]


async def test_no_path_leads_out_of_the_folder(client: httpx.AsyncClient, built: Path) -> None:
    up = ("..", "%2e%2e", "%2E.", "..%2f", "%252e%252e", "..\\", "..%5c", "....", "%c0%ae%c0%ae", "..;", "%00..")
    targets = ["/{}/secret.txt", "/assets/{}/{}/secret.txt", "/assets/{}{}secret.txt", "//{}/secret.txt", "{}/secret.txt",
               "/{}/page-other/x.txt", "/{}/store.db", "/{}/{}/{}/{}/{}/{}/etc/passwd"]  # fmt: skip
    tried = [pattern.replace("{}", one) for pattern, one in itertools.product(targets, up)]
    tried += [
        str(built.parent / "secret.txt"),
        f"/{built.parent}/secret.txt",
        f"file://{built.parent}/secret.txt",
        "/assets/\x00",
    ]
    for target in tried:
        answer = await raw(client, target)
        assert answer[9:12] in (b"200", b"400", b"404"), (target, answer)
        assert b"secret" not in answer and b"root:" not in answer and b"SQLite" not in answer, target
        assert not answer.startswith(b"HTTP/1.1 200") or answer.endswith(INDEX), target


@pytest.mark.spec(
    "TEN-M07", partial="headers of every answer and a policy without inline scripts; see the page's tests for its own"
)
async def test_every_answer_says_what_a_browser_may_do_with_it(client: httpx.AsyncClient, built: Path, world: Any) -> None:
    world.log.error = RuntimeError("a mistake")
    line = b'{"id": "e", "ts": 1767225600000, "platform": "meta", "campaign": "c", "impressions": 1}\n'
    paths = ("/", "/live", "/assets/index-4f2a.js", "/assets/no", "/healthz", "/openapi.json", "/api/session", "/api/nothing")
    answers = [await client.get(path) for path in (*paths, "/api/orgs/acme/events")]
    answers.append(await client.post("/api/orgs/acme/events", content=line, headers=world.headers()))
    answers.append(await client.get("/", headers={"Host": "evil.example"}))
    assert {200, 400, 401, 404, 405, 500} == {answer.status_code for answer in answers}
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["referrer-policy"] == "no-referrer"
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'" and policy["default-src"] in ("'self'", "'none'")
        assert not {"script-src", "style-src"} & policy.keys() and "unsafe-eval" not in str(policy)
        assert not answer.url.path.startswith("/api/") or answer.headers["cache-control"] == "no-store"


async def test_the_page_may_talk_to_this_host_and_its_gateway_only(client: httpx.AsyncClient, built: Path) -> None:
    for host, gateway in (
        ("localhost:8600", "ws://localhost:8601"),
        ("[::1]:9", "ws://[::1]:8601"),
        ("127.0.0.1", "ws://127.0.0.1:8601"),
    ):
        policy = (await client.get("/", headers={"Host": host})).headers["content-security-policy"]
        assert (
            f"default-src 'self'; connect-src 'self' {gateway}/connection/websocket; " in policy
            and "form-action 'self'" in policy
        )


async def test_a_tree_without_a_built_page_says_how_to_build_it(client: httpx.AsyncClient, world: Any) -> None:
    for path in ("/", "/sign-in"):
        response = await client.get(path)
        assert response.status_code == 503 and response.headers["content-type"].startswith("text/html")
        assert "scripts/web.py build" in response.text and "default-src 'self'" in response.headers["content-security-policy"]
    assert_problem(await client.get("/assets/x.js"), 404, "not_found")
    world.page.mkdir()
    (world.page / "index.html").write_bytes(INDEX)
    assert (await client.get("/")).content == INDEX, "built meanwhile"
