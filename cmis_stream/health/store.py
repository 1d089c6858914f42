"""Can the store be written? Asked beside everybody else who writes it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from pathlib import Path

BUSY_S = 2.0
"""Transactions of ours take milliseconds; a lock that lasts so long is somebody's backup or a stuck process."""


class StoreProbe:
    """problem: why it cannot be written, as a sentence; None when it can."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._asked_at: float | None = None
        self.problem: str | None = None

    async def refresh(self, max_age_s: float) -> None:
        """Asks again, unless that was done less than `max_age_s` ago."""
        if self.problem is not None:  # whoever asks need not wait for the lock each time
            max_age_s = max(max_age_s, 2 * BUSY_S)
        if self._path is not None and (self._asked_at is None or time.monotonic() - self._asked_at >= max_age_s):
            self._asked_at = time.monotonic()
            self.problem = await asyncio.to_thread(_problem, self._path)


def _problem(path: Path) -> str | None:
    try:
        # `rw`: a store that is missing is not to be made by whoever looks for it.
        store = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_S, isolation_level=None)
        try:
            store.execute("begin immediate")
            store.execute("rollback")
        finally:
            store.close()
    except sqlite3.Error as error:
        return f"the store {path.name} cannot be written: {error}"
    return None
