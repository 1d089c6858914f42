"""Can the store be written? Asked beside everybody else who writes it."""

from __future__ import annotations

import asyncio
import time

from sqlalchemy import update

from cmis_stream.store.access_tables import sessions
from cmis_stream.store.database import Database, Unavailable

BUSY_S = 2.0
"""Transactions of ours take milliseconds; what lasts so long is somebody's backup, a stuck process, or a server that is away."""
_NOTHING = update(sessions).where(sessions.c.id == "").values(last_seen=0)
"""No session's id; but a server that takes no writes refuses it."""


class StoreProbe:
    """problem: why it cannot be written, as a sentence; None when it can."""

    def __init__(self, database: Database | None) -> None:
        self._database = database
        self._asked_at: float | None = None
        self._asking: asyncio.Task[str | None] | None = None
        self.problem: str | None = None

    async def refresh(self, max_age_s: float) -> None:
        """Asks again, unless that was done less than `max_age_s` ago or is under way. Returns after BUSY_S at the latest."""
        if self.problem is not None:  # whoever asks need not wait for the lock each time
            max_age_s = max(max_age_s, 2 * BUSY_S)
        if self._database is None or (self._asked_at is not None and time.monotonic() - self._asked_at < max_age_s):
            return
        self._asked_at = time.monotonic()
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(asyncio.to_thread(_problem, self._database))
        await asyncio.wait([self._asking], timeout=BUSY_S)
        answered = self._asking.done()
        self.problem = self._asking.result() if answered else f"the store cannot be written: no answer within {BUSY_S:g} s"


def _problem(database: Database) -> str | None:
    try:
        with database.transaction(None, writes=True) as tx:
            tx.run(_NOTHING)
    except Unavailable as error:
        return f"the store cannot be written: {error}"
    return None
