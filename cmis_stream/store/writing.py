"""Commands carried out within a transaction that holds the org's lock: decide, check, write, remember the change.

model → states → slots → row     for each change of a decision, in its order
uniques → refs → cycles          once the whole decision is written, so that its parts may depend on each other
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

import orjson
from sqlalchemy import ColumnElement, func, insert, select, update

from cmis_stream.core.errors import Rejected
from cmis_stream.core.ids import fact_id

from . import refs as references
from . import tables, uniques
from .bodies import checked, pointer, tags_column, written
from .changes import Change
from .commands import DEFAULTS
from .database import Transaction
from .decisions import Actor, Command, Context, Decision, Delete, Document, Put, Restore, Result
from .effects import carry_out, put_into_outbox
from .jobs import Jobs
from .kinds import ANYONE, Kind, Kinds
from .personal import Sealer
from .slots import Slots

_table = tables.documents
ROW: Final = (
    _table.c.org_id, _table.c.kind, _table.c.id, _table.c.version, _table.c.created_at, _table.c.updated_at,
    _table.c.deleted_at, _table.c.doc,
)  # fmt: skip
"""What a Document is made of."""


class Stale(Rejected):
    """version: the one that is there."""

    def __init__(self, expected: int, version: int) -> None:
        super().__init__("stale", "version", expected, f"version {version}, the one that is there")
        self.version = version


class Work:
    """What one transaction does in an org. Opening it waits for the org's other writers."""

    def __init__(
        self,
        tx: Transaction,
        kinds: Kinds,
        slots: Slots,
        sealer: Sealer,
        actor: Actor,
        clock: Callable[[], int],
        jobs: Jobs | None = None,
    ) -> None:
        self._sealer, self._jobs = sealer, jobs
        self._tx, self._kinds, self._slots, self._actor = tx, kinds, slots, actor
        self._seq, self._hash = tx.lock_head(tables.org_heads)
        self.now_ms = clock()  # with the lock, so that times do not run against the changes' order
        self._changes: list[Change] = []
        self._effects: list[dict[str, Any]] = []
        self._seed, self._ids = secrets.token_hex(16), 0
        self._touched: dict[tuple[str, str], tuple[Document | None, Document]] = {}
        self._counted: dict[str, int] = {}
        """Documents of kinds of which an org may have so many only."""

    # --- one command ----------------------------------------------------------------------------------------------

    def carry_out(self, command: Command, expected_version: int | None) -> Result:
        """Rejected when it cannot be, in which case what was written has to be rolled back."""
        kind = self._kinds.get(command.kind)
        rule = None if kind is None else kind.rule(command.name)
        if kind is None or rule is None:
            known = sorted(self._kinds) if kind is None else sorted({*kind.commands, *DEFAULTS})
            raise Rejected(
                "not_found",
                "kind" if kind is None else "command",
                command.kind if kind is None else command.name,
                ", ".join(known),
            )
        if rule.creates:
            state, command = None, self._new(command)
        else:
            state = self._state(kind, command, rule.of_deleted)
        found = 0 if state is None else state.version
        if expected_version is not None and expected_version != found:
            raise Stale(expected_version, found)
        reads = {key: self._readable(key) for key in rule.reads(state, command)}
        context = Context(self._tx.org, self._actor, self.now_ms, self._new_id, reads)
        about = None if rule.copies else state.id if state is not None else command.id
        return self._apply(rule.decide(context, state, command), command, about, created=rule.creates or rule.copies)

    def _new(self, command: Command) -> Command:
        if command.id is None:
            return command
        made = as_uuid(command.id)
        if made is None:
            raise Rejected("invalid", "/id", command.id, "a UUID, or none")
        if self._load(command.kind, made) is not None:
            raise Rejected("not_unique", "/id", command.id, "an id that no document has or had")
        return replace(command, id=made)

    def _state(self, kind: Kind, command: Command, of_deleted: bool) -> Document:
        found = None if command.id is None else by_id_or_key(self._tx, self._sealer, kind, command.id)
        if found is None or not found.visible_to(self._actor) or (found.deleted_at is not None and not of_deleted):
            raise Rejected("not_found", "id", command.id, f"the id of a {kind.name} of this org")
        if of_deleted and found.deleted_at is None:
            raise Rejected("invalid", "id", command.id, f"the id of a deleted {kind.name}")
        return found

    def _readable(self, key: tuple[str, str]) -> Document | None:
        found = self._load(*key)
        return None if found is None or found.deleted_at is not None or not found.visible_to(self._actor) else found

    # --- its decision -----------------------------------------------------------------------------------------------

    def _apply(self, decision: Decision, command: Command, about: str | None, *, created: bool) -> Result:
        self._touched = {}
        for change in decision.changes:
            if isinstance(change, Put):
                self._put(change, command.name)
            elif isinstance(change, Delete):
                self._delete(change, command.name)
            else:
                self._restore(change, command.name)
        uniques.sync(self._tx, self._kinds, self._touched.values())
        references.check(self._tx, self._kinds, self._touched.values(), self._actor)
        for effect in decision.effects:
            row = carry_out(self._tx, self._jobs, effect, self._actor.id, self.now_ms, self._new_id)
            self._effects += [] if row is None else [row]
        if about is None:
            about = next((change.id for change in decision.changes if change.kind == command.kind), None)
        touched = tuple((kind, identity, after.version) for (kind, identity), (_, after) in self._touched.items())
        key = (command.kind, about or "")
        document = self._touched[key][1] if key in self._touched else self._load(*key)
        return Result(document, created, self._seq, touched)

    def _put(self, change: Put, command: str) -> None:
        kind = self._kinds[change.kind]
        before = self._load(change.kind, change.id)
        if before is not None and before.deleted_at is not None:
            raise Rejected("not_found", "id", change.id, f"the id of a {kind.name} that is not deleted")
        body = checked(kind, change.body, None if before is None else before.body, self._actor.id)
        if before is not None and body == before.body and written(body) == written(before.body):
            return  # nothing to change: no new version
        self._check_state(kind, None if before is None else before.body, body)
        if before is None:
            self._count_one_more(kind)
            self._write(None, Document(self._tx.org, kind.name, change.id, 1, self.now_ms, self.now_ms, None, body), command)
        else:
            self._write(before, replace(before, version=before.version + 1, updated_at=self.now_ms, body=body), command)

    def _delete(self, change: Delete, command: str) -> None:
        if self._there(change.kind, change.id).deleted_at is not None:
            return  # it went with another document of the same decision
        going, detached = references.what_goes(self._tx, self._kinds, (change.kind, change.id))
        for (kind, identity), field, targets in detached:
            before = self._there(kind, identity)
            value = before.body[field]
            kept = [one for one in value if one not in targets] if isinstance(value, list) else None
            body = checked(self._kinds[kind], {**before.body, field: kept}, before.body, self._actor.id)
            self._write(before, replace(before, version=before.version + 1, updated_at=self.now_ms, body=body), command)
        for key in going:
            before = self._there(*key)
            gone = replace(before, version=before.version + 1, updated_at=self.now_ms, deleted_at=self.now_ms)
            self._write(before, gone, command)

    def _restore(self, change: Restore, command: str) -> None:
        before = self._there(change.kind, change.id)
        if before.deleted_at is None:
            return
        body = checked(self._kinds[change.kind], before.body, before.body, self._actor.id)
        self._count_one_more(self._kinds[change.kind])
        back = replace(before, version=before.version + 1, updated_at=self.now_ms, deleted_at=None, body=body)
        self._write(before, back, command)

    def _count_one_more(self, kind: Kind) -> None:
        """Counted once in a transaction; what is deleted or rolled back in it makes room in the next one."""
        if kind.most is None:
            return
        if kind.name not in self._counted:
            there = (self._tx.own(_table), _table.c.kind == kind.name, _table.c.deleted_at.is_(None))
            self._counted[kind.name] = self._tx.rows(select(func.count()).where(*there))[0][0]
        if self._counted[kind.name] >= kind.most:
            expected = f"at most {kind.most} of this kind in an org"
            raise Rejected("too_many", "", f"one more {kind.title or kind.name}", expected)
        self._counted[kind.name] += 1

    def _check_state(self, kind: Kind, before: dict[str, Any] | None, body: dict[str, Any]) -> None:
        states = kind.states
        if states is None:
            return
        at, to = pointer("", states.field), body[states.field]
        if before is None:
            if to != states.initial:
                raise Rejected("no_transition", at, to, f"{states.initial} at the beginning")
            return
        start = before[states.field]
        if start == to:
            return
        who = states.transitions.get((start, to))
        if who is None:
            ways = ", ".join(sorted(end for (begin, end) in states.transitions if begin == start)) or "no other state"
            raise Rejected("no_transition", at, to, f"from {start}: {ways}")
        if who != ANYONE and not who & self._actor.roles:
            raise Rejected("no_transition", at, to, f"one of the roles {', '.join(sorted(who))} to go from {start} to it")

    # --- rows ---------------------------------------------------------------------------------------------------------

    def _write(self, before: Document | None, after: Document, command: str) -> None:
        kind, body = self._kinds[after.kind], after.body
        text = written(self._sealer.sealed(self._tx, after).body)  # what is hashed and sent on, too
        row = {
            "doc": text,
            "version": after.version,
            "created_at": after.created_at,
            "updated_at": after.updated_at,
            "deleted_at": after.deleted_at,
            "owner_id": body.get("owner_id"),
            "visibility": body.get("visibility"),
            "tags": tags_column(body),
            "layout": self._slots.layout(kind.name),
            **self._slots.values(kind, body),
        }
        if before is None:
            key = {"org_id": self._tx.org, "kind": kind.name, "id": after.id}
            if not self._tx.insert_new(_table, {**key, **row}):
                raise Rejected("not_unique", "/id", after.id, "an id that no document has or had")
        else:
            self._tx.run(update(_table).where(*self._is(after.kind, after.id)), row)
        references.keep(self._tx, kind, before, after)
        there = before is not None and before.deleted_at is None
        was = written(self._sealer.sealed(self._tx, before).body) if before is not None and there else None
        now = text if after.deleted_at is None else None
        self._remember(after, command, was, now)
        key_ = (after.kind, after.id)
        self._touched[key_] = (self._touched[key_][0] if key_ in self._touched else before, after)

    def _remember(self, of: Document, command: str, before: str | None, after: str | None) -> None:
        given = (self._tx.org, self._seq + 1, of.kind, of.id, of.version, command, self._actor.id, self.now_ms, before, after)
        unsigned = Change(*given, self._hash, "")
        self._changes.append(unsigned._replace(hash=unsigned.digest()))
        self._seq, self._hash = self._changes[-1].seq, self._changes[-1].hash

    def _load(self, kind: str, identity: str) -> Document | None:
        rows = self._tx.rows(select(*ROW).where(*self._is(kind, identity)))
        return self._sealer.opened(self._tx, [document_of(rows[0])])[0] if rows else None

    def _there(self, kind: str, identity: str) -> Document:
        found = self._load(kind, identity)
        if found is None:
            raise Rejected("not_found", "id", identity, f"the id of a {kind} of this org")
        return found

    def _is(self, kind: str, identity: str) -> tuple[ColumnElement[bool], ...]:
        return (self._tx.own(_table), _table.c.kind == kind, _table.c.id == identity)

    def _new_id(self) -> str:
        self._ids += 1
        return fact_id(self.now_ms, f"{self._seed}/{self._ids}")

    # --- the whole transaction ----------------------------------------------------------------------------------------

    def mark(self) -> tuple[int, int, int, int, str]:
        """For `back_to`, when what came since then is rolled back."""
        return len(self._changes), len(self._effects), len(self._tx.after_commit), self._seq, self._hash

    def back_to(self, mark: tuple[int, int, int, int, str]) -> None:
        changes, effects, after, self._seq, self._hash = mark
        del self._changes[changes:], self._effects[effects:], self._tx.after_commit[after:]

    def finish(self) -> None:
        """Writes changes and effects, and moves the org's head."""
        put_into_outbox(self._tx, self._effects)
        if not self._changes:
            return
        names = tables.changes.c.keys()
        self._tx.run(insert(tables.changes), [dict(zip(names, change, strict=True)) for change in self._changes])
        head = tables.org_heads
        self._tx.run(update(head).where(self._tx.own(head)).values(seq=self._seq, hash=self._hash))
        self._tx.notify()


def by_id_or_key(tx: Transaction, sealer: Sealer, kind: Kind, name: str) -> Document | None:
    """The document of this UUID or natural key, deleted ones by their UUID only."""
    identity = as_uuid(name)
    if identity is None and kind.natural_key is not None:
        identity = uniques.holder(tx, kind.name, (kind.natural_key,), (name,))
    if identity is None:
        return None
    rows = tx.rows(select(*ROW).where(tx.own(_table), _table.c.kind == kind.name, _table.c.id == identity))
    return sealer.opened(tx, [document_of(rows[0])])[0] if rows else None


def document_of(row: Any) -> Document:
    """With its personal fields sealed. row: of the columns ROW, in this order or by their names."""
    return Document(
        row.org_id, row.kind, row.id, row.version, row.created_at, row.updated_at, row.deleted_at, orjson.loads(row.doc)
    )  # fmt: skip


def as_uuid(text: str) -> str | None:
    """As ids are written; None when it is none."""
    try:
        return str(UUID(text)) if len(text) == 36 else None
    except ValueError:
        return None
