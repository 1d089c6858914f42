"""A redis-server for the tests that need a real one, once per run; a conftest.py imports the fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.redis import Redis
from tests.servers.running import running


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """Redis on loopback. Tests share it and use prefixes of their own; what they do to it they undo."""
    with running(Redis(tmp_path_factory.mktemp("redis"))) as server:
        yield server


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Redis]:
    """One that the test may kill, empty and restart."""
    with running(Redis(tmp_path / "redis")) as server:
        yield server
