"""Documents, changes and what belongs to them; on PostgreSQL row security, and rights for the two roles that do not own them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from cmis_stream.core.errors import ConfigError

revision = "0001"
down_revision = None

_TEXT: sa.types.TypeEngine[str] = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_SLOTS: list[tuple[str, sa.types.TypeEngine[Any]]] = [
    *((f"text{number}", _TEXT) for number in range(1, 9)),
    *((f"whole{number}", sa.BigInteger()) for number in range(1, 9)),
    *((f"real{number}", sa.Double()) for number in range(1, 5)),
]
_APP_MAY = {
    "org_heads": "select, insert, update",
    "documents": "select, insert, update",
    "uniques": "select, insert, delete",
    "refs": "select, insert, delete",
    "changes": "select, insert",
    "outbox": "select, insert, update, delete",
    "idempotency": "select, insert, update, delete",
    "relayed": "select",
}
_RELAY_MAY = {"org_heads": "select", "changes": "select", "relayed": "select, insert, update"}


def upgrade() -> None:
    _tables()
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
    op.create_table("org_heads", _org(), _whole("seq"), _text("hash"))
    op.create_table(
        "documents",
        _org(), _key("kind"), _key("id"), _whole("version"),
        _whole("created_at"), _whole("updated_at"), _whole("deleted_at", nullable=True),
        _text("owner_id", nullable=True), _text("visibility", nullable=True), _text("tags"),
        sa.Column("layout", sa.Integer(), nullable=False),
        *(sa.Column(name, kind) for name, kind in _SLOTS),
        _text("doc"),
    )  # fmt: skip
    for name in ("created_at", "updated_at"):
        op.create_index(f"documents_{name}", "documents", ["org_id", "kind", name, "id"])
    gone = sa.text("deleted_at IS NOT NULL")
    key = ["org_id", "kind", "id"]
    op.create_index("documents_deleted", "documents", key, sqlite_where=gone, postgresql_where=gone)
    for name, _ in _SLOTS:
        there = sa.text(f"{name} IS NOT NULL")
        op.create_index(
            f"documents_{name}", "documents", ["org_id", "kind", name, "id"], sqlite_where=there, postgresql_where=there
        )
    op.create_table("slots", _key("kind"), _key("field"), _text("slot"), sa.UniqueConstraint("kind", "slot"))
    op.create_table("uniques", _org(), _key("kind"), _key("name"), _key("value"), _text("id"))
    op.create_table("refs", _org(), _key("kind"), _key("id"), _key("field"), _key("target_id"), _text("target_kind"))
    op.create_index("refs_target", "refs", ["org_id", "target_kind", "target_id"])
    op.create_table(
        "changes",
        _org(), sa.Column("seq", sa.BigInteger(), primary_key=True, autoincrement=False),
        _text("kind"), _text("id"), _whole("version"), _text("command"), _text("actor"), _whole("at"),
        _text("before", nullable=True), _text("after", nullable=True), _text("prev_hash"), _text("hash"),
    )  # fmt: skip
    op.create_index("changes_of", "changes", ["org_id", "kind", "id", "seq"])
    op.create_table(
        "outbox",
        _org(), _key("id"), _text("effect"), _text("body"),
        _whole("due_at"), _whole("attempts"), _whole("done_at", nullable=True),
    )  # fmt: skip
    due = sa.text("done_at IS NULL")
    op.create_index("outbox_due", "outbox", ["due_at"], sqlite_where=due, postgresql_where=due)
    op.create_table(
        "idempotency",
        _org(), _key("actor"), _key("path"), _key("key"), _text("body_hash"), _text("answer"), _whole("at"),
    )  # fmt: skip
    op.create_index("idempotency_at", "idempotency", ["org_id", "at"])
    op.create_table("relayed", _org(), _whole("seq"))


def _rights() -> None:
    there = op.get_bind().scalars(sa.text("select rolname from pg_roles where rolname in ('cmis_app', 'cmis_relay')")).all()
    if missing := sorted({"cmis_app", "cmis_relay"} - set(there)):
        wanted = " ".join(f"create role {name} login;" for name in missing)
        raise ConfigError(f"roles are missing in PostgreSQL; somebody who may make them has to run: {wanted}")
    op.execute("grant usage on schema public to cmis_app, cmis_relay")
    op.execute("grant select on alembic_version to cmis_app, cmis_relay")
    op.execute("grant select, insert on slots to cmis_app")
    for table, rights in _APP_MAY.items():
        op.execute(f"alter table {table} enable row level security")
        op.execute(f"alter table {table} force row level security")
        op.execute(
            f"create policy own_org on {table} using (org_id = current_setting('cmis.org', true))"
            " with check (org_id = current_setting('cmis.org', true))"
        )
        op.execute(f"grant {rights} on {table} to cmis_app")
    for table, rights in _RELAY_MAY.items():
        writes = "all" if "insert" in rights else "select"
        op.execute(f"create policy relay on {table} for {writes} to cmis_relay using (true)")
        op.execute(f"grant {rights} on {table} to cmis_relay")
