"""A process's health, put together: watchdogs, metrics, status. Made once where the process is, no globals."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cmis_stream.health import metrics
from cmis_stream.health.lag import LogView
from cmis_stream.health.loop_lag import LoopLag
from cmis_stream.health.metrics import ProcessMetrics
from cmis_stream.health.ports import Parts
from cmis_stream.health.status import READY_LAG_S, Status, Trouble
from cmis_stream.health.store import StoreProbe
from cmis_stream.health.totals import Totals
from cmis_stream.health.watch import Limits, SickError, Watch

FRESH_S = 1.0


class Health:
    """`start` when the process's parts are there, `stop` after they have stopped. Answers before `start`, too, and then says
    what `Parts.unready` says."""

    def __init__(
        self, parts: Parts, on_sick: Callable[[SickError], None], *, limits: Limits | None = None, log_file: Path | None = None,
        ready_lag_s: float = READY_LAG_S,
    ) -> None:  # fmt: skip
        """on_sick: told once, when the process has to end with `SickError.exit_code`. log_file: of the process."""
        self.parts, self._totals = parts, Totals()
        self._view, self._lag, self._store = LogView(parts), LoopLag(), StoreProbe(parts.store)
        self.watch = Watch(parts, self._view, self._lag, self._store, limits or Limits(), log_file, on_sick)
        self.watch.on_look = self.look
        runs, limit = version("cmis-stream"), self.watch.memory_limit
        self.metrics = ProcessMetrics(parts, self._view, self._lag, self._totals, runs, limit)
        self._status = Status(parts, self._view, self._lag, self._store, runs, limit, ready_lag_s=ready_lag_s)

    async def start(self) -> None:
        await self.watch.start()

    async def stop(self) -> None:
        await self.watch.stop()

    def look(self) -> None:
        """Begins to count newly assigned partitions; called every second, and at once by whoever wants counts without a gap."""
        self._totals.look(self.parts.partitions())

    def dead(self) -> list[Trouble]:
        """Why it is not alive; [] when it is."""
        return self._status.failed()

    async def not_ready(self) -> list[Trouble]:
        await self._refresh()
        return self._status.not_ready()

    async def exposition(self) -> bytes:
        """For Prometheus; its type is `metrics.CONTENT_TYPE`."""
        await self._refresh()
        return metrics.text(self.metrics.registry)

    async def status(self) -> dict[str, Any]:
        await self._refresh()
        return self._status.document()

    async def _refresh(self) -> None:
        await self._view.refresh(FRESH_S)
        await self._store.refresh(FRESH_S)
