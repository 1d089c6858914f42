"""The contracts are shown on both databases; on PostgreSQL with the role that does not own the tables."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.api.conftest import World, world
from tests.contracts.support import Rest
from tests.servers.postgres import postgres, postgres_urls
from tests.store.conftest import Database, Places, database, places

__all__ = ["Places", "database", "places", "postgres", "postgres_urls", "world"]


@pytest.fixture
async def rest(world: World, database: Database) -> AsyncIterator[Rest]:
    made = Rest(world, database)
    yield made
    await made.close()
