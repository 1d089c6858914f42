"""Changes: who changed what and when, a hash chain per org, and what followers read.

hash = SHA-256 of the hash before and the JSON list [org, seq, kind, id, version, command, actor, at, before, after], without
spaces; `before` and `after` are strings: the document's JSON with sorted keys, null where there is or was none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
from sqlalchemy import ColumnElement, func, select

from . import tables
from .database import Database, Transaction

_table = tables.changes
_COLUMNS = (
    _table.c.org_id, _table.c.seq, _table.c.kind, _table.c.id, _table.c.version, _table.c.command, _table.c.actor,
    _table.c.at, _table.c.before, _table.c.after, _table.c.prev_hash, _table.c.hash,
)  # fmt: skip
_READ_AT_ONCE = 1_000


class Change(NamedTuple):
    """One change of one document. seq: 1, 2, 3… in the org. at: epoch ms. before, after: JSON, None where it is or was not there
    (after: deleted)."""

    org: str
    seq: int
    kind: str
    id: str
    version: int
    command: str
    actor: str
    at: int
    before: str | None
    after: str | None
    prev_hash: str
    hash: str

    def digest(self) -> str:
        """The hash that this change has to have."""
        return hashlib.sha256(self.prev_hash.encode() + orjson.dumps(list(self[:10]))).hexdigest()


@dataclass(frozen=True, slots=True)
class Verified:
    """seq, hash: of the last change that holds. broken: what does not, None when the whole chain holds."""

    seq: int
    hash: str
    broken: str | None = None


class Changes:
    """Reads the changes of an org."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def after(self, org: str, seq: int, limit: int) -> list[Change]:
        """In order, without gaps: whoever has read up to n has read everything up to n."""
        with self._database.transaction(org) as tx:
            return changes_after(tx, tx.own(_table), seq, limit)

    def of(self, org: str, kind: str, document: str) -> list[Change]:
        """The history of one document, oldest first."""
        where = (_table.c.kind == kind, _table.c.id == document)
        with self._database.transaction(org) as tx:
            return _changes(tx.rows(select(*_COLUMNS).where(tx.own(_table), *where).order_by(_table.c.seq)))

    def page_of(self, org: str, kind: str, document: str, before: int | None, limit: int) -> tuple[list[Change], int]:
        """The history of one document, newest first: what came before a seq, and how many changes there are in all."""
        where = (_table.c.kind == kind, _table.c.id == document)
        behind = () if before is None else (_table.c.seq < before,)
        with self._database.transaction(org) as tx:
            own = (tx.own(_table), *where)
            ((total,),) = tx.rows(select(func.count()).select_from(_table).where(*own))
            page = select(*_COLUMNS).where(*own, *behind).order_by(_table.c.seq.desc()).limit(limit)
            return _changes(tx.rows(page)), total

    def verify(self, org: str) -> Verified:
        """Walks the chain. Who may write everything could make a new one: compare the last hash with a copy elsewhere."""
        seq, digest = 0, ""
        with self._database.transaction(org) as tx:
            # The head first: what comes while we read lies behind it.
            heads = tx.rows(select(tables.org_heads.c.seq, tables.org_heads.c.hash).where(tx.own(tables.org_heads)))
            last, last_digest = heads[0] if heads else (0, "")
            while batch := [change for change in changes_after(tx, tx.own(_table), seq, _READ_AT_ONCE) if change.seq <= last]:
                for change in batch:
                    if change.seq != seq + 1:
                        return Verified(seq, digest, f"change {seq + 1} is missing")
                    if change.prev_hash != digest:
                        return Verified(seq, digest, f"change {change.seq} does not follow on change {seq}")
                    if change.digest() != change.hash:
                        return Verified(seq, digest, f"change {change.seq} is not what it was: its hash does not fit")
                    seq, digest = change.seq, change.hash
            if seq != last:
                return Verified(seq, digest, f"change {seq + 1} is missing, the last one was {last}")
            if digest != last_digest:
                return Verified(seq, digest, f"change {seq} is not the last one that was written: its hash is another")
        return Verified(seq, digest)


def changes_after(tx: Transaction, of_org: ColumnElement[bool], seq: int, limit: int) -> list[Change]:
    """As `Changes.after`. of_org: the condition on `org_id`."""
    return _changes(tx.rows(select(*_COLUMNS).where(of_org, _table.c.seq > seq).order_by(_table.c.seq).limit(limit)))


def _changes(rows: Sequence[Any]) -> list[Change]:
    return [Change(*row) for row in rows]
