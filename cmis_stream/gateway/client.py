"""One connection: its protocol session, its outbox, who it is, what it is subscribed to, and the commands under way."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from cmis_stream.gateway.codes import CommandError
from cmis_stream.gateway.feed import Subscription
from cmis_stream.gateway.figures import Figures
from cmis_stream.gateway.frames import text_frame
from cmis_stream.gateway.limits import Limits
from cmis_stream.gateway.outbox import Outbox
from cmis_stream.gateway.ports import Grant
from cmis_stream.gateway.protocol import Session, error_reply


class Socket(Protocol):
    """The connection below. write: whole websocket frames, not waiting; the socket calls the client's outbox's `pause` when
    it has not taken everything and `resume` when it has."""

    def write(self, frames: bytes) -> None: ...

    def close(self, code: int, reason: str) -> None:
        """Begins to close; nothing is written afterwards. The owner of the socket calls `Hub.closed` at its end."""
        ...


class Client:
    """grant: None until the connect command has succeeded. gone: it is closing or closed, nothing is done for it any more."""

    def __init__(
        self, socket: Socket, limits: Limits, figures: Figures, now: float, too_slow: Callable[[Client, str], None]
    ) -> None:
        self.id = str(uuid.uuid4())
        self.socket = socket
        self.session = Session(limits, now)
        self.outbox = Outbox(socket.write, limits, figures, partial(too_slow, self))
        self.grant: Grant | None = None
        self.subscriptions: dict[str, Subscription] = {}
        self.gone = False
        self._figures = figures
        self._tasks: set[asyncio.Task[None]] = set()
        self._working: set[asyncio.Task[None]] = set()
        self._most_working = limits.working

    def send(self, payload: bytes) -> None:
        self.outbox.send(text_frame(payload))

    def answer_error(self, number: int, error: CommandError) -> None:
        self._figures.errors[error.code] += 1
        if number:
            self.send(error_reply(number, error))

    async def work(self, command: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Starts on a command that takes its time; waits while too many are under way, so that no more frames are read."""
        while len(self._working) >= self._most_working:
            await asyncio.wait(self._working, return_when=asyncio.FIRST_COMPLETED)
        task = self.start(command)
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        return task

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that ends with the connection."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def cancel_tasks(self) -> None:
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
