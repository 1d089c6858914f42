"""Connections to Redis, and what to do while it is away."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable
from typing import Any

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from cmis_stream.core.errors import ConfigError

log = logging.getLogger("cmis.backplane")

AWAY = (
    exceptions.ConnectionError, exceptions.TimeoutError, exceptions.ReadOnlyError, exceptions.OutOfMemoryError,
    exceptions.ClusterDownError, exceptions.TryAgainError, exceptions.MasterDownError, OSError, TimeoutError,
)  # fmt: skip
"""It does not answer, is starting, is a replica or has no room: it will again, without anything of ours being changed."""
ANSWER_S, CONNECT_S = 3.0, 2.0
CONNECTIONS = 8
"""Of a process; who needs one more waits for it."""
FIRST_RETRY_S, MOST_RETRY_S = 0.05, 1.0


def connected(url: str) -> Redis:
    """A client that tries nothing twice: what follows from a failure is decided by those who use it. ConfigError: a wrong URL."""
    try:
        pool = BlockingConnectionPool.from_url(
            url, max_connections=CONNECTIONS, timeout=ANSWER_S, socket_timeout=ANSWER_S, socket_connect_timeout=CONNECT_S,
            retry=Retry(NoBackoff(), 0), protocol=2,
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(f"--backplane: got {url!r}, expected redis://HOST:PORT/DB ({error})") from None
    return Redis.from_pool(pool)


class Outage:
    """Says once that Redis is away and once that it is back, and how long to wait in between."""

    def __init__(self, who: str) -> None:
        self._who = who
        self._wait_s = 0.0

    @property
    def lasts(self) -> bool:
        return bool(self._wait_s)

    async def wait(self, error: BaseException) -> None:
        """Longer each time, with jitter."""
        if not self._wait_s:
            log.warning("Redis is away, %s wait: %s", self._who, error)
        self._wait_s = min(MOST_RETRY_S, self._wait_s * 2 or FIRST_RETRY_S)
        await asyncio.sleep(self._wait_s * random.uniform(0.5, 1))

    def over(self) -> None:
        if self._wait_s:
            log.info("Redis is back, %s go on", self._who)
            self._wait_s = 0.0


async def asked(outage: Outage, script: Any, keys: list[str], args: list[Any]) -> Any:
    """What a script answers, however long it takes."""
    while True:
        try:
            answer = await script(keys=keys, args=args)
        except AWAY as error:
            await outage.wait(error)
        else:
            outage.over()
            return answer


async def ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancels tasks until they end: before Python 3.12 `asyncio.wait_for`, under which redis-py sends, may swallow it."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.1)
