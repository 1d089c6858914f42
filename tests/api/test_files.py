"""Files over REST: in and out as streams, in parts, by links that need no session."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cmis_stream.api.auth import COOKIE
from cmis_stream.api.primitives import files as module
from cmis_stream.core.time import parse_rfc3339
from cmis_stream.store.database import Unavailable
from cmis_stream.store.files import LINK_LASTS_MS
from tests.api.conftest import NOW
from tests.api.primitives import Primitives, database, places, postgres, postgres_urls, primitives, problem
from tests.gateway.world import until

__all__ = ["database", "places", "postgres", "postgres_urls", "primitives"]  # fixtures
WHOLE = bytes(range(256)) * 5_000
SHA256 = hashlib.sha256(WHOLE).hexdigest()


@pytest.fixture
async def client(primitives: Primitives) -> AsyncIterator[httpx.AsyncClient]:
    async with primitives.client() as client:
        yield client


async def uploaded(client: httpx.AsyncClient, content: bytes = WHOLE, query: str = "name=a.csv") -> dict[str, Any]:
    response = await client.post(f"/files?{query}", content=content, headers={"Content-Type": "text/csv"})
    assert response.status_code == 201, response.text
    found: dict[str, Any] = response.json()
    return found


def digest(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def on_disk(primitives: Primitives) -> list[Path]:
    return [path for path in primitives.folder.rglob("*") if path.is_file()]


async def test_what_goes_in_comes_out(primitives: Primitives, client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "Text/CSV; charset=utf-8", "Content-Digest": f"sha-512=:AAAA:, {digest(WHOLE)}"}
    response = await client.post("/files", params={"name": "Größe 2026.csv"}, content=WHOLE, headers=headers)
    file = response.json()
    assert (response.status_code, response.headers["location"]) == (201, f"/api/orgs/acme/files/{file['id']}")
    assert file == {
        "id": file["id"], "name": "Größe 2026.csv", "media_type": "text/csv; charset=utf-8", "size": len(WHOLE), "sha256": SHA256,
        "created_at": "2026-01-01T00:00:00.000Z", "expires_at": None, "url": f"/api/orgs/acme/files/{file['id']}/content",
    }  # fmt: skip
    assert (await client.get(f"/files/{file['id']}")).json() == file
    content = await client.get(f"/files/{file['id']}/content")
    assert content.status_code == 200 and content.content == WHOLE
    said = [content.headers[name] for name in ("content-type", "content-length", "accept-ranges", "etag")]
    assert said == ["text/csv; charset=utf-8", str(len(WHOLE)), "bytes", f'"{SHA256}"']
    assert content.headers["content-disposition"].startswith("attachment; ")
    assert content.headers["content-disposition"].endswith("filename*=UTF-8''Gr%C3%B6%C3%9Fe%202026.csv")
    assert (content.headers["x-content-type-options"], content.headers["cache-control"]) == ("nosniff", "no-store")


async def test_a_page_of_a_browser_is_not_run_in_our_origin(client: httpx.AsyncClient) -> None:
    response = await client.post("/files?name=x.html", content=b"<script>", headers={"Content-Type": "text/html"})
    content = await client.get(f"/files/{response.json()['id']}/content")
    assert content.headers["content-type"] == "text/html", "nothing is added to what the sender said"
    assert content.headers["content-disposition"].startswith("attachment")
    assert "default-src 'none'" in content.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ('attachment; filename="a b.csv"', "a b.csv"),
        ("attachment; filename=plain.csv; size=3", "plain.csv"),
        ("attachment; FileName*=UTF-8'de'Gr%C3%B6%C3%9Fe.csv; filename=\"Gr__e.csv\"", "Größe.csv"),
        ('form-data; name="file; filename=no"; filename="say \\"hi\\".csv"', 'say "hi".csv'),
    ],
)
async def test_the_name_may_stand_in_content_disposition(client: httpx.AsyncClient, header: str, name: str) -> None:
    response = await client.post("/files", content=b"x", headers={"Content-Disposition": header})
    assert (response.json()["name"], response.json()["media_type"]) == (name, "application/octet-stream")
    response = await client.post("/files?name=said.csv", content=b"x", headers={"Content-Disposition": header})
    assert response.json()["name"] == "said.csv"


REFUSED: list[tuple[str, dict[str, str], str]] = [
    ("", {}, "name"),
    ("name=", {}, "name"),
    ("name=a/b", {}, "name"),
    ("name=a%00b", {}, "name"),
    (f"name={'x' * 201}", {}, "name"),
    ("name=a&name=b", {}, "name"),
    ("name=a&unknown=1", {}, "unknown"),
    ("name=a&expires_in_s=0", {}, "expires_in_s"),
    ("name=a&expires_in_s=-1", {}, "expires_in_s"),
    ("name=a&expires_in_s=99999999999", {}, "expires_in_s"),
    ("name=a&expires_in_s=²", {}, "expires_in_s"),
    ("name=a", {"Content-Type": "nonsense"}, "Content-Type"),
    ("name=a", {"Content-Type": "a/b/c"}, "Content-Type"),
    ("name=a", {"Content-Type": f"a/{'b' * 200}"}, "media_type"),
    ("name=a", {"Content-Digest": "sha-256=abc"}, "Content-Digest"),
    ("name=a", {"Content-Digest": "sha-256=:abc:"}, "Content-Digest"),
    ("name=a", {"Content-Digest": "sha-256=:YWJj:"}, "Content-Digest"),
    ("name=a", {"Content-Digest": digest(b"another")}, "Content-Digest"),
    ("", {"Content-Disposition": "attachment; nonsense"}, "Content-Disposition"),
    ("", {"Content-Disposition": "attachment; filename*=koi8-r''x"}, "Content-Disposition"),
    ("", {"Content-Disposition": "attachment"}, "name"),
]


@pytest.mark.parametrize(("query", "headers", "what"), REFUSED)
async def test_what_is_wrong_with_an_upload_is_named_and_nothing_is_left(
    primitives: Primitives, client: httpx.AsyncClient, query: str, headers: dict[str, str], what: str
) -> None:
    response = await client.post(f"/files?{query}", content=WHOLE, headers=headers)
    assert response.status_code == 400
    found = problem(response)
    assert what in (found.get("parameter"), *(error.get("header") for error in found.get("errors", ())))
    assert (await client.get("/files")).json()["items"] == [] and on_disk(primitives) == []


async def test_more_than_a_file_may_have_is_refused_as_soon_as_it_is_known(
    primitives: Primitives, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST", 1_000_000)
    taken = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(100):
            taken += 100_000
            yield bytes(100_000)

    declared = await client.post("/files?name=a", content=body(), headers={"Content-Length": "1000001"})
    assert problem(declared)["type"] == "/problems/too_large" and declared.status_code == 413 and taken == 0
    streamed = await client.post("/files?name=a", content=body())
    assert streamed.status_code == 413 and streamed.headers["connection"] == "close" and taken == 1_100_000
    assert on_disk(primitives) == [] and primitives.files.list("acme") == []
    assert (await client.post("/files?name=a", content=bytes(1_000_000))).status_code == 201


async def test_an_upload_that_breaks_off_leaves_nothing(primitives: Primitives) -> None:
    async with primitives.world.served() as url, primitives.client(base_url=url) as client:
        host, _, port = url.removeprefix("http://").partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        lines = ["POST /api/orgs/acme/files?name=a HTTP/1.1", f"Host: {host}:{port}", "Content-Length: 5000000"]
        lines.append(f"Authorization: {client.headers['authorization']}")
        writer.write("\r\n".join([*lines, "", ""]).encode() + bytes(3_000_000))
        await writer.drain()
        await until(lambda: bool(on_disk(primitives)))
        writer.close()
        await until(lambda: not on_disk(primitives))
        assert (await client.get("/files")).json()["items"] == []


async def test_an_empty_file_is_a_file(client: httpx.AsyncClient) -> None:
    file = await uploaded(client, b"")
    content = await client.get(f"/files/{file['id']}/content")
    assert (file["size"], content.status_code, content.content) == (0, 200, b"")


async def test_parts_can_be_asked_for(client: httpx.AsyncClient) -> None:
    path = f"/files/{(await uploaded(client))['id']}/content"
    part = await client.get(path, headers={"Range": "bytes=1000-1999"})
    assert (part.status_code, part.content) == (206, WHOLE[1000:2000])
    assert part.headers["content-range"] == f"bytes 1000-1999/{len(WHOLE)}" and part.headers["content-length"] == "1000"
    last = await client.get(path, headers={"Range": "bytes=-5", "If-Range": f'"{SHA256}"'})
    assert (last.status_code, last.content) == (206, WHOLE[-5:])
    other = await client.get(path, headers={"Range": "bytes=-5", "If-Range": '"another"'})
    assert (other.status_code, other.content) == (200, WHOLE)
    beyond = await client.get(path, headers={"Range": f"bytes={len(WHOLE)}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(WHOLE)}")
    assert problem(beyond)["type"] == "/problems/out_of_range"
    several = await client.get(path, headers={"Range": "bytes=0-1,5-6"})
    assert (several.status_code, several.content) == (200, WHOLE)


@pytest.mark.parametrize("tag", [f'"{SHA256}"', f'"x", W/"{SHA256}"', "*"])
async def test_who_has_it_already_gets_no_bytes(client: httpx.AsyncClient, tag: str) -> None:
    path = f"/files/{(await uploaded(client))['id']}/content"
    response = await client.get(path, headers={"If-None-Match": tag, "Range": "bytes=0-1"})
    assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", f'"{SHA256}"')
    assert (await client.get(path, headers={"If-None-Match": '"another"'})).status_code == 200


async def test_files_are_listed_the_newest_first_page_by_page(primitives: Primitives, client: httpx.AsyncClient) -> None:
    made = []
    for number in range(7):
        made.append((await uploaded(client, b"x", f"name=f{number}"))["id"])
        primitives.world.log.now_ms += number % 2
    found, cursor, first = list[str](), None, True
    while first or cursor is not None:
        page = (await client.get("/files", params={"limit": 2, **({"cursor": cursor} if cursor else {})})).json()
        found, cursor, first = found + [file["id"] for file in page["items"]], page["next"], False
        assert page["total_estimate"] == 7
    assert sorted(found) == sorted(made) and found[0] == made[6]
    for query in ("limit=0", "cursor=x", "sort=name"):
        assert (await client.get(f"/files?{query}")).status_code == 400


async def test_a_file_that_expires_is_not_there_any_more(primitives: Primitives, client: httpx.AsyncClient) -> None:
    file = await uploaded(client, query="name=a.csv&expires_in_s=60")
    assert parse_rfc3339(file["expires_at"]) == NOW + 60_000
    link = (await client.post(f"/files/{file['id']}/link")).json()
    assert link["expires_at"] == file["expires_at"], "a link ends with its file"
    primitives.world.log.now_ms += 60_000
    for path in ("", "/content"):
        assert (await client.get(f"/files/{file['id']}{path}")).status_code == 404
    assert (await client.post(f"/files/{file['id']}/link")).status_code == 404
    assert (await client.get("/files")).json()["total_estimate"] == 0


async def test_a_deleted_file_is_gone_with_its_bytes_and_links(primitives: Primitives, client: httpx.AsyncClient) -> None:
    file = await uploaded(client)
    link = (await client.post(f"/files/{file['id']}/link")).json()["url"]
    assert (await client.delete(f"/files/{file['id']}")).status_code == 204 and on_disk(primitives) == []
    assert (await client.delete(f"/files/{file['id']}")).status_code == 404
    assert (await client.get(f"/files/{file['id']}/content")).status_code == 404
    assert (await client.get(f"http://test{link}")).status_code == 404


async def test_a_file_that_is_deleted_while_somebody_asks_for_it_is_not_found(
    primitives: Primitives, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, read = await uploaded(client), primitives.files.read

    def read_too_late(*arguments: Any) -> Any:
        primitives.files.remove("acme", file["id"])
        return read(*arguments)

    monkeypatch.setattr(primitives.files, "read", read_too_late)
    assert (await client.get(f"/files/{file['id']}/content")).status_code == 404


async def test_bytes_that_are_gone_are_a_mistake_of_ours(
    primitives: Primitives, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    file = await uploaded(client)
    (path,) = on_disk(primitives)
    path.unlink()
    assert problem(await client.get(f"/files/{file['id']}/content"))["type"] == "/problems/internal"
    assert f"the bytes of file {file['id']} are gone" in caplog.text


async def test_whoever_has_a_link_can_download_until_it_ends(primitives: Primitives, client: httpx.AsyncClient) -> None:
    file = await uploaded(client)
    link = (await client.post(f"/files/{file['id']}/link")).json()
    assert re.fullmatch(r"/files/[A-Za-z0-9._-]+", link["url"]) and parse_rfc3339(link["expires_at"]) == NOW + LINK_LASTS_MS
    transport = httpx.ASGITransport(primitives.app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers={"Origin": "http://evil.example"}
    ) as anyone:
        whole = await anyone.get(link["url"])
        assert (whole.status_code, whole.content, whole.headers["etag"]) == (200, WHOLE, f'"{SHA256}"')
        assert whole.headers["content-disposition"].startswith("attachment")
        assert (whole.headers["x-content-type-options"], whole.headers["cache-control"]) == ("nosniff", "no-store")
        part = await anyone.get(link["url"], headers={"Range": "bytes=0-9"})
        assert (part.status_code, part.content) == (206, WHOLE[:10])
        assert (await anyone.get(link["url"], headers={"If-None-Match": f'"{SHA256}"'})).status_code == 304
        assert problem(await anyone.get(link["url"][:-4] + "AAAA"))["type"] == "/problems/not_found"
        assert (await anyone.get("/files/nonsense")).status_code == 404
        assert (await anyone.get(f"/api/orgs/acme/files/{file['id']}/content")).status_code == 401
        primitives.world.log.now_ms += LINK_LASTS_MS
        assert (await anyone.get(link["url"])).status_code == 404


async def test_files_of_another_org_are_not_there(primitives: Primitives, client: httpx.AsyncClient) -> None:
    file = await uploaded(client)
    async with primitives.client("globex") as theirs:
        for method, path in (("GET", ""), ("GET", "/content"), ("POST", "/link"), ("DELETE", "")):
            assert (await theirs.request(method, f"/files/{file['id']}{path}")).status_code == 404
        assert (await theirs.get("/files")).json()["items"] == []
    assert (await client.get(f"/files/{file['id']}/content")).content == WHOLE


async def test_who_may_only_read_changes_nothing(primitives: Primitives, client: httpx.AsyncClient) -> None:
    file = await uploaded(client)
    async with primitives.client("acme", "read") as reader:
        assert (await reader.get(f"/files/{file['id']}/content")).content == WHOLE
        assert problem(await reader.post("/files?name=a", content=b"x"))["scope"] == "write"
        assert problem(await reader.delete(f"/files/{file['id']}"))["scope"] == "write"
    assert len(primitives.files.list("acme")) == 1


async def test_a_browser_uploads_from_our_page_and_from_no_other(primitives: Primitives) -> None:
    code = primitives.world.sessions.make_code(now_ms=NOW)
    cookie = {"Cookie": f"{COOKIE}={primitives.world.sessions.exchange(code, NOW)[1]}", "Host": "stream.example"}
    transport = httpx.ASGITransport(primitives.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test/api/orgs/acme", headers=cookie) as browser:
        refused = await browser.post("/files?name=a", content=b"x", headers={"Origin": "https://evil.example"})
        assert problem(refused)["type"] == "/problems/foreign_origin"
        file = await browser.post("/files?name=a", content=b"x", headers={"Origin": "http://stream.example"})
        assert file.status_code == 201
        assert (await browser.get(f"/files/{file.json()['id']}/content")).content == b"x"


async def test_bytes_that_are_others_than_those_written_never_come_whole(primitives: Primitives) -> None:
    async with primitives.world.served() as url, primitives.client(base_url=url) as client:
        file = await uploaded(client)
        (path,) = on_disk(primitives)
        path.write_bytes(WHOLE[:-1] + b"!")
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(f"/files/{file['id']}/content")


async def test_a_store_without_room_says_so_and_keeps_nothing(
    primitives: Primitives, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise Unavailable("the place of files: no room is left")

    monkeypatch.setattr("cmis_stream.store.blobs._FolderWriting.write", full)
    response = await client.post("/files?name=a", content=WHOLE)
    assert response.status_code == 503 and response.headers["retry-after"]
    assert on_disk(primitives) == [] and primitives.files.list("acme") == []


async def test_a_large_file_is_never_whole_in_memory(primitives: Primitives) -> None:
    """64 MiB in and out, over a socket; meanwhile other requests are answered."""
    size, piece = 64 << 20, bytes(1 << 20)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(size // len(piece)):
            yield piece

    async with primitives.world.served() as url, primitives.client(base_url=url) as client:
        await client.get("/files")
        tracemalloc.start()
        try:
            sending = asyncio.create_task(client.post("/files?name=large", content=body(), timeout=120))
            answered = 0
            while not sending.done():
                answered += (await client.get("/files")).status_code == 200
            file, got = (await sending).json(), 0
            async with client.stream("GET", f"/files/{file['id']}/content", timeout=120) as response:
                async for part in response.aiter_raw():
                    got += len(part)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert (file["size"], got) == (size, size) and answered > 3
    assert peak < size // 2
