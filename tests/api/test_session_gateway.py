"""From a session to the gateway of the same instance, and out of it within moments of being revoked elsewhere."""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from cmis_stream.instance import Instance
from cmis_stream.settings import Settings

PATIENCE_S = 30


@pytest.fixture
async def instance(tmp_path: Path) -> AsyncIterator[Instance]:
    async with Instance(Settings(data_dir=tmp_path, port=0, public_hosts=("stream.example",))) as instance:
        for org in ("acme", "globex"):
            instance.runtime.tokens.create_org(org, org.title())
        yield instance


class Page:
    """A signed-in browser: its cookie, and its socket."""

    def __init__(self, client: httpx.AsyncClient, socket: ClientConnection) -> None:
        self.client, self.socket = client, socket
        self._ids = itertools.count(1)

    async def command(self, **command: Any) -> dict[str, Any]:
        number = next(self._ids)
        await self.socket.send(json.dumps({"id": number, **command}))
        while True:
            for line in str(await asyncio.wait_for(self.socket.recv(), PATIENCE_S)).splitlines():
                reply: dict[str, Any] = json.loads(line)
                if reply.get("id") == number:
                    return reply

    async def gateway_token(self) -> str:
        return str((await self.client.post("/api/session/gateway-token")).json()["token"])

    async def closed(self) -> int | None:
        """Its close code, when it is closed from the other side."""
        await asyncio.wait_for(self.socket.wait_closed(), PATIENCE_S)
        return self.socket.close_code


@asynccontextmanager
async def opened(instance: Instance, *orgs: str) -> AsyncIterator[Page]:
    """Signed in and connected, as the page does it: everything it knows comes from the session's answer."""
    async with httpx.AsyncClient(base_url=instance.url, headers={"Origin": instance.url}, trust_env=False) as client:
        told = (await client.post("/api/session", json={"code": instance.sessions.make_code(orgs or None)})).json()
        async with connect(told["gateway"]["url"], origin=instance.url, proxy=None) as socket:  # type: ignore[arg-type]
            page = Page(client, socket)
            assert "connect" in await page.command(connect={"token": await page.gateway_token()})
            yield page


async def elsewhere(instance: Instance, *command: str) -> None:
    """Another process runs `cmis …`."""
    code = "from cmis_stream.cli import main; main()"
    arguments = [sys.executable, "-c", code, *command, "--data-dir", str(instance.settings.data_dir)]
    root = Path(__file__).parents[2]
    await asyncio.to_thread(subprocess.run, arguments, check=True, capture_output=True, cwd=root)


@pytest.mark.spec("GTW-M09")
async def test_a_session_subscribes_to_its_orgs_and_foreign_ones_look_like_none(instance: Instance) -> None:
    async with opened(instance, "acme") as page:
        for topic in ("metrics", "incidents"):
            assert "subscribe" in await page.command(subscribe={"channel": f"org:acme:{topic}"})
            refused = [await page.command(subscribe={"channel": f"org:{org}:{topic}"}) for org in ("globex", "nobody")]
            assert [reply["error"]["code"] for reply in refused] == [103, 103]
            assert refused[0]["error"] == refused[1]["error"]


async def test_an_org_made_elsewhere_opens_to_a_connected_session_of_all_orgs(instance: Instance) -> None:
    async with opened(instance) as page:
        assert "error" in await page.command(subscribe={"channel": "org:initech:incidents"})
        await elsewhere(instance, "org", "create", "initech")
        async with asyncio.timeout(PATIENCE_S):
            while "error" in await page.command(subscribe={"channel": "org:initech:incidents"}):
                await asyncio.sleep(0.05)


async def test_a_session_revoked_by_another_process_is_disconnected_for_good(instance: Instance) -> None:
    async with opened(instance) as page, opened(instance) as other:
        token = await page.gateway_token()
        first, second = (session.id for session in instance.sessions.list())
        await elsewhere(instance, "session", "revoke", first)
        assert await page.closed() == 3500
        async with connect(instance.gateway_url, proxy=None) as socket:
            again = Page(page.client, socket)
            await again.socket.send(json.dumps({"id": 1, "connect": {"token": token}}))
            assert await again.closed() == 3500, "its gateway token would have lasted for five minutes"
        assert "subscribe" in await other.command(subscribe={"channel": "org:acme:incidents"})
        await elsewhere(instance, "session", "revoke", second)
        assert await other.closed() == 3500


async def test_signing_out_closes_the_sockets_of_the_session(instance: Instance) -> None:
    async with opened(instance) as page:
        assert (await page.client.delete("/api/session")).status_code == 204
        assert await page.closed() == 3500


async def test_an_api_token_connects_by_itself_until_it_is_revoked(instance: Instance) -> None:
    token, text = instance.runtime.tokens.create("acme", ["read"])
    async with httpx.AsyncClient(base_url=instance.url, headers={"Authorization": f"Bearer {text}"}, trust_env=False) as client:
        bought = (await client.post("/api/orgs/acme/gateway-token")).json()["token"]
        pages = []
        for given in (text, bought):
            page = Page(client, await connect(instance.gateway_url, proxy=None))
            assert "connect" in await page.command(connect={"token": given})
            assert "subscribe" in await page.command(subscribe={"channel": "org:acme:incidents"})
            assert (await page.command(subscribe={"channel": "org:globex:incidents"}))["error"]["code"] == 103
            pages.append(page)
        await elsewhere(instance, "token", "revoke", token.id)
        assert [await page.closed() for page in pages] == [3500, 3500]


@pytest.mark.spec("GTW-E08")
async def test_pages_of_our_own_names_connect_and_no_others(instance: Instance) -> None:
    port = instance.port
    ours = [f"http://127.0.0.1:{port}", f"http://localhost:{port}", "https://stream.example", None]
    for origin in ours:
        async with connect(instance.gateway_url, origin=origin, proxy=None):  # type: ignore[arg-type]
            pass
    for origin in (
        "http://evil.example",
        f"http://127.0.0.1:{port + 1}",
        f"https://127.0.0.1:{port}",
        "null",
        "https://stream.example:1",
    ):
        with pytest.raises(InvalidStatus) as refused:
            await connect(instance.gateway_url, origin=origin, proxy=None)  # type: ignore[arg-type]
        assert refused.value.response.status_code == 403, origin
