"""Carries out what stands in the outbox: each effect at least once, in the order of `due_at` within an org.

    waits ──claim──▶ claimed ──▶ done ──a week──▶ no row         one worker at a time carries out an org's effects
      ▲                 ├─Temporary─▶ waits, longer each time
      └──lease over─────┴─Permanent, or begun MOST_ATTEMPTS times─▶ failed, until `retry`

Everything blocks: call it in a thread. Times in epoch ms.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import orjson
from sqlalchemy import ColumnElement, delete, or_, select, update

from cmis_stream.core.errors import CmisError, Rejected
from cmis_stream.core.time import MINUTE_MS

from . import tables
from .database import Database, Transaction, Unavailable
from .decisions import Carried, Handler, Permanent
from .due import Due

LEASE_MS: Final = MINUTE_MS
"""What takes longer to carry out is begun again by another worker meanwhile."""
PAUSES_MS: Final = (1_000, 5_000, 30_000, 120_000, 600_000)
"""After so many attempts that failed; the last one also after more."""
MOST_ATTEMPTS: Final = 10
KEPT_MS: Final = 7 * 86_400_000
LOOK_S: Final = 0.25
"""How often it looks by itself; `wake` makes it look at once."""
BREATH_S: Final = 0.02
"""Between two looks, however often it is woken."""
RETRY_S: Final = 1.0
PLACES: Final = 4
"""Orgs at once, in this process."""
IN_TURN: Final = 50
"""Effects of an org, before others may have its place."""
_LONGEST_PROBLEM: Final = 2_000
_table = tables.outbox
_log = logging.getLogger(__name__)

InTransaction = Callable[[Transaction, Carried], None]
"""As a Handler; what it writes is committed together with the note that it is done, so exactly once."""


@dataclass(frozen=True, slots=True)
class Failed:
    """An effect that is not tried any more. attempts: how often it was begun."""

    id: str
    effect: str
    body: dict[str, Any]
    actor: str | None
    due_at: int
    failed_at: int
    attempts: int
    problem: str


class Outbox:
    """overseer: who sees which orgs have something due. worker: a name for this process, which no other one that runs has; what
    an earlier process of the name had begun is begun again at once, what others had when their lease is over."""

    def __init__(
        self,
        database: Database,
        overseer: Due,
        handlers: Mapping[str, Handler],
        *,
        in_transaction: Mapping[str, InTransaction] | None = None,
        worker: str,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        lease_ms: int = LEASE_MS,
    ) -> None:
        self._database, self._due, self._clock = database, overseer, clock
        self._handlers, self._in_transaction = handlers, in_transaction or {}
        self._worker, self._lease_ms = worker, lease_ms
        self._look = threading.Event()

    # --- for people -----------------------------------------------------------------------------------------------------

    def failed(self, org: str, limit: int = 100) -> list[Failed]:
        """What was given up, the newest first."""
        with self._database.transaction(org) as tx:
            wanted = select(_table).where(tx.own(_table), _table.c.failed_at.is_not(None))
            rows = tx.rows(wanted.order_by(_table.c.failed_at.desc(), _table.c.id).limit(limit))
        return [_failed(row) for row in rows]

    def retry(self, org: str, identity: str) -> bool:
        """Has it tried again, as often as a new one. False when there is none of this id that was given up."""
        anew = {"failed_at": None, "problem": None, "attempts": 0, "claimed_by": None, "claimed_until": None}
        with self._database.transaction(org, writes=True) as tx:
            tx.left_work = True
            given_up = (tx.own(_table), _table.c.id == identity, _table.c.failed_at.is_not(None))
            return tx.run(update(_table).where(*given_up).values(**anew)).rowcount == 1

    def forget(self, org: str, before_ms: int) -> int:
        """Deletes what was done before this; how many."""
        with self._database.transaction(org, writes=True) as tx:
            return tx.run(delete(_table).where(tx.own(_table), _table.c.done_at < before_ms)).rowcount

    # --- carrying out ---------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """There may be something to do. From any thread."""
        self._look.set()

    def run(self, stop: threading.Event) -> None:
        """Until stop is set (and `wake` called, to be quick about it); what was begun is ended first. Waits out a database that
        is away. Raises what is a mistake of ours in here; one in a handler is that effect's problem."""
        turns: dict[str, Future[None]] = {}
        with ThreadPoolExecutor(PLACES, thread_name_prefix="outbox") as threads:
            while not stop.is_set():
                self._look.clear()
                try:
                    waiting = [org for org in self._due.effects(self._clock(), self._worker) if org not in turns]
                except Unavailable as error:
                    _log.warning("effects wait: %s", error)
                    waiting = []
                for org in waiting[: PLACES - len(turns)]:
                    turns[org] = threads.submit(self._turn, org, stop)
                    turns[org].add_done_callback(lambda _: self._look.set())
                self._look.wait(LOOK_S)
                stop.wait(BREATH_S)
                for org in [org for org, turn in turns.items() if turn.done()]:
                    turns.pop(org).result()
        for turn in turns.values():
            turn.result()

    def once(self) -> int:
        """Carries out what is due now, in this thread; how many were begun."""
        begun = 0
        while orgs := self._due.effects(self._clock(), self._worker):
            found = sum(self._carry_out_some(org, lambda: False) for org in orgs)
            if not found:
                break
            begun += found
        return begun

    def _turn(self, org: str, stop: threading.Event) -> None:
        try:
            self._carry_out_some(org, stop.is_set)
        except Unavailable as error:
            _log.warning("effects of %s wait: %s", org, error)
            stop.wait(RETRY_S)

    def _carry_out_some(self, org: str, over: Callable[[], bool]) -> int:
        for begun in range(IN_TURN):
            if over() or (carried := self._claim(org)) is None:
                return begun
            self._carry_out(carried)
        return IN_TURN

    def _claim(self, org: str) -> Carried | None:
        """The org's effect that is due longest; None when there is none, or another worker is at the org's."""
        with self._database.transaction(org, writes=True) as tx:
            tx.lock_head(tables.org_heads)  # or two workers could each begin one
            now_ms = self._clock()
            open_ = (tx.own(_table), _table.c.done_at.is_(None), _table.c.failed_at.is_(None))
            others = (_table.c.claimed_by != self._worker, _table.c.claimed_until > now_ms)
            if tx.rows(select(_table.c.id).where(*open_, *others).limit(1)):
                return None
            free = or_(_table.c.claimed_until.is_(None), _table.c.claimed_until <= now_ms, _table.c.claimed_by == self._worker)
            wanted = (
                select(_table)
                .where(*open_, free, _table.c.due_at <= now_ms)
                .order_by(_table.c.due_at, _table.c.placed_ns, _table.c.id)
            )
            for row in tx.rows(wanted.limit(3)):
                if row.attempts >= MOST_ATTEMPTS:  # whoever began it died each time
                    died = f"it was begun {row.attempts} times, and its process ended each time"
                    self._give_up(tx, row.id, row.attempts, now_ms, died)
                    continue
                claim = {"claimed_by": self._worker, "claimed_until": now_ms + self._lease_ms, "attempts": row.attempts + 1}
                tx.run(update(_table).where(tx.own(_table), _table.c.id == row.id).values(**claim))
                return Carried(org, row.id, row.effect, orjson.loads(row.body), row.attempts + 1, row.actor)
        return None

    def _carry_out(self, carried: Carried) -> None:
        try:
            if (within := self._in_transaction.get(carried.effect)) is not None:
                with self._database.transaction(carried.org, writes=True) as tx:
                    within(tx, carried)
                    self._done(tx, carried)
                return
            handler = self._handlers.get(carried.effect)
            if handler is None:
                raise Permanent(f"no module carries out effects called {carried.effect!r}")
            handler(carried)
        except (Permanent, Rejected) as error:
            passes = isinstance(error, Rejected) and error.code == "too_many"
            self._did_not(carried, error, for_good=not passes)
        except CmisError as error:
            self._did_not(carried, error, for_good=False)
        except Exception as error:  # a mistake in a module's handler: that effect's trouble, not that of all others
            _log.exception("effect %s %s of %s failed by a mistake", carried.effect, carried.id, carried.org)
            self._did_not(carried, error, for_good=False)
        else:
            with self._database.transaction(carried.org, writes=True) as tx:
                self._done(tx, carried)

    def _done(self, tx: Transaction, carried: Carried) -> None:
        """Whoever has the claim by now: it was carried out."""
        values = {"done_at": self._clock(), "claimed_by": None, "claimed_until": None, "failed_at": None, "problem": None}
        tx.run(update(_table).where(tx.own(_table), _table.c.id == carried.id).values(**values))

    def _did_not(self, carried: Carried, error: Exception, *, for_good: bool) -> None:
        problem = str(error) if isinstance(error, CmisError) else f"a mistake of ours ({type(error).__name__}); see the log"
        with self._database.transaction(carried.org, writes=True) as tx:
            now_ms = self._clock()
            if for_good or carried.attempt >= MOST_ATTEMPTS:
                self._give_up(tx, carried.id, carried.attempt, now_ms, problem)
                return
            pause_ms = PAUSES_MS[min(carried.attempt, len(PAUSES_MS)) - 1]
            later = {"claimed_by": None, "claimed_until": now_ms + pause_ms}
            tx.run(update(_table).where(*self._mine(tx, carried.id, carried.attempt)).values(**later))
        _log.warning("effect %s %s of %s waits %d ms: %s", carried.effect, carried.id, carried.org, pause_ms, problem)

    def _give_up(self, tx: Transaction, identity: str, attempt: int, now_ms: int, problem: str) -> None:
        values = {"failed_at": now_ms, "problem": problem[:_LONGEST_PROBLEM], "claimed_by": None, "claimed_until": None}
        if tx.run(update(_table).where(*self._mine(tx, identity, attempt)).values(**values)).rowcount:
            _log.error("effect %s of %s is given up: %s", identity, tx.org, problem)

    def _mine(self, tx: Transaction, identity: str, attempt: int) -> tuple[ColumnElement[bool], ...]:
        """Not any more when another worker has begun it since then: its word counts."""
        return (tx.own(_table), _table.c.id == identity, _table.c.attempts == attempt, _table.c.done_at.is_(None))


def _failed(row: Any) -> Failed:
    body = orjson.loads(row.body)
    return Failed(row.id, row.effect, body, row.actor, row.due_at, row.failed_at, row.attempts, row.problem)
