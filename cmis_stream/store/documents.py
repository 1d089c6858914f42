"""Documents: what people and programs decide. A command is one transaction: decided, checked, written, remembered, or nothing.

Everything blocks: a few milliseconds when nobody else writes in the org, at most LOCK_S when somebody does.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, NamedTuple

import orjson
from sqlalchemy import ColumnElement, and_, delete, insert, or_, select, update

from cmis_stream.core.errors import Rejected

from . import tables
from .changes import Change
from .database import Database, Transaction
from .decisions import Actor, Command, Document, Result
from .grouping import Grouping, Rows, grouped
from .jobs import Jobs
from .kinds import Kind, Kinds
from .listing import MOST, Asked, asked, find, storable
from .personal import PersonalData, Sealer
from .slots import Slots
from .writing import Work, by_id_or_key, document_of

KEYS_LAST_MS: Final = 24 * 3_600_000
LONGEST_KEY: Final = 255
MOST_ITEMS: Final = 1_000
_table = tables.documents
_keys = tables.idempotency


class Idempotency(NamedTuple):
    """A client's key, which counts for an actor and a path (24 h): the same command is carried out once."""

    path: str
    key: str


class Item(NamedTuple):
    command: Command
    expected_version: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of an item of a bulk: its result, or why it was rejected (code, field, got, expected)."""

    result: Result | None
    rejected: dict[str, Any] | None


class Page(NamedTuple):
    """next: the cursor of the page after, None at the end. total_estimate: exact up to listing.COUNTED."""

    items: list[Document]
    next: str | None
    total_estimate: int


class Documents:
    """The documents of all kinds. clock: epoch ms. personal: needed when a kind has personal fields; jobs: when commands
    start some."""

    def __init__(
        self,
        database: Database,
        kinds: Kinds,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        personal: PersonalData | None = None,
        jobs: Jobs | None = None,
    ) -> None:
        self._database, self._kinds, self._clock, self._jobs = database, kinds, clock, jobs
        self._sealer = Sealer(kinds.personal, personal)
        self._slots = Slots(database, kinds)

    # --- writing ------------------------------------------------------------------------------------------------------

    def execute(
        self,
        org: str,
        actor: Actor,
        command: Command,
        *,
        expected_version: int | None = None,
        idempotency: Idempotency | None = None,
    ) -> Result:
        """Carries out a command. expected_version: None takes whichever is there.

        Raises Rejected (not_found, stale, not_unique, unknown_ref, restricted, cycle, no_transition, key_reused, and what is
        wrong in the body), Busy, Unavailable.
        """

        def carry_out(work: Work, _: Transaction) -> list[Outcome]:
            return [Outcome(work.carry_out(command, expected_version), None)]

        (outcome,) = self._once(org, actor, [Item(command, expected_version)], idempotency, carry_out)
        assert outcome.result is not None
        return outcome.result

    def bulk(self, org: str, actor: Actor, items: Sequence[Item], *, idempotency: Idempotency | None = None) -> list[Outcome]:
        """Each item stands or falls alone, with its cascades; later ones see what earlier ones did. At most MOST_ITEMS."""
        if len(items) > MOST_ITEMS:
            raise Rejected("too_long", "items", f"{len(items)} items", f"at most {MOST_ITEMS}")

        def carry_out(work: Work, tx: Transaction) -> list[Outcome]:
            outcomes = []
            for command, expected_version in items:
                mark = work.mark()
                try:
                    with tx.connection.begin_nested():
                        outcomes.append(Outcome(work.carry_out(command, expected_version), None))
                except Rejected as rejected:
                    work.back_to(mark)
                    outcomes.append(Outcome(None, rejected.as_dict()))
            return outcomes

        return self._once(org, actor, items, idempotency, carry_out)

    def _once(
        self,
        org: str,
        actor: Actor,
        items: Sequence[Item],
        idempotency: Idempotency | None,
        carry_out: Callable[[Work, Transaction], list[Outcome]],
    ) -> list[Outcome]:
        """In a transaction, unless the key says that it was done before."""
        if idempotency is not None and not (1 <= len(idempotency.key) <= LONGEST_KEY and storable(idempotency.key)):
            raise Rejected("too_long", "Idempotency-Key", idempotency.key, f"1 to {LONGEST_KEY} characters without NUL")
        with self._database.transaction(org, writes=True) as tx:
            work = Work(tx, self._kinds, self._slots, self._sealer, actor, self._clock, self._jobs)
            if idempotency is not None:
                body_hash = _hashed(items)
                tx.run(delete(_keys).where(tx.own(_keys), _keys.c.at < work.now_ms - KEYS_LAST_MS))
                if (answer := _answered(tx, self._sealer, actor, idempotency, body_hash)) is not None:
                    return answer
            outcomes = carry_out(work, tx)
            work.finish()
            if idempotency is not None:
                key = {"org_id": org, "actor": actor.id, "path": idempotency.path, "key": idempotency.key}
                kept = [asdict(_with_document(outcome, lambda one: self._sealer.sealed(tx, one))) for outcome in outcomes]
                answer_text = orjson.dumps(kept).decode()
                tx.run(insert(_keys).values({**key, "body_hash": body_hash, "answer": answer_text, "at": work.now_ms}))
        return outcomes

    # --- reading ------------------------------------------------------------------------------------------------------

    def get(self, org: str, actor: Actor, kind: str, name: str, *, deleted: bool = False) -> Document | None:
        """name: a UUID or the natural key. deleted: also a deleted one. None: not there, or not for this actor."""
        with self._database.transaction(org) as tx:
            found = by_id_or_key(tx, self._sealer, self._kinds[kind], name)
        if found is None or not found.visible_to(actor) or (found.deleted_at is not None and not deleted):
            return None
        return found

    def list(self, org: str, actor: Actor, kind: str, asked_for: Asked | Iterable[tuple[str, str]] = ()) -> Page:
        """asked_for: or a query string's pairs (listing.asked). Rejected names the parameter."""
        of = self._kinds[kind]
        what = asked_for if isinstance(asked_for, Asked) else asked(of, asked_for)
        with self._database.transaction(org) as tx:
            found = find(tx, _table, of, self._slots.columns(kind), what, *_visible(of, actor))
            items = self._sealer.opened(tx, [document_of(row) for row in found.rows])
        return Page(items, found.next, found.total_estimate)

    def opened(self, org: str, kind: str, changes: Sequence[Change]) -> Sequence[Change]:
        """Changes of documents of a kind as these are shown: personal fields in the clear, null where the subject is erased."""
        if kind not in self._kinds.personal:
            return changes
        texts = [(one.id, text) for one in changes for text in (one.before, one.after) if text is not None]
        with self._database.transaction(org) as tx:
            bodies = iter(self._sealer.opened_bodies(tx, kind, [(identity, orjson.loads(text)) for identity, text in texts]))

        def shown(text: str | None) -> str | None:
            return None if text is None else orjson.dumps(next(bodies)).decode()

        return [one._replace(before=shown(one.before), after=shown(one.after)) for one in changes]

    def everything(self, org: str, actor: Actor, kind: str) -> Iterator[Document]:
        """All documents of a kind that are not deleted, the oldest first; those that come meanwhile may be among them."""
        cursor: str | None = None
        while True:
            page = self.list(org, actor, kind, Asked(sorts=(("id", False),), limit=MOST, cursor=cursor))
            yield from page.items
            cursor = page.next
            if cursor is None:
                return

    def grouped(self, org: str, actor: Actor, kind: str, asked_for: Grouping, most: int, seconds: float) -> tuple[Rows, int]:
        """(rows, seq): what the actor sees, counted and added up by `created_at`, deleted ones left out; everything up to the
        org's change `seq` is in it. TooManyGroups beyond so many rows, TooSlow beyond so many seconds."""
        of = self._kinds[kind]
        with self._database.transaction(org) as tx, tx.within(seconds):
            seqs = tx.rows(select(tables.org_heads.c.seq).where(tx.own(tables.org_heads)))
            where = (_table.c.deleted_at.is_(None), *_visible(of, actor))
            rows = grouped(tx, _table, of, self._slots.columns(kind), _table.c.created_at, asked_for, most, *where)
        return rows, seqs[0][0] if seqs else 0

    # --- after an upgrade ---------------------------------------------------------------------------------------------

    def fill_slots(self, org: str) -> int:
        """Gives the org's documents the columns of filter fields that are younger than they are; how many had to be.

        Fields that they do not have count as missing until then. Can be repeated, and killed at any time.
        """
        filled = 0
        for kind in self._kinds.values():
            last = ""
            while rows := self._fill_some(org, kind, last):
                filled, last = filled + len(rows), rows[-1]
        return filled

    def _fill_some(self, org: str, kind: Kind, last: str) -> Sequence[str]:
        layout = self._slots.layout(kind.name)
        old = and_(_table.c.kind == kind.name, _table.c.id > last, _table.c.layout < layout)
        with self._database.transaction(org) as tx:  # mostly there is nothing to do, and nobody has to wait for that
            if not tx.rows(select(_table.c.id).where(tx.own(_table), old).limit(1)):
                return []
        with self._database.transaction(org, writes=True) as tx:
            tx.lock_head(tables.org_heads)
            own = (tx.own(_table), _table.c.kind == kind.name)
            rows = tx.rows(select(_table.c.id, _table.c.doc).where(tx.own(_table), old).order_by(_table.c.id).limit(500))
            for identity, text in rows:
                body = {
                    name: field.get_default(call_default_factory=True) for name, field in kind.model.model_fields.items()
                } | orjson.loads(text)
                values = self._slots.values(kind, body)
                tx.run(update(_table).where(*own, _table.c.id == identity).values({**values, "layout": layout}))
            return [identity for identity, _ in rows]


def _visible(kind: Kind, actor: Actor) -> list[ColumnElement[bool]]:
    if kind.visibility is None or actor.sees_private:
        return []
    return [or_(_table.c.visibility != "private", _table.c.owner_id == actor.id)]


def _hashed(items: Sequence[Item]) -> str:
    plain = [[one.command.name, one.command.kind, one.command.id, one.command.body, one.expected_version] for one in items]
    # Not orjson: what is not checked yet may hold anything, half surrogates and NaN included.
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()


def _with_document(outcome: Outcome, change: Callable[[Document], Document]) -> Outcome:
    if outcome.result is None or outcome.result.document is None:
        return outcome
    return replace(outcome, result=replace(outcome.result, document=change(outcome.result.document)))


def _answered(tx: Transaction, sealer: Sealer, actor: Actor, idempotency: Idempotency, body_hash: str) -> list[Outcome] | None:
    where = (_keys.c.actor == actor.id, _keys.c.path == idempotency.path, _keys.c.key == idempotency.key)
    rows = tx.rows(select(_keys.c.body_hash, _keys.c.answer).where(tx.own(_keys), *where))
    if not rows:
        return None
    if rows[0][0] != body_hash:
        raise Rejected("key_reused", "Idempotency-Key", idempotency.key, "a new key for another command")
    return [_with_document(_outcome(one), lambda of: sealer.opened(tx, [of])[0]) for one in orjson.loads(rows[0][1])]


def _outcome(kept: dict[str, Any]) -> Outcome:
    result = kept["result"]
    if result is None:
        return Outcome(None, kept["rejected"])
    document = None if result["document"] is None else Document(**result["document"])
    touched = tuple((kind, identity, version) for kind, identity, version in result["touched"])
    return Outcome(replace(Result(document, result["created"], result["seq"], touched), repeated=True), None)
