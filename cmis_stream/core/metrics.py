"""The metrics that rules and pages name, computed from the exact sums of a window."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cmis_stream.core.batch import MICROS, Int64

Float64 = npt.NDArray[np.float64]

FIELDS = ("events", "impressions", "clicks", "spend", "conversions", "revenue")
EVENTS, IMPRESSIONS, CLICKS, SPEND, CONVERSIONS, REVENUE = range(len(FIELDS))
CUSTOM_PREFIX = "custom."
"""`custom.video_views` is the sum of that custom metric; its micros stand in the place of spend in its own series."""

Sums = Int64
"""int64[6, k] in the order of FIELDS: counts as they are, money and conversions in micros."""

METRICS: dict[str, Callable[[Sums], Float64]] = {
    "events": lambda s: s[EVENTS].astype(np.float64),
    "impressions": lambda s: s[IMPRESSIONS].astype(np.float64),
    "clicks": lambda s: s[CLICKS].astype(np.float64),
    "spend": lambda s: s[SPEND] / MICROS,
    "conversions": lambda s: s[CONVERSIONS] / MICROS,
    "revenue": lambda s: s[REVENUE] / MICROS,
    "ctr": lambda s: s[CLICKS] / s[IMPRESSIONS],
    "cpc": lambda s: s[SPEND] / MICROS / s[CLICKS],
    "cpm": lambda s: s[SPEND] / MICROS * 1000 / s[IMPRESSIONS],
    "cpa": lambda s: s[SPEND] / s[CONVERSIONS],
    "roas": lambda s: s[REVENUE] / s[SPEND],
    "cvr": lambda s: s[CONVERSIONS] / MICROS / s[CLICKS],
}
ALIASES = {"conversion_rate": "cvr"}


def evaluate(metric: str, sums: Sums) -> Float64:
    """Values float64[k] of a metric; where it is undefined (0/0, x/0) NaN or infinity, which no rule takes for true.

    >>> evaluate("ctr", np.array([[1], [200], [5], [0], [0], [0]])).tolist()
    [0.025]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        if metric.startswith(CUSTOM_PREFIX):
            return METRICS["spend"](sums)
        return METRICS[metric](sums)
