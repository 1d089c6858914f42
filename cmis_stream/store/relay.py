"""Sends changes on, org by org and in order, and remembers how far it came.

Each change is sent at least once; a repeat carries the same (org, seq). The relay of the installation is whoever has the right
to; the others wait to take its place.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Final

from sqlalchemy import and_, func, select

from cmis_stream.core.errors import CmisError

from . import tables
from .changes import Change, changes_after
from .database import Database, Unavailable

LOOK_S: Final = 0.25
"""How often it looks by itself; it is woken by commits."""
AT_ONCE: Final = 500
RETRY_S: Final = 1.0
_log = logging.getLogger(__name__)

Send = Callable[[str, Sequence[Change]], None]
"""send(org, changes): returns when they are durable where they go; SendFailed when they may not be."""


class SendFailed(CmisError):
    """The receiver cannot take changes now; they are sent again."""


class Relay:
    """database: of a role that reads the changes of all orgs (`cmis_relay`). epoch: identity of the log that they are sent to."""

    def __init__(self, database: Database, send: Send, epoch: str = "") -> None:
        self._database, self._send, self._epoch = database, send, epoch

    def run(self, stop: threading.Event) -> None:
        """Until stop is set. Waits out whatever is temporary: a receiver or a database that is away, another relay."""
        while not stop.is_set():
            try:
                with self._database.following() as watch:
                    while watch is not None and not stop.is_set():
                        self.once()
                        watch.wait(LOOK_S)
                stop.wait(LOOK_S)  # another one has the right
            except (Unavailable, SendFailed) as error:
                _log.warning("changes wait to be sent: %s", error)
                stop.wait(RETRY_S)

    def once(self) -> int:
        """Sends what is there now; how many changes. An org after the other, each up to AT_ONCE at a time, so that one with much
        to send, or whose changes cannot be sent, does not hold up the others. SendFailed, in the end, when some could not."""
        sent, failed = 0, dict[str, SendFailed]()
        while waiting := [one for one in self._waiting() if one[0] not in failed]:
            for org, seq in waiting:
                with self._database.transaction(None) as tx:
                    batch = changes_after(tx, tables.changes.c.org_id == org, seq, AT_ONCE)
                try:
                    self._send(org, batch)
                except SendFailed as error:
                    failed[org] = error
                    continue
                with self._database.transaction(None, writes=True) as tx:
                    tx.insert_or_raise(tables.relayed, {"org_id": org, "epoch": self._epoch}, "seq", batch[-1].seq)
                sent += len(batch)
        for org, first in failed.items():
            raise SendFailed(f"{org}: {first}") from first
        return sent

    def _waiting(self) -> list[tuple[str, int]]:
        """(org, seq up to which its changes are sent) of orgs that have more."""
        heads, done = tables.org_heads, tables.relayed
        upto = func.coalesce(done.c.seq, 0)
        found = (
            select(heads.c.org_id, upto)
            .select_from(heads.outerjoin(done, and_(heads.c.org_id == done.c.org_id, done.c.epoch == self._epoch)))
            .where(heads.c.seq > upto)
        )
        with self._database.transaction(None) as tx:
            return [(org, seq) for org, seq in tx.rows(found.order_by(heads.c.org_id))]
