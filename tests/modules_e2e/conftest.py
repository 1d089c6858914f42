from __future__ import annotations

from tests.faults.test_rules_over_rest import store
from tests.servers.postgres import postgres, postgres_urls

__all__ = ["postgres", "postgres_urls", "store"]
