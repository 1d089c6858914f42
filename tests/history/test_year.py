"""The year that is measured (`year.py`) is made of what merging makes, and answers are its sums."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cmis_stream.core.time import rfc3339
from cmis_stream.history.layout import ROLLUPS, Reached, write_reached
from cmis_stream.history.merging import Day, merge
from tests.history.year import DAY_MS, PLACE, START, ask, numbers, write_day

CAMPAIGNS = 12


def test_merging_derives_what_the_measured_year_is_made_of(tmp_path: Path) -> None:
    made, merged = tmp_path / "made", tmp_path / "merged"
    for root, derived in ((made, True), (merged, False)):
        write_day(root, 0, CAMPAIGNS, derived=derived)
        write_reached(root, ROLLUPS, PLACE, Reached(1, 0))
    assert merge(merged, Day(ROLLUPS, "acme", 0, "2026-01-01"), quiet=True)
    for kind in ("hours", "quarters", "rollups"):
        tables = []
        for root in (made, merged):
            (path,) = root.rglob(f"*.{kind}.parquet")
            tables.append(sorted(map(repr, pq.read_table(path, partitioning=None).to_pylist())))
        assert tables[0] == tables[1]


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kolkata"])
def test_days_of_a_month_are_its_sums(tmp_path: Path, zone: str) -> None:
    sums = [write_day(tmp_path, day, CAMPAIGNS) for day in range(31)]
    write_reached(tmp_path, ROLLUPS, PLACE, Reached(31, 30))
    span = {"from": rfc3339(START), "to": rfc3339(START + 31 * DAY_MS)}
    _, found = ask(tmp_path, dimensions=["time"], step="1d", timezone=zone, **span)
    assert sum(row[2] for row in found["rows"]) == sum(int(day[3]) for day in sums)
    if zone == "UTC":
        assert [row[2] for row in found["rows"]] == [int(day[3]) for day in sums]
    _, found = ask(tmp_path, dimensions=["campaign"], filters={"campaign": ["campaign-00003"]}, **span)
    assert found["rows"][0][2] == sum(int(numbers(day, CAMPAIGNS)[3, :, 3].sum()) for day in range(31))
