"""The real ads of facebook_ads_kag.csv as flat events: one a row, at noon (UTC) of its day.

python tests/data/facebook_ads.py ../shared/data/ads/facebook_ads_kag.csv ORG > events.ndjson
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def flat_events(path: Path, org: str) -> Iterator[dict[str, Any]]:
    """In the order of their dates, as a feed would have sent them; ids are those of the ads, one row each."""
    with path.open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["date"])
    for row in rows:
        noon = datetime.fromisoformat(row["date"]).replace(hour=12, tzinfo=UTC)
        yield {
            "id": f"{row['date']}/{row['ad_id']}",
            "ts": int(noon.timestamp()) * 1000,
            "org": org,
            "type": "metric",
            "platform": "meta",
            "campaign": row["xyz_campaign_id"],
            "ad_set": row["fb_campaign_id"],
            "ad": row["ad_id"],
            "impressions": int(row["Impressions"]),
            "clicks": int(row["Clicks"]),
            "spend": float(row["Spent"]),
            "conversions": float(row["Total_Conversion"]),
            "custom": {"approved": float(row["Approved_Conversion"])},
        }


if __name__ == "__main__":
    for event in flat_events(Path(sys.argv[1]), sys.argv[2]):
        print(json.dumps(event))
