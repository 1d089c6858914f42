"""The fault suite in its short form: whatever fails, nothing is lost and nothing counts twice. `make faults` is the long one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scripts.kafka import KafkaError
from scripts.redis import RedisError
from tests.e2e.support import needs_workload
from tests.faults.disk import NoSmallDisk
from tests.faults.scenarios import SCENARIOS
from tests.faults.stage import Scenario, play

pytestmark = [pytest.mark.slow, needs_workload]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
async def test_nothing_is_lost_or_doubled_by(scenario: Scenario, tmp_path: Path) -> None:
    try:
        outcome = await play(scenario, scenario.short, tmp_path / "run")
    except (NoSmallDisk, KafkaError, RedisError) as why:
        if os.environ.get("CI") and not isinstance(why, NoSmallDisk):
            raise
        pytest.skip(str(why))
    print(outcome.line)
    assert (outcome.lost, outcome.doubled) == (0, 0), outcome.line
