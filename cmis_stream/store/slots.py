"""Which column holds which filter field of a kind, and what goes into it.

Fields are given columns in the order of their declaration and keep them for ever; a later version may add fields. Rows that
were written before then are recognised by their `layout`, and `Documents.fill_slots` brings them up to date.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select

from cmis_stream.core.errors import ConfigError, Rejected

from . import tables
from .database import Database, Transaction
from .fact_kinds import FactKind
from .kinds import Kind, Kinds, rank

LONGEST_TEXT = 500
"""Characters of a text that can be filtered by: an index takes no more than 2,700 bytes."""


class Slots:
    """The layout of all kinds. ConfigError when a field's type is another one than its column's, or no column is left."""

    def __init__(self, database: Database, kinds: Kinds) -> None:
        self._columns: dict[str, dict[str, str]] = {}
        self._layout: dict[str, int] = {}
        with database.transaction(None) as tx:  # as nearly always: without waiting for whoever writes
            found = self._read(tx, kinds, adding=False)
        while not found:
            with database.transaction(None, writes=True) as tx:
                found = self._read(tx, kinds, adding=True)  # not: another process gave a field the column that we wanted

    def columns(self, kind: str) -> Mapping[str, str]:
        """field -> column"""
        return self._columns[kind]

    def layout(self, kind: str) -> int:
        return self._layout[kind]

    def values(self, kind: Kind | FactKind, body: Mapping[str, Any]) -> dict[str, Any]:
        """What the columns of a document are set to; Rejected("too_long") names the field."""
        made = dict[str, Any]()
        for name, column in self._columns[kind.name].items():
            value = body[name]
            if isinstance(value, str) and len(value) > LONGEST_TEXT:
                raise Rejected("too_long", f"/{name}", value, f"at most {LONGEST_TEXT} characters, since it can be filtered by")
            if name in kind.ranks:
                value = rank(kind.ranks[name], value)
            made[column] = int(value) if isinstance(value, bool) else value
        return made

    def _read(self, tx: Transaction, kinds: Kinds, *, adding: bool) -> bool:
        """False when a column is missing. adding: it is given one first."""
        all_kinds: list[Kind | FactKind] = [*kinds.values(), *kinds.facts.values()]
        known: dict[str, dict[str, str]] = {kind.name: {} for kind in all_kinds}
        for kind_name, field, slot in tx.rows(select(tables.slots.c.kind, tables.slots.c.field, tables.slots.c.slot)):
            known.setdefault(kind_name, {})[field] = slot
        for kind in all_kinds:
            of = known[kind.name]
            for name in kind.filters:
                family = kind.family(name)
                where = f"{kinds.module_of[kind.name]}.{kind.name}.{name}"
                if name not in of:
                    free = [slot for slot in tables.SLOTS if slot.startswith(family) and slot not in of.values()]
                    if not free:
                        raise ConfigError(f"{where}: no column for {family} values is left; fields of older versions hold them")
                    row = {"kind": kind.name, "field": name, "slot": free[0]}
                    if not adding or not tx.insert_new(tables.slots, row):
                        return False
                    of[name] = free[0]
                elif not of[name].startswith(family):
                    raise ConfigError(
                        f"{where}: its values were {of[name].rstrip('0123456789')}, expected no other type than before"
                    )
            self._columns[kind.name] = {name: of[name] for name in kind.filters}
            self._layout[kind.name] = len(of)
        return True
