from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.support import Results, results


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Results]:
    with results(tmp_path) as made:
        yield made
