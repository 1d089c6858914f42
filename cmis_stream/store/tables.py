"""The tables of documents and changes, the same on SQLite and PostgreSQL (docs/design/store.md).

Texts are compared by code point everywhere, whatever the cluster's language, so lists have one order on both databases.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import BigInteger, CheckConstraint, Column, Double, Index, Integer, MetaData, Table, Text, UniqueConstraint, and_
from sqlalchemy.types import TypeEngine

metadata = MetaData()

TEXT: Final[TypeEngine[str]] = Text().with_variant(Text(collation="C"), "postgresql")
WHOLE: Final = BigInteger()
REAL: Final[Double[float]] = Double()

TEXTS, WHOLES, REALS = 8, 8, 4
"""How many filter fields of each type a kind can have: str; int, time and bool; float."""

SLOTS: Final[dict[str, TypeEngine[Any]]] = {
    **{f"text{number}": TEXT for number in range(1, TEXTS + 1)},
    **{f"whole{number}": WHOLE for number in range(1, WHOLES + 1)},
    **{f"real{number}": REAL for number in range(1, REALS + 1)},
}
"""Columns for what kinds are filtered and sorted by. All types whose comparison PostgreSQL calls leakproof: an index over
numeric, or over an expression like doc ->> 'name', is never used below a row security policy."""


def _org() -> Column[str]:
    return Column("org_id", TEXT, CheckConstraint("org_id <> ''"), primary_key=True)


def _key(name: str) -> Column[str]:
    return Column(name, TEXT, primary_key=True)


org_heads = Table(
    "org_heads",
    metadata,
    _org(),
    Column("seq", WHOLE, nullable=False),
    Column("hash", TEXT, nullable=False),
)
"""The org's last change: the row that its writers lock."""

documents = Table(
    "documents",
    metadata,
    _org(),
    _key("kind"),
    _key("id"),
    Column("version", WHOLE, nullable=False),
    Column("created_at", WHOLE, nullable=False),
    Column("updated_at", WHOLE, nullable=False),
    Column("deleted_at", WHOLE),
    Column("owner_id", TEXT),
    Column("visibility", TEXT),
    Column("tags", TEXT, nullable=False),  # |a|b|, the bar being a separator that tags cannot contain
    Column("layout", Integer, nullable=False),  # how many of the kind's slots were known when the row was written
    *(Column(name, kind) for name, kind in SLOTS.items()),
    Column("doc", TEXT, nullable=False),  # last: on SQLite, what stands behind a long value is slow to read
)
for _name in ("created_at", "updated_at"):
    Index(f"documents_{_name}", documents.c.org_id, documents.c.kind, documents.c[_name], documents.c.id)
_gone = documents.c.deleted_at.is_not(None)
Index(
    "documents_deleted",
    documents.c.org_id, documents.c.kind, documents.c.id,
    sqlite_where=_gone, postgresql_where=_gone,
)  # fmt: skip
for _name in SLOTS:
    _there = documents.c[_name].is_not(None)
    Index(
        f"documents_{_name}",
        documents.c.org_id, documents.c.kind, documents.c[_name], documents.c.id,
        sqlite_where=_there, postgresql_where=_there,
    )  # fmt: skip

slots = Table(
    "slots", metadata, _key("kind"), _key("field"), Column("slot", TEXT, nullable=False), UniqueConstraint("kind", "slot")
)
"""Which column holds which field; no org's, and only added to."""

uniques = Table(
    "uniques",
    metadata,
    _org(),
    _key("kind"),
    _key("name"),
    _key("value"),  # SHA-256, since a value may be longer than what an index takes
    Column("id", TEXT, nullable=False),
)
"""A declared unique tuple, held while the document is not deleted."""

refs = Table(
    "refs",
    metadata,
    _org(),
    _key("kind"),
    _key("id"),
    _key("field"),
    _key("target_id"),
    Column("target_kind", TEXT, nullable=False),
)
"""Who points at whom; of documents that are not deleted."""
Index("refs_target", refs.c.org_id, refs.c.target_kind, refs.c.target_id)

changes = Table(
    "changes",
    metadata,
    _org(),
    Column("seq", WHOLE, primary_key=True, autoincrement=False),
    Column("kind", TEXT, nullable=False),
    Column("id", TEXT, nullable=False),
    Column("version", WHOLE, nullable=False),
    Column("command", TEXT, nullable=False),
    Column("actor", TEXT, nullable=False),
    Column("at", WHOLE, nullable=False),
    Column("before", TEXT),
    Column("after", TEXT),
    Column("prev_hash", TEXT, nullable=False),
    Column("hash", TEXT, nullable=False),
)
Index("changes_of", changes.c.org_id, changes.c.kind, changes.c.id, changes.c.seq)

outbox = Table(
    "outbox",
    metadata,
    _org(),
    _key("id"),
    Column("effect", TEXT, nullable=False),
    Column("body", TEXT, nullable=False),
    Column("due_at", WHOLE, nullable=False),
    Column("attempts", WHOLE, nullable=False),  # begun
    Column("done_at", WHOLE),
    Column("placed_ns", WHOLE, nullable=False, server_default="0"),  # orders those of one `due_at` as they were decided
    Column("actor", TEXT),  # who decided it
    Column("claimed_by", TEXT),  # the worker that carries it out now
    Column("claimed_until", WHOLE),  # nobody else tries it before
    Column("failed_at", WHOLE),  # given up
    Column("problem", TEXT),
)
_waits = and_(outbox.c.done_at.is_(None), outbox.c.failed_at.is_(None))
Index("outbox_due", outbox.c.due_at, sqlite_where=_waits, postgresql_where=_waits)
_claimed = outbox.c.claimed_by.is_not(None)
Index("outbox_claimed", outbox.c.claimed_until, sqlite_where=_claimed, postgresql_where=_claimed)
_done = outbox.c.done_at.is_not(None)
Index("outbox_done", outbox.c.done_at, sqlite_where=_done, postgresql_where=_done)
_failed = outbox.c.failed_at.is_not(None)
Index("outbox_failed", outbox.c.org_id, outbox.c.failed_at, sqlite_where=_failed, postgresql_where=_failed)

idempotency = Table(
    "idempotency",
    metadata,
    _org(),
    _key("actor"),
    _key("path"),
    _key("key"),
    Column("body_hash", TEXT, nullable=False),
    Column("answer", TEXT, nullable=False),
    Column("at", WHOLE, nullable=False),
)
Index("idempotency_at", idempotency.c.org_id, idempotency.c.at)

relayed = Table("relayed", metadata, _org(), _key("epoch"), Column("seq", WHOLE, nullable=False))
"""Up to which seq an org's changes are in `cmis.changes.v1` of the log with this epoch."""

catalogs = Table("catalogs", metadata, _org(), _key("kind"), Column("version", WHOLE, nullable=False))
"""The version of the newest set of a kind's documents that was sent to agents."""
