"""The tables of facts, of how far their writers have read, and of the results of commands (docs/design/store.md)."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, Index, Integer, MetaData, Table

from .tables import SLOTS, TEXT, WHOLE

metadata = MetaData()


def _org() -> Column[str]:
    return Column("org_id", TEXT, CheckConstraint("org_id <> ''"), primary_key=True)


def _key(name: str) -> Column[str]:
    return Column(name, TEXT, primary_key=True)


facts = Table(
    "facts",
    metadata,
    _org(),
    _key("kind"),
    _key("id"),
    Column("version", WHOLE, nullable=False),
    Column("at", WHOLE, nullable=False),
    Column("layout", Integer, nullable=False),  # how many of the kind's slots were known when the row was written
    *(Column(name, kind) for name, kind in SLOTS.items()),
    Column("doc", TEXT, nullable=False),
)
Index("facts_at", facts.c.org_id, facts.c.kind, facts.c.at, facts.c.id)
for _name in SLOTS:
    _there = facts.c[_name].is_not(None)
    Index(
        f"facts_{_name}",
        facts.c.org_id, facts.c.kind, facts.c[_name], facts.c.id,
        sqlite_where=_there, postgresql_where=_there,
    )  # fmt: skip

fact_orgs = Table("fact_orgs", metadata, _org(), _key("kind"))
"""Which orgs have facts of a kind: all that `cmis_relay` may read of facts."""

positions = Table(
    "positions",
    metadata,
    _key("reader"),
    _key("epoch"),
    _key("topic"),
    Column("partition", WHOLE, primary_key=True, autoincrement=False),
    Column("position", WHOLE, nullable=False),
)
"""Up to which record of which log a reader is in the store; no org's."""

fact_commands = Table(
    "fact_commands",
    metadata,
    _org(),
    _key("id"),
    Column("kind", TEXT, nullable=False),
    Column("fact_id", TEXT, nullable=False),
    Column("command_hash", TEXT, nullable=False),  # of what was asked, so that a key is not used for something else
    Column("actor", TEXT, nullable=False),  # who may ask for the result
    Column("status", TEXT, nullable=False),
    Column("version", WHOLE),  # of the fact after it; null when it was rejected
    Column("rejected", TEXT),
    Column("at", WHOLE, nullable=False),
)
"""Results of commands, for as long as they may be repeated."""
Index("fact_commands_at", fact_commands.c.org_id, fact_commands.c.at)
