"""Declared unique tuples: held in a table whose key decides, by documents that are not deleted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from sqlalchemy import and_, delete, or_, select

from cmis_stream.core.errors import Rejected

from . import tables
from .bodies import pointer
from .database import Transaction
from .decisions import Document
from .kinds import Kind, Kinds

_table = tables.uniques


def sync(tx: Transaction, kinds: Kinds, touched: Iterable[tuple[Document | None, Document]]) -> None:
    """What the documents held before is free, then what they hold now is taken: two of them may change places.

    touched: (before, after). Rejected("not_unique") names the first field of the tuple.
    """
    freed, taken = [], []
    for before, after in touched:
        kind = kinds[after.kind]
        had, has = _held(kind, before), _held(kind, after)
        freed += [(kind.name, name, had[name]) for name in had if had[name] != has.get(name)]
        taken += [(kind, after, name, has[name]) for name in has if has[name] != had.get(name)]
    if freed:
        keys = [and_(_table.c.kind == kind, _table.c.name == name, _table.c.value == value) for kind, name, value in freed]
        tx.run(delete(_table).where(tx.own(_table), or_(*keys)))
    for kind, document, name, value in taken:
        row = {"org_id": tx.org, "kind": kind.name, "name": name, "value": value, "id": document.id}
        if not tx.insert_new(_table, row):
            fields = name.split("+")
            got = [document.body[field] for field in fields]
            expected = f"{'a value' if len(fields) == 1 else 'values of ' + ', '.join(fields)} that no other {kind.name} has"
            raise Rejected("not_unique", pointer("", fields[0]), got[0] if len(got) == 1 else got, expected)


def holder(tx: Transaction, kind: str, fields: Sequence[str], values: Sequence[Any]) -> str | None:
    """The id of the document that has these values."""
    where = (_table.c.kind == kind, _table.c.name == "+".join(fields), _table.c.value == _digest(values))
    rows = tx.rows(select(_table.c.id).where(tx.own(_table), *where))
    return rows[0][0] if rows else None


def _held(kind: Kind, document: Document | None) -> dict[str, str]:
    if document is None or document.deleted_at is not None:
        return {}
    tuples = {"+".join(fields): [document.body[field] for field in fields] for fields in kind.unique}
    return {name: _digest(values) for name, values in tuples.items() if None not in values}


def _digest(values: Sequence[Any]) -> str:
    return hashlib.sha256(orjson.dumps(list(values), option=orjson.OPT_SORT_KEYS)).hexdigest()
