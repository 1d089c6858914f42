"""Memory of the engine with many active entities and all seven windows in both views.

python -m bench.memory ads20k | ads100k

Active: an event in every pane of every window, as densely as the window's own panes need it: each 10 s for the last 15
minutes, each minute for 6 hours, each 15 minutes for 24 hours, each hour for 7 days. Leaves are ads, 8 to an ad set, 5 ad
sets to a campaign, 40 campaigns to an org; all five levels are kept. The batches are made of arrays, without JSON.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bench.core import engine_with
from bench.measure import Report, Stopwatch, job_arguments, memory_mb
from cmis_stream.core.batch import Batch, Int64, Segment, leaf_path
from cmis_stream.core.entities import LEVELS
from cmis_stream.core.time import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS, WINDOWS

JOBS = {"ads20k": 20_000, "ads100k": 100_000}
NOW_MS = 1_767_225_600_000
STRETCHES = ((7 * DAY_MS, HOUR_MS), (DAY_MS, 15 * MINUTE_MS), (6 * HOUR_MS, MINUTE_MS), (15 * MINUTE_MS, 10 * SECOND_MS))
"""(from so long before the end, an event every so often), until the next stretch begins."""


def moments() -> list[int]:
    """The starts of the panes that get an event of every ad, ascending, ms."""
    found: list[int] = []
    for (reach, every), (end, _) in zip(STRETCHES, (*STRETCHES[1:], (0, 0)), strict=True):
        found.extend(range(NOW_MS - reach, NOW_MS - end, every))
    return found


def paths(ads: int) -> list[str]:
    return [
        leaf_path(f"org_{n // 1600:03d}", "USD", "meta", "", f"cmp_{n // 40:05d}", f"as_{n // 8:06d}", f"ad_{n:07d}")
        for n in range(ads)
    ]


def batches(ads: int) -> Iterator[Batch]:
    """One batch per moment with one event of every ad."""
    random = np.random.default_rng(3)
    names, leaf, event = paths(ads), np.arange(ads, dtype=np.int32), np.arange(ads, dtype=np.int32)
    impressions = random.lognormal(5.5, 0.7, ads)
    for number, start_ms in enumerate(moments()):
        yield Batch(
            ts_ms=start_ms + random.integers(0, 4_000, ads),
            leaf=leaf,
            values=_values(impressions * random.lognormal(0, 0.5, ads), random),
            event=event,
            uid=np.arange(number * ads, (number + 1) * ads, dtype=np.uint64),
            paths=names,
            segments=[Segment("*", "bench", True, ads)],
        )


def _values(impressions: np.ndarray[tuple[int, ...], np.dtype[np.float64]], random: np.random.Generator) -> Int64:
    """int64[5, n] as the workload makes them: 2.5 % clicks at about 0.6, 6 % of them convert."""
    shown = impressions.astype(np.int64) + 1
    clicks = random.binomial(shown, 0.025)
    cents = np.round(clicks * 60 * random.lognormal(0, 0.5, len(shown))).astype(np.int64)
    conversions = random.binomial(clicks, 0.06)
    return np.stack([shown, clicks, cents * 10_000, conversions * 1_000_000, conversions * 20_000_000])


def run(ads: int) -> Report:
    never = [
        {"id": f"never_{window}", "org": "org_000", "metric": "spend", "window": window, "op": "gt", "threshold": 1e15}
        for window in WINDOWS
    ]
    engine = engine_with(never, LEVELS, tuple(WINDOWS.values()))
    before_mb, watch = memory_mb("VmRSS"), Stopwatch()
    events = 0
    for batch in batches(ads):
        step = engine.apply(batch, NOW_MS + DAY_MS)
        events += step.accepted
    engine.tick(NOW_MS + DAY_MS, NOW_MS)
    report = watch.report(events)
    resident = memory_mb("VmRSS") - before_mb
    windows = engine.windows
    report.extra = {
        "entities": len(engine.entities) - 1,
        "resident_mb": resident,
        "windows_mb": windows.nbytes / 1e6,
        "panes_mb": sum(pane.nbytes for store in windows.panes for pane in store.values()) / 1e6,
        "bytes_per_ad": windows.nbytes / ads,
    }
    report.note = f"{len(moments())} moments; panes " + "/".join(str(len(store)) for store in windows.panes)
    return report


if __name__ == "__main__":
    name, _ = job_arguments(JOBS)
    run(JOBS[name]).print()
