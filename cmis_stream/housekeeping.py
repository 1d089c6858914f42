"""What a process with agents does for the store besides: relay, schedules, effects, jobs, sweeps (docs/design/modules.md).

Several processes may have it at the same time: one relays, and schedules, effects and jobs are each done by one of them.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Final

from cmis_stream.core.time import DAY_MS
from cmis_stream.jobs.runner import JobRunner
from cmis_stream.store.built_in_effects import Publish, commanding, publishing, starting
from cmis_stream.store.database import Transaction, Unavailable
from cmis_stream.store.decisions import Carried, Handler, Permanent
from cmis_stream.store.due import Due
from cmis_stream.store.outbox import KEPT_MS, Outbox
from cmis_stream.store.relay import Relay, Send
from cmis_stream.store.schedules import Scheduler
from cmis_stream.store.secrets import Secret, Secrets
from cmis_stream.stores import Stores

SWEEP_S: Final = 60.0
JOBS_KEPT_MS: Final = 30 * DAY_MS
STOP_WITHIN_S: Final = 30.0
"""What it may take to end what is begun; more than a job's process has, and than the longest wait for the database."""
_COALESCE_S: Final = 0.05
"""Commits within so long wake the runner of jobs once."""
_log = logging.getLogger(__name__)


class Housekeeping:
    """send, epoch: where changes go, and the identity of that log (`Relay`). publish: for effects, to the log.

    worker: a name for this process, which no other one that runs has; a process that is started again under its name takes up at
    once what it had begun. job_settings: what functions of jobs are told (`JobRunner`). failed: called once, in the loop, with
    the mistake of ours that ended a part of this; the process then has to end.
    """

    def __init__(
        self,
        stores: Stores,
        *,
        send: Send,
        epoch: str,
        publish: Publish,
        worker: str,
        job_settings: Mapping[str, Any],
        failed: Callable[[BaseException], None],
        job_places: int = 1,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._stores, self._failed, self._clock = stores, failed, clock
        self._due = due = Due(stores.overseer)
        self._relay = Relay(stores.overseer, send, epoch)
        self._scheduler = Scheduler(stores.schedules, due, clock)
        handlers = {"publish": publishing(publish), "command": commanding(stores.documents, stores.kinds)}
        for module in stores.kinds.manifests:
            handlers |= {name: _of_a_module(call, module.secrets, stores.secrets) for name, call in module.effects.items()}
        self.outbox = Outbox(
            stores.database, due, handlers,
            in_transaction={"job": starting(stores.jobs, clock)}, worker=worker, clock=clock,
        )  # fmt: skip
        self._runner = JobRunner(stores.jobs, due, worker=worker, settings=job_settings, places=job_places, clock=clock)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._given_up: Mapping[str, int] = {}
        self._told = self._waking = False

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop_jobs = asyncio.Event()
        self._stores.database.on_commit.append(self._committed)
        parts = {
            "relay": self._relay.run, "schedules": self._scheduler.run, "effects": self.outbox.run, "sweeps": self._sweep,
            "slots": self._fill_slots,
        }  # fmt: skip
        for name, run in parts.items():
            self._threads.append(threading.Thread(target=self._run, args=(run,), name=name, daemon=True))
            self._threads[-1].start()
        self._jobs = asyncio.create_task(self._runner.run(self._stop_jobs))
        self._jobs.add_done_callback(self._jobs_ended)

    async def stop(self) -> None:
        """What is begun ends first: the effect that is carried out, the changes that are sent; jobs are given back."""
        self._stores.database.on_commit.remove(self._committed)
        self._stop.set()
        self._stop_jobs.set()
        self.outbox.wake()
        over_s = time.monotonic() + STOP_WITHIN_S
        await asyncio.wait([self._jobs], timeout=STOP_WITHIN_S)
        self._jobs.cancel()  # of one that has not ended by then; its processes are killed
        for thread in self._threads:
            await asyncio.to_thread(thread.join, max(0.0, over_s - time.monotonic()))
            if thread.is_alive():
                _log.error("%s did not end within %d s", thread.name, STOP_WITHIN_S)

    def failed_effects(self) -> int:
        """How many were given up and wait for somebody, as of the last sweep."""
        return sum(self._given_up.values())

    def troubles(self) -> list[tuple[str, str]]:
        """(code, sentence) of what a person should look at, as of the last sweep."""
        if not self._given_up:
            return []
        count, orgs = self.failed_effects(), ", ".join(sorted(self._given_up)[:3])
        more = f" and {len(self._given_up) - 3} more" if len(self._given_up) > 3 else ""
        return [("effects_failed", f"{count} effects were given up and wait to be retried by somebody, of {orgs}{more}")]

    def sweep(self) -> None:
        """What is over goes: expired files, effects done a week ago, jobs that ended a month ago. Blocks; Unavailable."""
        now_ms = self._clock()
        for org in self._due.done_effects(now_ms - KEPT_MS):
            self.outbox.forget(org, now_ms - KEPT_MS)
        for org in self._due.ended_jobs(now_ms - JOBS_KEPT_MS):
            self._stores.jobs.forget(org, now_ms - JOBS_KEPT_MS)
        self._given_up = self._due.failed_effects()
        for org in self._due.files(now_ms):  # the last: their bucket may be away, which is nothing to the others
            self._stores.files.sweep(org)

    # --- its parts ------------------------------------------------------------------------------------------------------

    def _fill_slots(self, stop: threading.Event) -> None:
        """Once: what an older version wrote gets the columns of younger filter fields."""
        while not stop.is_set():
            try:
                for org in self._due.orgs():
                    self._stores.documents.fill_slots(org)
                self._stores.facts.fill_slots()
                return
            except Unavailable as error:
                _log.warning("filter fields of older rows wait: %s", error)
                stop.wait(SWEEP_S)

    def _sweep(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                self.sweep()
            except Unavailable as error:
                _log.warning("sweeps wait: %s", error)
            stop.wait(SWEEP_S)

    def _run(self, run: Callable[[threading.Event], None]) -> None:
        try:
            run(self._stop)
        except Exception as error:  # a thread's mistake would otherwise be lost with it, and the process go on without its work
            _log.exception("%s: a mistake", threading.current_thread().name)
            self._in_loop(lambda error=error: self._tell(error))  # type: ignore[misc]

    def _jobs_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("jobs: a mistake", exc_info=error)
            self._tell(error)

    def _tell(self, error: BaseException) -> None:
        if not self._told:
            self._told = True
            self._failed(error)

    def _committed(self, tx: Transaction) -> None:
        """In the thread of whoever wrote."""
        if not tx.left_work:
            return
        self.outbox.wake()
        if not self._waking:
            self._waking = True
            self._in_loop(lambda: self._loop.call_later(_COALESCE_S, self._wake_runner))

    def _wake_runner(self) -> None:
        self._waking = False
        self._runner.wake()

    def _in_loop(self, call: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop is closed: the process ends anyway
            _log.debug("the loop is closed")


def _of_a_module(call: Handler, declared: Collection[str], secrets: Secrets) -> Handler:
    """With the secrets that the module declares, of the effect's org, and no others."""

    def carry_out(carried: Carried) -> None:
        def reveal(name: str) -> Secret | None:
            if name not in declared:
                known = ", ".join(sorted(declared)) or "none"
                raise Permanent(f"expected a secret that the effect's module declares ({known}), got {name!r}")
            return secrets.reveal(carried.org, name)

        call(replace(carried, reveal=reveal))

    return carry_out
