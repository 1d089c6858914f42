"""A PostgreSQL for the tests that need a real one, once per run; a conftest.py imports the fixtures."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from cmis_stream.store.migrations import upgrade
from scripts.postgres import APP, OWNER, RELAY, Postgres
from tests.servers.running import running

_numbers = itertools.count(1)


class Urls(NamedTuple):
    """Of one database, per role. postgres: may do everything."""

    server: Postgres
    name: str

    @property
    def app(self) -> str:
        return self.server.url(APP, self.name)

    @property
    def owner(self) -> str:
        return self.server.url(OWNER, self.name)

    @property
    def relay(self) -> str:
        return self.server.url(RELAY, self.name)

    def execute(self, sql: str) -> str:
        """As somebody who may do everything."""
        return self.server.execute(sql, database=self.name)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """PostgreSQL on loopback with the newest tables in the database `cmis`. What a test does to the server it undoes."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # not below pytest's folder, which the server's user may not enter
    # Its processes are killed, the machine is not: waiting for the disk would show nothing.
    try:
        with running(Postgres(folder, settings={"fsync": "off"})) as server:
            upgrade(server.url(OWNER))
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def own_database(postgres: Postgres) -> Iterator[Urls]:
    """With the newest tables; dropped at the end."""
    name = f"test{next(_numbers)}"
    postgres.execute(f"create database {name} template cmis owner {OWNER}", database="postgres")
    yield Urls(postgres, name)
    postgres.execute(f"drop database {name} with (force)", database="postgres")


@pytest.fixture
def postgres_urls(postgres: Postgres) -> Iterator[Urls]:
    """A database of the test's own."""
    with own_database(postgres) as urls:
        yield urls
