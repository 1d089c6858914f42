"""``DirectDrain``: what moves records from a Faust consumer to the agents, without Faust's detours. No SQLite here.

A mixin to stand before any subclass of ``faust.transport.consumer.Consumer``. It changes three things:

**Delivery.** Faust races every message against ``suspend_flow`` with ``wait_first``: four tasks a message. Here the
message is handed over directly, about twice as fast; only a message that would have to wait (flow suspended, agent's
queue full) takes Faust's way, so that a rebalance or a stop can still break the wait.

**Waiting.** Faust sleeps a whole second when every partition's buffer is full, and again until a fetch times out after
partitions were resumed. Here both are wake-ups: ``self.fetch_wake`` is set when a buffer drops or partitions or the
flow are resumed; a transport's ``_getmany`` may wait on it too.

**Commits.** Faust finds the offset to commit from runs of acknowledged numbers and registered gaps. It commits past a
message that is not acknowledged yet (Faust issue 606), and the gap it registers includes the message after the gap, so
that counts as acknowledged before it is. Here the delivered offsets are remembered in order, and the offset to commit
follows the last one before the first that is not acknowledged; offsets that do not exist (compaction, retention) need
no bookkeeping at all.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from faust.transport.consumer import CONSUMER_FETCHING
from faust.types import TP, Message
from mode.types import ServiceT

if TYPE_CHECKING:
    from faust.transport.consumer import Consumer as _Base
else:
    _Base = object

FETCH_TIMEOUT_S = 1.0
YIELD_EVERY = 100  # messages handed over before the loop gets a turn


class DirectDrain(_Base):
    """See the module's text."""

    fetch_wake: asyncio.Event
    _delivered: dict[TP, deque[int]]  # offsets handed over, in order, from the first not yet acknowledged
    _done_up_to: dict[TP, int]  # the offset after the last one that is acknowledged with all before it

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.fetch_wake = asyncio.Event()
        self._delivered = {}
        self._done_up_to = {}
        super().__init__(*args, **kwargs)

    # -- delivery -----------------------------------------------------------------------------------------------------

    async def _drain_messages(self, fetcher: ServiceT) -> None:
        """Hand over messages until the consumer or its fetcher stops."""
        self.diag.set_flag(CONSUMER_FETCHING)
        since_yield = 0
        try:
            while not (self.should_stop or fetcher.should_stop):
                messages = self.getmany(timeout=FETCH_TIMEOUT_S)
                await asyncio.sleep(0)  # a fetch that finds records at once would never let go of the loop
                async for tp, message in messages:
                    since_yield += 1
                    if since_yield >= YIELD_EVERY:
                        since_yield = 0
                        await asyncio.sleep(0)
                    await self._deliver(tp, message)
        except self.consumer_stopped_errors:
            if not self.app.should_stop:
                raise
        except asyncio.CancelledError:
            if not self.app.should_stop:
                raise
        finally:
            self.diag.unset_flag(CONSUMER_FETCHING)

    async def _deliver(self, tp: TP, message: Message) -> None:
        seen = self._read_offset[tp]
        if seen is not None and message.offset < seen:
            return  # from before a seek
        if self._commit_every is not None and self._n_acked >= self._commit_every:
            self._n_acked = 0
            await self.commit()
        if self.app.topics.acks_enabled_for(message.topic):
            self._delivered.setdefault(tp, deque()).append(message.offset)
        if self._would_wait(tp):
            # Broken off when the flow is suspended; the message then comes again after the seek that follows.
            await self.wait_first(self.callback(message), self.suspend_flow.wait())
        else:
            await self.callback(message)
        self._read_offset[tp] = message.offset

    def _would_wait(self, tp: TP) -> bool:
        if self.suspend_flow.is_set() or not self.app.flow_control.is_active():
            return True
        topics: Any = self.app.topics  # the conductor; its index of channels is not in the interface
        return any(channel.queue.full() for channel in topics._tp_index.get(tp, ()))

    # -- waiting ------------------------------------------------------------------------------------------------------

    async def _wait_next_records(self, timeout: float) -> tuple[Any, set[TP] | None]:
        """Fetch from the active partitions, or wait until there is one."""
        if not self.flow_active:
            await self.wait(self.can_resume_flow)  # type: ignore[arg-type]  # mode's own Event; any with wait() will do
        active = None if self.app.client_only else self._get_active_partitions()
        if active is None or active:
            return await self._getmany(active_partitions=active, timeout=timeout), active
        await self.wait_for_wake(timeout)
        return {}, active

    async def wait_for_wake(self, timeout: float) -> None:
        """Wait until ``fetch_wake`` is set, at most ``timeout`` seconds, and clear it; then look for work again."""
        try:
            async with asyncio.timeout(timeout):
                await self.fetch_wake.wait()
        except TimeoutError:
            pass
        self.fetch_wake.clear()

    def on_buffer_drop(self, tp: TP) -> None:
        """Fetch from a partition again whose agents have caught up."""
        if tp in self._paused_partitions:  # Faust would resume a partition that a rebalance has paused meanwhile
            self._buffered_partitions.discard(tp)
        else:
            super().on_buffer_drop(tp)
        self.fetch_wake.set()

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        """Resume fetching from partitions."""
        super().resume_partitions(tps)
        self.fetch_wake.set()

    def resume_flow(self) -> None:
        """Resume processing."""
        super().resume_flow()
        self.fetch_wake.set()

    # -- commits ------------------------------------------------------------------------------------------------------

    def _new_offset(self, tp: TP) -> int | None:
        """Return the offset to commit, or None if nothing is acknowledged without a hole before it.

        The answer stays until there is a higher one: a commit that is cancelled half way must not lose it.
        """
        delivered, acked = self._delivered.get(tp), self._acked_index[tp]
        while delivered and delivered[0] in acked:
            done = delivered.popleft()
            acked.discard(done)
            self._done_up_to[tp] = max(done + 1, self._done_up_to.get(tp, 0))
        self._acked[tp].clear()  # Faust's list of the same offsets; appended to by its streams, read by nobody now
        return self._done_up_to.get(tp)

    async def perform_seek(self) -> None:
        """Go back to the committed offsets; what was handed over after them comes again.

        What is acknowledged stays so: Faust also seeks when it finds the flow stopped, which is while it stops.
        """
        for tp in list(self._delivered):
            self._new_offset(tp)
        self._delivered.clear()
        self._acked_index.clear()
        await super().perform_seek()

    async def commit_and_end_transactions(self) -> None:
        """Commit the last acknowledged offsets, also if a commit of earlier ones is just under way."""
        await self.maybe_wait_for_commit_to_finish()
        await super().commit_and_end_transactions()

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Forget partitions that are no longer ours."""
        await super().on_partitions_revoked(revoked)
        for tp in revoked:
            self._delivered.pop(tp, None)
            self._done_up_to.pop(tp, None)

    def ack(self, message: Message) -> bool:
        """Mark a message as processed; one from before the last rebalance counts for nothing, it comes again."""
        if message.generation_id is not None and message.generation_id != self.app.consumer_generation_id:
            message.acked = True
            self._unacked_messages.discard(message)
            return False
        return super().ack(message)
