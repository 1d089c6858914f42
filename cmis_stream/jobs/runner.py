"""Runs the jobs of all orgs: claims them, starts their processes, keeps their leases, writes down what they say."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

import orjson

from cmis_stream.core.errors import Rejected
from cmis_stream.store.database import Unavailable
from cmis_stream.store.due import Due
from cmis_stream.store.jobs import CHECKPOINT_BYTES, LEASE_MS, Claim, Jobs, LeaseLost

from .child import BUG

LOOK_S: Final = 0.5
"""How often it looks for jobs and tells their processes what was asked of them; `wake` makes it look at once."""
PROGRESS_S: Final = 0.5
"""Progress is written no more often."""
CANCEL_GRACE_S, STOP_GRACE_S = 10.0, 5.0
"""How long a process may take to end by itself."""
_LONGEST_LINE: Final = 2 * CHECKPOINT_BYTES
_KEPT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "PYTHONPATH", "PYTHONTZPATH")
_log = logging.getLogger(__name__)
T = TypeVar("T")


class JobRunner:
    """places: how many jobs run here at once. settings: what their functions are told (`Run.settings`), JSON; it goes through a
    pipe, so it may hold what others must not see. worker: a name for this process."""

    def __init__(
        self,
        jobs: Jobs,
        due: Due,
        *,
        worker: str,
        settings: Mapping[str, Any],
        places: int = 1,
        lease_ms: int = LEASE_MS,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._jobs, self._due, self._clock = jobs, due, clock
        self._worker, self._settings, self._places, self._lease_ms = worker, settings, places, lease_ms
        self._look = asyncio.Event()
        self._stop = asyncio.Event()

    def wake(self) -> None:
        """There may be something to do. In the loop's thread."""
        self._look.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Until stop is set; then its processes are ended and their jobs given back. Waits out a database that is away."""
        runs = set[asyncio.Task[None]]()
        waiting = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                self._look.clear()
                while len(runs) < self._places and not stop.is_set() and (claim := await self._next()) is not None:
                    runs.add(asyncio.create_task(_Child(self._jobs, claim, self._lease_ms, self._stop).run(self._order(claim))))
                looking = asyncio.create_task(self._look.wait())
                await asyncio.wait([waiting, looking, *runs], timeout=LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                looking.cancel()
                for done in [run for run in runs if run.done()]:
                    runs.discard(done)
                    done.result()  # a mistake of ours ends the process, not silently the jobs
        finally:
            waiting.cancel()
            self._stop.set()
            await asyncio.gather(*runs)

    async def _next(self) -> Claim | None:
        try:
            for org in await asyncio.to_thread(self._due.jobs, self._clock()):
                claim = await asyncio.to_thread(self._jobs.claim, org, self._worker, self._lease_ms)
                if claim is not None:
                    return claim
        except Unavailable as error:
            _log.warning("jobs wait: %s", error)
        return None

    def _order(self, claim: Claim) -> dict[str, Any] | None:
        kind = self._jobs.kinds.get(claim.job.kind)
        if kind is None:
            return None
        kept = None if claim.checkpoint is None else base64.b64encode(claim.checkpoint).decode()
        job = {"org": claim.job.org, "id": claim.job.id, "body": claim.job.body}
        order = {"job": job, "lease": claim.lease, "checkpoint": kept, "run": kind.run, "settings": self._settings}
        return {**order, "parent": os.getpid()}


class _Child:
    """One run of a job."""

    def __init__(self, jobs: Jobs, claim: Claim, lease_ms: int, stop: asyncio.Event) -> None:
        self._jobs, self._claim, self._lease_ms, self._stop = jobs, claim, lease_ms, stop
        self._process: asyncio.subprocess.Process | None = None
        self._asked: str | None = None  # to end: cancel, stop
        self._last: dict[str, Any] | None = None  # its last word
        self._progress: tuple[float, str] | None = None

    async def run(self, order: Mapping[str, Any] | None) -> None:
        try:
            if order is None:
                detail = f"this version has no jobs of the kind {self._claim.job.kind!r}"
                await self._kept(self._jobs.fail, self._claim, "unsupported", detail)
                return
            try:
                await self._talk(order)
            except OSError as error:
                await self._kept(self._jobs.give_back, self._claim, f"no process could be started: {error}")
                return
            await self._conclude()
        except LeaseLost as lost:
            _log.warning("%s", lost)
        finally:
            if self._process is not None and self._process.returncode is None:
                self._process.kill()
                await self._process.wait()

    async def _talk(self, order: Mapping[str, Any]) -> None:
        in_s3 = order["settings"].get("files_url") is not None  # where files are is reached with what these names hold
        environment = {name: value for name, value in os.environ.items() if name in _KEPT or (in_s3 and name.startswith("AWS_"))}
        environment["OMP_NUM_THREADS"] = environment["OPENBLAS_NUM_THREADS"] = "1"  # a job has one core, not all
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "cmis_stream.jobs",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environment, limit=_LONGEST_LINE,
        )  # fmt: skip
        await self._tell(order)
        talks: list[Coroutine[Any, Any, None]] = [self._read(self._process), self._watch(), self._write_progress()]
        tasks = [asyncio.create_task(talk) for talk in talks]
        try:
            # The first one ends with the process, the others only by an error.
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:
                self._last = {"problem": {"code": "too_long", "detail": f"it said more than {_LONGEST_LINE} bytes at once"}}
                process.kill()
                break
            if not line.endswith(b"\n"):
                break  # the end, or half a line of one that was killed
            said = orjson.loads(line)
            if "progress" in said:
                self._progress = (said["progress"], said["said"])
            elif "save" in said:
                await self._save(base64.b64decode(said["save"]))
            else:
                self._last = said
        await process.wait()

    async def _save(self, checkpoint: bytes) -> None:
        try:
            await self._kept(self._jobs.save, self._claim, checkpoint)
        except Rejected as rejected:
            self._last = {"problem": {"code": rejected.code, "detail": str(rejected)}}
            assert self._process is not None
            self._process.kill()
            return
        await self._tell({"saved": True})

    async def _watch(self) -> None:
        """Keeps the lease, and has the process end when that is asked for. Returns never; raises LeaseLost."""
        renew_at = 0.0
        while True:
            with contextlib.suppress(Unavailable):  # it works on: nobody takes over what cannot be written
                if time.monotonic() >= renew_at:
                    await asyncio.to_thread(self._jobs.renew, self._claim, self._lease_ms)
                    renew_at = time.monotonic() + self._lease_ms / 4_000
                if await asyncio.to_thread(self._jobs.asked_to_cancel, self._claim):
                    await self._end("cancel", CANCEL_GRACE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._stop.wait()
            if self._stop.is_set():
                await self._end("stop", STOP_GRACE_S)

    async def _end(self, why: str, grace_s: float) -> None:
        assert self._process is not None
        self._asked = self._asked or why
        await self._tell({"end": why})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):  # not wait_for, which may swallow that we are cancelled
                await self._process.wait()
        if self._process.returncode is None:
            self._process.kill()
        await asyncio.Event().wait()  # until `_read` has read what it said

    async def _write_progress(self) -> None:
        while True:
            if self._progress is not None:
                (ratio, said), self._progress = self._progress, None
                with contextlib.suppress(Unavailable):
                    await asyncio.to_thread(self._jobs.progress, self._claim, ratio, said)
            await asyncio.sleep(PROGRESS_S)

    async def _conclude(self) -> None:
        assert self._process is not None
        jobs, claim, last, code = self._jobs, self._claim, self._last or {}, self._process.returncode
        if "result" in last:
            try:
                await self._kept(jobs.complete, claim, last["result"])
            except Rejected as rejected:
                await self._kept(jobs.fail, claim, rejected.code, str(rejected))
        elif "problem" in last:
            await self._kept(jobs.fail, claim, last["problem"].pop("code"), last["problem"].pop("detail"), **last["problem"])
        elif self._asked == "cancel":
            await self._kept(jobs.cancelled, claim)
        elif self._asked is not None or "ended" in last:
            await self._kept(jobs.give_back, claim, None)
        elif code == BUG:
            await self._kept(jobs.fail, claim, "internal", "a mistake of ours; the log of its process has the traceback")
        else:
            how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            _log.warning("job %s of %s: its process ended with %s", claim.job.id, claim.job.org, how)
            await self._kept(jobs.give_back, claim, how)

    async def _kept(self, write: Callable[..., T], *values: Any, **more: Any) -> T:
        """Tries until the database is back, for as long as the lease is ours: what was worked out is not thrown away."""
        while True:
            try:
                return await asyncio.to_thread(write, *values, **more)
            except Unavailable as error:
                _log.warning("job %s waits to be written: %s", self._claim.job.id, error)
                if self._stop.is_set():
                    raise LeaseLost(f"job {self._claim.job.id}: the database is away while this process stops") from None
                await asyncio.sleep(LOOK_S)

    async def _tell(self, what: Mapping[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(ConnectionError):  # it has ended: `_read` finds out
            self._process.stdin.write(orjson.dumps(what) + b"\n")
            await self._process.stdin.drain()
