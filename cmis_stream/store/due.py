"""Which orgs have something due. Reads ids and times of all orgs, as the role that may read nothing else of them (`cmis_relay`).

What is due is then done in a transaction of its org, with the rights of everything else that is done there.
"""

from __future__ import annotations

from sqlalchemy import Executable, and_, case, func, or_, select

from . import primitive_tables as tables
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

    def _orgs(self, statement: Executable) -> list[str]:
        with self._database.transaction(None) as tx:
            return [row[0] for row in tx.rows(statement)]
