"""References between documents: who points at whom, what goes with what, and no way that leads back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from sqlalchemy import and_, delete, insert, or_, select

from cmis_stream.core.errors import Rejected

from . import tables
from .bodies import pointer
from .database import Transaction
from .decisions import Actor, Document
from .kinds import Kind, Kinds

_table = tables.refs
_documents = tables.documents
Key = tuple[str, str]
"""(kind, id)"""


def keep(tx: Transaction, kind: Kind, before: Document | None, after: Document) -> None:
    """Brings the table to what the document points at now; a deleted one points at nothing."""
    had, has = _pointed(kind, before), _pointed(kind, after)
    if gone := had - has:
        which = [and_(_table.c.field == field, _table.c.target_id == target) for field, target in gone]
        tx.run(delete(_table).where(tx.own(_table), _table.c.kind == kind.name, _table.c.id == after.id, or_(*which)))
    if new := sorted(has - had):
        key = {"org_id": tx.org, "kind": kind.name, "id": after.id}
        rows = [{**key, "field": f, "target_id": target, "target_kind": kind.refs[f].target} for f, target in new]
        tx.run(insert(_table), rows)


def check(tx: Transaction, kinds: Kinds, touched: Iterable[tuple[Document | None, Document]], actor: Actor) -> None:
    """That what is pointed at anew is there, and no acyclic field leads back. Rejected: unknown_ref, cycle.

    The words are the same whether a target does not exist, is deleted, another org's, or private to somebody else.
    """
    for before, after in touched:
        kind = kinds[after.kind]
        had = _pointed(kind, before)
        for field, ref in kind.refs.items():
            new = sorted(target for name, target in _pointed(kind, after) if name == field and (name, target) not in had)
            if not new:
                continue
            there = _seen(tx, ref.target, new, actor)
            for target in new:
                if target not in there:
                    raise Rejected("unknown_ref", _place(after, field, target), target, f"the id of a {ref.target} of this org")
            if ref.acyclic and (path := _way_back(tx, kind.name, field, after.id)):
                raise Rejected(
                    "cycle", _place(after, field, path[1]), " → ".join(path), f"a {field} that does not lead back to it"
                )


def what_goes(tx: Transaction, kinds: Kinds, first: Key) -> tuple[list[Key], list[tuple[Key, str, set[str]]]]:
    """What is deleted with a document, itself first, and (document, field, targets) of those that are detached from them.

    Rejected("restricted") when something that stays forbids it.
    """
    going: dict[Key, None] = {first: None}
    detached: dict[tuple[Key, str], set[str]] = defaultdict(set)
    restricting: dict[tuple[str, str], set[str]] = defaultdict(set)
    edge = [first]
    while edge:
        pointing = _pointing_at(tx, edge)
        edge = []
        for kind, identity, field, target in pointing:
            key, on_delete = (kind, identity), kinds[kind].refs[field].on_delete
            if on_delete == "cascade":
                if key not in going:
                    going[key] = None
                    edge.append(key)
            elif on_delete == "detach":
                detached[key, field].add(target)
            else:
                restricting[kind, field].add(identity)
    staying = {where: {one for one in ids if (where[0], one) not in going} for where, ids in restricting.items()}
    for (kind, field), ids in sorted(staying.items()):
        if ids:
            many = f"{len(ids)} {kind} point{'s' if len(ids) == 1 else ''} at it or at what goes with it by {field}"
            raise Rejected("restricted", "id", first[1], f"a {first[0]} that nothing holds: {many}")
    return list(going), [(key, field, targets) for (key, field), targets in detached.items() if key not in going]


def _pointed(kind: Kind, document: Document | None) -> set[tuple[str, str]]:
    """(field, target)"""
    if document is None or document.deleted_at is not None:
        return set()
    made = set()
    for field in kind.refs:
        value: Any = document.body[field]
        made |= {(field, target) for target in (value if isinstance(value, list) else [value]) if target is not None}
    return made


def _place(document: Document, field: str, target: str) -> str:
    value = document.body[field]
    at = pointer("", field)
    return f"{at}/{value.index(target)}" if isinstance(value, list) and target in value else at


def _seen(tx: Transaction, kind: str, ids: list[str], actor: Actor) -> set[str]:
    where = [tx.own(_documents), _documents.c.kind == kind, _documents.c.id.in_(ids), _documents.c.deleted_at.is_(None)]
    if not actor.sees_private:
        public = _documents.c.visibility.is_distinct_from("private")
        where.append(or_(public, _documents.c.owner_id == actor.id))
    return {identity for (identity,) in tx.rows(select(_documents.c.id).where(*where))}


def _pointing_at(tx: Transaction, targets: list[Key]) -> list[tuple[str, str, str, str]]:
    """(kind, id, field, target) of what points at them, in a fixed order."""
    by_kind = defaultdict(list)
    for kind, identity in targets:
        by_kind[kind].append(identity)
    which = or_(*(and_(_table.c.target_kind == kind, _table.c.target_id.in_(ids)) for kind, ids in by_kind.items()))
    columns = (_table.c.kind, _table.c.id, _table.c.field, _table.c.target_id)
    return [tuple(row) for row in tx.rows(select(*columns).where(tx.own(_table), which).order_by(*columns))]


def _way_back(tx: Transaction, kind: str, field: str, start: str) -> list[str]:
    """The ids from `start` along the field back to it; empty when there is no such way."""
    own = and_(tx.own(_table), _table.c.kind == kind, _table.c.field == field)
    way = select(_table.c.id, _table.c.target_id).where(own, _table.c.id == start).cte("way", recursive=True)
    way = way.union(select(_table.c.id, _table.c.target_id).where(own, _table.c.id == way.c.target_id))
    ahead = defaultdict(list)
    for identity, target in tx.rows(select(way.c.id, way.c.target_id)):
        ahead[identity].append(target)
    came_from: dict[str, str] = {}
    edge = [start]
    while edge:
        here = edge.pop()
        for target in ahead[here]:
            if target == start:
                path = [here, start]
                while path[0] != start:
                    path.insert(0, came_from[path[0]])
                return path
            if target not in came_from:
                came_from[target] = here
                edge.append(target)
    return []
