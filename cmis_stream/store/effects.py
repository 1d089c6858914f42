"""What a decision asks for besides changes: jobs and schedules in its own transaction, everything else through the outbox."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NoReturn

from sqlalchemy import insert

from cmis_stream.core.errors import Rejected

from . import schedules, tables
from .bodies import written
from .database import Transaction
from .decisions import AnyEffect, Effect, SetSchedule, StartJob
from .jobs import Jobs


def carry_out(
    tx: Transaction, jobs: Jobs | None, effect: AnyEffect, actor: str, now_ms: int, new_id: Callable[[], str]
) -> dict[str, Any] | None:
    """Does it, or answers the outbox's row that has it done (`put_into_outbox`). jobs: None where no module has a kind of job.

    new_id: ids that are the same when the transaction's decision is. Rejected, as the command that asked for it then is: invalid
    for an unknown kind of job, too_many, and what is wrong with a schedule, as JSON pointers below the effect's `at`.
    """
    if isinstance(effect, Effect):
        due_at = now_ms if effect.due_at is None else effect.due_at
        row = {"org_id": tx.org, "id": new_id(), "effect": effect.name, "body": written(effect.body), "actor": actor}
        return {**row, "due_at": due_at, "attempts": 0}
    if isinstance(effect, StartJob):
        _start(tx, jobs, effect, actor, now_ms, new_id())
    elif isinstance(effect, SetSchedule):
        try:
            schedules.put(tx, effect, now_ms, actor)
        except Rejected as rejected:
            _again(rejected, effect.at)
    else:
        schedules.remove(tx, effect.id)
    return None


def put_into_outbox(tx: Transaction, rows: list[dict[str, Any]]) -> None:
    """In the order in which they were decided."""
    if rows:
        tx.left_work = True
        now_ns = time.time_ns()  # not the decision's clock, whose milliseconds may hold several decisions
        tx.run(insert(tables.outbox), [{**row, "placed_ns": now_ns + place} for place, row in enumerate(rows)])


def _start(tx: Transaction, jobs: Jobs | None, effect: StartJob, actor: str, now_ms: int, identity: str) -> None:
    kinds = {} if jobs is None else jobs.kinds
    if jobs is None or effect.kind not in kinds:  # not jobs' own not_found: what is not there is not the command's document
        expected = ", ".join(sorted(kinds)) or "a kind of job; no module has one"
        raise Rejected("invalid", f"{effect.at}/kind", effect.kind, expected)
    try:
        jobs.start(tx, identity, effect.kind, effect.body, actor, now_ms, effect.due_at or 0)
    except Rejected as rejected:
        _again(rejected, effect.at)


def _again(rejected: Rejected, at: str) -> NoReturn:
    """With where the command has it. What concerns no field of it (too many jobs) concerns all of it."""
    field = f"{at}{rejected.field}" if rejected.field.startswith("/") else at
    raise Rejected(rejected.code, field, rejected.got, rejected.expected) from None
