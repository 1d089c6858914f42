"""Steps of time: fixed ones at multiples in UTC, days and longer ones by the calendar of a time zone."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

import numpy as np

from cmis_stream.core.batch import Int64
from cmis_stream.core.time import HOUR_MS, MINUTE_MS

FIXED = {"1m": MINUTE_MS, "15m": 15 * MINUTE_MS, "1h": HOUR_MS}
CALENDAR = ("1d", "1w", "1mo")
Step = Literal["1m", "15m", "1h", "1d", "1w", "1mo"]


def borders(step: str, start_ms: int, end_ms: int, zone: ZoneInfo) -> Int64:
    """The borders of the steps that hold moments from start to before end, int64[k + 1]; of days and more by the zone.

    A day has 23 hours when clocks go forward:

    >>> found = borders("1d", 1774738800000, 1774821600000, ZoneInfo("Europe/Berlin"))
    >>> np.diff(found) // 3_600_000
    array([23])
    """
    if step in FIXED:
        size = FIXED[step]
        return np.arange(start_ms // size, -(-end_ms // size) + 1, dtype=np.int64) * size
    day = datetime.fromtimestamp(start_ms / 1000, zone).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    if step == "1w":
        day -= timedelta(days=day.weekday())
    if step == "1mo":
        day = day.replace(day=1)
    found: list[int] = []
    while not found or found[-1] < end_ms:
        # In a zone that skips midnight the day begins with what comes instead: fold=0 takes the offset before the gap.
        begin = round(day.replace(tzinfo=zone).timestamp() * 1000)
        if not found or begin > found[-1]:
            found.append(begin)
        day = (
            (day.replace(day=1) + timedelta(days=32)).replace(day=1)
            if step == "1mo"
            else day + timedelta(days=7 if step == "1w" else 1)
        )
    return np.array(found, np.int64)
