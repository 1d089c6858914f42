"""Real ad data through HTTP, log, agents and state, against totals that are not ours."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cmis_stream.core.batch import MICROS, PATH_SEPARATOR
from cmis_stream.core.entities import Entity
from cmis_stream.core.metrics import FIELDS, evaluate
from cmis_stream.core.time import WINDOWS, rfc3339
from cmis_stream.instance import Instance
from cmis_stream.log import envelope
from cmis_stream.runtime import METRICS
from cmis_stream.settings import Settings
from tests.data.facebook_ads import ndjson
from tests.e2e.support import DATA

CSV = DATA / "ads" / "facebook_ads_kag.csv"
ORG = "kag"
pytestmark = pytest.mark.skipif(not CSV.exists(), reason="needs CMIS_DATA (../shared/data)")


def oracle() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / "ads" / "oracle_facebook_ads_kag.json").read_text())
    return found


async def sent(instance: Instance) -> None:
    tokens = instance.runtime.tokens
    tokens.create_org(ORG, "Sales conversion optimization")
    _, token = tokens.create(ORG, ["ingest"], None, "test")
    async with httpx.AsyncClient(base_url=instance.url) as client:
        response = await client.post(
            f"/api/orgs/{ORG}/events",
            content=ndjson(CSV, ORG),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/x-ndjson", "Cmis-Source": "csv"},
        )
    assert response.status_code == 200, response.text
    assert response.json()["accepted"] == oracle()["total"]["ads"]
    await instance.drained()


def in_the_log(instance: Instance) -> dict[tuple[str, str], list[int]]:
    """(campaign, date) -> rows, impressions, clicks, spend micros, conversions micros, revenue micros, approved micros."""
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * 7)
    for partition in range(instance.runtime.partitions):
        for record in instance.runtime.read(METRICS, partition):
            decoded = envelope.decode(record.value or b"")
            if not isinstance(decoded, envelope.Events):
                continue
            batch = decoded.batch
            for row in range(len(batch)):
                path = batch.paths[batch.leaf[row]].split(PATH_SEPARATOR)
                cell = sums[path[4], rfc3339(int(batch.ts_ms[row]))[:10]]
                if path[7]:
                    cell[6] += int(batch.values[2, row])
                    continue
                cell[0] += 1
                for place, value in enumerate(batch.values[:, row].tolist(), 1):
                    cell[place] += value
    return sums


def agree(cell: list[int], expected: dict[str, Any]) -> None:
    ads = expected["ads"]
    assert cell[:3] == [ads, expected["impressions"], expected["clicks"]]
    assert abs(cell[3] - expected["spend"] * MICROS) <= 0.5 * ads + 0.5  # half a micro per row, and the oracle's own rounding
    assert cell[4] == expected["conversions"] * MICROS
    assert cell[6] == expected["approved"] * MICROS


@pytest.mark.spec("ALR-M01", partial="the metrics that arrive and their ratios; rules over them in tests/core")
async def test_counts_are_the_oracles_and_spend_is_within_half_a_micro_per_row(tmp_path: Path) -> None:
    expected = oracle()
    async with Instance(Settings(data_dir=tmp_path, port=0)) as instance:
        await sent(instance)
        cells = in_the_log(instance)
        assert len(cells) == len(expected["by_campaign_date"])
        for (campaign, date), cell in cells.items():
            agree(cell, expected["by_campaign_date"][f"{campaign}|{date}"])
        agree([sum(column) for column in zip(*cells.values(), strict=True)], expected["total"])
        assert sum(owner.engine.events for owner in instance.owners) == expected["total"]["ads"]


async def test_the_seven_day_window_holds_the_last_seven_days_of_each_campaign(tmp_path: Path) -> None:
    expected = oracle()
    dates = sorted(expected["by_date"])[-7:]
    async with Instance(Settings(data_dir=tmp_path, port=0)) as instance:
        await sent(instance)
        for campaign in expected["by_campaign"]:
            days = [day for date in dates if (day := expected["by_campaign_date"].get(f"{campaign}|{date}"))]
            (sums,) = [
                owner.engine.windows.live.sums(WINDOWS["7d"], np.array([row]))
                for owner in instance.owners
                if (row := owner.engine.entities.find(Entity("campaign", ORG, "USD", "meta", "kag", campaign))) is not None
            ]
            clicks, impressions = sum(day["clicks"] for day in days), sum(day["impressions"] for day in days)
            spend = sum(day["spend"] for day in days)
            assert dict(zip(FIELDS, sums[:, 0].tolist(), strict=True)) | {"spend": 0} == {
                "events": sum(day["ads"] for day in days), "impressions": impressions, "clicks": clicks, "spend": 0,
                "conversions": sum(day["conversions"] for day in days) * MICROS, "revenue": 0,
            }  # fmt: skip
            assert evaluate("spend", sums)[0] == pytest.approx(spend, abs=1e-3)
            assert evaluate("ctr", sums)[0] == pytest.approx(clicks / impressions, rel=1e-12)
            assert evaluate("cpm", sums)[0] == pytest.approx(spend / impressions * 1000, rel=1e-6)
