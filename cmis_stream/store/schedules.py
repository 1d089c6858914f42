"""Schedules: effects at times of the wall clock in a zone, each occurrence once (docs/design/primitives.md).

Everything blocks: call it in a thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, get_args

import orjson
from sqlalchemy import delete, select, update

from cmis_stream.core.errors import Rejected
from cmis_stream.core.ids import fact_id
from cmis_stream.core.recurrence import Recurrence, Wall, moment_of, recurrence, wall_of, zone_of

from . import primitive_tables, tables
from .bodies import plain, written
from .database import Database, Transaction, Unavailable
from .decisions import Missed, Schedule
from .due import Due

LOOK_S: Final = 0.25
RETRY_S: Final = 1.0
MOST_MISSED: Final = 100
AT_ONCE: Final = 100
_table = primitive_tables.schedules
_log = logging.getLogger(__name__)

__all__ = ["Missed", "Schedule", "Scheduled", "Scheduler", "Schedules"]


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Scheduled(NamedTuple):
    """due_at: epoch ms, None when there is no next time. problem: why it was stopped."""

    schedule: Schedule
    version: int
    due_at: int | None
    problem: str | None


class Schedules:
    """The schedules of all orgs. clock: epoch ms."""

    def __init__(self, database: Database, clock: Callable[[], int] = _now_ms) -> None:
        self._database, self._clock = database, clock

    # --- what there is --------------------------------------------------------------------------------------------------

    def put(self, org: str, schedule: Schedule, actor: str | None = None) -> Scheduled:
        """Makes it, or has it go on as this says from now on; its effects are this actor's. Rejected names the field."""
        with self._database.transaction(org, writes=True) as tx:
            return put(tx, schedule, self._clock(), actor)

    def remove(self, org: str, identity: str) -> bool:
        with self._database.transaction(org, writes=True) as tx:
            return remove(tx, identity)

    def get(self, org: str, identity: str) -> Scheduled | None:
        with self._database.transaction(org) as tx:
            rows = tx.rows(select(_table).where(tx.own(_table), _table.c.id == identity))
        return _read(rows[0]) if rows else None

    def list(self, org: str) -> list[Scheduled]:
        """All of the org, by id."""
        with self._database.transaction(org) as tx:
            return [_read(row) for row in tx.rows(select(_table).where(tx.own(_table)).order_by(_table.c.id))]

    # --- firing -----------------------------------------------------------------------------------------------------------

    def fire(self, org: str) -> int:
        """Puts the effects of what is due into the outbox; how many. Whoever does it at the same time does not do it again."""
        fired = 0
        with self._database.transaction(org, writes=True) as tx:
            now_ms = self._clock()
            due = select(_table).where(tx.own(_table), _table.c.due_at <= now_ms).order_by(_table.c.due_at).limit(AT_ONCE)
            for row in tx.rows(due):
                fired += _fire(tx, row, now_ms)
            tx.left_work = fired > 0
        return fired

    def reread(self, org: str) -> int:
        """Works out the next times anew, since the rules of zones may have changed; how many are others than before."""
        moved = 0
        with self._database.transaction(org, writes=True) as tx:
            for row in tx.rows(select(_table).where(tx.own(_table), _table.c.due_at.is_not(None))):
                try:
                    zone = zone_of(row.zone)
                    due_at = recurrence(row.rule, zone, row.starts).next(moment_of(zone, Wall(row.wall, row.fold)))
                except Rejected as rejected:
                    moved += _moved(tx, row, {"due_at": None, "problem": str(rejected)})
                    continue
                if due_at != row.due_at:
                    moved += _moved(tx, row, {"due_at": due_at})
        return moved


class Scheduler:
    """Fires what is due in all orgs. Several may run at the same time: it costs a look each, nothing else."""

    def __init__(self, schedules: Schedules, due: Due, clock: Callable[[], int] = _now_ms) -> None:
        self._schedules, self._due, self._clock = schedules, due, clock

    def run(self, stop: threading.Event) -> None:
        """Until stop is set; waits out a database that is away."""
        reread = False
        while not stop.is_set():
            try:
                if not reread:
                    for org in self._due.scheduled():
                        self._schedules.reread(org)
                    reread = True
                stop.wait(0 if self.once() else LOOK_S)
            except Unavailable as error:
                _log.warning("schedules wait: %s", error)
                stop.wait(RETRY_S)

    def once(self) -> int:
        return sum(self._schedules.fire(org) for org in self._due.schedules(self._clock()))


def put(tx: Transaction, schedule: Schedule, now_ms: int, actor: str | None = None) -> Scheduled:
    """As `Schedules.put`, in a transaction that does more than this."""
    _check(schedule)
    zone = zone_of(schedule.zone)
    wall = wall_of(zone, now_ms)
    starts = schedule.starts or wall.local
    due_at = recurrence(schedule.rule, zone, starts).next(now_ms)
    row = {
        "zone": schedule.zone, "rule": schedule.rule, "starts": starts, "missed": schedule.missed,
        "most_missed": schedule.most_missed, "grace_ms": schedule.grace_ms, "effect": schedule.effect,
        "body": written(schedule.body), "due_at": due_at, "wall": wall.local, "fold": wall.fold, "problem": None,
        "actor": actor,
    }  # fmt: skip
    if not tx.insert_new(_table, {"org_id": tx.org, "id": schedule.id, "version": 1, **row}):
        own = (tx.own(_table), _table.c.id == schedule.id)
        # The same again, as after a kill: what was due since then stays due.
        same = [getattr(_table.c, name) == row[name] for name in _SAID if name != "starts" or schedule.starts is not None]
        if not tx.rows(select(_table.c.id).where(*own, *same)):
            tx.run(update(_table).where(*own).values(**row, version=_table.c.version + 1))
    return _read(tx.rows(select(_table).where(tx.own(_table), _table.c.id == schedule.id))[0])


_SAID: Final = ("zone", "rule", "starts", "missed", "most_missed", "grace_ms", "effect", "body")


def remove(tx: Transaction, identity: str) -> bool:
    """False when there was none."""
    return tx.run(delete(_table).where(tx.own(_table), _table.c.id == identity)).rowcount == 1


def _check(schedule: Schedule) -> None:
    if not 1 <= len(schedule.id) <= 200:
        raise Rejected("too_long", "/id", schedule.id, "1 to 200 characters")
    if schedule.missed not in get_args(Missed):
        raise Rejected("invalid", "/missed", schedule.missed, f"one of {', '.join(get_args(Missed))}")
    if not 1 <= schedule.most_missed <= MOST_MISSED:
        raise Rejected("out_of_range", "/most_missed", schedule.most_missed, f"1 to {MOST_MISSED}")
    if not 0 <= schedule.grace_ms <= 86_400_000:
        raise Rejected("out_of_range", "/grace_ms", schedule.grace_ms, "0 to a day")
    plain(schedule.body, "/body")


def _fire(tx: Transaction, row: Any, now_ms: int) -> int:
    try:
        zone = zone_of(row.zone)
        rule = recurrence(row.rule, zone, row.starts)
    except Rejected as rejected:
        _log.error("schedule %s of %s is stopped: %s", row.id, row.org_id, rejected)
        _moved(tx, row, {"due_at": None, "problem": str(rejected)})
        return 0
    occurrences = _to_fire(rule, row, now_ms)
    wall = wall_of(zone, now_ms)
    following = {"due_at": rule.next(now_ms), "wall": wall.local, "fold": wall.fold}
    if not _moved(tx, row, following):
        return 0  # somebody else fired it, or it was changed, since we read it
    for at_ms, late in occurrences:
        body = {**orjson.loads(row.body), "schedule": row.id, "occurrence": at_ms, "late": late}
        effect = {"org_id": tx.org, "effect": row.effect, "body": written(body), "actor": row.actor}
        effect |= {"id": fact_id(at_ms, f"schedule/{tx.org}/{row.id}/{at_ms}"), "due_at": at_ms, "attempts": 0}
        effect["placed_ns"] = time.time_ns()
        tx.insert_new(tables.outbox, effect)
    return len(occurrences)


def _to_fire(rule: Recurrence, row: Any, now_ms: int) -> list[tuple[int, bool]]:
    """(moment, late) of the occurrences up to now that are to be fired, oldest first."""
    edge, found = now_ms - row.grace_ms, list[tuple[int, bool]]()
    at_ms: int | None = row.due_at
    if row.due_at < edge:
        if row.missed == "once":
            found.append((_last_until(rule, row.due_at, edge - 1), True))
        while row.missed == "all" and at_ms is not None and at_ms < edge and len(found) < row.most_missed:
            found.append((at_ms, True))
            at_ms = rule.next(at_ms)
        at_ms = rule.next(edge - 1)
    while at_ms is not None and at_ms <= now_ms:
        found.append((at_ms, False))
        at_ms = rule.next(at_ms)
    return found


def _last_until(rule: Recurrence, known_ms: int, until_ms: int) -> int:
    """The last occurrence up to `until_ms`, which `known_ms` is one of."""
    low, high = known_ms, max(until_ms, known_ms) + 1  # the last one is in [low, high)
    while (after := rule.next(low)) is not None and after < high:
        low, middle = after, (after + high) // 2
        if (behind := rule.next(middle - 1)) is not None and behind < high:
            low = behind
        else:
            high = max(middle, low + 1)
    return low


def _moved(tx: Transaction, row: Any, values: Mapping[str, Any]) -> int:
    """1 when the row was still as we read it, else 0."""
    seen = (_table.c.id == row.id, _table.c.version == row.version, _table.c.due_at == row.due_at)
    return tx.run(update(_table).where(tx.own(_table), *seen).values(**values, version=_table.c.version + 1)).rowcount


def _read(row: Any) -> Scheduled:
    schedule = Schedule(
        row.id, row.zone, row.rule, row.effect, orjson.loads(row.body), row.starts, row.missed, row.most_missed, row.grace_ms
    )
    return Scheduled(schedule, row.version, row.due_at, row.problem)
