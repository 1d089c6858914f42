"""Hearing what is published on Redis: each channel's publications in order, whatever connections do.

PUBLISH reaches who is connected, once, or nobody. Each message says which publication of its channel was before it, so that one
that was missed is noticed with the next; every few seconds, and after each connection, Redis is asked for the last of all
channels. What was missed is read: from the stream, or from the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from cmis_stream.backplane.contract import Listener, Publication, Recovered, Unready
from cmis_stream.backplane.redis_link import AWAY, Outage, ended
from cmis_stream.backplane.redis_scripts import Place, place_key, read_message, unpacked
from cmis_stream.core.errors import CmisError

log = logging.getLogger("cmis.backplane")

LOOK_S = 2.0
SILENT_S = 6.0
"""A connection on which not even the answers to our pings come is none."""
SUBSCRIBE_AT_ONCE = 500
PAGE = 200

Page = Callable[[str, int, int], Awaitable[Recovered]]
"""(channel, after offset, limit); raises Unready, also when the offset is ahead of the position."""


class Known(NamedTuple):
    """Of a channel at one moment: what its place has reached, and its last publication (-1: none that is known)."""

    reached: int
    last: int


class _Heard:
    """A channel that is listened to. seen: up to there the listeners have had everything (None: nothing is known yet); wanted:
    up to there there is something to be had. ready: done when it is subscribed to."""

    __slots__ = ("catching_up", "channel", "confirmed", "listeners", "name", "ready", "seen", "wanted")

    def __init__(self, channel: str, name: str) -> None:
        self.channel, self.name = channel, name
        self.listeners: list[Listener] = []
        self.seen: int | None = None
        self.wanted = -1
        self.confirmed = asyncio.Event()
        self.ready: asyncio.Task[None] | None = None
        self.catching_up: asyncio.Task[None] | None = None

    def tell(self, publication: Publication) -> None:
        self.seen = publication.offset
        for listener in tuple(self.listeners):
            listener(self.channel, publication)


class RedisListener:
    """read_page: how what was missed is read. look_s, patience_s: seconds."""

    def __init__(
        self, client: Redis, prefix: str, epoch: str, place: Callable[[str], Place], read_page: Page, patience_s: float,
        look_s: float = LOOK_S,
    ) -> None:  # fmt: skip
        self._client, self._prefix, self._epoch, self._place = client, prefix, epoch, place
        self._read_page, self._patience_s, self._look_s = read_page, patience_s, look_s
        self._heard: dict[str, _Heard] = {}
        self._by_name: dict[bytes, _Heard] = {}
        self._alive = f"{prefix}:alive"  # a name that nobody publishes under: its confirmation follows those of all others
        self._pubsub: PubSub | None = None
        self._connected, self._look_now = asyncio.Event(), asyncio.Event()
        self._outage = Outage("listeners")
        self._tasks: list[asyncio.Task[None]] = []
        self.connections = 0
        """Made since it was opened."""

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    async def open(self) -> None:
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._keep_looking())]

    async def close(self) -> None:
        heard = self._heard.values()
        own = [task for one in heard for task in (one.ready, one.catching_up) if task is not None]
        await ended([*self._tasks, *own])

    # --- who listens --------------------------------------------------------------------------------------------------

    async def listen(self, channel: str, listener: Listener) -> None:
        """Unready when Redis does not confirm it."""
        heard = self._heard.get(channel)
        if heard is None:
            heard = _Heard(channel, f"{place_key(self._prefix, self._place(channel))}:{channel}")
            self._heard[channel] = self._by_name[heard.name.encode()] = heard
            heard.ready = asyncio.create_task(self._subscribe(heard))
        if listener not in heard.listeners:
            heard.listeners.append(listener)
        assert heard.ready is not None
        try:
            await asyncio.shield(heard.ready)
        except BaseException:  # also when whoever asked is cancelled: nobody would take it back; it is raised again
            await self._remove(heard, listener)
            raise

    async def unlisten(self, channel: str, listener: Listener) -> None:
        heard = self._heard.get(channel)
        if heard is not None:
            await self._remove(heard, listener)

    async def _remove(self, heard: _Heard, listener: Listener) -> None:
        if listener in heard.listeners:
            heard.listeners.remove(listener)
        if heard.listeners or self._heard.get(heard.channel) is not heard:
            return
        del self._heard[heard.channel], self._by_name[heard.name.encode()]
        for task in (heard.ready, heard.catching_up):
            if task is not None:
                task.cancel()
        if self._pubsub is not None:
            with suppress(*AWAY):
                await self._pubsub.unsubscribe(heard.name)

    async def _subscribe(self, heard: _Heard) -> None:
        try:
            async with asyncio.timeout(self._patience_s):
                await self._connected.wait()
                if self._pubsub is not None and not heard.confirmed.is_set():
                    await self._pubsub.subscribe(heard.name)
                await heard.confirmed.wait()
            await self._look([heard])
        except AWAY as error:
            raise Unready(f"Redis does not answer: {error}") from error

    # --- what is known ------------------------------------------------------------------------------------------------

    def seen(self, channel: str) -> int:
        """Up to where the channel's listeners have had everything; -1 without any."""
        heard = self._heard.get(channel)
        return -1 if heard is None or heard.seen is None else heard.seen

    async def settled(self, channel: str, known: Known) -> None:
        """Listeners have had everything that was known of the channel, and nothing up to there comes to them afterwards."""
        heard = self._heard.get(channel)
        if heard is not None and self._told(heard, known) and heard.catching_up is not None:
            await asyncio.shield(heard.catching_up)
            if self._told(heard, known):
                raise Unready(f"what {channel} had before {known.last} cannot be read now")

    def _told(self, heard: _Heard, known: Known) -> bool:
        """Takes note; whether something is missing, which is being read then."""
        if heard.seen is not None and known.last > heard.seen:
            self._want(heard, known.last)
            return True
        heard.seen = max(known.reached, -1 if heard.seen is None else heard.seen)
        return False

    def _want(self, heard: _Heard, offset: int) -> None:
        heard.wanted = max(heard.wanted, offset)
        if heard.catching_up is None or heard.catching_up.done():
            heard.catching_up = asyncio.create_task(self._catch_up(heard))

    async def _catch_up(self, heard: _Heard) -> None:
        while heard.seen is not None and heard.seen < heard.wanted:
            try:
                position, publications = await self._read_page(heard.channel, heard.seen, PAGE)
            except (Unready, CmisError) as error:  # with the next look again
                log.info("what %s missed cannot be read yet: %s", heard.channel, error)
                return
            if publications is None:
                log.warning("%s: what came after %s cannot be had any more", heard.channel, heard.seen)
                heard.tell(Publication(position.offset, (), gap=True))
                continue
            for publication in publications:
                if publication.offset > heard.seen:
                    heard.tell(publication)
            if len(publications) < PAGE:
                heard.seen = max(heard.seen, position.offset)

    async def _look(self, channels: list[_Heard]) -> None:
        """Asks Redis for the state of channels, all in one go."""
        by_place: dict[Place, list[_Heard]] = {}
        for heard in channels:
            by_place.setdefault(self._place(heard.channel), []).append(heard)
        pipeline = self._client.pipeline(transaction=False)
        for place, own in by_place.items():
            pipeline.hmget(place_key(self._prefix, place), ["epoch", "reached", *(f"last:{heard.channel}" for heard in own)])
        for own, (epoch, reached, *last) in zip(by_place.values(), await pipeline.execute(), strict=True):
            if reached is not None and epoch.decode() == self._epoch:
                for heard, offset in zip(own, last, strict=True):
                    self._told(heard, Known(int(reached), int(offset or -1)))

    async def _keep_looking(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._look_s):
                    await self._look_now.wait()
            self._look_now.clear()
            try:
                if self._pubsub is not None:
                    await self._pubsub.ping()
                if self._heard:
                    await self._look(list(self._heard.values()))
            except AWAY as error:
                log.debug("no look at Redis: %s", error)  # whoever waits for its connection has said it

    # --- the connection -----------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            pubsub = self._client.pubsub()
            try:
                names = [heard.name for heard in self._heard.values()]
                for first in range(0, len(names), SUBSCRIBE_AT_ONCE):
                    await pubsub.subscribe(*names[first : first + SUBSCRIBE_AT_ONCE])
                await pubsub.subscribe(self._alive)
                self._pubsub = pubsub
                self._connected.set()
                self.connections += 1
                while True:
                    message = await pubsub.get_message(timeout=SILENT_S)
                    if message is None:
                        raise TimeoutError(f"not a word for {SILENT_S:g} s")
                    self._take(message["type"], message["channel"], message["data"])
            except AWAY as error:
                await self._disconnected(pubsub)
                await self._outage.wait(error)
            except Exception:  # a listener's bug: it costs this connection, what follows is caught up with
                log.exception("a publication could not be handed on")
                await self._disconnected(pubsub)
            except asyncio.CancelledError:
                await self._disconnected(pubsub)
                raise

    async def _disconnected(self, pubsub: PubSub) -> None:
        self._pubsub = None
        self._connected.clear()
        with suppress(*AWAY):
            await pubsub.aclose()  # type: ignore[no-untyped-call]

    def _take(self, kind: str, name: bytes | None, data: bytes) -> None:
        self._outage.over()
        if kind == "subscribe" and name is not None:
            if name == self._alive.encode():
                self._look_now.set()
            elif name in self._by_name:
                self._by_name[name].confirmed.set()
        elif kind == "message" and name is not None:
            heard = self._by_name.get(name)
            if heard is None:
                return
            before, offset, items = read_message(data)
            if heard.seen is None or before <= heard.seen < offset:
                heard.tell(unpacked(items, offset))
            elif before > heard.seen:
                self._want(heard, offset)
