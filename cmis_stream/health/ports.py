"""What is looked at to tell whether a process is well: small ports, bound by role where the process is put together.

Nothing here is called on the way of a record: watchdogs look once a second, metrics when they are scraped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cmis_stream.core.engine import Engine
from cmis_stream.gateway.client import Client
from cmis_stream.gateway.figures import Figures
from cmis_stream.store.database import Database

GROUP = "cmis"


class Partition(Protocol):
    """A partition in this process's hands (`log.owner.Owner`). Offsets are of records, -1 before the first; moments are of
    `time.monotonic`."""

    @property
    def topic(self) -> str: ...

    @property
    def partition(self) -> int: ...

    @property
    def generation(self) -> str:
        """Of the assignment; no two have the same."""

    @property
    def engine(self) -> Engine: ...

    @property
    def begun(self) -> int:
        """The newest record that the engine has taken."""

    @property
    def position(self) -> int:
        """The newest record whose outputs are sent."""

    @property
    def acked(self) -> int:
        """The newest record that is in a checkpoint that is safe."""

    @property
    def unacked(self) -> int:
        """How many records are applied and not acked yet."""

    @property
    def saved_at(self) -> float:
        """When the state of the newest safe checkpoint was cut."""

    @property
    def saving_s(self) -> float:
        """How long the newest safe checkpoint took; 0 before the first."""


class Waiting(Protocol):
    """A record as the log gives it; only its stamp is looked at (epoch ms)."""

    @property
    def ts_ms(self) -> int: ...


class GroupLog(Protocol):
    """The part of `log.reader.LogReader` that is used; raises `LogAway`."""

    async def ends(self, topic: str) -> dict[int, int]: ...

    async def starts(self, topic: str) -> dict[int, int]: ...

    async def committed(self, group: str, topic: str) -> dict[int, int]: ...

    async def read(self, topic: str, partition: int, offset: int, records: int, max_bytes: int) -> Sequence[Waiting]: ...


class BackplaneState(Protocol):
    """kind: memory or redis. reconnects: since the start."""

    @property
    def kind(self) -> str: ...

    @property
    def connected(self) -> bool: ...

    @property
    def reconnects(self) -> int: ...


class Clients(Protocol):
    """The gateway's hub."""

    @property
    def figures(self) -> Figures: ...

    @property
    def clients(self) -> Collection[Client]: ...

    @property
    def subscriptions(self) -> Any:
        """Its length counts."""


def _none() -> None:
    return None


@dataclass(slots=True, kw_only=True)
class Parts:
    """What a process is made of, by role; what it does not have is left out.

    topics: read by the group, the first is that of `partitions`. group_lag: tell the lag of all partitions of those topics by
    what the group has committed (for a role that is not in the group, so that somebody tells when no worker is left).
    flowing: records may reach the agents (no rebalance, no recovery). crash: what Faust's app has crashed with.
    failed: why the process is about to end, as a sentence. unready: further reasons, (code, sentence).
    troubles: what a person should look at although the process does its role, likewise.
    dead_letters: reason -> events since the start. projected: partition of the transitions topic -> offset that is in the
    store. needs_backplane, needs_store: topics whose records wait, and rightly, while that is away or locked.
    """

    role: str
    clock: Callable[[], int]
    """Epoch ms."""
    log: GroupLog | None = None
    topics: Sequence[str] = ()
    group_lag: bool = False
    partitions: Callable[[], Collection[Partition]] = tuple
    flowing: Callable[[], bool] = lambda: True
    crash: Callable[[], BaseException | None] = _none
    failed: Callable[[], str | None] = _none
    unready: Callable[[], Sequence[tuple[str, str]]] = tuple
    troubles: Callable[[], Sequence[tuple[str, str]]] = tuple
    failed_effects: Callable[[], int] | None = None
    """Effects that were given up, of all orgs (`store.outbox`)."""
    waiting_events: Callable[[], int] | None = None
    log_full: Callable[[], bool] = lambda: False
    """The log waits for room on the disk: nothing can move."""
    dead_letters: Callable[[], Mapping[str, int]] | None = None
    projected: Callable[[], Mapping[int, int]] | None = None
    history: Callable[[], Mapping[tuple[str, int], int]] | None = None
    """(topic, partition) -> the offset below which everything is in files."""
    history_lost: Callable[[], int] = lambda: 0
    """Records that the log dropped before they were in files."""
    transitions: str = "cmis.transitions.v1"
    backplane: BackplaneState | None = None
    gateway: Clients | None = None
    store: Database | None = None
    needs_backplane: frozenset[str] = field(
        default_factory=lambda: frozenset(("cmis.transitions.v1", "cmis.rollups.v1", "cmis.jobs.v1"))
    )
    needs_store: frozenset[str] = field(default_factory=lambda: frozenset(("cmis.transitions.v1",)))
