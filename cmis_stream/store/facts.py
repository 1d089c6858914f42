"""Facts: what agents find, as documents of one version after the other, in SQLite (store.db) with what was read for them.

A reader (an agent) writes facts and how far it has read in one transaction, so after a kill it goes on exactly behind them.
A fact changes only to a higher version. Ids are made by `core.ids.fact_id`: their order is that of the facts' beginnings.
"""

from __future__ import annotations

import base64
import json
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from cmis_stream.core.errors import Rejected

_SCHEMA = """
create table if not exists facts(
    org_id text not null, kind text not null, id text not null, version integer not null, at integer not null,
    doc text not null, primary key (org_id, kind, id)) strict;
create index if not exists facts_by_state on facts(org_id, kind, json_extract(doc, '$.state'), id);
create table if not exists positions(
    reader text not null, epoch text not null, topic text not null, partition integer not null, position integer not null,
    primary key (reader, epoch, topic, partition)) strict, without rowid;
"""
_IN_STATE = "select org_id, doc from facts where kind = ? and json_extract(doc, '$.state') = ?"
COUNTED = 10_000
"""A list's estimate of its length is exact up to here."""

Place = tuple[str, int]
"""(topic, partition)"""
Doc = dict[str, Any]


class Change(NamedTuple):
    """make: the document (with `version`) from the one before, None for a new fact. at: epoch ms."""

    org: str
    kind: str
    id: str
    at: int
    make: Callable[[Doc | None], Doc]


@dataclass(frozen=True, slots=True)
class Listing:
    """How a kind may be listed.

    filters: fields of the document. sorts: name -> SQL expression, "id" for the beginning. Of equals the newest come first.
    """

    kind: str
    filters: frozenset[str]
    sorts: Mapping[str, str]


class Page(NamedTuple):
    """next: the cursor of the page after, None at the end. total: of all pages, exact up to COUNTED."""

    items: list[Doc]
    next: str | None
    total: int


class FactStore:
    """Safe for threads; reads do not wait for writes. Slow: not for the event loop."""

    def __init__(self, path: Path) -> None:
        self._writer, self._reader = _connected(path), _connected(path)
        self._writing, self._reading = threading.Lock(), threading.Lock()
        self._writer.executescript(_SCHEMA)  # not in a transaction: that would wait for whoever writes when all is there

    def close(self) -> None:
        with self._writing, self._reading:
            self._writer.close()
            self._reader.close()

    # --- writing ------------------------------------------------------------------------------------------------------

    def write(
        self,
        changes: Iterable[Change],
        reader: str,
        epoch: str,
        positions: Mapping[Place, int],
        before: Mapping[Place, int] | None = None,
    ) -> bool:
        """Everything or nothing of it; sqlite3.Error when it is nothing. epoch: identity of the log that positions count in.

        before: the positions that the changes rest on. Where the store has others (a place that is missing stands for none),
        someone else reads those partitions too: nothing is written and the answer is False. None: they rest on none.
        """
        with self._writing, self._writer as db:
            db.execute("begin immediate")
            if before is not None and any(_position(db, reader, epoch, p) != before.get(p) for p in positions):
                return False
            for change in changes:
                _write(db, change)
            db.executemany(
                "insert or replace into positions values (?, ?, ?, ?, ?)",
                [(reader, epoch, topic, partition, position) for (topic, partition), position in positions.items()],
            )
        return True

    def leave_other_logs(self, reader: str, epoch: str, kind: str, state: str, change: Callable[[str, Doc], Change]) -> None:
        """When the reader has read another log than this one: changes all facts of a kind and state, and drops its positions
        there. change: of (org, fact). Once, however many processes call it: facts of this log are none of its business."""
        others = "from positions where reader = ? and epoch <> ?"
        if not self._rows(f"select 1 {others} limit 1", (reader, epoch)):
            return  # as nearly always: without waiting for whoever writes
        with self._writing, self._writer as db:
            db.execute("begin immediate")
            if db.execute(f"select 1 {others} limit 1", (reader, epoch)).fetchone() is not None:
                for org, doc in db.execute(_IN_STATE, (kind, state)).fetchall():
                    _write(db, change(org, orjson.loads(doc)))
                db.execute(f"delete {others}", (reader, epoch))

    # --- reading ------------------------------------------------------------------------------------------------------

    def positions(self, reader: str, epoch: str) -> dict[Place, int]:
        """How far a reader has come in this log: the highest position of each partition."""
        rows = self._rows("select topic, partition, position from positions where reader = ? and epoch = ?", (reader, epoch))
        return {(topic, partition): position for topic, partition, position in rows}

    def get(self, org: str, kind: str, fact: str) -> Doc | None:
        rows = self._rows("select doc from facts where org_id = ? and kind = ? and id = ?", (org, kind, fact))
        return orjson.loads(rows[0][0]) if rows else None

    def in_state(self, org: str, kind: str, state: str, most: int) -> list[Doc]:
        """The facts in a state, those that started last first."""
        where = "org_id = ? and kind = ? and json_extract(doc, '$.state') = ?"
        rows = self._rows(f"select doc from facts where {where} order by id desc limit ?", (org, kind, state, most))
        return [orjson.loads(doc) for (doc,) in rows]

    def everywhere_in_state(self, kind: str, state: str) -> list[tuple[str, Doc]]:
        """(org, fact) of all orgs. Looks at all facts."""
        return [(org, orjson.loads(doc)) for org, doc in self._rows(_IN_STATE, (kind, state))]

    def page(
        self, org: str, listing: Listing, filters: Mapping[str, Collection[str]], sort: str, limit: int, cursor: str | None
    ) -> Page:
        """filters: field -> the values that count. sort: a name in the listing, with - the other way round. Rejected names the
        parameter. Facts that appear or change meanwhile do not move others to another page."""
        order = _ordered(listing, sort)
        where, given = "org_id = ? and kind = ?", [org, listing.kind]
        for name, values in filters.items():
            if name not in listing.filters:
                raise Rejected("invalid", f"filter[{name}]", name, f"one of {', '.join(sorted(listing.filters))}")
            # With "in" the index on states would not be in the order that is asked for.
            among = "= ?" if len(values) == 1 else f"in ({', '.join('?' * len(values))})"
            where += f" and json_extract(doc, '$.{name}') {among}"
            given.extend(values)
        after, behind = ("", []) if cursor is None else _behind(order, sort, cursor)
        by = ", ".join(f"{expression} {'desc' if descending else 'asc'}" for expression, descending in order)
        keys = ", ".join(expression for expression, _ in order)
        rows = self._rows(
            f"select doc, {keys} from facts where {where}{after} order by {by} limit ?", (*given, *behind, limit + 1)
        )
        ((total,),) = self._rows(f"select count(*) from (select 1 from facts where {where} limit ?)", (*given, COUNTED))
        more = len(rows) > limit
        items = [orjson.loads(row[0]) for row in rows[:limit]]
        return Page(items, _cursor(sort, rows[limit - 1][1:]) if more else None, total)

    def _rows(self, sql: str, parameters: Sequence[Any]) -> list[Any]:
        with self._reading:
            return self._reader.execute(sql, parameters).fetchall()


def _write(db: sqlite3.Connection, change: Change) -> None:
    key = (change.org, change.kind, change.id)
    row = db.execute("select version, doc from facts where org_id = ? and kind = ? and id = ?", key).fetchone()
    doc = change.make(None if row is None else orjson.loads(row[1]))
    if row is None or doc["version"] > row[0]:
        text = orjson.dumps(doc).decode()
        db.execute("insert or replace into facts values (?, ?, ?, ?, ?, ?)", (*key, doc["version"], change.at, text))


def _position(db: sqlite3.Connection, reader: str, epoch: str, place: Place) -> int | None:
    where = "reader = ? and epoch = ? and topic = ? and partition = ?"
    row = db.execute(f"select position from positions where {where}", (reader, epoch, *place)).fetchone()
    return None if row is None else int(row[0])


def _connected(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
    db.execute("pragma journal_mode = wal")
    return db


def _ordered(listing: Listing, sort: str) -> list[tuple[str, bool]]:
    """(expression, descending)"""
    name = sort.removeprefix("-")
    if name not in listing.sorts:
        raise Rejected("invalid", "sort", sort, f"{', '.join(listing.sorts)}, or one of them with - before it")
    main = (listing.sorts[name], sort.startswith("-"))
    return [main] if main[0] == "id" else [main, ("id", True)]


def _cursor(sort: str, keys: Sequence[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps([sort, *keys]).encode()).decode().rstrip("=")


def _behind(order: Sequence[tuple[str, bool]], sort: str, cursor: str) -> tuple[str, list[Any]]:
    """SQL for what comes behind the row that the cursor was made of, and its parameters."""
    try:
        of, *keys = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if of != sort or len(keys) != len(order) or not all(isinstance(key, str | int | float) for key in keys):
            raise ValueError
    except (ValueError, TypeError):
        raise Rejected("invalid", "cursor", cursor, "`next` of an answer with the same sort") from None
    ways, given = [], list[Any]()
    for place, (expression, descending) in enumerate(order):
        equal = [f"{earlier} = ?" for earlier, _ in order[:place]]
        ways.append(" and ".join([*equal, f"{expression} {'<' if descending else '>'} ?"]))
        given.extend(keys[: place + 1])
    return " and (" + " or ".join(f"({way})" for way in ways) + ")", given
