"""A year of minute rollups of many campaigns, queried by day: `python -m tests.history.year FOLDER [DAYS] [CAMPAIGNS]`.

The files are as merging leaves them (test_year.py shows it for a day).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cmis_stream.core.time import DAY_MS, rfc3339
from cmis_stream.history.figures import PATH, SUMS
from cmis_stream.history.layout import ROLLUPS, Place, Reached, day_folder, day_of, part_name, write_durably, write_reached
from cmis_stream.history.merging import write_table
from cmis_stream.query.history import HistoryFigures, Limits

START = 1_767_225_600_000
PLACE = Place("year", 0)
PLATFORMS = ("google", "meta", "tiktok", "x")
MINUTES = 1440


def numbers(day: int, campaigns: int) -> Any:
    """int64[6, minute, campaign]"""
    random = np.random.default_rng(day)
    return np.stack([random.integers(1, most, (MINUTES, campaigns)) for most in (20, 2000, 50, 5_000_000, 3_000_000, 9_000_000)])


def write_day(root: Path, day: int, campaigns: int, *, derived: bool = True) -> Any:
    """Returns the day's sums, int64[6]."""
    start = START + day * DAY_MS
    sums = numbers(day, campaigns)
    platform = np.arange(campaigns) % len(PLATFORMS)
    names = [f"campaign-{n:05d}" for n in range(campaigns)]
    keys = [f"USD/{PLATFORMS[p]}/act_{n % 20}/{names[n]}" for n, p in enumerate(platform.tolist())]
    by_platform = np.stack([sums[:, :, platform == p].sum(axis=2) for p in range(len(PLATFORMS))], axis=2)
    whole = np.concatenate([sums, by_platform, sums.sum(axis=2, keepdims=True)], axis=2)
    entities = pa.array([*keys, *(f"USD/{name}" for name in PLATFORMS), "USD"])
    n = len(entities)
    rows = pa.table({
        "entity": pa.DictionaryArray.from_arrays(np.tile(np.arange(n, dtype=np.int32), MINUTES), entities),
        "start_ms": start + np.repeat(np.arange(MINUTES, dtype=np.int64) * 60_000, n),
        "pane_ms": np.full(n * MINUTES, 60_000, np.int32), "closed": np.ones(n * MINUTES, bool),
        "source": np.full(n * MINUTES, day, np.int64), **dict(zip(SUMS, whole.reshape(6, -1), strict=True)),
    })  # fmt: skip
    folder = day_folder(root, ROLLUPS, "acme", day_of(start))
    write_durably(folder, part_name(PLACE, 0, day + 1, ROLLUPS), partial(write_table, rows))
    for kind, minutes in (("hours", 60), ("quarters", 15)) if derived else ():
        steps = MINUTES // minutes
        coarse = sums.reshape(6, steps, minutes, campaigns).sum(axis=2)
        texts = {
            "currency": ["USD"] * campaigns, "platform": [PLATFORMS[p] for p in platform.tolist()],
            "account": [f"act_{n % 20}" for n in range(campaigns)], "campaign": names, "custom": [""] * campaigns,
        }  # fmt: skip
        table = pa.table({
            **{name: pa.array(texts[name] * steps) for name in PATH},
            "start_ms": start + np.repeat(np.arange(steps, dtype=np.int64) * minutes * 60_000, campaigns),
            "pane_ms": np.full(steps * campaigns, 60_000, np.int32), **dict(zip(SUMS, coarse.reshape(6, -1), strict=True)),
        })  # fmt: skip
        write_durably(folder, part_name(PLACE, 0, day + 1, kind), partial(write_table, table))
    return sums.sum(axis=(1, 2))


def ask(root: Path, limits: Limits | None = None, **query: Any) -> tuple[float, dict[str, Any]]:
    figures = HistoryFigures(root, 1, PLACE.epoch, lambda: START + 366 * DAY_MS, limits=limits)
    raw = {"dataset": "history", "measures": ["spend_micros", "clicks", "ctr"], **query}
    began = time.perf_counter()
    answer = asyncio.run(figures.answer("acme", raw))
    return time.perf_counter() - began, json.loads(answer)


def main(folder: str, days: str = "365", campaigns: str = "1000") -> None:
    root, last = Path(folder), int(days)
    began, kept = time.perf_counter(), root / "totals.json"
    if not kept.exists():
        totals = [write_day(root, day, int(campaigns)).tolist() for day in range(last)]
        write_reached(root, ROLLUPS, PLACE, Reached(last, last))
        kept.write_text(json.dumps(totals))
    totals = json.loads(kept.read_text())
    size = sum(path.stat().st_size for path in root.rglob("*.parquet"))
    rows = last * MINUTES * int(campaigns)
    print(f"{last} days, {rows:,} rows of minutes, {size / 1e9:.2f} GB, {time.perf_counter() - began:.0f} s", flush=True)
    span = {"from": rfc3339(START), "to": rfc3339(START + last * DAY_MS)}
    by_day = {"dimensions": ["time"], "step": "1d"}
    asked: dict[str, dict[str, Any]] = {
        "by day": by_day,
        "by day, one campaign": {**by_day, "filters": {"campaign": ["campaign-00017"]}},
        "by day and platform": {"dimensions": ["time", "platform"], "step": "1d"},
        "by day and campaign": {"dimensions": ["time", "campaign"], "step": "1d"},
        "by campaign": {"dimensions": ["campaign"], "step": "1d"},
        "by day in Berlin": {**by_day, "timezone": "Europe/Berlin"},
        "by day in Kolkata": {**by_day, "timezone": "Asia/Kolkata"},
        "the last day by minute": {"dimensions": ["time"], "step": "1m", "from": rfc3339(START + (last - 1) * DAY_MS)},
    }
    for name, query in asked.items():
        took = []
        for _ in range(5):
            seconds, found = ask(root, Limits(rows=1_000_000), **{**span, **query})
            took.append(seconds)
        print(f"{name:24} {len(found['rows']):7,} rows  best {min(took):.2f} s  median {sorted(took)[2]:.2f} s")
        if name == "by day":
            assert [row[2] for row in found["rows"]] == [int(total[3]) for total in totals]


if __name__ == "__main__":
    main(*sys.argv[1:])
