"""Datasets that can be asked, by name, and `panes`: of the engines in this process (`peer/` asks those of another)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import msgspec
import numpy as np

from cmis_stream.core.batch import MICROS
from cmis_stream.core.errors import CmisError, ConfigError, Rejected, shown
from cmis_stream.core.metrics import CUSTOM_PREFIX, FIELDS, evaluate
from cmis_stream.core.time import PANE_SIZES_MS
from cmis_stream.core.windows import PANE_MS
from cmis_stream.log.owner import Owner
from cmis_stream.query import times
from cmis_stream.query.answers import Column, listed, too_many_rows
from cmis_stream.query.description import DESCRIBED, SCHEMAS, Description
from cmis_stream.query.model import MEASURES, MONEY, MOST_ROWS, Fault, Faulty, PanesQuery, fault_of, parsed
from cmis_stream.query.panes import STEPS, FrozenPanes, Horizon, Rows, TooManyRows, freeze, grouped, horizon
from cmis_stream.store.decisions import Actor

NOBODY = Actor("")
"""Owns nothing."""
AT_ONCE = 2
"""Answers in the making; they take turns with the agents for the processor."""
MOST_WAITING = 64
"""For their turn; who comes then is better off coming again."""


class NotHere(CmisError):
    """There is no answer here and now; the same query may have one in a second. The org's partition is not owned by this
    process, or not yet."""


class Crowded(NotHere):
    """The partition is here, but too many queries wait already."""


class Turns:
    """`async with turns:` around what makes an answer; Crowded when too many wait."""

    def __init__(self) -> None:
        self._turns, self._asked = asyncio.Semaphore(AT_ONCE), 0

    async def __aenter__(self) -> None:
        if self._asked >= AT_ONCE + MOST_WAITING:
            raise Crowded("too many queries wait for their turn")
        self._asked += 1
        try:
            await self._turns.acquire()
        except BaseException:  # who gives up waiting does not wait any more; it is raised again
            self._asked -= 1
            raise

    async def __aexit__(self, *_: object) -> None:
        self._turns.release()
        self._asked -= 1


class Dataset(Protocol):
    """What all who may read in the org see alike."""

    async def answer(self, org: str, raw: Any) -> bytes:
        """The answer to a query (decoded JSON) as JSON; Faulty, NotHere, Crowded."""
        ...


class Owned(Protocol):
    """A dataset of which some see more than others. scope: what a caller needs."""

    @property
    def scope(self) -> str: ...

    @property
    def description(self) -> Description: ...

    @property
    def schema(self) -> dict[str, Any]: ...

    async def answer(self, org: str, raw: Any, actor: Actor) -> bytes:
        """As of `Dataset`; what is private to others is not in it."""
        ...


class Queries:
    """The datasets of a process. figures: by name, which DESCRIBED has."""

    def __init__(self, figures: Mapping[str, Dataset], stored: Mapping[str, Owned] | None = None) -> None:
        self._figures, self._stored = figures, stored or {}
        if twice := figures.keys() & self._stored.keys():
            raise ConfigError(f"{', '.join(sorted(twice))}: the name of a dataset of figures, a kind's plural cannot be that")

    async def answer(self, org: str, raw: Any, actor: Actor = NOBODY) -> bytes:
        """The JSON of {columns, rows, …}. raw: decoded JSON. org: its id; nothing of another one is in the answer."""
        name = self._name(raw)
        if name in self._figures:
            return await self._figures[name].answer(org, raw)
        return await self._stored[name].answer(org, raw, actor)

    def scope(self, raw: Any) -> str:
        """What who asks this needs."""
        name = self._name(raw)
        return "read" if name in self._figures else self._stored[name].scope

    def described(self, scopes: Collection[str]) -> list[Description]:
        """The datasets that a caller with these scopes can ask."""
        readable = [one.description for one in self._stored.values() if one.scope in scopes]
        return [*(DESCRIBED[name] for name in self._figures if "read" in scopes), *readable]

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """JSON schemas of the bodies, each with `examples`."""
        return [*(SCHEMAS[name] for name in self._figures), *(one.schema for one in self._stored.values())]

    def _name(self, raw: Any) -> str:
        if not isinstance(raw, dict):
            raise Faulty([Fault("", "wrong_type", shown(raw), "a JSON object")])
        name = raw.get("dataset")
        if isinstance(name, str) and (name in self._figures or name in self._stored):
            return name
        code, got = ("invalid", shown(name)) if "dataset" in raw else ("missing", "nothing")
        raise Faulty([Fault("/dataset", code, got, f"one of {', '.join([*self._figures, *self._stored])}")])


class Panes:
    """owner_of: the owner of an org's partition, None when it is not in this process. clock: epoch ms."""

    def __init__(self, owner_of: Callable[[str], Owner | None], clock: Callable[[], int]) -> None:
        self._owner_of, self._clock = owner_of, clock
        self._turns = Turns()

    async def answer(self, org: str, raw: Any) -> bytes:
        query = parsed(PanesQuery, raw)
        async with self._turns:
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
                raise too_many_rows() from None


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
    columns = [*map(dimension, plan.dimensions), *map(measure, query.measures)]
    found = [] if rows is None else raw_rows(rows, plan.dimensions, query.measures)
    return msgspec.json.encode(
        {
            "columns": [column.as_json() for column in columns],
            "rows": listed(found, columns, plan.zone, query.sort, query.limit),
            "watermark": None if watermark is None else times.shown(watermark, plan.zone),
            "provisional": plan.end_ms // PANE_MS > reach.head + 1,
            "position": position,
            "from": times.shown(plan.start_ms, plan.zone),
            "to": times.shown(plan.end_ms, plan.zone),
            "step": plan.step,
        }
    )


def dimension(name: str) -> Column:
    return Column(name, "time" if name == "time" else "string")


def measure(name: str) -> Column:
    unit = MEASURES.get(name)
    return Column(name, "integer" if unit in ("count", "micros") else "number", unit)


def raw_rows(rows: Rows, dimensions: Sequence[str], measures: Sequence[str]) -> Iterable[tuple[Any, ...]]:
    """Times in epoch ms."""
    path = [name for name in dimensions if name != "time"]
    by_name: dict[str, Sequence[Any]] = {"time": (rows.start * PANE_MS).tolist()}
    for place, name in enumerate(path):
        by_name[name] = [values[place] for values in rows.values]
    return zip(*(by_name[name] for name in dimensions), *(_values(rows, name) for name in measures), strict=True)


def _values(rows: Rows, name: str) -> list[Any]:
    if name.startswith(CUSTOM_PREFIX):
        return [micros / MICROS for micros in rows.custom[name.removeprefix(CUSTOM_PREFIX)].tolist()]
    field = name.removesuffix("_micros")
    if field in FIELDS:
        return list(rows.sums[FIELDS.index(field)].tolist())
    values = evaluate(name, rows.sums)
    return [value if finite else None for value, finite in zip(values.tolist(), np.isfinite(values).tolist(), strict=True)]
