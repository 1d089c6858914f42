"""The backplane of one process: rings in memory over a log that holds the rest."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice

from cmis_stream.backplane.contract import Listener, Position, Publication, Recovered, Unready

Place = tuple[str, int]
"""(results topic, partition)"""

LogReader = Callable[[str, int, int], Awaitable[Sequence[Publication] | None]]
"""(channel, after offset, limit) -> its publications, oldest first, from all that is durable when it is called; fewer than
`limit`: there are no more. None: the log does not hold that stretch any more."""

LogMoment = Callable[[str, int], Awaitable[int | None]]
"""(channel, epoch ms) -> the offset before the first record of that time or later; None: the log does not reach back so far."""


class _Ring:
    """The newest publications of a channel: all with an offset above `complete_after`."""

    __slots__ = ("complete_after", "held", "last", "place")

    def __init__(self, place: Place, complete_after: int) -> None:
        self.place = place
        self.held: deque[Publication] = deque()
        self.complete_after = self.last = complete_after


class MemoryBackplane:
    """Guarantees as in `contract.py`; for one event loop."""

    kind = "memory"
    connected = True
    reconnects = 0

    def __init__(
        self,
        epoch: str,
        place: Callable[[str], Place],
        read_log: LogReader | None = None,
        log_moment: LogMoment | None = None,
        *,
        per_channel: int = 1_000,
        publications: int = 100_000,
        max_bytes: int = 64 << 20,
        patience_s: float = 2.0,
    ) -> None:
        """place: the (topic, partition) of a channel. per_channel, publications, max_bytes: what memory holds at most, the
        last two over all channels. patience_s: how long an offset that is ahead of the position is waited for."""
        self.epoch = epoch
        self._place, self._read_log, self._log_moment = place, read_log, log_moment
        self._per_channel, self._publications, self._max_bytes = per_channel, publications, max_bytes
        self._patience_s = patience_s
        self._rings: dict[str, _Ring] = {}
        self._oldest_first: OrderedDict[tuple[str, int], int] = OrderedDict()  # (channel, offset) -> bytes
        self._bytes = 0
        self._began: dict[Place, int] = {}
        self._reached: dict[Place, int] = {}
        self._listeners: dict[str, list[Listener]] = {}
        self._waiting: dict[Place, dict[asyncio.Future[None], int]] = {}

    async def open(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Nothing to give back."""

    # --- what deliver says --------------------------------------------------------------------------------------------

    async def begin(self, topic: str, partition: int, offset: int) -> int:
        place = topic, partition
        if self._reached.get(place, offset) < offset:
            self._skip(place, offset)
        self._move(place, offset)
        return self._reached[place]

    async def publish(self, channel: str, publication: Publication) -> None:
        place = self._place(channel)
        if place not in self._reached:
            self._move(place, publication.offset - 1)
        ring = self._ring(channel)
        if publication.offset <= max(ring.last, self._reached[place]):
            return
        ring.last = publication.offset
        ring.held.append(publication)
        size = self._oldest_first[channel, publication.offset] = publication.about_bytes
        self._bytes += size
        self._forget(ring, channel)
        for listener in tuple(self._listeners.get(channel, ())):
            listener(channel, publication)

    async def reached(self, topic: str, partition: int, offset: int) -> None:
        self._move((topic, partition), offset)

    def _move(self, place: Place, offset: int) -> None:
        self._began.setdefault(place, offset)
        self._reached[place] = max(offset, self._reached.get(place, offset))
        for future, wanted in self._waiting.get(place, {}).items():
            if wanted <= self._reached[place] and not future.done():
                future.set_result(None)

    def _skip(self, place: Place, offset: int) -> None:
        """Nobody publishes what this partition has up to `offset`: the log has it."""
        self._began[place] = offset
        for channel, ring in self._rings.items():
            if ring.place == place:
                for held in ring.held:
                    self._bytes -= self._oldest_first.pop((channel, held.offset))
                ring.held.clear()
                ring.complete_after = ring.last = offset
        for channel, listeners in self._listeners.items():
            if self._place(channel) == place:
                for listener in tuple(listeners):
                    listener(channel, Publication(offset, (), gap=True))

    def _forget(self, ring: _Ring, channel: str) -> None:
        if len(ring.held) > self._per_channel:
            self._bytes -= self._oldest_first.pop((channel, ring.held[0].offset))
            ring.complete_after = ring.held.popleft().offset
        while len(self._oldest_first) > self._publications or (self._bytes > self._max_bytes and self._oldest_first):
            (oldest, _), size = self._oldest_first.popitem(last=False)
            self._bytes -= size
            losing = self._rings[oldest]
            losing.complete_after = losing.held.popleft().offset

    # --- what gateways ask --------------------------------------------------------------------------------------------

    async def listen(self, channel: str, listener: Listener) -> None:
        listeners = self._listeners.setdefault(channel, [])
        if listener not in listeners:
            listeners.append(listener)

    async def unlisten(self, channel: str, listener: Listener) -> None:
        listeners = self._listeners.get(channel, [])
        if listener in listeners:
            listeners.remove(listener)
        if not listeners:
            self._listeners.pop(channel, None)

    async def position(self, channel: str) -> Position:
        await self._wait_for(self._place(channel), -1)
        return self._position(channel)

    async def recover(self, channel: str, offset: int, epoch: str, limit: int) -> Recovered:
        recovered = await self.page(channel, offset, epoch, limit + 1)
        return recovered if len(recovered.publications or ()) <= limit else Recovered(recovered.position, None)

    async def page(self, channel: str, offset: int, epoch: str, limit: int) -> Recovered:
        await self._wait_for(self._place(channel), offset if epoch == self.epoch else -1)
        if epoch != self.epoch or offset > self._position(channel).offset:
            return Recovered(self._position(channel), None)
        found = await self._after(channel, offset, limit)
        return Recovered(self._position(channel), found)

    async def newest(self, channel: str, limit: int) -> Recovered:
        position = await self.position(channel)
        held = self._ring(channel).held
        return Recovered(position, list(islice(held, max(0, len(held) - limit), None)))

    async def moment(self, channel: str, at_ms: int) -> int | None:
        return None if self._log_moment is None else await self._log_moment(channel, at_ms)

    def _position(self, channel: str) -> Position:
        ring = self._ring(channel)
        return Position(max(ring.last, self._reached[ring.place]), self.epoch)

    def _ring(self, channel: str) -> _Ring:
        ring = self._rings.get(channel)
        if ring is None:
            place = self._place(channel)
            ring = self._rings[channel] = _Ring(place, self._began[place])
        return ring

    async def _wait_for(self, place: Place, offset: int) -> None:
        """Until the partition has reached `offset`, or patience ends; Unready when nothing is known of it even then."""
        if self._reached.get(place, -2) < offset:  # -2: not even -1, before the first record, is known
            waiting = self._waiting.setdefault(place, {})
            future = asyncio.get_running_loop().create_future()
            waiting[future] = offset
            try:
                await asyncio.wait([future], timeout=self._patience_s)
            finally:
                del waiting[future]
        if place not in self._reached:
            raise Unready(f"nothing is known yet of {place[0]}, partition {place[1]}")

    async def _after(self, channel: str, offset: int, limit: int) -> list[Publication] | None:
        """The first `limit` publications after `offset`; the last step, from memory, and the caller's look at the position
        come without an await between them, so that they agree."""
        ring = self._ring(channel)
        found: list[Publication] = []
        while offset < ring.complete_after:
            if self._read_log is None:
                return None
            published = self._position(channel).offset
            read = await self._read_log(channel, offset, limit - len(found))
            if read is None:
                return None
            found.extend(publication for publication in read if publication.offset <= published)
            if len(found) >= limit:
                return found
            offset = published  # and memory may have lost more than that meanwhile: then the log again
        found.extend(islice((held for held in ring.held if held.offset > offset), limit - len(found)))
        return found
