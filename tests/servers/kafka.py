"""A broker for the tests that need a real one, once per run; a conftest.py imports the fixture."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from scripts.kafka import Kafka, KafkaError


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """Apache Kafka on loopback. Tests share it and use topics and groups of their own; what they do to it they undo."""
    broker = Kafka(tmp_path_factory.mktemp("kafka"))
    try:
        broker.start()
    except KafkaError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    yield broker
    broker.stop()
