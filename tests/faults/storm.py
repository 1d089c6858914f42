"""Thousands of clients that lose their gateway at once. Light ones of our own: connect, subscribe, recover, count."""

from __future__ import annotations

import asyncio
import random
import resource
import time
from collections import Counter

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from tests.faults.cluster import until
from tests.faults.load import Transition
from tests.faults.stage import Stage

LONGEST_PAUSE_S = 2.0


class Listener:
    """A client of one org's incidents that comes back with its offset whenever it loses its gateway."""

    def __init__(self, url: str, token: str, org: str, dice: random.Random) -> None:
        self._url, self._token, self._org, self._dice = url, token, org, dice
        self._epoch: str | None = None
        self._offset = 0
        self.heard: Counter[Transition] = Counter()
        self.connected = False
        self.connections = self.unrecovered = 0

    async def run(self) -> None:
        """Until it is cancelled."""
        pause = 0.1
        while True:
            try:
                async with connect(self._url, open_timeout=20, compression=None, max_size=None, ping_interval=None) as socket:
                    await self._listen(socket)
                    pause = 0.1
            except (OSError, WebSocketException, TimeoutError):
                pass
            finally:
                self.connected = False
            await asyncio.sleep(pause * self._dice.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _listen(self, socket: ClientConnection) -> None:
        subscribe: dict[str, object] = {"channel": f"org:{self._org}:incidents"}
        if self._epoch is not None:
            subscribe |= {"recover": True, "epoch": self._epoch, "offset": self._offset}
        commands = [{"id": 1, "connect": {"token": self._token}}, {"id": 2, "subscribe": subscribe}]
        await socket.send(b"\n".join(map(orjson.dumps, commands)).decode())
        async for frame in socket:
            for text in frame.splitlines():
                await self._take(socket, orjson.loads(text))

    async def _take(self, socket: ClientConnection, reply: dict[str, object]) -> None:
        match reply:
            case {"push": {"pub": {"offset": int(offset), "data": data}}}:
                self._count(offset, data)
            case {"id": 2, "subscribe": dict(answer)}:
                self.connections += 1
                if self._epoch is not None and not answer.get("recovered"):
                    self.unrecovered += 1
                for publication in answer.get("publications", ()):
                    self._count(publication["offset"], publication["data"])
                self._epoch, self._offset = answer["epoch"], max(self._offset, answer["offset"])
                self.connected = True
            case {"error": error}:
                raise OSError(f"refused: {error}")  # comes back later, as the SDKs do with temporary errors
            case {}:
                await socket.send("{}")  # the answer to a ping

    def _count(self, offset: int, data: object) -> None:
        self._offset = max(self._offset, offset)
        assert isinstance(data, dict)
        self.heard.update((self._org, item["rule"], item["campaign"], item["state"], item["at"]) for item in data["items"])


async def storm(stage: Stage) -> None:
    """Many clients of one gateway lose it at once and come back with their offsets; it counts what each of them was told."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * stage.size.clients + 1_000)), hard))
    org = stage.busiest_org
    url, token = stage.cluster.gateway_urls[0], stage.cluster.read_token(org)
    listeners = [Listener(url, token, org, stage.dice) for _ in range(stage.size.clients)]
    tasks = [asyncio.create_task(listener.run()) for listener in listeners]
    stage.opened.push_async_callback(_ended, tasks)
    stage.others.extend((org, listener.heard) for listener in listeners)
    await until(lambda: all(listener.connected for listener in listeners), "all clients of the storm")
    stage.load.begin()
    await stage.load.comes_to(0.4)
    gateway, killed = stage.cluster.gateways[0], time.monotonic()
    gateway.kill()
    gateway.start()
    await until(lambda: all(listener.connected and listener.connections > 1 for listener in listeners), "all to be back")
    stage.remarks.append(f"{len(listeners):,} clients were back after {time.monotonic() - killed:.1f} s")
    if unrecovered := sum(listener.unrecovered for listener in listeners):
        stage.remarks.append(f"{unrecovered} of them were not recovered")
    await stage.recovered(killed)


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
