from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from cmis_stream.backplane.contract import Backplane
from tests.backplane.support import IMPLEMENTATIONS, Make, Opener
from tests.gateway.world import Log
from tests.servers.redis import own_redis, redis

__all__ = ["own_redis", "redis"]


@pytest.fixture(params=IMPLEMENTATIONS)
def opener(request: pytest.FixtureRequest) -> Opener:
    """Of one implementation, with the server that it needs."""
    return Opener.of(request.param, request)


@pytest.fixture
async def make(opener: Opener) -> AsyncIterator[Make]:
    """Opens a backplane that knows nothing yet; closed with the test."""
    async with AsyncExitStack() as opened:

        async def open_(log: Log, **options: Any) -> Backplane:
            return await opener.open(opened, log, **options)

        yield open_
