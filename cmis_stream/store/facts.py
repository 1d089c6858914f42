"""Facts: what agents find, as one version after the other, with what was read for them.

A reader (an agent) writes facts and how far it has read in one transaction, so after a kill it goes on exactly behind them.
Ids are made by `core.ids.fact_id`: their order is that of the facts' beginnings. Everything here blocks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson
from sqlalchemy import and_, delete, select, update

from . import tables
from .database import Database, Transaction
from .decisions import Body
from .fact_kinds import Fact, FactKind
from .fact_tables import fact_orgs, facts, positions
from .grouping import Grouping, Rows, grouped
from .kinds import Kinds, rank
from .listing import MOST, Asked, asked, find, storable
from .slots import LONGEST_TEXT, Slots

_AT_ONCE: Final = 500
_HELD: Final = (facts.c.org_id, facts.c.kind, facts.c.id, facts.c.version, facts.c.at, facts.c.doc)

Place = tuple[str, int]
"""(topic, partition)"""


class Change(NamedTuple):
    """make: the body from the one before, None for a new fact; None for no change. It must not alter what it is given.

    at: epoch ms. least: the version afterwards is the one before + 1, and at least this one.
    """

    org: str
    kind: str
    id: str
    at: int
    make: Callable[[Body | None], Body | None]
    least: int = 1


class Page(NamedTuple):
    """next: the cursor of the page after, None at the end. total_estimate: exact up to listing.COUNTED."""

    items: list[Fact]
    next: str | None
    total_estimate: int


class MovedByOthers(Exception):
    """Ends a transaction whose positions are not those that it rests on."""


class Facts:
    """The facts of all kinds. overseer: a database as a role that reads which orgs have facts, where there are roles."""

    def __init__(self, database: Database, kinds: Kinds, overseer: Database | None = None) -> None:
        self._database, self._kinds, self._overseer = database, kinds.facts, overseer or database
        self._slots = Slots(database, kinds)
        self._known: set[tuple[str, str]] = set()
        """(org, kind) that are in fact_orgs."""

    # --- writing ------------------------------------------------------------------------------------------------------

    def write(
        self,
        changes: Iterable[Change],
        reader: str,
        epoch: str,
        positions: Mapping[Place, int],
        before: Mapping[Place, int],
    ) -> bool:
        """Everything or nothing of it; Unavailable when it is nothing. epoch: identity of the log that positions count in.

        before: the positions that the changes rest on. Where the store has others (a place that is missing stands for none),
        someone else reads those partitions too: nothing is written and the answer is False.
        """
        by_org = _by_org(changes)
        new = set[tuple[str, str]]()
        try:
            with self._database.transaction(None, writes=True) as tx:
                # First, so that of two that read the same partition the second waits here, and finds it moved.
                move(tx, reader, epoch, positions, before)
                for org in sorted(by_org):  # of two transactions over the same orgs neither waits for the other for ever
                    tx.enter(org)
                    tx.lock_org(tables.org_heads)
                    new |= self.apply(tx, by_org[org])
        except MovedByOthers:
            return False
        self._known |= new
        return True

    def apply(self, tx: Transaction, changes: Sequence[Change]) -> set[tuple[str, str]]:
        """The changes of the org that the transaction is in and holds, in their order. What it says to be remembered as known
        once that is committed."""
        held = self._held(tx, changes)
        made = dict[tuple[str, str], Fact]()
        for change in changes:
            key = (change.kind, change.id)
            before = held.get(key)
            body = change.make(None if before is None else before.body)
            if body is None or (before is not None and body == before.body):
                continue
            version = max(change.least, 1 if before is None else before.version + 1)
            held[key] = made[key] = Fact(change.org, change.kind, change.id, version, change.at, body)
        new = {(tx.org, kind) for kind, _ in made} - self._known
        for kind in {kind for kind, _ in made}:
            tx.put(facts, [self._row(fact) for fact in made.values() if fact.kind == kind])
        for org, kind in sorted(new):
            tx.insert_new(fact_orgs, {"org_id": org, "kind": kind})
        return new

    def put(self, tx: Transaction, fact: Fact) -> None:
        """In the place of the version that is there, which the transaction holds."""
        tx.put(facts, [self._row(fact)])

    def _held(self, tx: Transaction, changes: Sequence[Change]) -> dict[tuple[str, str], Fact]:
        wanted = defaultdict[str, dict[str, None]](dict)
        for change in changes:
            wanted[change.kind][change.id] = None
        found = dict[tuple[str, str], Fact]()
        for kind, ids in wanted.items():
            every = list(ids)
            for start in range(0, len(every), _AT_ONCE):
                some = facts.c.id.in_(every[start : start + _AT_ONCE])
                rows = tx.rows(select(*_HELD).where(tx.own(facts), facts.c.kind == kind, some))
                found |= {(kind, row.id): _fact(row) for row in rows}
        return found

    def _row(self, fact: Fact) -> dict[str, Any]:
        key = {"org_id": fact.org, "kind": fact.kind, "id": fact.id}
        row = {"version": fact.version, "at": fact.at, "doc": orjson.dumps(fact.body).decode()}
        return key | row | self._columns(self._kinds[fact.kind], fact.body)

    def _columns(self, kind: FactKind, body: Body) -> dict[str, Any]:
        made: dict[str, Any] = {"layout": self._slots.layout(kind.name)}
        for name, column in self._slots.columns(kind.name).items():
            value = body.get(name)
            if name in kind.ranks:
                value = rank(kind.ranks[name], value)
            elif isinstance(value, bool):
                value = int(value)  # PostgreSQL takes none for a number
            elif isinstance(value, str) and not (len(value) <= LONGEST_TEXT and storable(value)):
                value = None  # no index can hold it: it is found all the same, but nobody can filter by it
            made[column] = value
        return made

    def leave_other_logs(
        self, reader: str, epoch: str, kind: str, parameters: Iterable[tuple[str, str]], change: Callable[[Fact], Change]
    ) -> None:
        """When the reader has read another log than this one: changes all facts of a kind that the parameters (of a list) find,
        and drops its positions there. Once, however many processes call it: facts of this log are none of its business."""
        others = (positions.c.reader == reader, positions.c.epoch != epoch)
        with self._database.transaction(None) as tx:
            if not tx.rows(select(positions.c.reader).where(*others).limit(1)):
                return  # as nearly always: without waiting for whoever writes
        given = list(parameters)
        with self._database.transaction(None, writes=True) as tx:
            # First: of two the second waits here, and finds them gone; so does who still writes for the other log.
            if not tx.run(delete(positions).where(*others)).rowcount:
                return
            for org in self.orgs(kind):
                tx.enter(org)
                tx.lock_org(tables.org_heads)
                self.apply(tx, [change(fact) for fact in self._all(tx, kind, given)])

    # --- reading ------------------------------------------------------------------------------------------------------

    def positions(self, reader: str, epoch: str) -> dict[Place, int]:
        """How far a reader has come in this log: the highest position of each partition."""
        wanted = select(positions.c.topic, positions.c.partition, positions.c.position)
        with self._database.transaction(None) as tx:
            rows = tx.rows(wanted.where(positions.c.reader == reader, positions.c.epoch == epoch))
        return {(row.topic, row.partition): row.position for row in rows}

    def get(self, org: str, kind: str, identity: str) -> Fact | None:
        if not storable(identity):
            return None
        with self._database.transaction(org) as tx:
            return load(tx, kind, identity)

    def orgs(self, kind: str) -> list[str]:
        """Those that have facts of this kind, in their order."""
        with self._overseer.transaction(None) as tx:
            rows = tx.rows(select(fact_orgs.c.org_id).where(fact_orgs.c.kind == kind).order_by(fact_orgs.c.org_id))
        return [org for (org,) in rows]

    def everywhere(self, kind: str, parameters: Iterable[tuple[str, str]] = ()) -> list[Fact]:
        """All facts of all orgs that the parameters of a list find; an org after the other, each at one moment."""
        given, found = [*parameters], list[Fact]()
        for org in self.orgs(kind):
            with self._database.transaction(org) as tx:
                found += self._all(tx, kind, given)
        return found

    def _all(self, tx: Transaction, kind: str, parameters: Sequence[tuple[str, str]]) -> Iterator[Fact]:
        cursor: str | None = ""
        while cursor is not None:
            more = [("cursor", cursor)] if cursor else []
            wanted = [*parameters, ("sort", "id"), ("limit", str(MOST)), *more]
            page = self._page(tx, kind, asked(self._kinds[kind], wanted))
            yield from page.items
            cursor = page.next

    def _page(self, tx: Transaction, kind: str, what: Asked) -> Page:
        found = find(tx, facts, self._kinds[kind], self._slots.columns(kind), what)
        return Page([_fact(row) for row in found.rows], found.next, found.total_estimate)

    def list(self, org: str, kind: str, asked_for: Asked | Iterable[tuple[str, str]] = ()) -> Page:
        """asked_for: or a query string's pairs (listing.asked). Rejected names the parameter."""
        what = asked_for if isinstance(asked_for, Asked) else asked(self._kinds[kind], asked_for)
        with self._database.transaction(org) as tx:
            return self._page(tx, kind, what)

    def grouped(self, org: str, kind: str, asked_for: Grouping, most: int, seconds: float) -> Rows:
        """Counted and added up by `at`. TooManyGroups beyond so many rows, TooSlow beyond so many seconds."""
        with self._database.transaction(org) as tx, tx.within(seconds):
            return grouped(tx, facts, self._kinds[kind], self._slots.columns(kind), facts.c.at, asked_for, most)

    # --- after an upgrade ---------------------------------------------------------------------------------------------

    def fill_slots(self) -> int:
        """Gives facts the columns of filter fields that are younger than they are; how many had to be. Fields that they do not
        have count as missing until then. Can be repeated, and killed at any time."""
        filled = 0
        for kind in self._kinds.values():
            for org in self.orgs(kind.name):
                last = ""
                while rows := self._fill_some(org, kind, last):
                    filled, last = filled + len(rows), rows[-1]
        return filled

    def _fill_some(self, org: str, kind: FactKind, last: str) -> Sequence[str]:
        old = and_(facts.c.kind == kind.name, facts.c.id > last, facts.c.layout < self._slots.layout(kind.name))
        with self._database.transaction(org) as tx:  # mostly there is nothing to do, and nobody has to wait for that
            if not tx.rows(select(facts.c.id).where(tx.own(facts), old).limit(1)):
                return []
        with self._database.transaction(org, writes=True) as tx:
            tx.lock_org(tables.org_heads)
            own = (tx.own(facts), facts.c.kind == kind.name)
            rows = tx.rows(select(facts.c.id, facts.c.doc).where(*own, old).order_by(facts.c.id).limit(_AT_ONCE))
            for identity, text in rows:
                columns = self._columns(kind, orjson.loads(text))
                tx.run(update(facts).where(*own, facts.c.id == identity).values(columns))
            return [identity for identity, _ in rows]


def load(tx: Transaction, kind: str, identity: str) -> Fact | None:
    rows = tx.rows(select(*_HELD).where(tx.own(facts), facts.c.kind == kind, facts.c.id == identity))
    return _fact(rows[0]) if rows else None


def move(tx: Transaction, reader: str, epoch: str, to: Mapping[Place, int], before: Mapping[Place, int]) -> None:
    """Sets positions; MovedByOthers when one of them is not where it was thought to be."""
    for topic, partition in sorted(to):
        key = {"reader": reader, "epoch": epoch, "topic": topic, "partition": partition}
        at, place = before.get((topic, partition)), (topic, partition)
        if at is None:
            moved = tx.insert_new(positions, {**key, "position": to[place]})
        else:
            same = [positions.c[name] == value for name, value in key.items()]
            done = tx.run(update(positions).where(*same, positions.c.position == at).values(position=to[place]))
            moved = done.rowcount == 1
        if not moved:
            raise MovedByOthers


def _by_org(changes: Iterable[Change]) -> dict[str, list[Change]]:
    made = defaultdict[str, list[Change]](list)
    for change in changes:
        made[change.org].append(change)
    return made


def _fact(row: Any) -> Fact:
    return Fact(row.org_id, row.kind, row.id, row.version, row.at, orjson.loads(row.doc))
