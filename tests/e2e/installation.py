"""An installation as its users have it: `cmis up` for two orgs, tokens, a feed, and a network that can fail."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.network import Cable
from tests.e2e.support import Processes, Up, free_port, passed_transitions, reading, records

RULES = [{"id": "any-spend", "org": "acme", "severity": "high", "metric": "spend", "window": "1m", "op": "gt", "threshold": 10}]


Alert = tuple[str, str, int]


def alert(line: dict[str, Any]) -> Alert:
    """What a transition in the log and an item of the channel have in common."""
    return line["campaign"], line["state"], line["at"]


class Installation:
    """`cmis up` for two orgs, a cable before its gateway, and a feed that makes an alert about 40 times a second."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        self.processes, self.data_dir = processes, folder / "data"
        for org in ("acme", "globex"):
            self.cmis("org", "create", org)
        self.gateway_port = free_port()
        rules = folder / "rules.json"
        rules.write_text(json.dumps(RULES))
        self.up = Up(processes, self.data_dir, "--rules", rules, "--gateway-port", self.gateway_port)
        self.up.ready()
        self.cable = Cable(self.gateway_port)
        self.numbers = itertools.count()

    def cmis(self, *arguments: str) -> str:
        process = self.processes.cmis(*arguments, "--data-dir", self.data_dir)
        assert process.ended() == 0, process.text
        return process.text

    def token(self, org: str, *scopes: str) -> str:
        return self.cmis("token", "create", org, *(f"--scope={scope}" for scope in scopes)).split()[-1]

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.cable.port}/connection/websocket"

    @asynccontextmanager
    async def feeding(self) -> AsyncIterator[None]:
        """Events of new campaigns until the end; those that meet a dead instance are sent again."""
        bearer = self.token("acme", "ingest")

        async def feed() -> None:
            async with httpx.AsyncClient(base_url=self.up.url, headers={"Authorization": f"Bearer {bearer}"}) as client:
                while True:
                    number = next(self.numbers)
                    event = {
                        "id": f"e{number}",
                        "ts": time.time_ns() // 1_000_000,
                        "platform": "meta",
                        "campaign": f"c{number}",
                        "spend": 99,
                    }
                    while True:
                        with suppress(httpx.TransportError):
                            if (await client.post("/api/orgs/acme/events", json=event)).status_code == 200:
                                break
                        await asyncio.sleep(0.05)
                    await asyncio.sleep(0.02)

        task = asyncio.create_task(feed())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def in_the_log(self) -> list[Alert]:
        """All transitions of acme, in order, once the agents have caught up with the feed."""
        before: list[Alert] = []
        while True:
            with reading(self.data_dir) as log:
                found = [alert(line) for line in passed_transitions(records(log, "cmis.transitions.v1")) if line["org"] == "acme"]
            if found and found == before:
                return found
            before = found
            await asyncio.sleep(1)

    def sign_in_link(self) -> str:
        """The one that `cmis up` has printed."""
        found = re.search(r"http\S+/sign-in#code=\S+", self.up.process.says("/sign-in#code="))
        assert found is not None
        return found[0]
