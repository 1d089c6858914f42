from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.live.support import Results, results
from tests.log.written import written_embedded
from tests.servers.kafka import kafka

__all__ = ["kafka"]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Results]:
    async with results(written_embedded(tmp_path)) as made:
        yield made
