from __future__ import annotations

from tests.servers.kafka import kafka, own_kafka

__all__ = ["kafka", "own_kafka"]
