"""Jobs on their way to browsers: what is written into cmis.jobs.v1, how it is read back, and what holds now.

A record is `{"org": …, "jobs": [items]}`. It follows from no other record, so there is nothing that a repeat of it could be known
by: its own position is its source, and each record is new. What is told twice is known by the job's version.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import unquote

import msgspec
import orjson

from cmis_stream.backplane.contract import encoded
from cmis_stream.backplane.items import JobItem
from cmis_stream.core.channels import Channel, entity_key, parse_channel
from cmis_stream.core.errors import CmisError, Rejected
from cmis_stream.gateway.ports import Snapshot
from cmis_stream.log.topics import partition_for
from cmis_stream.store.jobs import LISTED_RESULT, Job, Jobs

JOBS: Final = "cmis.jobs.v1"
NEWEST: Final = 20
MOST_OPEN: Final = 500
RETRY_S: Final = 1.0
_log = logging.getLogger("cmis.jobs")

Send = Callable[[str, int, bytes], Awaitable[Awaitable[Any]]]
"""(topic, partition, value): appends a record; what it returns completes when the record is durable."""


def job_item(job: Job) -> JobItem:
    """A result of more than LISTED_RESULT characters is left out, as in lists."""
    long = job.result_length is not None and job.result_length > LISTED_RESULT
    return JobItem(
        entity=entity_key([job.id]),
        id=job.id,
        kind=job.kind,
        state=job.state,  # type: ignore[arg-type]  # the store has no others
        progress_ratio=job.progress_ratio,
        said=job.said,
        eta_at=job.eta_at,
        created_at=job.created_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        attempts=job.attempts,
        cancel_asked_at=job.cancel_at,
        actor=job.actor,
        result=None if long else job.result,
        result_length=job.result_length,
        problem=job.problem,
        version=job.version,
    )


class ToldJobs(msgspec.Struct):
    """A record."""

    org: str
    jobs: list[JobItem]


def decode(value: bytes) -> ToldJobs:
    """Rejected when it is none of ours."""
    try:
        told = msgspec.json.decode(value, type=ToldJobs)
    except (ValueError, RecursionError) as error:  # msgspec's are ValueErrors
        raise Rejected("malformed", "", value[:40], f"jobs ({type(error).__name__}: {error})") from None
    channel = Channel(told.org, "jobs")
    if parse_channel(channel.whole) != channel:
        raise Rejected("malformed", "org", told.org, "an org's id")
    return told


class JobTeller:
    """Tells the changes of jobs (`store.jobs.Publish`), from any thread, to the log. Made in the loop that sends.

    While the log does not take them only the newest of each job waits, so memory is bounded by the number of jobs.
    """

    def __init__(self, send: Send, partitions: int) -> None:
        self._send, self._partitions = send, partitions
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, dict[str, Job]] = {}  # org -> id -> the newest
        self._telling: asyncio.Task[None] | None = None
        self._closed = False

    def __call__(self, job: Job) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._put, job)

    async def close(self, within_s: float = 5.0) -> None:
        """Returns when everything that came is durable, or gives it up after so long. What comes later is dropped."""
        await asyncio.sleep(0)  # what other threads have said before this is put now
        self._closed = True
        if self._telling is not None:
            await asyncio.wait([self._telling], timeout=within_s)
            self._telling.cancel()

    def _put(self, job: Job) -> None:
        if self._closed:
            return
        own = self._waiting.setdefault(job.org, {})
        if (known := own.get(job.id)) is None or known.version < job.version:
            own[job.id] = job
        if self._telling is None or self._telling.done():
            self._telling = asyncio.create_task(self._tell())
            self._telling.add_done_callback(_said_if_failed)

    async def _tell(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, {}
            # Together, and the next round behind these: the records of an org are in order.
            left = await asyncio.gather(*(self._told(org, list(jobs.values())) for org, jobs in waiting.items()))
            if again := [job for jobs in left for job in jobs]:
                await asyncio.sleep(0 if self._closed else RETRY_S)
                for job in again:
                    own = self._waiting.setdefault(job.org, {})
                    own.setdefault(job.id, job)  # unless a newer one has come
                if self._closed:
                    return

    async def _told(self, org: str, jobs: list[Job]) -> list[Job]:
        """Those that could not be told."""
        value = orjson.dumps({"org": org, "jobs": [msgspec.to_builtins(job_item(job)) for job in jobs]})
        try:
            await (await self._send(JOBS, partition_for(org.encode(), self._partitions), value))
        except (CmisError, OSError, RuntimeError) as error:  # of the log (Kafka's are RuntimeErrors): it is away, or ends
            _log.warning("%d jobs of %s are told later: %s", len(jobs), org, error)
            return jobs
        return []


def _said_if_failed(telling: asyncio.Task[None]) -> None:
    if not telling.cancelled() and (error := telling.exception()) is not None:
        _log.error("changes of jobs could not be told", exc_info=error)


class JobSnapshots:
    """What is queued or runs, and the newest NEWEST, by the store; of a channel of one job that one.

    A change is told after its commit, so the store, read afterwards, says everything that has been published."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def snapshot(self, channel: Channel) -> Snapshot:
        return await asyncio.to_thread(self._snapshot, channel)

    def _snapshot(self, channel: Channel) -> Snapshot:
        return Snapshot(encoded(job_item(job).item().json for job in self._known(channel)))

    def _known(self, channel: Channel) -> list[Job]:
        if channel.entity is not None:
            job = self._jobs.get(channel.org, unquote(channel.entity))
            return [] if job is None else [job]
        found = {job.id: job for job in self._jobs.list(channel.org, MOST_OPEN, states=("queued", "running"))}
        found |= {job.id: job for job in self._jobs.list(channel.org, NEWEST)}  # read later, so it is never older
        return list(found.values())
