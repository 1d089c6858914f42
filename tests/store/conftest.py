"""Each test of the contract runs on both databases; on PostgreSQL with the role that does not own the tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cmis_stream.store.database import Database
from cmis_stream.store.documents import Documents
from tests.servers.postgres import Urls, postgres, postgres_urls
from tests.store.support import Clock, kinds

__all__ = ["postgres", "postgres_urls"]


class Places:
    """The URLs of one store: for what serves requests, and for what relays."""

    def __init__(self, app: str, relay: str) -> None:
        self.app, self.relay = app, relay


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Places:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'store.db'}"
        return Places(url, url)
    urls: Urls = request.getfixturevalue("postgres_urls")
    return Places(urls.app, urls.relay)


@pytest.fixture
def database(places: Places) -> Iterator[Database]:
    opened = Database(places.app)
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def documents(database: Database, clock: Clock) -> Documents:
    return Documents(database, kinds(), clock)
