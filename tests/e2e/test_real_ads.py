"""Real ads through the whole pipeline, against figures that were computed elsewhere."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cmis_stream.core.batch import MICROS, PATH_SEPARATOR
from cmis_stream.core.entities import Entity
from cmis_stream.core.metrics import FIELDS, METRICS
from cmis_stream.core.time import WINDOWS
from cmis_stream.feeds.client import send_file
from cmis_stream.instance import Instance
from cmis_stream.log import envelope
from cmis_stream.runtime import METRICS as METRICS_TOPIC
from cmis_stream.settings import Settings
from tests.data.facebook_ads import flat_events
from tests.e2e.support import DATA, records_of

CSV, ORACLE = DATA / "ads/facebook_ads_kag.csv", DATA / "ads/oracle_facebook_ads_kag.json"
pytestmark = pytest.mark.skipif(not (CSV.exists() and ORACLE.exists()), reason="needs CMIS_DATA (../shared/data)")
RATIOS = {"ctr": "ctr", "cpc": "cpc", "cpm": "cpm", "cpa": "cpa", "cvr": "cvr_per_click"}


def equals(sums: np.ndarray[Any, Any], approved: int | None, oracle: dict[str, Any]) -> None:
    """sums: in the order of FIELDS, money and conversions in micros; approved: micros, None when it is not known."""
    found = dict(zip(FIELDS, sums.tolist(), strict=True))
    rows = oracle["ads"]
    assert (found["events"], found["impressions"], found["clicks"]) == (rows, oracle["impressions"], oracle["clicks"])
    assert found["conversions"] == oracle["conversions"] * MICROS
    assert approved is None or approved == oracle["approved"] * MICROS
    # Each row is rounded to micros; the oracle's own sum is printed with six decimals.
    assert abs(found["spend"] - oracle["spend"] * MICROS) <= 0.5 * rows + 0.5
    for metric, name in RATIOS.items():
        if oracle.get(name) is None:
            continue
        value = METRICS[metric](sums.reshape(-1, 1))[0]
        # Beside 1e-9: what half a micro per row makes of a small spend.
        allowed = 1e-9 if metric in ("ctr", "cvr") or not oracle["spend"] else 0.5e-6 * rows / oracle["spend"] + 1e-9
        assert math.isclose(value, oracle[name], rel_tol=allowed, abs_tol=1e-12), (metric, value, oracle[name])


@pytest.mark.spec("ALR-M01", partial="impressions, clicks, spend, conversions, ctr, cpc, cpm, cpa, cvr, one custom metric")
async def test_real_ads_give_the_oracles_figures_in_total_and_by_campaign_and_date(tmp_path: Path) -> None:
    oracle = json.loads(ORACLE.read_text())
    events = tmp_path / "events.ndjson"
    events.write_text("".join(json.dumps(event) + "\n" for event in flat_events(CSV, "kag")))
    async with Instance(Settings(data_dir=tmp_path / "data", port=0)) as instance:
        runtime = instance.runtime
        runtime.ticking = False
        runtime.tokens.create_org("kag", "Kaggle")
        token = runtime.tokens.create("kag", ["ingest"])[1]
        summary = await send_file(
            events, url=instance.url, token_for=lambda _: token, state_dir=tmp_path / "state", batch_events=200
        )
        assert (summary.accepted, summary.rejected) == (oracle["total"]["ads"], 0)
        await instance.drained()
        (engine,) = (owner.engine for owner in instance.owners if owner.engine.events)
        assert (engine.events, engine.windows.late_events) == (oracle["total"]["ads"], 0)

        # All days, from the envelopes in the log: windows reach back seven.
        totals: dict[tuple[str, str], Any] = defaultdict(lambda: np.zeros(len(FIELDS), np.int64))
        approved: dict[tuple[str, str], int] = defaultdict(int)
        records = [r for p in range(runtime.partitions) for r in await records_of(instance, METRICS_TOPIC, p)]
        for record in map(envelope.decode, (r.value or b"" for r in records)):
            if not isinstance(record, envelope.Events):
                continue
            batch = record.batch
            for row in range(len(batch)):
                *_, campaign, _, _, custom = batch.paths[batch.leaf[row]].split(PATH_SEPARATOR)
                date = datetime.fromtimestamp(int(batch.ts_ms[row]) / 1000, UTC).date().isoformat()
                for key in {("", ""), (campaign, ""), ("", date), (campaign, date)}:
                    if custom:
                        approved[key] += int(batch.values[2, row])
                    else:
                        totals[key] += np.concatenate(([1], batch.values[:, row]))
        equals(totals["", ""], approved["", ""], oracle["total"])
        assert {campaign for campaign, _ in totals} == {"", *oracle["by_campaign"]}
        assert {date for _, date in totals} == {"", *oracle["by_date"]}
        for campaign, expected in oracle["by_campaign"].items():
            equals(totals[campaign, ""], approved[campaign, ""], expected)
        for date, expected in oracle["by_date"].items():
            equals(totals["", date], approved["", date], expected)
        for key, expected in oracle["by_campaign_date"].items():
            campaign, date = key.split("|")
            equals(totals[campaign, date], approved[campaign, date], expected)

        # The engine's own windows: the last day, and the last seven.
        days = sorted(oracle["by_date"])
        for window, count in (("24h", 1), ("7d", 7)):
            for campaign in ("", *oracle["by_campaign"]):
                level = "campaign" if campaign else "platform"
                row = engine.entities.find(Entity(level, "kag", "USD", "meta", "", campaign))
                assert row is not None
                found = engine.windows.live.sums(WINDOWS[window], np.array([row]))[:, 0]
                wanted = sum((totals[campaign, day] for day in days[-count:]), np.zeros(len(FIELDS), np.int64))
                assert found.tolist() == wanted.tolist(), (window, campaign)
