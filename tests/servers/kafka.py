"""A broker for the tests that need a real one, once per run; a conftest.py imports the fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.kafka import Kafka
from tests.servers.running import running


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """Apache Kafka on loopback. Tests share it and use topics and groups of their own; what they do to it they undo."""
    with running(Kafka(tmp_path_factory.mktemp("kafka"))) as broker:
        yield broker


@pytest.fixture
def own_kafka(tmp_path: Path) -> Iterator[Kafka]:
    """One that the test may kill, and that has only its topics."""
    with running(Kafka(tmp_path / "kafka")) as broker:
        yield broker
