"""Facts, the positions of who writes them, and the results of commands on them; on SQLite what 0.3.0 has is taken over."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_TEXT: sa.types.TypeEngine[str] = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_SLOTS: list[tuple[str, sa.types.TypeEngine[Any]]] = [
    *((f"text{number}", _TEXT) for number in range(1, 9)),
    *((f"whole{number}", sa.BigInteger()) for number in range(1, 9)),
    *((f"real{number}", sa.Double()) for number in range(1, 5)),
]
_OWN = "org_id = current_setting('cmis.org', true)"

# How incidents were filtered when this was written, in the columns that they are given here. SQLite only.
_TEXT_FIELDS: Final = ("rule", "level", "platform", "campaign", "key")
_RANKED: Final = {"severity": ("critical", "high", "medium", "low"), "state": ("firing", "resolved")}


def upgrade() -> None:
    inspector = sa.inspect(op.get_bind())
    before = [name for name in ("facts", "positions") if inspector.has_table(name)]
    for name in before:
        op.rename_table(name, f"{name}_before")
    op.execute("drop index if exists facts_by_state")
    _tables()
    if "facts" in before:
        _take_over_facts()
    if "positions" in before:
        columns = "reader, epoch, topic, partition, position"
        op.execute(f"insert into positions ({columns}) select {columns} from positions_before")
    for name in before:
        op.drop_table(f"{name}_before")
    if op.get_bind().dialect.name == "postgresql":
        _rights()


def _org() -> sa.Column[str]:
    return sa.Column("org_id", _TEXT, sa.CheckConstraint("org_id <> ''"), primary_key=True)


def _key(name: str) -> sa.Column[str]:
    return sa.Column(name, _TEXT, primary_key=True)


def _text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, _TEXT, nullable=nullable)


def _whole(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def _tables() -> None:
    op.create_table(
        "facts",
        _org(), _key("kind"), _key("id"), _whole("version"), _whole("at"),
        sa.Column("layout", sa.Integer(), nullable=False),
        *(sa.Column(name, kind) for name, kind in _SLOTS),
        _text("doc"),
    )  # fmt: skip
    op.create_index("facts_at", "facts", ["org_id", "kind", "at", "id"])
    for name, _ in _SLOTS:
        there = sa.text(f"{name} IS NOT NULL")
        op.create_index(f"facts_{name}", "facts", ["org_id", "kind", name, "id"], sqlite_where=there, postgresql_where=there)
    op.create_table("fact_orgs", _org(), _key("kind"))
    op.create_table(
        "positions",
        _key("reader"), _key("epoch"), _key("topic"),
        sa.Column("partition", sa.BigInteger(), primary_key=True, autoincrement=False), _whole("position"),
    )  # fmt: skip
    op.create_table(
        "fact_commands",
        _org(), _key("id"), _text("kind"), _text("fact_id"), _text("command_hash"), _text("actor"), _text("status"),
        _whole("version", nullable=True), _text("rejected", nullable=True), _whole("at"),
    )  # fmt: skip
    op.create_index("fact_commands_at", "fact_commands", ["org_id", "at"])


def _take_over_facts() -> None:
    """All of them are incidents."""
    columns = {f"text{number}": _short(name) for number, name in enumerate(_TEXT_FIELDS, 1)}
    slots = {name: f"text{number}" for number, name in enumerate(_TEXT_FIELDS, 1)}
    for number, (name, ranks) in enumerate(_RANKED.items(), 1):
        ways = " ".join(f"when '{value}' then {-rank}" for rank, value in enumerate(ranks))
        columns[f"whole{number}"] = f"case json_extract(doc, '$.{name}') {ways} end"
        slots[name] = f"whole{number}"
    columns["whole3"] = "json_extract(doc, '$.started_at')"
    slots["started_at"] = "whole3"
    for field, slot in slots.items():
        op.execute(f"insert into slots (kind, field, slot) values ('incident', '{field}', '{slot}')")
    op.execute(
        f"insert into facts (org_id, kind, id, version, at, layout, doc, {', '.join(columns)})"
        f" select org_id, kind, id, version, at, {len(slots)}, json_remove(doc, '$.id', '$.version'),"
        f" {', '.join(columns.values())}"
        " from facts_before where org_id <> ''"  # without an org: of a foreign record, and never to be read by anybody
    )
    op.execute("insert into fact_orgs (org_id, kind) select distinct org_id, kind from facts")


def _short(name: str) -> str:
    value = f"json_extract(doc, '$.{name}')"
    return f"case when length({value}) <= 500 then {value} end"


def _rights() -> None:
    rights = {
        "facts": "select, insert, update",
        "fact_orgs": "select, insert",
        "fact_commands": "select, insert, delete",
    }
    for table, granted in rights.items():
        op.execute(f"alter table {table} enable row level security")
        op.execute(f"alter table {table} force row level security")
        op.execute(f"create policy own_org on {table} using ({_OWN}) with check ({_OWN})")
        op.execute(f"grant {granted} on {table} to cmis_app")
    op.execute("create policy relay on fact_orgs for select to cmis_relay using (true)")
    op.execute("grant select on fact_orgs to cmis_relay")
    op.execute("grant select, insert, update, delete on positions to cmis_app")
