"""The Faust app of a process: a member of the group that runs agents, or one that only sends. Its assignments and crashes."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import faust

from cmis_stream.core.errors import CmisError
from cmis_stream.log.system import LogSystem
from cmis_stream.log.table import CheckpointTable
from cmis_stream.log.topics import TopicSpec

GROUP = "cmis"
RECOVERY_TIMEOUT_S = 120.0
STOP_S = 30.0
log = logging.getLogger("cmis")

OnAssigned = Callable[[set[int]], Awaitable[None]]
OnRevoked = Callable[[set[int]], None]


class Member:
    """All topics have the same partitions, which are assigned together: an assignment is a set of partition numbers.

    topic: whose partitions count. address: where other processes reach this one (a URL), told to the group. sends_only: without
    agents and partitions. failed: set when the app has crashed.
    """

    def __init__(
        self,
        system: LogSystem,
        data_dir: Path,
        topic: TopicSpec,
        failed: asyncio.Future[None],
        *,
        address: str | None = None,
        sends_only: bool = False,
    ) -> None:
        options: dict[str, Any] = {**system.options, **({"canonical_url": address} if address else {})}
        self.app = faust.App(
            GROUP,
            broker=system.broker,
            store="memory://",
            datadir=str(data_dir / "faust"),
            topic_partitions=topic.partitions,
            broker_max_poll_records=200,
            broker_commit_interval=1.0,
            stream_buffer_maxsize=256,
            **options,
        )
        self._system, self._topic, self._failed, self._sends_only = system, topic.name, failed, sends_only
        self._nonce = secrets.token_hex(4)
        self._on_assigned: list[OnAssigned] = []
        self._on_revoked: list[OnRevoked] = []
        self._ready = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self.app.producer_only = sends_only
        self.table = CheckpointTable(
            self.app, name="state", key_type=bytes, value_type=bytes, partitions=topic.partitions, beacon=self.app.tables.beacon
        )
        if not sends_only:
            self.app.tables.add(self.table)
            self.table.on_recover(self._assigned)
            self.app.on_partitions_revoked.connect(self._revoked)

    # --- assignments --------------------------------------------------------------------------------------------------

    def on_assigned(self, callback: OnAssigned) -> None:
        """`callback(partitions)` runs, after those registered before it, once the state of an assignment is recovered and before
        its first record flows; with all partitions that are held now, newly or not."""
        self._on_assigned.append(callback)

    def on_revoked(self, callback: OnRevoked) -> None:
        """`callback(partitions)` runs when partitions are taken away; nothing of them may be written or acked afterwards."""
        self._on_revoked.append(callback)

    @property
    def ready(self) -> bool:
        """Whether the first assignment is recovered; it may hold nothing, when others have it all. Or that it can send."""
        return self._ready.is_set()

    def generation(self) -> str:
        """Unique to an assignment of this process: no other ever writes the same keys."""
        return f"{self.app.consumer_generation_id:08d}-{self._nonce}-{secrets.token_hex(2)}"

    async def _assigned(self) -> None:
        held = {tp.partition for tp in self.app.assignor.assigned_actives() if tp.topic == self._topic}
        for callback in self._on_assigned:
            await callback(held)
        self._ready.set()

    async def _revoked(self, _app: Any, /, *sent: Any, signal: Any, **_named: Any) -> None:
        revoked = {tp.partition for tp in sent[0] if tp.topic == self._topic}
        for callback in self._on_revoked:
            callback(revoked)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns when state is recovered and records flow, or when it can send; raises what kept it from that."""
        self._watching = asyncio.create_task(self._watch())
        starting = asyncio.ensure_future(self._start())
        try:  # a crash is a flag, and starting an app that has crashed may never end
            await asyncio.wait([starting, self._failed], return_when=asyncio.FIRST_COMPLETED, timeout=RECOVERY_TIMEOUT_S)
            if self._failed.done():
                self._failed.result()
            if not starting.done():
                raise CmisError(
                    f"the state was not recovered within {RECOVERY_TIMEOUT_S:.0f} s; the log of this process says why"
                )
            starting.result()
        finally:
            starting.cancel()

    async def _start(self) -> None:
        await self.app.start()
        await self._system.check(self.app)
        if self._sends_only:
            self._ready.set()
        await self._ready.wait()

    async def _watch(self) -> None:
        await self.app._crashed.wait()
        if not self._failed.done():
            reason: Any = self.app.crash_reason
            said = f"{type(reason).__name__}: {reason}"
            self._failed.set_exception(reason if isinstance(reason, CmisError) else CmisError(f"the log's client failed: {said}"))

    async def stop(self) -> None:
        """Commits what is acked and leaves the group; a broker that does not answer does not hold it up."""
        if self._watching is not None:
            self._watching.cancel()
        try:
            async with asyncio.timeout(STOP_S):
                await self.app.stop()
        except TimeoutError:
            log.warning("the log's client did not stop within %.0f s", STOP_S)
