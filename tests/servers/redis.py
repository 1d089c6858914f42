"""A redis-server for the tests that need a real one, once per run; a conftest.py imports the fixtures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.redis import Redis, RedisError


def started(folder: Path, *, appendonly: bool = False) -> Redis:
    server = Redis(folder, appendonly=appendonly)
    try:
        server.start()
    except RedisError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    return server


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """Redis on loopback. Tests share it and use prefixes of their own; what they do to it they undo."""
    server = started(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Redis]:
    """One that the test may kill, empty and restart."""
    server = started(tmp_path / "redis")
    yield server
    server.stop()
