"""Which orgs have something due. Reads ids and times of all orgs, as the role that may read nothing else of them (`cmis_relay`).

What is due is then done in a transaction of its org, with the rights of everything else that is done there.
"""

from __future__ import annotations

from sqlalchemy import Executable, and_, case, func, or_, select

from . import primitive_tables as tables
from . import tables as store_tables
from .database import Database
from .jobs import MOST_RUNNING


class Due:
    """Times in epoch ms. Each question blocks for a millisecond or so."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def schedules(self, now_ms: int) -> list[str]:
        """Orgs, whose is longest due first."""
        table = tables.schedules
        return self._orgs(
            select(table.c.org_id).where(table.c.due_at <= now_ms).group_by(table.c.org_id).order_by(func.min(table.c.due_at))
        )

    def orgs(self) -> list[str]:
        """All that have documents."""
        return self._orgs(select(store_tables.org_heads.c.org_id).order_by(store_tables.org_heads.c.org_id))

    def scheduled(self) -> list[str]:
        """Orgs with a schedule that has a next time."""
        table = tables.schedules
        return self._orgs(select(table.c.org_id).where(table.c.due_at.is_not(None)).distinct().order_by(table.c.org_id))

    def files(self, now_ms: int) -> list[str]:
        table = tables.files
        return self._orgs(select(table.c.org_id).where(table.c.expires_at <= now_ms).distinct().order_by(table.c.org_id))

    def jobs(self, now_ms: int) -> list[str]:
        """Orgs with a job that may run: those with the fewest running first, then whose waits longest."""
        table = tables.jobs
        running = and_(table.c.state == "running", table.c.lease_until > now_ms)
        waits = or_(
            and_(table.c.state == "queued", table.c.due_at <= now_ms),
            and_(table.c.state == "running", table.c.lease_until <= now_ms),
        )
        return self._orgs(
            select(table.c.org_id)
            .where(table.c.state.in_(("queued", "running")))
            .group_by(table.c.org_id)
            .having(func.sum(case((waits, 1), else_=0)) > 0, func.sum(case((running, 1), else_=0)) < MOST_RUNNING)
            .order_by(func.sum(case((running, 1), else_=0)), func.min(case((waits, table.c.due_at))))
        )

    def ended_jobs(self, before_ms: int) -> list[str]:
        """Orgs with a job that ended before this."""
        table = tables.jobs
        return self._orgs(select(table.c.org_id).where(table.c.ended_at < before_ms).distinct().order_by(table.c.org_id))

    def effects(self, now_ms: int, worker: str) -> list[str]:
        """Orgs with an effect that this worker may carry out, whose waits longest first."""
        table = store_tables.outbox
        waits = (table.c.done_at.is_(None), table.c.failed_at.is_(None), table.c.due_at <= now_ms)
        free = or_(table.c.claimed_until.is_(None), table.c.claimed_until <= now_ms, table.c.claimed_by == worker)
        others = select(table.c.org_id).where(table.c.claimed_by != worker, table.c.claimed_until > now_ms)
        return self._orgs(
            select(table.c.org_id)
            .where(*waits, free, table.c.org_id.not_in(others))
            .group_by(table.c.org_id)
            .order_by(func.min(table.c.due_at))
        )

    def done_effects(self, before_ms: int) -> list[str]:
        table = store_tables.outbox
        return self._orgs(select(table.c.org_id).where(table.c.done_at < before_ms).distinct().order_by(table.c.org_id))

    def failed_effects(self) -> dict[str, int]:
        """How many of which org were given up."""
        table = store_tables.outbox
        counted = select(table.c.org_id, func.count()).where(table.c.failed_at.is_not(None)).group_by(table.c.org_id)
        with self._database.transaction(None) as tx:
            return {org: count for org, count in tx.rows(counted)}

    def _orgs(self, statement: Executable) -> list[str]:
        with self._database.transaction(None) as tx:
            return [row[0] for row in tx.rows(statement)]
