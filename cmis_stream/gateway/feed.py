"""Fan-out: from a publication to the frames of those who are subscribed.

A `Feed` is a whole channel (`org:{org}:{topic}`) on this node. Its `Group`s are the subscriptions that get the same bytes:
same channel name, same selection. A group's frames are built once, and what comes within one turn of the event loop is
written to each member in one piece. Members change only while nothing is pending, so that who joins between two
publications gets the second, and only that.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from cmis_stream.backplane.contract import Item, Publication, encoded
from cmis_stream.core.channels import CONFLATED, TOPICS, Channel
from cmis_stream.gateway.figures import Figures
from cmis_stream.gateway.frames import text_frame
from cmis_stream.gateway.outbox import WRITE_BYTES, Outbox
from cmis_stream.gateway.protocol import publication_push, quoted
from cmis_stream.gateway.selection import Selection

if TYPE_CHECKING:
    from cmis_stream.gateway.client import Client


def wire_offset(offset: int) -> int:
    """Offsets of the protocol count from 1, and 0 is before the first; those of the log count from 0."""
    return offset + 1


def log_offset(offset: int) -> int:
    """The log's offset of one of the protocol; -1 is before the first record."""
    return offset - 1


class Subscription:
    """One client's subscription to a channel. Until `Feed.go_live` publications are held. joining: the task that leads there;
    replied: the client knows already that it is subscribed."""

    __slots__ = ("_most_held", "channel", "client", "feed", "held", "joining", "name", "overflowed", "replied", "selection")

    def __init__(self, client: Client, name: str, channel: Channel, selection: Selection, feed: Feed, most_held: int) -> None:
        self._most_held = most_held
        self.client, self.name, self.channel, self.selection, self.feed = client, name, channel, selection, feed
        self.joining: asyncio.Task[None] | None = None
        self.replied = False
        self.hold()

    def hold(self) -> None:
        """From now on publications are held; those held before are forgotten."""
        self.held: deque[Publication] = deque(maxlen=self._most_held)
        self.overflowed = False

    def keep(self, publication: Publication) -> None:
        self.overflowed = self.overflowed or len(self.held) == self._most_held
        self.held.append(publication)

    def push(self, publications: Sequence[Publication]) -> None:
        """Writes what is wanted of some publications, each as a frame of its own."""
        frames = [frame for publication in publications if (frame := self._frame(publication))]
        if frames:
            self.client.outbox.send(b"".join(frames))

    def _frame(self, publication: Publication) -> bytes:
        items = self.selection.chosen(publication)
        return _frame(quoted(self.name), _data(publication, items), publication.offset) if items else b""


def _data(publication: Publication, items: Sequence[Item]) -> bytes:
    return publication.data() if items is publication.items else encoded(item.json for item in items)


def _frame(name: bytes, data: bytes, offset: int) -> bytes:
    return text_frame(publication_push(name, data, wire_offset(offset)))


class Fanout:
    """Writes the groups' pending frames, a slice of members a turn, so that many members do not hold up the event loop."""

    def __init__(self, slice_: int, figures: Figures) -> None:
        self.figures = figures
        self._slice = slice_
        self._dirty: deque[Group] = deque()
        self._scheduled = False

    def schedule(self, group: Group) -> None:
        self._dirty.append(group)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        budget = self._slice
        while self._dirty and budget > 0:
            group = self._dirty[0]
            budget -= group.deliver(budget)
            if not group.pending:
                self._dirty.popleft()
        self._scheduled = bool(self._dirty)
        if self._scheduled:
            asyncio.get_running_loop().call_soon(self._turn)


class Group:
    """Who gets the same bytes. pending: something is still to be written."""

    __slots__ = (
        "_conflated", "_data", "_fanout", "_items", "_publications", "_quoted", "_targets", "members", "name", "pending",
        "selection",
    )  # fmt: skip

    def __init__(self, name: str, topic: str, selection: Selection, fanout: Fanout) -> None:
        self.name, self.selection = name, selection
        self.members: dict[Outbox, Client] = {}
        self.pending = False
        self._quoted = quoted(name)
        self._conflated = TOPICS[topic] == CONFLATED
        self._fanout = fanout
        self._publications: deque[tuple[int, Sequence[Item], bytes]] = deque()  # (offset, items, frame)
        # The batch that is being written: its bytes, its items for full sockets, and the members it has not reached yet.
        self._data = b""
        self._items: dict[str, tuple[int, bytes]] = {}
        self._targets: Iterator[Outbox] = iter(())

    def frame(self, items: list[bytes], offset: int) -> bytes:
        return _frame(self._quoted, encoded(items), offset)

    def put(self, publication: Publication) -> None:
        items = self.selection.chosen(publication)
        if items and self.members:
            frame = _frame(self._quoted, _data(publication, items), publication.offset)
            self._publications.append((publication.offset, items, frame))
            if not self.pending:
                self.pending = True
                self._fanout.schedule(self)

    def join(self, outbox: Outbox, client: Client) -> None:
        self.settle()
        self.members[outbox] = client

    def leave(self, outbox: Outbox) -> None:
        if outbox in self.members:
            self.settle()
            del self.members[outbox]
        outbox.forget(self)

    def settle(self) -> None:
        """Writes everything that is pending."""
        while self.pending:
            self.deliver(len(self.members) + 1)

    def deliver(self, most: int) -> int:
        """Writes to at most so many members; returns to how many."""
        targets = list(islice(self._targets, most))
        if not targets and self._publications:
            self._begin()
            targets = list(islice(self._targets, most))
        data, full = self._data, []
        for outbox in targets:
            if outbox.full:
                full.append(outbox)
                continue
            try:
                outbox.write(data)
            except (OSError, RuntimeError):  # its connection is ending; the others get theirs
                outbox.stop()
        self._fanout.figures.bytes += (len(targets) - len(full)) * len(data)
        if full:
            self._queue(full)
        if len(targets) < most:  # the batch has reached everyone
            self.pending = bool(self._publications)
            self._data, self._items = b"", {}
        return len(targets)

    def _begin(self) -> None:
        """The next batch."""
        frames: list[bytes] = []
        size = 0
        self._items = {}
        while self._publications and size < WRITE_BYTES:
            offset, items, frame = self._publications.popleft()
            frames.append(frame)
            size += len(frame)
            if self._conflated:
                self._items.update((item.key, (offset, item.json)) for item in items)
        self._data = b"".join(frames)
        self._targets = iter(self.members)
        self._fanout.figures.messages += len(frames) * len(self.members)

    def _queue(self, full: list[Outbox]) -> None:
        for outbox in full:
            if self._conflated:
                outbox.conflate(self, self._items)
            else:
                outbox.send(self._data)


class Feed:
    """A whole channel on this node: what listens on the backplane, the groups, and the subscriptions in the making."""

    def __init__(self, whole: str, topic: str, fanout: Fanout, lost: Callable[[Subscription], None]) -> None:
        """lost: ends a subscription whose client has to subscribe again, as publications are missing."""
        self.whole, self._topic, self._fanout, self._lost = whole, topic, fanout, lost
        self.lock = asyncio.Lock()
        """Held while listening begins or ends."""
        self.listening = False
        self._making: set[Subscription] = set()
        self._groups: dict[tuple[str, Selection], Group] = {}
        self._general: dict[Group, None] = {}
        self._by_entity: dict[str, dict[Group, None]] = {}

    @property
    def empty(self) -> bool:
        return not self._making and not self._groups

    def publish(self, _: str, publication: Publication) -> None:
        """The backplane's listener."""
        if publication.gap:
            self._miss()
            return
        self._fanout.figures.publications += 1
        for subscription in self._making:
            subscription.keep(publication)
        for group in self._general:
            group.put(publication)
        if len(self._by_entity) > len(publication.items):
            entities: Iterator[str] = iter(publication.by_entity)
        else:
            entities = iter(self._by_entity)
        for entity in entities:
            for group in self._by_entity.get(entity, ()):
                group.put(publication)

    def _miss(self) -> None:
        for subscription in self._making:
            subscription.overflowed = True  # what is missing is read again, or cannot be
        for group in list(self._groups.values()):
            for client in list(group.members.values()):
                self._lost(client.subscriptions[group.name])

    def make(self, subscription: Subscription) -> None:
        self._making.add(subscription)

    def go_live(self, subscription: Subscription, offset: int) -> None:
        """Writes what was held and is above `offset`, then publications as they come. Not after an overflow."""
        self._making.discard(subscription)
        key = subscription.name, subscription.selection
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(subscription.name, self._topic, subscription.selection, self._fanout)
            self._place(group)[group] = None
        group.join(subscription.client.outbox, subscription.client)
        subscription.push([publication for publication in subscription.held if publication.offset > offset])
        subscription.held.clear()

    def end(self, subscription: Subscription) -> None:
        self._making.discard(subscription)
        key = subscription.name, subscription.selection
        group = self._groups.get(key)
        if group is not None:
            group.leave(subscription.client.outbox)
            if not group.members:
                del self._groups[key]
                place = self._place(group)
                del place[group]
                if not place and group.selection.only is not None:
                    del self._by_entity[group.selection.only]

    def present(self, name: str) -> Iterator[Client]:
        """The clients subscribed to a channel of this name."""
        for group in self._groups.values():
            if group.name == name:
                yield from group.members.values()

    def _place(self, group: Group) -> dict[Group, None]:
        entity = group.selection.only
        return self._general if entity is None else self._by_entity.setdefault(entity, {})
