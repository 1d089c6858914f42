"""What a backplane is: the stretch between the agent `deliver` and the gateways, with a short memory per channel.

Guarantees, which the contract suite (`tests/backplane/`) holds every implementation to:

- A channel's publications reach each listener in the order of their offsets, each at most once while it listens.
- `publish` with an offset that the channel has passed is ignored, so a repeated record changes nothing.
- `recover(channel, offset)` gives all publications of the channel after `offset`, without a hole up to the `position` that
  comes with them, or says that it cannot. Never a part of them.
- A listener that is added first and recovers then misses nothing; what it sees twice it knows by the offset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


class Item(NamedTuple):
    """One result as JSON. entity: whom it is about (`core.channels`); key: a newer item of the same key replaces it."""

    entity: str
    key: str
    json: bytes


@dataclass(slots=True)
class Publication:
    """What one log record means for one channel `org:{org}:{topic}`: items, encoded once for all who receive them."""

    offset: int
    items: Sequence[Item]
    _encoded: dict[str | None, bytes] = field(default_factory=dict, repr=False, compare=False)

    def data(self, entity: str | None = None) -> bytes:
        """`{"items": [...]}`, with `entity` only that entity's items."""
        encoded = self._encoded.get(entity)
        if encoded is None:
            chosen = [item.json for item in self.items if entity is None or item.entity == entity]
            encoded = self._encoded[entity] = b'{"items":[' + b",".join(chosen) + b"]}"
        return encoded

    def concerns(self, entity: str | None) -> bool:
        return entity is None or any(item.entity == entity for item in self.items)


class Position(NamedTuple):
    """Where a channel is: the offset of its results topic up to which everything has been published, and the log's identity."""

    offset: int
    epoch: str


class Recovered(NamedTuple):
    """`publications` None: they cannot be had any more (another epoch, or older than the log holds)."""

    position: Position
    publications: Sequence[Publication] | None


Listener = Callable[[str, Publication], None]
"""(channel, publication): called in the event loop, must not block."""


class Backplane(Protocol):
    """Channels here are `org:{org}:{topic}`; parts of them (entities) are the gateway's matter."""

    async def publish(self, channel: str, publication: Publication) -> None: ...

    async def listen(self, channel: str, listener: Listener) -> None: ...

    async def unlisten(self, channel: str, listener: Listener) -> None: ...

    async def position(self, channel: str) -> Position: ...

    async def recover(self, channel: str, offset: int, epoch: str, limit: int) -> Recovered:
        """Publications after `offset`; more than `limit` of them count as unrecoverable."""
        ...

    async def newest(self, channel: str, limit: int) -> Recovered:
        """The newest publications that are at hand, at most `limit`, oldest first."""
        ...
