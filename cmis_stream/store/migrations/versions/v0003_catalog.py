"""How far changes are in which log, and the versions of the catalogs that agents follow."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_TEXT: sa.types.TypeEngine[str] = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def _org() -> sa.Column[str]:
    return sa.Column("org_id", _TEXT, sa.CheckConstraint("org_id <> ''"), primary_key=True)


def upgrade() -> None:
    op.drop_table("relayed")
    op.create_table(
        "relayed",
        _org(),
        sa.Column("epoch", _TEXT, primary_key=True),
        sa.Column("seq", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "catalogs",
        _org(),
        sa.Column("kind", _TEXT, primary_key=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        for table in ("relayed", "catalogs"):
            op.execute(f"alter table {table} enable row level security")
            op.execute(f"alter table {table} force row level security")
            op.execute(f"create policy relay on {table} for all to cmis_relay using (true)")
            op.execute(f"grant select, insert, update on {table} to cmis_relay")
