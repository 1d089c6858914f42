"""Jobs: long work in child processes, resumed whatever dies (docs/design/primitives.md). Blocks: call it in a thread.

Times in epoch ms, ratios from 0 to 1. A run is known by its lease: what another one says changes nothing and raises LeaseLost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson
from sqlalchemy import ColumnElement, and_, case, delete, func, or_, select, update

from cmis_stream.core.errors import CmisError, Rejected

from . import primitive_tables, tables
from .bodies import plain, written
from .database import Database, Transaction
from .job_kinds import JobKind, JobKinds

LEASE_MS: Final = 30_000
BACKOFF_MS: Final = (1_000, 5_000, 30_000, 120_000)
"""Before the next run, after so many that died since the last checkpoint."""
MOST_FAILURES: Final = 5
MOST_RUNNING, MOST_QUEUED = 2, 100
"""Per org."""
RESULT_BYTES: Final = 1024 * 1024
CHECKPOINT_BYTES: Final = 16 * 1024 * 1024
LONGEST_SAID: Final = 200
LISTED_RESULT: Final = 4 * 1024
"""Characters of a result that lists have; a longer one is had with its job."""
COUNTED: Final = 10_000
_table = primitive_tables.jobs

__all__ = ["Claim", "Job", "JobKind", "JobKinds", "Jobs", "LeaseLost", "Publish"]


class LeaseLost(CmisError):
    """Another run took over, or the job ended: this one has no say any more."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as people see it. state: queued, running, done, failed, cancelled. problem: code and detail, of a failed one.
    result_length: characters of the result as JSON; in lists `result` is None where these are more than LISTED_RESULT."""

    org: str
    id: str
    kind: str
    state: str
    version: int
    body: dict[str, Any]
    actor: str
    created_at: int
    started_at: int | None
    ended_at: int | None
    attempts: int
    progress_ratio: float
    said: str
    eta_at: int | None
    cancel_at: int | None
    result: Any
    problem: dict[str, Any] | None
    result_length: int | None


class Claim(NamedTuple):
    """A run that this process has to make, until its lease is over. checkpoint: of the runs before, None at first."""

    job: Job
    lease: int
    checkpoint: bytes | None


Publish = Callable[[Job], None]
"""Called after each change of a job, in the thread that made it; of two changes the one with the higher version counts."""


class Jobs:
    """publish: for the channel `jobs`. A kill between the change and publishing it loses that one publication."""

    def __init__(
        self,
        database: Database,
        kinds: JobKinds,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        publish: Publish = lambda job: None,
    ) -> None:
        self._database, self._clock = database, clock
        self.kinds, self.publish = kinds, publish

    # --- asked for by people and effects ----------------------------------------------------------------------------

    def enqueue(self, org: str, identity: str, kind: str, body: Mapping[str, Any], actor: str, due_at: int = 0) -> Job:
        """identity: of what asks for it, so that asking twice makes one. Rejected: not_found for a kind that no module has,
        too_many when the org has too many that wait."""
        with self._database.transaction(org, writes=True) as tx:
            return self.start(tx, identity, kind, body, actor, self._clock(), due_at)

    def start(
        self, tx: Transaction, identity: str, kind: str, body: Mapping[str, Any], actor: str, now_ms: int, due_at: int = 0
    ) -> Job:
        """As `enqueue`, in a transaction that does more than this; it is published when that is committed."""
        made = _enqueue(tx, self.kinds, identity, kind, body, actor, now_ms, due_at)
        job = _job(self._row(tx, identity))
        if made:
            tx.after_commit.append(lambda: self.publish(job))
        return job

    def cancel(self, org: str, identity: str) -> Job | None:
        """A queued one ends at once, a running one is asked to. None: there is no such job; one that ended stays as it is."""
        with self._database.transaction(org, writes=True) as tx:
            now_ms = self._clock()
            ended = {"state": "cancelled", "ended_at": now_ms, "cancel_at": now_ms, "eta_at": None}
            changed = self._change(tx, _table.c.id == identity, _table.c.state == "queued", **ended)
            asked = (_table.c.state == "running", _table.c.cancel_at.is_(None))
            changed = changed or self._change(tx, _table.c.id == identity, *asked, cancel_at=now_ms)
            row = self._row(tx, identity)
        if row is None:
            return None
        job = _job(row)
        if changed:
            self.publish(job)
        return job

    def get(self, org: str, identity: str) -> Job | None:
        with self._database.transaction(org) as tx:
            row = self._row(tx, identity)
        return None if row is None else _job(row)

    def list(
        self,
        org: str,
        limit: int = 100,
        before: tuple[int, str] | None = None,
        *,
        states: Collection[str] = (),
        kinds: Collection[str] = (),
    ) -> list[Job]:
        """The newest first. before: (created_at, id) of the last one of the page before. states, kinds: only these, if any."""
        listed = select(*_LISTED).where(*_among(states, kinds))
        wanted = listed.order_by(_table.c.created_at.desc(), _table.c.id.desc()).limit(limit)
        if before is not None:
            at_ms, identity = before
            older = or_(_table.c.created_at < at_ms, and_(_table.c.created_at == at_ms, _table.c.id < identity))
            wanted = wanted.where(older)
        with self._database.transaction(org) as tx:
            return [_job(row) for row in tx.rows(wanted.where(tx.own(_table)))]

    def count(self, org: str, *, states: Collection[str] = (), kinds: Collection[str] = ()) -> int:
        """How many `list` has in all; exact up to COUNTED, and this where there are more."""
        with self._database.transaction(org) as tx:
            some = select(_table.c.id).where(tx.own(_table), *_among(states, kinds)).limit(COUNTED).subquery()
            return int(tx.rows(select(func.count()).select_from(some))[0][0])

    def forget(self, org: str, before_ms: int) -> int:
        """Deletes what ended before this; how many."""
        with self._database.transaction(org, writes=True) as tx:
            return tx.run(delete(_table).where(tx.own(_table), _table.c.ended_at < before_ms)).rowcount

    # --- asked for by the process that runs them ----------------------------------------------------------------------

    def claim(self, org: str, worker: str, lease_ms: int = LEASE_MS) -> Claim | None:
        """The org's job that waits longest, when the org may run one more. A run whose lease is over is taken from whoever has
        it. One that died too often is failed instead."""
        given_up = list[Job]()
        claim: Claim | None = None
        with self._database.transaction(org, writes=True) as tx:
            tx.lock_head(tables.org_heads)  # or two could each take the last place
            now_ms = self._clock()
            over = and_(_table.c.state == "running", _table.c.lease_until <= now_ms)
            waits = or_(and_(_table.c.state == "queued", _table.c.due_at <= now_ms), over)
            running = and_(_table.c.state == "running", _table.c.lease_until > now_ms)
            (count,) = tx.rows(select(func.count()).where(tx.own(_table), running))[0]
            wanted = select(_table).where(tx.own(_table), waits).order_by(_table.c.due_at, _table.c.created_at, _table.c.id)
            for row in tx.rows(wanted.limit(10)) if count < MOST_RUNNING else ():
                died = row.state == "running"
                if died and row.cancel_at is not None:
                    self._end(tx, row.id, "cancelled", now_ms)
                elif row.failures + died >= MOST_FAILURES:
                    self._end(tx, row.id, "failed", now_ms, problem=_died(row.failures + died))
                else:
                    values = {"lease": row.lease + 1, "lease_until": now_ms + lease_ms, "worker": worker, "eta_at": None}
                    values |= {"started_at": now_ms, "started_ratio": row.progress_ratio, "attempts": row.attempts + 1}
                    self._change(tx, _table.c.id == row.id, state="running", failures=row.failures + died, **values)
                    claim = Claim(_job(self._row(tx, row.id)), row.lease + 1, row.checkpoint)
                    break
                given_up.append(_job(self._row(tx, row.id)))
        for job in [*given_up, *([claim.job] if claim else [])]:
            self.publish(job)
        return claim

    def renew(self, claim: Claim, lease_ms: int = LEASE_MS) -> None:
        """LeaseLost when it is somebody else's by now."""
        with self._database.transaction(claim.job.org, writes=True) as tx:
            mine = (*_mine(claim), _table.c.state == "running")
            kept = tx.run(update(_table).where(tx.own(_table), *mine).values(lease_until=self._clock() + lease_ms))
        if kept.rowcount != 1:
            raise _lost(claim)

    def asked_to_cancel(self, claim: Claim) -> bool:
        """Whether somebody wants this run to end. LeaseLost as in `renew`."""
        with self._database.transaction(claim.job.org) as tx:
            mine = (*_mine(claim), _table.c.state == "running")
            rows = tx.rows(select(_table.c.cancel_at).where(tx.own(_table), *mine))
        if not rows:
            raise _lost(claim)
        return rows[0][0] is not None

    def progress(self, claim: Claim, ratio: float, said: str) -> Job:
        """said: a few words for people, cut when they are many."""
        with self._database.transaction(claim.job.org, writes=True) as tx:
            row, now_ms = self._owned(tx, claim), self._clock()
            ratio = min(max(ratio, 0.0), 1.0)
            done = ratio - row.started_ratio
            eta_at = now_ms + round((now_ms - row.started_at) * (1 - ratio) / done) if done > 0 else None
            self._change(tx, *_mine(claim), progress_ratio=ratio, said=said[:LONGEST_SAID], eta_at=eta_at)
            job = _job(self._row(tx, claim.job.id))
        self.publish(job)
        return job

    def save(self, claim: Claim, checkpoint: bytes) -> None:
        """Where the next run begins, should this one die; it counts when this returns. Rejected when it is too large."""
        if len(checkpoint) > CHECKPOINT_BYTES:
            raise Rejected("too_long", "checkpoint", f"{len(checkpoint)} bytes", f"at most {CHECKPOINT_BYTES} bytes")
        with self._database.transaction(claim.job.org, writes=True) as tx:
            self._owned(tx, claim)
            self._change(tx, *_mine(claim), checkpoint=checkpoint, failures=0)

    def complete(self, claim: Claim, result: Any) -> Job:
        plain(result, "result")
        text = orjson.dumps(result).decode()
        if len(text) > RESULT_BYTES:
            raise Rejected("too_long", "result", f"{len(text)} characters", f"at most {RESULT_BYTES}; more goes into a file")
        return self._finish(claim, "done", result=text, progress_ratio=1.0, checkpoint=None)

    def fail(self, claim: Claim, code: str, detail: str, **more: Any) -> Job:
        """For good: what an exception says comes again."""
        return self._finish(claim, "failed", problem=written({"code": code, "detail": detail[:2_000], **more}), checkpoint=None)

    def cancelled(self, claim: Claim) -> Job:
        return self._finish(claim, "cancelled", checkpoint=None)

    def give_back(self, claim: Claim, died: str | None) -> Job:
        """For another run from the last checkpoint: soon when this process stops, later and later when the run died."""
        with self._database.transaction(claim.job.org, writes=True) as tx:
            row, now_ms = self._owned(tx, claim), self._clock()
            failures = row.failures + (died is not None)
            if row.cancel_at is not None:
                self._end(tx, row.id, "cancelled", now_ms)
            elif failures >= MOST_FAILURES:
                self._end(tx, row.id, "failed", now_ms, problem=_died(failures, died or ""))
            else:
                wait_ms = BACKOFF_MS[min(failures, len(BACKOFF_MS)) - 1] if failures and died is not None else 0
                values = {"failures": failures, "due_at": now_ms + wait_ms, "lease_until": None, "eta_at": None}
                self._change(tx, *_mine(claim), state="queued", **values)
            job = _job(self._row(tx, row.id))
        self.publish(job)
        return job

    # --- rows ---------------------------------------------------------------------------------------------------------------

    def _finish(self, claim: Claim, state: str, **values: Any) -> Job:
        with self._database.transaction(claim.job.org, writes=True) as tx:
            self._owned(tx, claim)
            self._end(tx, claim.job.id, state, self._clock(), **values)
            job = _job(self._row(tx, claim.job.id))
        self.publish(job)
        return job

    def _end(self, tx: Transaction, identity: str, state: str, now_ms: int, **values: Any) -> None:
        ended = {"state": state, "ended_at": now_ms, "lease_until": None, "eta_at": None, **values}
        self._change(tx, _table.c.id == identity, **ended)

    def _owned(self, tx: Transaction, claim: Claim) -> Any:
        """The row, which nobody else changes until the end of the transaction. LeaseLost when it is somebody else's."""
        mine = (tx.own(_table), *_mine(claim), _table.c.state == "running")
        if tx.run(update(_table).where(*mine).values(lease=_table.c.lease)).rowcount != 1:
            raise _lost(claim)
        return tx.rows(select(_table).where(*mine))[0]

    def _change(self, tx: Transaction, *where: Any, **values: Any) -> bool:
        changed = update(_table).where(tx.own(_table), *where).values(**values, version=_table.c.version + 1)
        return tx.run(changed).rowcount == 1

    def _row(self, tx: Transaction, identity: str) -> Any:
        rows = tx.rows(select(*_SHOWN).where(tx.own(_table), _table.c.id == identity))
        return rows[0] if rows else None


def _enqueue(
    tx: Transaction,
    kinds: JobKinds,
    identity: str,
    kind: str,
    body: Mapping[str, Any],
    actor: str,
    now_ms: int,
    due_at: int = 0,
) -> bool:
    """False when it was there."""
    if kind not in kinds:
        raise Rejected("not_found", "kind", kind, ", ".join(sorted(kinds)) or "a kind of job; no module has one")
    plain(body, "/body")
    tx.lock_head(tables.org_heads)
    tx.left_work = True
    if tx.rows(select(_table.c.id).where(tx.own(_table), _table.c.id == identity)):
        return False
    counted = select(func.count()).where(tx.own(_table), _table.c.state == "queued")
    ((waiting,),) = tx.rows(counted)
    if waiting >= MOST_QUEUED:
        raise Rejected("too_many", "kind", f"{waiting} jobs that wait", f"at most {MOST_QUEUED} of an org")
    row = {"org_id": tx.org, "id": identity, "kind": kind, "state": "queued", "version": 1, "body": written(body)}
    row |= {"actor": actor, "created_at": now_ms, "due_at": max(due_at, now_ms), "attempts": 0, "failures": 0, "lease": 0}
    return tx.insert_new(_table, {**row, "started_ratio": 0.0, "progress_ratio": 0.0, "said": ""})


_SHOWN = (
    _table.c.org_id, _table.c.id, _table.c.kind, _table.c.state, _table.c.version, _table.c.body, _table.c.actor,
    _table.c.created_at, _table.c.started_at, _table.c.ended_at, _table.c.attempts, _table.c.progress_ratio, _table.c.said,
    _table.c.eta_at, _table.c.cancel_at, _table.c.problem, func.length(_table.c.result).label("result_length"), _table.c.result,
)  # fmt: skip
_LISTED = (*_SHOWN[:-1], case((func.length(_table.c.result) <= LISTED_RESULT, _table.c.result)).label("result"))


def _among(states: Collection[str], kinds: Collection[str]) -> list[ColumnElement[bool]]:
    wanted = ((_table.c.state, states), (_table.c.kind, kinds))
    return [column.in_(values) for column, values in wanted if values]


def _job(row: Any) -> Job:
    result, problem = (None if text is None else orjson.loads(text) for text in (row.result, row.problem))
    return Job(
        row.org_id, row.id, row.kind, row.state, row.version, orjson.loads(row.body), row.actor, row.created_at,
        row.started_at, row.ended_at, row.attempts, row.progress_ratio, row.said, row.eta_at, row.cancel_at, result, problem,
        row.result_length,
    )  # fmt: skip


def _mine(claim: Claim) -> tuple[Any, ...]:
    return (_table.c.id == claim.job.id, _table.c.lease == claim.lease)


def _lost(claim: Claim) -> LeaseLost:
    return LeaseLost(f"job {claim.job.id}: run {claim.lease} is not the one that counts")


def _died(times: int, how: str = "its process or machine went away") -> str:
    return written({"code": "died", "detail": f"it died {times} times without getting further; the last time: {how}"})
