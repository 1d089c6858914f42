"""Datasets that can be asked: now only `panes`, of the engines in this process (`peer/` asks those of another)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import msgspec
import numpy as np

from cmis_stream.core.batch import MICROS
from cmis_stream.core.errors import CmisError, Rejected, shown
from cmis_stream.core.metrics import CUSTOM_PREFIX, FIELDS, evaluate
from cmis_stream.core.time import PANE_SIZES_MS
from cmis_stream.core.windows import PANE_MS
from cmis_stream.log.owner import Owner
from cmis_stream.query import times
from cmis_stream.query.model import MEASURES, MONEY, Fault, Faulty, PanesQuery, fault_of, parsed
from cmis_stream.query.panes import STEPS, FrozenPanes, Horizon, Rows, TooManyRows, freeze, grouped, horizon

MOST_ROWS = 10_000
AT_ONCE = 2
"""Answers in the making; they take turns with the agents for the processor."""
MOST_WAITING = 64
"""For their turn; who comes then is better off coming again."""


class NotHere(CmisError):
    """There is no answer here and now; the same query may have one in a second. The org's partition is not owned by this
    process, or not yet."""


class Crowded(NotHere):
    """The partition is here, but too many queries wait already."""


class Dataset(Protocol):
    async def answer(self, org: str, raw: Any) -> bytes:
        """The answer to a query (decoded JSON) as JSON; Faulty, NotHere, Crowded."""
        ...


class Queries:
    def __init__(self, datasets: Mapping[str, Dataset]) -> None:
        self._datasets = datasets

    async def answer(self, org: str, raw: Any) -> bytes:
        """The JSON of {columns, rows, …}. raw: decoded JSON. org: its id; nothing of another one is in the answer."""
        if not isinstance(raw, dict):
            raise Faulty([Fault("", "wrong_type", shown(raw), "a JSON object")])
        name = raw.get("dataset")
        dataset = self._datasets.get(name) if isinstance(name, str) else None
        if dataset is None:
            code = "invalid" if "dataset" in raw else "missing"
            raise Faulty(
                [Fault("/dataset", code, shown(name) if "dataset" in raw else "nothing", f"one of {', '.join(self._datasets)}")]
            )
        return await dataset.answer(org, raw)


class Panes:
    """owner_of: the owner of an org's partition, None when it is not in this process. clock: epoch ms."""

    def __init__(self, owner_of: Callable[[str], Owner | None], clock: Callable[[], int]) -> None:
        self._owner_of, self._clock = owner_of, clock
        self._turns, self._asked = asyncio.Semaphore(AT_ONCE), 0

    async def answer(self, org: str, raw: Any) -> bytes:
        query = parsed(raw)
        async with self._turn():
            owner = self._owner_of(org)
            if owner is None:
                raise NotHere("the org's figures are not here yet: its partition is being recovered")
            reach = horizon(owner.engine, org)
            plan = _Plan(query, reach, self._clock())
            position = {"topic": owner.topic, "partition": owner.partition, "offset": owner.begun}
            frozen = freeze(owner.engine, org, plan.start_ms // PANE_MS, plan.end_ms // PANE_MS, STEPS[plan.step])
            try:
                return await asyncio.to_thread(_answered, query, plan, reach, frozen, position)
            except TooManyRows:
                fault = Fault("", "too_long", f"more than {MOST_ROWS:,} rows", "fewer dimensions, a shorter time or more filters")
                raise Faulty([fault], "too_many_rows") from None

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self._asked >= AT_ONCE + MOST_WAITING:
            raise Crowded("too many queries wait for their turn")
        self._asked += 1
        try:
            async with self._turns:
                yield
        finally:
            self._asked -= 1


class _Plan:
    """A query's times and step, checked against what is kept."""

    def __init__(self, query: PanesQuery, reach: Horizon, now_ms: int) -> None:
        try:
            start_ms, end_ms = times.moment(query.from_, now_ms, "from"), times.moment(query.to, now_ms, "to")
            self.zone: ZoneInfo = times.zone(query.timezone, "timezone")
        except Rejected as error:
            raise Faulty([fault_of(error)]) from None
        if end_ms <= start_ms:
            raise Faulty([Fault("/to", "invalid", shown(query.to), f"a time after from, {shown(query.from_)}")])
        if query.step is None and "time" in query.dimensions:
            raise Faulty([Fault("/step", "missing", "nothing", f"{' or '.join(STEPS)}, since time is among the dimensions")])
        self.step = self._reaching(query, reach, start_ms)
        size = PANE_SIZES_MS[STEPS[self.step]]
        self.start_ms, self.end_ms = start_ms // size * size, -(-end_ms // size) * size
        self.dimensions = list(query.dimensions)
        money = any(name in MONEY or name.startswith(CUSTOM_PREFIX) for name in query.measures)
        if money and "currency" not in self.dimensions:
            self.dimensions.append("currency")

    def _reaching(self, query: PanesQuery, reach: Horizon, start_ms: int) -> str:
        """The step asked for, or the finest whose panes reach back to the start."""
        reaching = [
            name for name, level in STEPS.items() if (reach.first_ms(level) or 0) <= start_ms // _size(name) * _size(name)
        ]
        if query.step in reaching or (query.step is None and reaching):
            return query.step or reaching[0]
        kept = ", ".join(f"{name} from {times.shown(reach.first_ms(level) or 0, self.zone)}" for name, level in STEPS.items())
        wanted = f"a time that panes of {query.step or '1h'} reach back to"
        raise Faulty([Fault("/from", "out_of_range", shown(query.from_), f"{wanted}; kept are {kept}")], "not_kept")


def _size(step: str) -> int:
    return PANE_SIZES_MS[STEPS[step]]


def _answered(query: PanesQuery, plan: _Plan, reach: Horizon, frozen: FrozenPanes | None, position: dict[str, Any]) -> bytes:
    """The answer's JSON; in a thread."""
    path = [name for name in plan.dimensions if name != "time"]
    custom = [name.removeprefix(CUSTOM_PREFIX) for name in query.measures if name.startswith(CUSTOM_PREFIX)]
    step = _size(plan.step) // PANE_MS if "time" in plan.dimensions else None
    filters: dict[str, frozenset[str]] = {part: condition.values for part, condition in query.filters.items()}
    rows = None if frozen is None else grouped(frozen, step, path, filters, custom, MOST_ROWS)
    watermark = reach.watermark_ms
    return msgspec.json.encode(
        {
            "columns": [*map(_dimension, plan.dimensions), *map(_measure, query.measures)],
            "rows": [] if rows is None else _listed(rows, plan, path, query.measures),
            "watermark": None if watermark is None else times.shown(watermark, plan.zone),
            "provisional": plan.end_ms // PANE_MS > reach.head + 1,
            "position": position,
            "from": times.shown(plan.start_ms, plan.zone),
            "to": times.shown(plan.end_ms, plan.zone),
            "step": plan.step,
        }
    )


def _dimension(name: str) -> dict[str, Any]:
    return {"name": name, "type": "time" if name == "time" else "string", "unit": None}


def _measure(name: str) -> dict[str, Any]:
    unit = MEASURES.get(name)
    return {"name": name, "type": "integer" if unit in ("count", "micros") else "number", "unit": unit}


def _listed(rows: Rows, plan: _Plan, path: Sequence[str], measures: Sequence[str]) -> list[tuple[Any, ...]]:
    moments = {start: times.shown(start * PANE_MS, plan.zone) for start in np.unique(rows.start).tolist()}
    by_name: dict[str, Sequence[Any]] = {"time": [moments[start] for start in rows.start.tolist()]}
    for place, name in enumerate(path):
        by_name[name] = [values[place] for values in rows.values]
    return list(zip(*(by_name[name] for name in plan.dimensions), *(_values(rows, name) for name in measures), strict=True))


def _values(rows: Rows, measure: str) -> list[Any]:
    if measure.startswith(CUSTOM_PREFIX):
        return [micros / MICROS for micros in rows.custom[measure.removeprefix(CUSTOM_PREFIX)].tolist()]
    field = measure.removesuffix("_micros")
    if field in FIELDS:
        return list(rows.sums[FIELDS.index(field)].tolist())
    values = evaluate(measure, rows.sums)
    return [value if finite else None for value, finite in zip(values.tolist(), np.isfinite(values).tolist(), strict=True)]
