from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cmis_stream.gateway.limits import Limits
from tests.gateway.world import World

Start = Callable[..., Any]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts a world with limits of its own; ended with the test."""
    worlds: list[World] = []

    async def begin(limits: Limits | None = None, **options: Any) -> World:
        world = World(limits or Limits(watch_s=0.02), **options)
        worlds.append(world)
        await world.start()
        return world

    yield begin
    for world in worlds:
        await world.gateway.stop()


@pytest.fixture
async def world(start: Start) -> World:
    started: World = await start()
    return started
