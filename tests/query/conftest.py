"""Queries over the store are shown on both databases; on PostgreSQL with the role that does not own the tables."""

from __future__ import annotations

from tests.servers.postgres import postgres, postgres_urls
from tests.store.conftest import Places, database, places

__all__ = ["Places", "database", "places", "postgres", "postgres_urls"]
