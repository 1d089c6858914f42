"""An S3 server for the tests of files, once per run; a conftest.py imports the fixtures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.s3 import CREDENTIALS, S3
from tests.servers.running import running


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """Tests share it and use buckets of their own; what they do to it they undo. Their processes have its credentials."""
    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    with running(S3(tmp_path_factory.mktemp("s3"))) as server:
        yield server
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture
def own_s3(s3: S3, tmp_path: Path) -> Iterator[S3]:
    """One that the test may kill and pause."""
    with running(S3(tmp_path / "s3")) as server:
        yield server
