"""Orgs, tokens, sessions and sign-in codes; on SQLite those that version 0.3.0 has made are taken over."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_TEXT: sa.types.TypeEngine[str] = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_COLUMNS = {
    "orgs": "id, slug, name, created_at",
    "tokens": "id, org_id, name, scopes, secret_sha256, created_at, expires_at, revoked_at, last_used",
    "sign_in_codes": "code_sha256, orgs, role, created_at, expires_at, used_at",
    "sessions": "id, text_sha256, orgs, role, created_at, last_seen, expires_at, revoked_at",
}
_APP_MAY = {
    "orgs": "select, insert",
    "tokens": "select, insert, update (last_used, revoked_at)",
    "sign_in_codes": "select, insert, update (used_at), delete",
    "sessions": "select, insert, update (last_seen, revoked_at), delete",
}


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        _tables()
        _rights()
        return
    there = [name for name in _COLUMNS if sa.inspect(op.get_bind()).has_table(name)]
    op.execute("DROP INDEX IF EXISTS tokens_of_org")  # it would keep its name when its table gets another one
    for name in there:
        op.rename_table(name, f"{name}_before")
    _tables()
    for name in there:
        op.execute(f"INSERT INTO {name} ({_COLUMNS[name]}) SELECT {_COLUMNS[name]} FROM {name}_before")
    for name in reversed(there):  # tokens refer to orgs
        op.drop_table(f"{name}_before")


def _key(name: str) -> sa.Column[str]:
    return sa.Column(name, _TEXT, primary_key=True)


def _text(name: str, *more: sa.schema.SchemaItem, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, _TEXT, *more, nullable=nullable)


def _whole(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=nullable)


def _tables() -> None:
    op.create_table("orgs", _key("id"), _text("slug"), _text("name"), _whole("created_at"), sa.UniqueConstraint("slug"))
    op.create_table(
        "tokens",
        _key("id"), _text("org_id", sa.ForeignKey("orgs.id"), sa.CheckConstraint("org_id <> ''")),
        _text("name"), _text("scopes"), _text("secret_sha256"), _whole("created_at"),
        _whole("expires_at", nullable=True), _whole("revoked_at", nullable=True), _whole("last_used", nullable=True),
    )  # fmt: skip
    op.create_index("tokens_of_org", "tokens", ["org_id", "created_at"])
    op.create_table(
        "sign_in_codes",
        _key("code_sha256"), _text("orgs", nullable=True), _text("role"),
        _whole("created_at"), _whole("expires_at"), _whole("used_at", nullable=True),
    )  # fmt: skip
    op.create_table(
        "sessions",
        _key("id"), _text("text_sha256"), _text("orgs", nullable=True), _text("role"),
        _whole("created_at"), _whole("last_seen"), _whole("expires_at"), _whole("revoked_at", nullable=True),
        sa.UniqueConstraint("text_sha256"),
    )  # fmt: skip


def _rights() -> None:
    """See store/access_tables.py."""
    op.execute("alter table tokens enable row level security")
    op.execute("alter table tokens force row level security")
    op.execute(
        "create policy own_org on tokens using (org_id = current_setting('cmis.org', true))"
        " with check (org_id = current_setting('cmis.org', true))"
    )
    # As a subquery it is taken apart once, not for each row.
    op.execute(
        "create policy credential on tokens for select to cmis_app"
        " using (id in (select unnest(string_to_array(current_setting('cmis.credentials', true), ','))))"
    )
    for table, rights in _APP_MAY.items():
        op.execute(f"grant {rights} on {table} to cmis_app")
