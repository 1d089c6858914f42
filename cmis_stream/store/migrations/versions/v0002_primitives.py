"""Jobs, schedules, files, secrets and subjects' keys. The relay's role learns which orgs have something due, nothing else."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_TEXT: sa.types.TypeEngine[str] = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_TABLES = ("jobs", "schedules", "files", "secrets", "subject_keys")
_RELAY_MAY_READ = {
    "jobs": "org_id, id, state, due_at, lease_until",
    "schedules": "org_id, due_at",
    "files": "org_id, expires_at",
}


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


def _real(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Double(), nullable=False)


def _tables() -> None:
    op.create_table(
        "jobs",
        _org(), _key("id"), _text("kind"), _text("state"), _whole("version"), _text("body"), _text("actor"),
        _whole("created_at"), _whole("due_at"), _whole("started_at", nullable=True), _real("started_ratio"),
        _whole("ended_at", nullable=True), _whole("attempts"), _whole("failures"), _whole("lease"),
        _whole("lease_until", nullable=True), _text("worker", nullable=True), _real("progress_ratio"), _text("said"),
        _whole("eta_at", nullable=True), _whole("cancel_at", nullable=True), _text("result", nullable=True),
        _text("problem", nullable=True), sa.Column("checkpoint", sa.LargeBinary()),
    )  # fmt: skip
    op.create_index("jobs_created", "jobs", ["org_id", "created_at", "id"])
    still = sa.text("state IN ('queued', 'running')")
    op.create_index("jobs_open", "jobs", ["due_at"], sqlite_where=still, postgresql_where=still)
    op.create_table(
        "schedules",
        _org(), _key("id"), _whole("version"), _text("zone"), _text("rule"), _text("starts"), _text("missed"),
        _whole("most_missed"), _whole("grace_ms"), _text("effect"), _text("body"), _whole("due_at", nullable=True),
        _text("wall"), _whole("fold"), _text("problem", nullable=True),
    )  # fmt: skip
    due = sa.text("due_at IS NOT NULL")
    op.create_index("schedules_due", "schedules", ["due_at"], sqlite_where=due, postgresql_where=due)
    op.create_table(
        "files",
        _org(), _key("id"), _text("state"), _text("name"), _text("media_type"), _text("actor"), _whole("created_at"),
        _whole("expires_at", nullable=True), _whole("size", nullable=True), _text("sha256", nullable=True),
    )  # fmt: skip
    expiring = sa.text("expires_at IS NOT NULL")
    op.create_index("files_expires", "files", ["expires_at"], sqlite_where=expiring, postgresql_where=expiring)
    op.create_table(
        "secrets",
        _org(), _key("name"), _text("key_id"), sa.Column("sealed", sa.LargeBinary(), nullable=False),
        _text("actor"), _whole("updated_at"),
    )  # fmt: skip
    op.create_table(
        "subject_keys",
        _org(), _key("id"), _text("subject"), _text("key_id"), sa.Column("sealed", sa.LargeBinary()),
        _whole("created_at"), _whole("erased_at", nullable=True),
    )  # fmt: skip
    alive = sa.text("erased_at IS NULL")
    op.create_index(
        "subject_keys_alive", "subject_keys", ["org_id", "subject"],
        unique=True, sqlite_where=alive, postgresql_where=alive,
    )  # fmt: skip


def _rights() -> None:
    for table in _TABLES:
        op.execute(f"alter table {table} enable row level security")
        op.execute(f"alter table {table} force row level security")
        op.execute(
            f"create policy own_org on {table} using (org_id = current_setting('cmis.org', true))"
            " with check (org_id = current_setting('cmis.org', true))"
        )
        # No deleting of subjects' keys: their rows say what was erased and when.
        deletes = "" if table == "subject_keys" else ", delete"
        op.execute(f"grant select, insert, update{deletes} on {table} to cmis_app")
    for table, columns in _RELAY_MAY_READ.items():
        op.execute(f"create policy relay on {table} for select to cmis_relay using (true)")
        op.execute(f"grant select ({columns}) on {table} to cmis_relay")
