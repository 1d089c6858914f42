"""What goes to one client: written at once while its socket takes it, otherwise kept in two queues.

lossless: frames in order, bounded by bytes; beyond that the client is too slow and is closed.
conflated: per group the newest item of each key with its offset, bounded by the number of items.

When the socket has room again the lossless queue goes first (so a subscribe reply precedes its channel's items), then the
conflated items of each group in the order of their offsets: a frame's offset is never above that of an item still waiting,
so a client that is cut off in between recovers the rest.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Protocol

from cmis_stream.gateway.figures import Figures
from cmis_stream.gateway.limits import Limits

WRITE_BYTES = 64 << 10
"""About so much is handed to a socket before looking whether it is full."""

Pending = Mapping[str, tuple[int, bytes]]
"""Item key -> (offset, JSON)."""


class Framing(Protocol):
    def frame(self, items: list[bytes], offset: int) -> bytes:
        """A publication of these items."""
        ...


def _nowhere(_: bytes) -> None:
    """Where frames go after the end."""


class Outbox:
    """full: the socket has not taken everything; its owner calls `pause` and `resume`. Queues are empty while it is not.

    write: takes whole frames, may call `pause` before it returns.
    """

    __slots__ = (
        "_conflated", "_figures", "_limits", "_lossless", "_room", "_too_slow", "conflated_items", "full", "lossless_bytes",
        "write",
    )  # fmt: skip

    def __init__(self, write: Callable[[bytes], None], limits: Limits, figures: Figures, too_slow: Callable[[str], None]) -> None:
        """too_slow: called with the reason in the next turn of the event loop after a queue has gone beyond its bound."""
        self.write = write
        self.full = False
        self.lossless_bytes = self.conflated_items = 0
        self._lossless: deque[bytes] = deque()
        self._conflated: dict[Framing, dict[str, tuple[int, bytes]]] = {}
        self._limits, self._figures, self._too_slow = limits, figures, too_slow
        self._room: asyncio.Future[None] | None = None

    def send(self, frames: bytes) -> None:
        if not self.full:
            self._figures.bytes += len(frames)
            self.write(frames)
            return
        self._lossless.append(frames)
        self.lossless_bytes += len(frames)
        if self.lossless_bytes > self._limits.lossless_bytes:
            self._give_up(f"expected at most {self._limits.lossless_bytes} bytes waiting, got {self.lossless_bytes}")

    def conflate(self, group: Framing, items: Pending) -> None:
        """For a full socket: keeps the items, in the place of those of the same keys."""
        waiting = self._conflated.setdefault(group, {})
        replaced = waiting.keys() & items.keys()
        for key in replaced:  # so that the order of entries is that of their offsets
            del waiting[key]
        waiting.update(items)
        added = len(items) - len(replaced)
        self._figures.conflated_drops += len(replaced)
        self.conflated_items += added
        if self.conflated_items > self._limits.conflated_items:
            self._give_up(f"expected at most {self._limits.conflated_items} items waiting, got {self.conflated_items}")

    def forget(self, group: Framing) -> None:
        """The client has left the group."""
        self.conflated_items -= len(self._conflated.pop(group, ()))

    def pause(self) -> None:
        """The socket has not taken everything."""
        self.full = self.write is not _nowhere

    def resume(self) -> None:
        """The socket has room again."""
        self.full = False
        while self._lossless and not self.full:
            self._put(self._next_lossless())
        while self._conflated and not self.full:
            self._put(self._next_conflated())
        if self._room is not None and not self.full:
            self._room.set_result(None)
            self._room = None

    async def room(self) -> None:
        """Returns when nothing waits; does not return after `stop`, the waiting task is to be cancelled."""
        while self.full:
            if self._room is None:
                self._room = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._room)

    def stop(self) -> None:
        """Nothing is written any more."""
        self.write, self.full = _nowhere, False
        self._lossless.clear()
        self._conflated.clear()
        self.lossless_bytes = self.conflated_items = 0

    def _give_up(self, reason: str) -> None:
        self.stop()
        asyncio.get_running_loop().call_soon(self._too_slow, reason)  # later: the fan-out that is under way goes on

    def _put(self, frames: bytes) -> None:
        self._figures.bytes += len(frames)
        self.write(frames)

    def _next_lossless(self) -> bytes:
        taken, size = [], 0
        while self._lossless and size < WRITE_BYTES:
            taken.append(self._lossless.popleft())
            size += len(taken[-1])
        self.lossless_bytes -= size
        return b"".join(taken)

    def _next_conflated(self) -> bytes:
        """A frame of one group's oldest items; those of one offset stay together."""
        group, waiting = next(iter(self._conflated.items()))
        taken: list[bytes] = []
        size, last = 0, -1
        for offset, json in waiting.values():
            if size >= WRITE_BYTES and offset != last:
                break
            taken.append(json)
            size, last = size + len(json), offset
        for key in list(islice(waiting, len(taken))):
            del waiting[key]
        self.conflated_items -= len(taken)
        if not waiting:
            del self._conflated[group]
        return group.frame(taken, last)
