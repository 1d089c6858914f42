"""Who carries out what in the outbox, and what failed; whose effects a schedule fires; which jobs ended long ago."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_TEXT: sa.types.TypeEngine[str] = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_WAITS = "done_at IS NULL AND failed_at IS NULL"
_RELAY_MAY_READ = {"outbox": "org_id, id, due_at, done_at, claimed_by, claimed_until, failed_at", "jobs": "ended_at"}


def upgrade() -> None:
    op.add_column("outbox", sa.Column("placed_ns", sa.BigInteger(), nullable=False, server_default="0"))
    for name in ("actor", "claimed_by", "problem"):
        op.add_column("outbox", sa.Column(name, _TEXT))
    for name in ("claimed_until", "failed_at"):
        op.add_column("outbox", sa.Column(name, sa.BigInteger()))
    op.add_column("schedules", sa.Column("actor", _TEXT))
    op.drop_index("outbox_due", "outbox")
    _index("outbox_due", "outbox", ["due_at"], _WAITS)
    _index("outbox_claimed", "outbox", ["claimed_until"], "claimed_by IS NOT NULL")
    _index("outbox_done", "outbox", ["done_at"], "done_at IS NOT NULL")
    _index("outbox_failed", "outbox", ["org_id", "failed_at"], "failed_at IS NOT NULL")
    _index("jobs_ended", "jobs", ["ended_at"], "ended_at IS NOT NULL")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("create policy relay on outbox for select to cmis_relay using (true)")
        for table, columns in _RELAY_MAY_READ.items():
            op.execute(f"grant select ({columns}) on {table} to cmis_relay")


def _index(name: str, table: str, columns: list[str], where: str) -> None:
    op.create_index(name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
