"""Frames that nobody would write: the connection may end, the gateway may not, and nothing is left behind."""

from __future__ import annotations

import gc
import json
import random
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed

from cmis_stream.gateway.client import Client
from cmis_stream.gateway.codes import DISCONNECTS, CommandError, Disconnect
from cmis_stream.gateway.limits import Limits
from cmis_stream.gateway.protocol import METHODS, Command, Session
from tests.gateway.conftest import Start
from tests.gateway.world import INCIDENTS, METRICS, World, incident, until

WORDS = [
    *METHODS.values(),
    "id",
    "channel",
    "token",
    "data",
    "since",
    "offset",
    "epoch",
    "limit",
    "filter",
    "entities",
    "recover",
]
SCALARS = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**64,
    10**400,
    1.5,
    "",
    "x",
    METRICS,
    INCIDENTS,
    "org:globex:metrics",
    "\ud800",
    "\n",
    "é" * 300,
]


def value(random_: random.Random, depth: int = 0) -> object:
    kind = random_.random()
    if depth > 3 or kind < 0.5:
        return random_.choice(SCALARS)
    if kind < 0.7:
        return [value(random_, depth + 1) for _ in range(random_.randrange(4))]
    return {random_.choice(WORDS): value(random_, depth + 1) for _ in range(random_.randrange(5))}


def frame(random_: random.Random) -> str | bytes:
    """JSON of the right words in the wrong places, or that with some characters changed, or bytes."""
    kind = random_.random()
    if kind < 0.1:
        return random_.randbytes(random_.randrange(60))
    lines = []
    for _ in range(random_.choice([1, 1, 1, 2, 5])):
        command = {"id": random_.choice([1, 2, 3, value(random_)]), random_.choice(WORDS): value(random_)}
        lines.append(json.dumps(command if random_.random() < 0.9 else value(random_)))
    text = "\n".join(lines)
    if kind < 0.4 and text:
        place = random_.randrange(len(text))
        text = text[:place] + random_.choice(["", "{", '"', "\\", "\x00", "\n", ","]) + text[place + 1 :]
    return text


def frames(seed: int, count: int) -> Iterator[str | bytes]:
    random_ = random.Random(seed)
    return (frame(random_) for _ in range(count))


def fed(count: int, seed: int) -> tuple[int, int]:
    """Gives frames to sessions, a new one after each disconnect; returns how many commands and disconnects there were."""
    commands = disconnects = 0
    session = None
    for now, given in enumerate(frames(seed, count)):
        if session is None:
            session = Session(Limits(), now)
            list(session.receive('{"id":1,"connect":{}}', now))
            session.connected(now, 25.0)
        try:
            for command in session.receive(given, now):
                assert isinstance(command, Command)
                assert isinstance(command.request, CommandError) or type(command.request) in METHODS
                commands += 1
        except Disconnect as disconnect:
            assert disconnect.code in DISCONNECTS and len(disconnect.reason.encode()) <= 123
            disconnects += 1
            session = None
    return commands, disconnects


def test_no_frame_breaks_the_protocol() -> None:
    commands, disconnects = fed(5_000, seed=1)
    assert commands > 500 and disconnects > 500


@pytest.mark.slow
def test_none_of_100_000_frames_breaks_the_protocol() -> None:
    commands, disconnects = fed(100_000, seed=2)
    assert commands > 10_000 and disconnects > 10_000


def alive() -> int:
    gc.collect()
    return sum(isinstance(entry, Client) for entry in gc.get_objects())


async def nothing_is_left(world: World) -> None:
    hub = world.gateway.hub
    await until(lambda: not hub.clients and alive() == 0)
    await until(lambda: not hub.subscriptions._feeds)
    assert len(hub.subscriptions) == len(hub._holders) == len(world.backplane._listeners) == 0


async def throw(world: World, count: int, seed: int) -> None:
    """Over connections, a new one after each disconnect; bytes go as text, every other time.

    Each frame is dealt with before the next is sent."""
    given, token = frames(seed, count), world.doors.open("acme")
    entry = next(given, None)
    while entry is not None:
        async with world.client(token) as client:
            try:
                while entry is not None:
                    thrown, entry = entry, next(given, None)
                    await client.websocket.send(thrown, text=isinstance(thrown, str) or len(thrown) % 2 == 0)
                    await client.ask(presence={"channel": INCIDENTS})
            except ConnectionClosed:
                pass


async def still_serves(world: World) -> None:
    async with world.client(world.doors.open("acme")) as client:
        assert "subscribe" in await client.ask(subscribe={"channel": INCIDENTS})
        await world.publish(INCIDENTS, incident(1))
        assert (await client.push())["channel"] == INCIDENTS


async def test_whatever_clients_send_the_gateway_goes_on_and_forgets_them(world: World) -> None:
    await throw(world, 600, seed=3)
    assert world.gateway.hub.figures.closes[3501] > 50
    await still_serves(world)
    await nothing_is_left(world)


@pytest.mark.slow
async def test_a_long_fuzz_over_sockets_leaves_nothing_behind(start: Start) -> None:
    world = await start(Limits(watch_s=0.02))
    await throw(world, 5_000, seed=4)
    assert world.gateway.hub.figures.closes[3501] > 50
    await still_serves(world)
    await nothing_is_left(world)
