"""The tables of jobs, schedules, files, secrets and subjects' keys (docs/design/primitives.md)."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, Double, Index, LargeBinary, MetaData, Table

from .tables import TEXT, WHOLE

metadata = MetaData()


def _org() -> Column[str]:
    return Column("org_id", TEXT, CheckConstraint("org_id <> ''"), primary_key=True)


def _id() -> Column[str]:
    return Column("id", TEXT, primary_key=True)


jobs = Table(
    "jobs",
    metadata,
    _org(),
    _id(),
    Column("kind", TEXT, nullable=False),
    Column("state", TEXT, nullable=False),
    Column("version", WHOLE, nullable=False),
    Column("body", TEXT, nullable=False),
    Column("actor", TEXT, nullable=False),
    Column("created_at", WHOLE, nullable=False),
    Column("due_at", WHOLE, nullable=False),  # not run before
    Column("started_at", WHOLE),  # of the run that is, or was the last
    Column("started_ratio", Double(), nullable=False),  # progress at its start
    Column("ended_at", WHOLE),
    Column("attempts", WHOLE, nullable=False),  # runs
    Column("failures", WHOLE, nullable=False),  # runs that died since the last checkpoint
    Column("lease", WHOLE, nullable=False),  # fencing: of the run that counts
    Column("lease_until", WHOLE),
    Column("worker", TEXT),
    Column("progress_ratio", Double(), nullable=False),
    Column("said", TEXT, nullable=False),
    Column("eta_at", WHOLE),
    Column("cancel_at", WHOLE),  # when it was asked to end
    Column("result", TEXT),
    Column("problem", TEXT),
    Column("checkpoint", LargeBinary),
)
Index("jobs_created", jobs.c.org_id, jobs.c.created_at, jobs.c.id)
_open = jobs.c.state.in_(("queued", "running"))
Index("jobs_open", jobs.c.due_at, sqlite_where=_open, postgresql_where=_open)
_ended = jobs.c.ended_at.is_not(None)
Index("jobs_ended", jobs.c.ended_at, sqlite_where=_ended, postgresql_where=_ended)

schedules = Table(
    "schedules",
    metadata,
    _org(),
    _id(),
    Column("version", WHOLE, nullable=False),
    Column("zone", TEXT, nullable=False),
    Column("rule", TEXT, nullable=False),
    Column("starts", TEXT, nullable=False),  # local time that the rule counts from
    Column("missed", TEXT, nullable=False),
    Column("most_missed", WHOLE, nullable=False),
    Column("grace_ms", WHOLE, nullable=False),
    Column("effect", TEXT, nullable=False),
    Column("body", TEXT, nullable=False),
    Column("due_at", WHOLE),  # None: there is none any more
    Column("wall", TEXT, nullable=False),  # local time up to which all occurrences were looked at
    Column("fold", WHOLE, nullable=False),
    Column("problem", TEXT),
    Column("actor", TEXT),  # who made it
)
_due = schedules.c.due_at.is_not(None)
Index("schedules_due", schedules.c.due_at, sqlite_where=_due, postgresql_where=_due)

files = Table(
    "files",
    metadata,
    _org(),
    _id(),
    Column("state", TEXT, nullable=False),
    Column("name", TEXT, nullable=False),
    Column("media_type", TEXT, nullable=False),
    Column("actor", TEXT, nullable=False),
    Column("created_at", WHOLE, nullable=False),
    Column("expires_at", WHOLE),
    Column("size", WHOLE),
    Column("sha256", TEXT),
)
_expiring = files.c.expires_at.is_not(None)
Index("files_expires", files.c.expires_at, sqlite_where=_expiring, postgresql_where=_expiring)

secrets = Table(
    "secrets",
    metadata,
    _org(),
    Column("name", TEXT, primary_key=True),
    Column("key_id", TEXT, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("actor", TEXT, nullable=False),
    Column("updated_at", WHOLE, nullable=False),
)

subject_keys = Table(
    "subject_keys",
    metadata,
    _org(),
    _id(),
    Column("subject", TEXT, nullable=False),
    Column("key_id", TEXT, nullable=False),  # of the installation's key that it lies under
    Column("sealed", LargeBinary),  # None: erased
    Column("created_at", WHOLE, nullable=False),
    Column("erased_at", WHOLE),
)
_alive = subject_keys.c.erased_at.is_(None)
Index(
    "subject_keys_alive",
    subject_keys.c.org_id, subject_keys.c.subject,
    unique=True, sqlite_where=_alive, postgresql_where=_alive,
)  # fmt: skip
