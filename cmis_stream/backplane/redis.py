"""The backplane of many processes, on Redis. docs/design/roles.md; what it keeps there is told in `redis_scripts.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from redis.asyncio import Redis

from cmis_stream.backplane.contract import Listener, Position, Publication, Recovered, Unready
from cmis_stream.backplane.memory import LogMoment, LogReader
from cmis_stream.backplane.redis_link import AWAY, connected
from cmis_stream.backplane.redis_listener import LOOK_S, Known, RedisListener
from cmis_stream.backplane.redis_scripts import READ, Place, place_key, read_entry
from cmis_stream.backplane.redis_writer import RedisWriter

ASK_AGAIN_S = 0.05


class _State(NamedTuple):
    """Of a channel at one moment: what its place has reached, the offset behind which its stream is complete, its last
    publication, and those that were asked for, when they are behind the floor."""

    reached: int
    floor: int
    last: int
    publications: list[Publication]


class RedisBackplane:
    """Guarantees as in `contract.py`, over any number of processes; each instance is for one event loop.

    While Redis is away `begin` and `reached` wait for it, and whatever a gateway asks raises Unready.
    """

    kind = "redis"

    def __init__(
        self,
        url: str,
        epoch: str,
        place: Callable[[str], Place],
        read_log: LogReader | None = None,
        log_moment: LogMoment | None = None,
        *,
        per_channel: int = 1_000,
        patience_s: float = 2.0,
        look_s: float = LOOK_S,
        prefix: str = "cmis",
        connect: Callable[[str], Redis] = connected,
    ) -> None:
        """place: the (topic, partition) of a channel. per_channel: publications that Redis holds of each. patience_s: how long
        an offset that is ahead of the position is waited for, and a subscription. look_s: after so long a lost message is
        noticed at the latest. prefix: of all keys, for installations that share a Redis."""
        self.epoch = epoch
        self._place, self._read_log, self._log_moment = place, read_log, log_moment
        self._prefix, self._patience_s = prefix, patience_s
        self._clients = writing, self._client = connect(url), connect(url)  # gateways in a hurry do not hold up workers
        self._read_script = self._client.register_script(READ)
        self._writer = RedisWriter(writing, prefix, epoch, place, per_channel)
        self._listener = RedisListener(self._client, prefix, epoch, place, self._page_behind, max(patience_s, 1.0), look_s)

    @property
    def connected(self) -> bool:
        return self._listener.connected and self._writer.connected

    @property
    def reconnects(self) -> int:
        return max(0, self._listener.connections - 1)

    async def open(self) -> None:
        """Redis may be away."""
        await self._listener.open()

    async def close(self) -> None:
        """What is on its way is given up; end first who publishes."""
        await self._listener.close()
        await self._writer.close()
        for client in self._clients:
            await client.aclose()
            await client.connection_pool.disconnect()

    # --- what deliver says --------------------------------------------------------------------------------------------

    async def begin(self, topic: str, partition: int, offset: int) -> int:
        return await self._writer.begin((topic, partition), offset)

    async def publish(self, channel: str, publication: Publication) -> None:
        self._writer.publish(channel, publication)

    async def reached(self, topic: str, partition: int, offset: int) -> None:
        await self._writer.reached((topic, partition), offset)

    # --- what gateways ask --------------------------------------------------------------------------------------------

    async def listen(self, channel: str, listener: Listener) -> None:
        await self._listener.listen(channel, listener)

    async def unlisten(self, channel: str, listener: Listener) -> None:
        await self._listener.unlisten(channel, listener)

    async def position(self, channel: str) -> Position:
        state = await self._state(channel, -1, 0, -1)
        await self._settle(channel, state)
        return self._position(state)

    async def recover(self, channel: str, offset: int, epoch: str, limit: int) -> Recovered:
        recovered = await self.page(channel, offset, epoch, limit + 1)
        return recovered if len(recovered.publications or ()) <= limit else Recovered(recovered.position, None)

    async def page(self, channel: str, offset: int, epoch: str, limit: int) -> Recovered:
        state = await self._state(channel, offset, limit, offset if epoch == self.epoch else -1)
        found = None
        if epoch == self.epoch and offset <= state.reached:
            state, found = await self._after(channel, offset, limit, state)
        await self._settle(channel, state)
        return Recovered(self._position(state), found)

    async def newest(self, channel: str, limit: int) -> Recovered:
        state = await self._state(channel, None, limit, -1)
        await self._settle(channel, state)
        return Recovered(self._position(state), state.publications[::-1])

    async def moment(self, channel: str, at_ms: int) -> int | None:
        return None if self._log_moment is None else await self._log_moment(channel, at_ms)

    # --- reading ------------------------------------------------------------------------------------------------------

    def _position(self, state: _State) -> Position:
        return Position(state.reached, self.epoch)

    async def _settle(self, channel: str, state: _State) -> None:
        await self._listener.settled(channel, Known(state.reached, state.last))

    async def _page_behind(self, channel: str, offset: int, limit: int) -> Recovered:
        """A page for the listener, who knows that there is something; without publications the position is that of the floor,
        behind which there are some again."""
        state = await self._state(channel, offset, limit, offset)
        if state.reached < offset:
            raise Unready(f"{channel} was at {offset}, Redis knows it up to {state.reached}")
        state, found = await self._after(channel, offset, limit, state)
        return Recovered(Position(state.reached if found is not None else state.floor, self.epoch), found)

    async def _after(self, channel: str, offset: int, limit: int, state: _State) -> tuple[_State, list[Publication] | None]:
        """The first `limit` publications after `offset`, from the log up to where the stream begins, and the state that they
        belong to; state: that of the channel with what its stream has after `offset`."""
        found: list[Publication] = []
        while offset < state.floor:
            if self._read_log is None:
                return state, None
            read = await self._read_log(channel, offset, limit - len(found))
            if read is None:
                return state, None
            found.extend(publication for publication in read if publication.offset <= state.reached)
            if len(found) >= limit:
                return state, found
            offset = state.reached  # and the stream may have lost more than that meanwhile: then the log again
            state = await self._state(channel, offset, limit - len(found), offset)
            if state.reached < offset:
                raise Unready(f"{channel} was at {offset}, Redis knows it up to {state.reached}")
        return state, found + state.publications

    async def _state(self, channel: str, after: int | None, limit: int, wanted: int) -> _State:
        """When the place has reached `wanted`, or patience ends. Unready when nothing is known of it even then, or less than
        listeners here have seen: Redis has lost something, and workers are about to bring it back."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._patience_s
        while True:
            state = await self._read(channel, after, limit)
            seen = self._listener.seen(channel)
            if (state is not None and state.reached >= max(wanted, seen)) or loop.time() > give_up_at:
                break
            await asyncio.sleep(ASK_AGAIN_S)
        if state is None or state.reached < seen:
            topic, partition = self._place(channel)
            raise Unready(f"nothing is known yet of {topic}, partition {partition}")
        return state

    async def _read(self, channel: str, after: int | None, limit: int) -> _State | None:
        """after None: the newest, newest first."""
        own = place_key(self._prefix, self._place(channel))
        keys, args = [own, f"{own}:{channel}"], [self.epoch, "" if after is None else after, limit]
        try:
            answer = await self._read_script(keys=keys, args=args)
        except AWAY as error:
            raise Unready(f"Redis does not answer: {error}") from error
        if not answer:
            return None
        reached, floor, last, entries = answer
        return _State(reached, floor, last, [read_entry(entry) for entry in entries])
