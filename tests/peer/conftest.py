from __future__ import annotations

from tests.servers.kafka import kafka

__all__ = ["kafka"]
