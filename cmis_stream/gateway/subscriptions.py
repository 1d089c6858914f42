"""How a client comes to a channel: what it missed, or a snapshot, then the live publications.

First the node listens, and what is published is held. Then the client gets its reply, with what it missed or a snapshot;
then, page by page as its socket takes them, what did not fit; then what was held. Each publication above the offset of the
reply comes exactly once, in order (docs/design/live.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cmis_stream.backplane.contract import Backplane, Publication
from cmis_stream.core.channels import CONFLATED, TOPICS, Channel, parse_channel
from cmis_stream.core.errors import CmisError, Rejected
from cmis_stream.gateway import codes, protocol
from cmis_stream.gateway.client import Client
from cmis_stream.gateway.codes import CommandError
from cmis_stream.gateway.feed import Fanout, Feed, Subscription, log_offset, wire_offset
from cmis_stream.gateway.figures import Figures
from cmis_stream.gateway.limits import Limits
from cmis_stream.gateway.ports import Grant, Snapshots
from cmis_stream.gateway.selection import Selection, parse_selection

log = logging.getLogger("cmis.gateway")

REPLY_BYTES = 256 << 10
"""Of publications in one reply or push: clients' websocket libraries take messages of up to 1 MiB."""


@dataclass(frozen=True, slots=True)
class _Start:
    """Where a subscription begins: behind `offset`, with these publications. complete: those are all up to `position`.
    recovered: the client gets everything after the offset it asked for; otherwise it gets a snapshot, in parts."""

    epoch: str
    offset: int
    position: int
    publications: Sequence[Publication] = ()
    complete: bool = True
    recovered: bool = False
    snapshot: Sequence[bytes] = ()


class Subscriptions:
    """The feeds of this node and who is subscribed to them."""

    def __init__(
        self, backplane: Backplane, snapshots: Snapshots, limits: Limits, figures: Figures, clock: Callable[[], int]
    ) -> None:
        self._backplane, self._snapshots, self._limits, self._clock = backplane, snapshots, limits, clock
        self._fanout = Fanout(limits.slice, figures)
        self._feeds: dict[str, Feed] = {}
        self._per_org: Counter[str] = Counter()
        self._quiet: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return self._per_org.total()

    # --- beginning and ending -----------------------------------------------------------------------------------------

    def register(self, client: Client, request: protocol.Subscribe) -> tuple[Subscription, int | None]:
        """The subscription, whose publications are held from now on, and `since` in epoch ms; CommandError."""
        limits = self._limits
        channel = self.allowed(client, request.channel)
        if request.type != 0:
            raise CommandError(codes.NOT_AVAILABLE, f"type: expected 0, got {request.type}")
        if request.tf:
            raise CommandError(codes.BAD_REQUEST, "tf: expected a filter in the subscribe data, publications have no tags")
        selection, since_ms = parse_selection(channel, bytes(request.data))
        if since_ms is not None and since_ms > self._clock():
            raise CommandError(codes.BAD_REQUEST, f"data.since: expected a moment in the past (epoch ms), got {since_ms}")
        if request.channel in client.subscriptions:
            raise CommandError(codes.ALREADY_SUBSCRIBED)
        if len(client.subscriptions) >= limits.subscriptions:
            raise CommandError(codes.LIMIT_EXCEEDED, f"expected at most {limits.subscriptions} subscriptions")
        if self._per_org[channel.org] >= limits.subscriptions_per_org:
            raise CommandError(codes.LIMIT_EXCEEDED, f"expected at most {limits.subscriptions_per_org} subscriptions of an org")
        feed = self._feeds.get(channel.whole)
        if feed is None:
            feed = self._feeds[channel.whole] = Feed(channel.whole, channel.topic, self._fanout, self._lost)
        subscription = Subscription(client, request.channel, channel, selection, feed, limits.held)
        feed.make(subscription)
        client.subscriptions[request.channel] = subscription
        self._per_org[channel.org] += 1
        return subscription, since_ms

    def allowed(self, client: Client, name: str) -> Channel:
        """The channel of this name, if the client may see it; CommandError, the same one for a foreign channel, for one of an
        org that does not exist and for an unknown topic."""
        if len(name) > self._limits.channel_chars:
            raise CommandError(
                codes.BAD_REQUEST, f"channel: expected at most {self._limits.channel_chars} characters, got {len(name)}"
            )
        try:
            channel = parse_channel(name)
        except Rejected as rejected:
            raise CommandError(codes.BAD_REQUEST, str(rejected)) from None
        if client.grant is None or not may_see(client.grant, channel):
            raise CommandError(codes.PERMISSION_DENIED)
        return channel

    def end(self, subscription: Subscription) -> None:
        """The client is not subscribed any more."""
        client, feed = subscription.client, subscription.feed
        if client.subscriptions.get(subscription.name) is subscription:
            del client.subscriptions[subscription.name]
            self._per_org[subscription.channel.org] -= 1
            if not self._per_org[subscription.channel.org]:
                del self._per_org[subscription.channel.org]
            feed.end(subscription)
            if feed.empty:
                task = asyncio.ensure_future(self._fall_silent(feed))
                self._quiet.add(task)
                task.add_done_callback(self._quiet.discard)

    async def _fall_silent(self, feed: Feed) -> None:
        async with feed.lock:
            if feed.empty and feed.listening:
                await self._backplane.unlisten(feed.whole, feed.publish)
                feed.listening = False
            if feed.empty and self._feeds.get(feed.whole) is feed:
                del self._feeds[feed.whole]

    async def _listen(self, feed: Feed) -> None:
        async with feed.lock:
            if not feed.listening:
                await self._backplane.listen(feed.whole, feed.publish)
                feed.listening = True

    def present(self, channel: Channel, name: str) -> dict[str, str]:
        """Client id -> subject of those subscribed under this name."""
        feed = self._feeds.get(channel.whole)
        return {client.id: client.grant.subject for client in feed.present(name) if client.grant} if feed else {}

    # --- joining ------------------------------------------------------------------------------------------------------

    async def join(self, subscription: Subscription, number: int, request: protocol.Subscribe, since_ms: int | None) -> None:
        """Replies; the subscription is live then, or a task of the client leads it there. CommandError or Unready instead."""
        client = subscription.client
        try:
            await self._listen(subscription.feed)
            start = await self._start(subscription, request, since_ms)
            if client.subscriptions.get(subscription.name) is not subscription:
                raise CommandError(codes.PERMISSION_DENIED)  # access has ended meanwhile
        except BaseException:  # also when the client goes while this waits; it is raised again
            self.end(subscription)
            raise
        in_reply = _fitting(subscription.selection, start.publications)
        told = start.complete and len(in_reply) == len(start.publications) and len(start.snapshot) <= 1
        publications = _encoded(subscription.selection, in_reply) if start.recovered else None
        # Where all is told and nothing of it concerns the client it is at the end; else its publications lead it there.
        offset = start.position if told and not publications else start.offset
        recovering = request.recover or since_ms is not None
        data = start.snapshot[0] if start.snapshot else None
        result = protocol.subscribe_result(
            start.epoch, wire_offset(offset), recovering=recovering, publications=publications, data=data
        )
        client.send(protocol.reply(number, "subscribe", result))
        subscription.replied = True
        if told and not subscription.overflowed:
            subscription.feed.go_live(subscription, start.position)
        else:
            subscription.joining = client.start(self._lead(subscription, start, len(in_reply)))

    async def _lead(self, subscription: Subscription, start: _Start, told: int) -> None:
        client = subscription.client
        try:
            for part in start.snapshot[1:]:
                push = protocol.publication_push(protocol.quoted(subscription.name), part, wire_offset(start.offset))
                client.send(push)
                await client.outbox.room()
            await self._catch_up(subscription, start, told)
        except Exception:  # whatever it is, the client must know that something may be missing: it subscribes again
            log.exception("a client could not catch up on %s", subscription.channel.whole)
            self._lost(subscription)

    def _lost(self, subscription: Subscription) -> None:
        self.end(subscription)
        push = protocol.unsubscribe_push(subscription.name, codes.INSUFFICIENT_STATE, "insufficient state")
        subscription.client.send(push)

    async def _start(self, subscription: Subscription, request: protocol.Subscribe, since_ms: int | None) -> _Start:
        whole = subscription.channel.whole
        wanted: int | None = None
        epoch = request.epoch
        if request.recover:
            wanted = log_offset(request.offset)
        elif since_ms is not None:
            wanted, epoch = await self._backplane.moment(whole, since_ms), (await self._backplane.position(whole)).epoch
        if wanted is not None:
            start = await self._recovered(subscription.channel, wanted, epoch, bounded=since_ms is None or request.recover)
            if start is not None:
                return start
        if request.recover and request.flag & protocol.REJECT_UNRECOVERED:
            raise CommandError(codes.UNRECOVERABLE_POSITION)
        position = await self._backplane.position(whole)
        parts, said = await self._snapshot(subscription)
        offset = position.offset if said is None else min(position.offset, said)
        return _Start(position.epoch, offset, position.offset, complete=offset == position.offset, snapshot=parts)

    async def _recovered(self, channel: Channel, offset: int, epoch: str, *, bounded: bool) -> _Start | None:
        """bounded: too much of a conflated topic is not worth having, a snapshot says what holds now."""
        if bounded and TOPICS[channel.topic] == CONFLATED:
            found = await self._backplane.recover(channel.whole, offset, epoch, self._limits.recovered)
            complete = True
        else:
            found = await self._backplane.page(channel.whole, offset, epoch, self._limits.page)
            complete = len(found.publications or ()) < self._limits.page
        if found.publications is None:
            return None
        return _Start(found.position.epoch, offset, found.position.offset, found.publications, complete, recovered=True)

    async def _snapshot(self, subscription: Subscription) -> tuple[Sequence[bytes], int | None]:
        """What of it is wanted, in parts that fit a message, and its offset; nothing when there is none in time."""
        channel = subscription.channel
        try:
            async with asyncio.timeout(self._limits.snapshot_s):
                snapshot = await self._snapshots.snapshot(channel)
            if snapshot is not None:
                return subscription.selection.of_snapshot(snapshot.json, REPLY_BYTES), snapshot.offset
        except TimeoutError:
            log.warning("no snapshot of %s within %g s", channel.whole, self._limits.snapshot_s)
        except CmisError as error:  # the store is away, say: what is live is worth more than an error, and the page can ask REST
            log.warning("no snapshot of %s: %s", channel.whole, error)
        except Exception:  # likewise with a mistake of ours
            log.exception("no snapshot of %s", channel.whole)
        return (), None

    async def _catch_up(self, subscription: Subscription, start: _Start, told: int) -> None:
        whole, outbox = subscription.channel.whole, subscription.client.outbox
        offset, position, complete = start.offset, start.position, start.complete
        publications = start.publications[told:]
        while True:
            for part in _parts(publications):
                subscription.push(part)
                await outbox.room()
            if complete:
                offset = position
            elif publications or start.publications:
                offset = (publications or start.publications)[-1].offset
            if complete and not subscription.overflowed:
                break
            subscription.hold()
            found = await self._backplane.page(whole, offset, start.epoch, self._limits.page)
            if found.publications is None:
                raise RuntimeError(f"the log does not hold what comes after {offset} any more")
            publications, position = found.publications, found.position.offset
            complete = len(publications) < self._limits.page
        subscription.feed.go_live(subscription, offset)

    # --- history ------------------------------------------------------------------------------------------------------

    async def history(self, channel: Channel, request: protocol.History) -> dict[str, object]:
        """The result of a history command: at most so many publications, and so many bytes, as were asked for and fit."""
        whole, since = channel.whole, request.since
        selection, _ = parse_selection(channel, b"")
        position = await self._backplane.position(whole)
        if since is not None and since.epoch not in ("", position.epoch):
            raise CommandError(codes.UNRECOVERABLE_POSITION)
        limit = self._limits.history if request.limit < 0 else min(request.limit, self._limits.history)
        found: Sequence[Publication] = ()
        if limit and since is not None and not request.reverse:
            found = await self._forward(channel, selection, log_offset(since.offset), position.epoch, limit)
        elif limit:
            found = (await self._backplane.newest(whole, self._limits.recovered)).publications or ()
            if request.reverse:
                found = [entry for entry in reversed(found) if since is None or wire_offset(entry.offset) < since.offset]
            found = [entry for entry in found if selection.chosen(entry)][:limit]
        publications = _encoded(selection, _fitting(selection, found))
        return protocol.history_result(position.epoch, wire_offset(position.offset), publications)

    async def _forward(self, channel: Channel, selection: Selection, offset: int, epoch: str, limit: int) -> list[Publication]:
        found: list[Publication] = []
        for _ in range(0, self._limits.recovered, self._limits.page):
            page = (await self._backplane.page(channel.whole, offset, epoch, self._limits.page)).publications
            if page is None:
                raise CommandError(codes.UNRECOVERABLE_POSITION)
            found += [entry for entry in page if selection.chosen(entry)]
            if len(page) < self._limits.page or len(found) >= limit:
                return found[:limit]
            offset = page[-1].offset
        if not found:
            raise CommandError(codes.LIMIT_EXCEEDED, f"nothing about it in {self._limits.recovered} publications")
        return found


def may_see(grant: Grant, channel: Channel) -> bool:
    return channel.org in grant.orgs and channel.topic in TOPICS and (grant.topics is None or channel.topic in grant.topics)


def _encoded(selection: Selection, publications: Sequence[Publication]) -> list[bytes]:
    return [
        protocol.publication(selection.data(entry), wire_offset(entry.offset))
        for entry in publications
        if selection.chosen(entry)
    ]


def _fitting(selection: Selection, publications: Sequence[Publication]) -> Sequence[Publication]:
    """The first of them, as many as one message has room for; one at least."""
    size = 0
    for number, entry in enumerate(publications):
        size += sum(len(item.json) + 1 for item in selection.chosen(entry))
        if size > REPLY_BYTES and number:
            return publications[:number]
    return publications


def _parts(publications: Sequence[Publication]) -> Iterator[Sequence[Publication]]:
    everything = Selection()
    while publications:
        part = _fitting(everything, publications)
        yield part
        publications = publications[len(part) :]
