"""The watchdogs: once a second a look at memory and partitions, every few seconds a question to the log. What is decided, and
when, is in `decisions.py`; here it is only fed.

A broker or Redis that is away is no sickness: while the log does not answer nothing is judged, and readers that wait for the
backplane or the store are left out.
"""

from __future__ import annotations

import asyncio
import io
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cmis_stream.core.errors import CmisError
from cmis_stream.health import memory
from cmis_stream.health.decisions import (
    BLOCKED_S,
    NOT_COMMITTED_S,
    STALLED_S,
    Reason,
    RunningClock,
    Stalled,
    Uncommitted,
    too_much_memory,
)
from cmis_stream.health.lag import LogView
from cmis_stream.health.loop_guard import EX_SOFTWARE, STOP_WITHIN_S, LoopGuard
from cmis_stream.health.loop_lag import LoopLag
from cmis_stream.health.ports import Parts
from cmis_stream.health.store import StoreProbe

LOOK_S = 1.0
LOG_LOOK_S = 5.0
MOST_STEP_S = 2 * LOOK_S
BEAT_S = 0.25
TASKS_SHOWN = 50
log = logging.getLogger("cmis.health")


class SickError(CmisError):
    """The process has to end and be started again; it recovers from its checkpoint. exit_code: what it ends with."""

    exit_code = EX_SOFTWARE

    def __init__(self, reason: Reason) -> None:
        super().__init__(f"this process ends: {reason.text}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Limits:
    """memory_bytes None: the default of the machine or container. Seconds are those in which the process ran."""

    memory_bytes: int | None = None
    stalled_s: float = STALLED_S
    not_committed_s: float = NOT_COMMITTED_S
    blocked_s: float = BLOCKED_S
    stop_within_s: float = STOP_WITHIN_S


class Watch:
    """From `start` to `stop`, in the event loop that it watches. on_sick: called once; then the process has `stop_within_s`
    to stop in order before it is ended."""

    def __init__(
        self, parts: Parts, view: LogView, lag: LoopLag, store: StoreProbe, limits: Limits, log_file: Path | None,
        on_sick: Callable[[SickError], None],
    ) -> None:  # fmt: skip
        self._parts, self._view, self._lag, self._store, self._on_sick = parts, view, lag, store, on_sick
        self.memory_limit = memory.default_limit() if limits.memory_bytes is None else limits.memory_bytes
        self.guard = LoopGuard(log_file, blocked_s=limits.blocked_s, stop_within_s=limits.stop_within_s)
        self._stalled, self._uncommitted = Stalled(limits.stalled_s), Uncommitted(limits.not_committed_s)
        self._clock = RunningClock(MOST_STEP_S)
        self._tasks: list[asyncio.Task[None]] = []
        self.on_look: Callable[[], None] = lambda: None
        self.sick: SickError | None = None

    async def start(self) -> None:
        self.guard.start()
        self._tasks = [asyncio.create_task(each) for each in (self._beat(), self._ask_on(), self._look_on())]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Last of all: whatever stops before it is still watched for a loop that is blocked."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.guard.stop()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A watchdog that has died by a mistake of ours must not leave a process that nobody watches."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._end(Reason("crashed", f"the watch over it failed: {type(error).__name__}: {error}"))

    async def _beat(self) -> None:
        while True:
            due = time.monotonic() + BEAT_S
            await asyncio.sleep(BEAT_S)
            self._lag.observe(max(0.0, time.monotonic() - due))
            self.guard.turned()

    async def _ask_on(self) -> None:
        """Asks what may take its time to answer; looks go on meanwhile with the answers before."""
        while True:
            await asyncio.gather(self._view.refresh(LOG_LOOK_S), self._store.refresh(LOG_LOOK_S))
            await asyncio.sleep(LOG_LOOK_S)

    async def _look_on(self) -> None:
        while self.sick is None:
            self.on_look()
            reason = self.look(time.monotonic())
            if reason is not None:
                self._end(reason)
            await asyncio.sleep(LOOK_S)

    def look(self, now_s: float) -> Reason | None:
        """now_s: of the monotonic clock."""
        ran_s = self._clock.advance(now_s)
        crash = self._parts.crash()
        if crash is not None:
            return Reason("crashed", f"Faust's app has crashed: {type(crash).__name__}: {crash}")
        reason = too_much_memory(memory.resident_bytes(), self.memory_limit)
        if reason is not None:
            return reason
        if self._parts.log_full():
            return None  # nothing can move before there is room on the disk
        judged = self._view.readings(self._excused()) if self._view.away_since is None and self._parts.flowing() else []
        return self._stalled.look(ran_s, judged) or self._uncommitted.look(ran_s, judged)

    def _excused(self) -> frozenset[str]:
        """Topics whose records wait, and rightly."""
        away: frozenset[str] = frozenset()
        if self._parts.backplane is not None and not self._parts.backplane.connected:
            away |= self._parts.needs_backplane
        if self._store.problem is not None:
            away |= self._parts.needs_store
        return away

    def _end(self, reason: Reason) -> None:
        if self.sick is None:
            self.sick = SickError(reason)
            log.critical("%s", self.sick)
            if reason.code in ("stalled", "not_committed"):
                log.critical("what was under way:\n%s", _stacks())
            self.guard.must_stop(reason)
            self._on_sick(self.sick)


def _stacks() -> str:
    """Where the tasks of this loop wait."""
    text = io.StringIO()
    for task in sorted(asyncio.all_tasks(), key=lambda task: task.get_name())[:TASKS_SHOWN]:
        task.print_stack(limit=6, file=text)
    return text.getvalue()
