"""A store that can be read and not written, on both databases."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg
import pytest
from sqlalchemy import make_url

from cmis_stream.store.database import Database
from tests.store.conftest import Places


@contextmanager
def unwritable(places: Places, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """SQLite: another process keeps the lock of writers. PostgreSQL: the role's transactions are read-only."""
    url = make_url(places.app)
    if url.get_backend_name() == "sqlite":
        monkeypatch.setattr("cmis_stream.store.database.LOCK_S", 0.1)
        with (
            closing(sqlite3.connect(str(url.database), isolation_level=None)) as other,
            closing(Database(places.app)) as database,
        ):
            other.execute("begin immediate")
            yield database
        return
    setting = f"alter role {url.username} in database {url.database} set default_transaction_read_only"
    superuser = url.set(drivername="postgresql", username="postgres").render_as_string(False)
    with psycopg.connect(superuser, autocommit=True) as server:
        server.execute(f"{setting} = on")
        try:
            with closing(Database(places.app)) as database:
                yield database
        finally:
            server.execute(f"{setting} = off")
