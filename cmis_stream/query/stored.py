"""A dataset per kind of documents and of facts: what is in the store now, counted and added up by its filter fields."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from cmis_stream.core.errors import ConfigError, shown
from cmis_stream.query import times
from cmis_stream.query.answers import Column, listed, too_many_rows
from cmis_stream.query.datasets import NotHere, Owned, Turns
from cmis_stream.query.description import Description
from cmis_stream.query.form import Form
from cmis_stream.query.model import MOST_ROWS, Fault, Faulty
from cmis_stream.store.database import TooSlow, Unavailable
from cmis_stream.store.decisions import Actor
from cmis_stream.store.documents import Documents
from cmis_stream.store.fact_kinds import FactKind
from cmis_stream.store.facts import Facts
from cmis_stream.store.grouping import Grouping, Rows, TooManyGroups
from cmis_stream.store.kinds import Kind, Kinds

LONGEST_S = 5.0
"""Of a statement."""


class Found(NamedTuple):
    """position: what is in the rows at least, as it stands in the answer."""

    rows: Rows
    position: dict[str, Any]


Ask = Callable[[str, Actor, Grouping], Found]
"""(org, actor, what) -> what the actor sees; blocks. TooManyGroups, TooSlow, Unavailable."""


class Stored:
    """scope: what a caller needs. turns: shared by all that ask one database. clock: epoch ms."""

    def __init__(self, form: Form, ask: Ask, scope: str, turns: Turns, clock: Callable[[], int]) -> None:
        self._form, self._ask, self.scope, self._turns, self._clock = form, ask, scope, turns, clock

    @property
    def description(self) -> Description:
        return self._form.description

    @property
    def schema(self) -> dict[str, Any]:
        return self._form.schema

    async def answer(self, org: str, raw: Any, actor: Actor) -> bytes:
        wanted = self._form.read(raw, self._clock())
        grouping, query, zone = wanted.grouping, wanted.query, wanted.zone
        async with self._turns:
            try:
                found = await asyncio.to_thread(self._ask, org, actor, grouping)
            except TooManyGroups:
                raise too_many_rows() from None
            except TooSlow:
                less = "a shorter time, more filters or fewer measures"
                raise Faulty([Fault("", "too_long", f"more than {LONGEST_S:g} s of work", less)], "too_expensive") from None
            except Unavailable as error:
                raise NotHere(f"the store cannot be asked now: {error}") from error
        sort = query.sort if query.sort is not None else ",".join(query.dimensions) or None
        rows = _with_ranks(found.rows, wanted.columns)
        return msgspec.json.encode(
            {
                "columns": [column.as_json() for column in wanted.columns],
                "rows": _fitting(listed(rows, wanted.columns, zone, sort, query.limit), query.measures),
                "watermark": None,
                "provisional": False,
                "position": found.position,
                "from": None if grouping.start_ms is None else times.shown(grouping.start_ms, zone),
                "to": None if grouping.end_ms is None else times.shown(grouping.end_ms, zone),
                "step": query.step,
            }
        )


def datasets_of(
    documents: Documents,
    facts: Facts,
    kinds: Kinds,
    position: Callable[[str, FactKind], dict[str, Any]],
    clock: Callable[[], int],
) -> dict[str, Owned]:
    """Of all kinds of documents and of facts, by their plurals. ConfigError when two have the same.

    position: org, kind -> up to where its facts of this kind are in the store; blocks.
    """
    turns, made = Turns(), dict[str, Owned]()
    every: list[tuple[Kind | FactKind, Ask, str]] = [
        *((kind, _documents(documents, kind.name), "when they were created") for kind in kinds.values()),
        *((kind, _facts(facts, kind, position), "when they changed last") for kind in kinds.facts.values()),
    ]
    for kind, ask, at in every:
        name = kind.plural or f"{kind.name}s"
        if name in made:
            raise ConfigError(f"{kinds.module_of[kind.name]}.{kind.name}: another kind has the plural {name}, too")
        made[name] = Stored(Form(name, kind, at), ask, kind.scope("read"), turns, clock)
    return made


def _documents(documents: Documents, kind: str) -> Ask:
    def ask(org: str, actor: Actor, grouping: Grouping) -> Found:
        rows, seq = documents.grouped(org, actor, kind, grouping, MOST_ROWS, LONGEST_S)
        return Found(rows, {"seq": seq})

    return ask


def _facts(facts: Facts, kind: FactKind, position: Callable[[str, FactKind], dict[str, Any]]) -> Ask:
    def ask(org: str, actor: Actor, grouping: Grouping) -> Found:
        """The position first: what is written meanwhile may be in the rows, too."""
        at = position(org, kind)
        return Found(facts.grouped(org, kind.name, grouping, MOST_ROWS, LONGEST_S), at)

    return ask


def _with_ranks(rows: Rows, columns: Sequence[Column]) -> Rows:
    """Ranks as places, which the store keeps from 0 downwards."""
    ranked = [place for place, column in enumerate(columns) if column.ranks]
    for place in ranked:
        rows = [(*row[:place], None if row[place] is None else -row[place], *row[place + 1 :]) for row in rows]
    return rows


def _fitting(rows: list[list[Any]], measures: list[str]) -> list[list[Any]]:
    """Faulty for sums that a JSON number of 64 bits cannot hold."""
    for row in rows:
        for place, value in enumerate(row[-len(measures) :]):
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise Faulty([Fault(f"/measures/{place}", "out_of_range", shown(value), "a sum of at most 64 bits")])
    return rows
