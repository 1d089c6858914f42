"""What a backplane is: the stretch between the agent `deliver` and the gateways, with a short memory per channel.

Guarantees, which the contract suite (`tests/backplane/`) holds every implementation to:

- A channel's publications reach each listener in the order of their offsets, each at most once while it listens.
- `publish` with an offset that the channel has passed is ignored, so a repeated record changes nothing.
- `reached` moves the position of every channel of a partition, also of those that never had a publication; offsets have
  holes, so only this says that a channel has nothing up to there. Whoever publishes calls `begin` before the first record of a
  partition (`reached` does when nobody has) and `reached` behind the last publication of each record.
- `publish` and `reached` take effect in the order of the calls, before they wait for anything: records may be on their way
  together. `reached` returns when gateways can have the record, or raises `Forgotten`; then none of those on their way is there.
- Of channels that are conflated (`core.channels`) publications may be merged: the newest item per key, at the last offset.
- `recover(channel, offset)` gives all publications of the channel after `offset`, without a hole up to the `position` that
  comes with them, or says that it cannot. Never a part of them. Nothing is published afterwards up to that position.
- Where a listener misses something that cannot be had any more it gets a publication without items that says so (`gap`).
- A listener that is added first and recovers then misses nothing; what it sees twice it knows by the offset.
- An offset ahead of the position (a client that knows more than a backplane which has just started) is waited for a little,
  then unrecoverable. `Unready` while nothing is known about the channel's partition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


class Item(NamedTuple):
    """One result as JSON. entity: whom it is about (`core.channels`); key: a newer item of the same key replaces it."""

    entity: str
    key: str
    json: bytes


def encoded(items: Iterable[bytes]) -> bytes:
    """The JSON of items as the data of a publication."""
    return b'{"items":[' + b",".join(items) + b"]}"


@dataclass(slots=True)
class Publication:
    """What one log record means for one channel `org:{org}:{topic}`: items, encoded once for all who receive them.

    size: about how many bytes the JSON of its items has, where that is known without making it.
    gap: publications up to this offset are missing; who needs them begins anew.
    """

    offset: int
    items: Sequence[Item]
    size: int | None = field(default=None, repr=False, compare=False)
    gap: bool = False
    _data: bytes | None = field(default=None, repr=False, compare=False)
    _by_entity: dict[str, list[Item]] | None = field(default=None, repr=False, compare=False)

    def data(self, entity: str | None = None) -> bytes:
        """`{"items": [...]}`, with `entity` only that entity's items."""
        if entity is not None:
            return encoded(item.json for item in self.by_entity.get(entity, ()))
        if self._data is None:
            self._data = encoded(item.json for item in self.items)
        return self._data

    @property
    def about_bytes(self) -> int:
        return sum(len(item.json) for item in self.items) if self.size is None else self.size

    @property
    def by_entity(self) -> Mapping[str, Sequence[Item]]:
        """The items of each entity that has some, in their order."""
        if self._by_entity is None:
            self._by_entity = {}
            for item in self.items:
                self._by_entity.setdefault(item.entity, []).append(item)
        return self._by_entity


class Position(NamedTuple):
    """Where a channel is: the offset of its results topic up to which everything has been published (-1: before the first
    record), and the log's identity."""

    offset: int
    epoch: str


class Recovered(NamedTuple):
    """`publications` None: they cannot be had any more (another epoch, or older than the log holds)."""

    position: Position
    publications: Sequence[Publication] | None


class Unready(Exception):
    """Where the channel is cannot be said yet; ask again."""


class Forgotten(Exception):
    """The backplane knows less of a partition than had been published: begin again, with the newest records of the log."""

    def __init__(self, topic: str, partition: int) -> None:
        super().__init__(f"the backplane has forgotten {topic}, partition {partition}")
        self.topic, self.partition = topic, partition


Listener = Callable[[str, Publication], None]
"""(channel, publication): called in the event loop, must not block."""


class Backplane(Protocol):
    """Channels here are `org:{org}:{topic}`; parts of them (entities) are the gateway's matter."""

    @property
    def kind(self) -> str:
        """memory or redis."""
        ...

    @property
    def connected(self) -> bool:
        """It answers, as far as is known."""
        ...

    @property
    def reconnects(self) -> int:
        """Connections made anew since it was opened."""
        ...

    async def open(self) -> None:
        """Before anything else; what it needs may be away."""
        ...

    async def close(self) -> None: ...

    async def begin(self, topic: str, partition: int, offset: int) -> int:
        """From now on everything after `offset` is published, and nothing earlier. Returns the offset that has been reached
        already: publications up to there are ignored. Listeners that had not seen all up to `offset` have a gap."""
        ...

    async def publish(self, channel: str, publication: Publication) -> None: ...

    async def reached(self, topic: str, partition: int, offset: int) -> None:
        """Everything that the results topic's partition holds up to `offset` has been published."""
        ...

    async def listen(self, channel: str, listener: Listener) -> None: ...

    async def unlisten(self, channel: str, listener: Listener) -> None: ...

    async def position(self, channel: str) -> Position: ...

    async def recover(self, channel: str, offset: int, epoch: str, limit: int) -> Recovered:
        """All publications after `offset`; more than `limit` of them count as unrecoverable."""
        ...

    async def page(self, channel: str, offset: int, epoch: str, limit: int) -> Recovered:
        """The first `limit` publications after `offset`."""
        ...

    async def newest(self, channel: str, limit: int) -> Recovered:
        """The newest publications that are at hand, at most `limit`, oldest first."""
        ...

    async def moment(self, channel: str, at_ms: int) -> int | None:
        """The offset after which everything of that time (epoch ms of the records' stamps) and later is; None: not held."""
        ...
