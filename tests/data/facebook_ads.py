"""Converts ../shared/data/ads/facebook_ads_kag.csv into flat events: one a row, at noon UTC of its day, oldest first."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmis_stream.core.time import parse_rfc3339


def rows(path: Path) -> list[dict[str, str]]:
    """The rows in order of their dates."""
    with path.open(newline="") as file:
        return sorted(csv.DictReader(file), key=lambda row: row["date"])


def events(path: Path, org: str) -> Iterator[dict[str, Any]]:
    """Campaigns are xyz_campaign_id, ad sets fb_campaign_id; approved conversions travel as a custom metric."""
    for number, row in enumerate(rows(path)):
        yield {
            "id": f"fb-{number}",
            "ts": parse_rfc3339(f"{row['date']}T12:00:00Z"),
            "org": org,
            "platform": "meta",
            "account": "kag",
            "campaign": row["xyz_campaign_id"],
            "ad_set": row["fb_campaign_id"],
            "ad": row["ad_id"],
            "impressions": int(row["Impressions"]),
            "clicks": int(row["Clicks"]),
            "spend": float(row["Spent"]),
            "conversions": int(row["Total_Conversion"]),
            "custom": {"approved": int(row["Approved_Conversion"])},
        }


def ndjson(path: Path, org: str) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events(path, org))
