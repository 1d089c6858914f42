"""Recovery of tables from their changelogs after a rebalance, the same on both logs; docs/design/kafka.md tells why.

Faust reads changelogs like streams, through fetcher, queues and flow control, until it has seen the record before the
highwater. Here each changelog partition is read by position, from its beginning to the end that it had when reading began,
and what was read is given to its table. A recovery belongs to one assignment and is cancelled when that is revoked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol

from faust.tables import TableManager
from faust.tables.recovery import Recovery
from faust.types import TP, ConsumerMessage
from mode import Service

from cmis_stream.core.errors import CmisError


class ChangelogReader(Protocol):
    """What recovery asks of a consumer, beside Faust's interface."""

    def read_changelog(self, tp: TP) -> AsyncIterator[list[ConsumerMessage]]:
        """All records of a partition, in order, up to the end that it has when reading begins."""


class ChangelogRecovery(Recovery):
    """Replaces all of Faust's; only its registers of tables and partitions are used."""

    _under_way: asyncio.Future[Any] | None = None
    _held: frozenset[TP] = frozenset()
    """Changelog partitions whose state has been given to their tables in this or an earlier recovery, and not revoked since."""

    @Service.task
    async def _restart_recovery(self) -> None:
        """Faust's, not needed: `on_rebalance` starts recovery."""

    @Service.task
    async def _slurp_changelogs(self) -> None:
        """Faust's, not needed: nothing arrives in the changelog queue."""

    @Service.task
    async def _publish_stats(self) -> None:
        """Faust's, not needed."""

    def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """The assignment is over, and with it its recovery, wherever it is."""
        self._cancel()
        self._held -= frozenset(revoked)

    async def on_rebalance(self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0) -> None:
        """Begin to recover what this assignment holds and its tables do not."""
        self._cancel()
        if generation_id != self.app.consumer_generation_id:
            return  # superseded already; the next one calls again
        self._held -= frozenset(revoked)
        self.active_tps.clear()
        self.actives_for_table.clear()
        changelogs: Any = self.tables._changelogs
        for tp in sorted(tp for tp in self.app.assignor.assigned_actives() if tp.topic in changelogs):
            self.active_tps.add(tp)
            self.actives_for_table[changelogs[tp.topic]].add(tp)
        self._under_way = self.add_future(self._recover(generation_id))

    async def on_stop(self) -> None:
        """Faust flushes buffers here; there are none."""
        self._cancel()

    def _cancel(self) -> None:
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.cancel()

    async def _recover(self, generation: int) -> None:
        """An exception crashes the app (`add_future`); Faust would log it as a warning and wait for ever."""
        app: Any = self.app
        consumer = app.consumer
        if app._producer is not None:
            await app.producer.flush()  # what this process itself has sent to a changelog is part of its end
        for tp in sorted(self.active_tps - self._held):
            await self._read(consumer, tp)
        await app.on_rebalance_complete.send()
        for table in list(self.tables.values()):
            await table.on_recovery_completed(self.actives_for_table[table], set())
        self._held |= self.active_tps
        await consumer.perform_seek()
        await app._fetcher.maybe_start()
        if app.consumer_generation_id != generation:
            return
        # From here on without an await: nothing fetched before the seek can be delivered, and no revocation comes between.
        app.flow_control.resume()  # clears the agents' queues
        consumer.resume_flow()
        consumer.resume_partitions({tp for tp in consumer.assignment() if tp.topic not in self.tables.changelog_topics})
        self.completed.set()
        self.tables.on_actives_ready()
        self.tables.on_standbys_ready()
        app.on_rebalance_end()
        self._under_way = None

    async def _read(self, consumer: ChangelogReader, tp: TP) -> None:
        tables: Any = self.tables
        table = tables._changelogs[tp.topic]
        channel = tables._channels[table]
        async for messages in consumer.read_changelog(tp):
            table.apply_changelog_batch([await channel.decode(message) for message in messages])


class PromptTableManager(TableManager):
    """Faust's, with our recovery, and without its fixed second of sleep at start.

    The sleep gives agents time to start and tables time to be declared. Agents are started before tables are (the
    boot strategy's order), which is awaited here instead, and all our tables are declared before the app starts.
    """

    @property
    def recovery(self) -> ChangelogRecovery:
        """Recovery service used by this table manager."""
        if self._recovery is None:
            self._recovery = ChangelogRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        recovery = self._recovery
        assert isinstance(recovery, ChangelogRecovery)
        return recovery

    async def on_start(self) -> None:
        """Register the tables and start recovery."""
        await self.app.agents.wait_until_agents_started()
        if not self.should_stop:
            await self._update_channels()
            await self.recovery.start()


def require_table_manager(app: Any) -> None:
    """Raises CmisError when an app was made without ours: Faust's loses records on a rebalance (its issue 596)."""
    if not isinstance(app.tables, PromptTableManager):
        raise CmisError(f"App(TableManager=…): got {type(app.tables).__qualname__}, expected PromptTableManager")
