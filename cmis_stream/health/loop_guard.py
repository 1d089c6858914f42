"""The thread that ends a process whose event loop has no turn any more, or which does not come to its end when it should.

It needs nothing of the loop: not its logging (the loop may hold a handler's lock), not its memory. What it cannot see is a
loop that is blocked in C code which keeps the interpreter lock; for that, ask /healthz from outside.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from cmis_stream.health.decisions import BLOCKED_S, Blocked, Reason, RunningClock

EX_SOFTWARE = 70
STOP_WITHIN_S = 15.0
LOOK_S = 0.5
STDERR = 2


class LoopGuard:
    """From `start` to `stop`. The loop calls `turned` in each of its turns, or every second at least."""

    def __init__(
        self,
        log_file: Path | None = None,
        *,
        blocked_s: float = BLOCKED_S,
        stop_within_s: float = STOP_WITHIN_S,
        end: Callable[[Reason, int | None], None] | None = None,
    ) -> None:
        """log_file: gets the reason and the stacks, besides standard error. stop_within_s: between `must_stop` and the end."""
        # Open from the start: when it is needed there may be no file left to open.
        self._log_fd = None if log_file is None else os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._blocked_s, self._stop_within_s = blocked_s, stop_within_s
        self._end = end_process if end is None else end
        self._turns = 0
        self._must_stop: Reason | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cmis-loop-guard", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """The loop may end now. Not while the process has to: that is still watched."""
        if self._must_stop is None:
            self._ended.set()
            if self._thread.ident is not None:
                self._thread.join()
            if self._log_fd is not None:
                os.close(self._log_fd)
                self._log_fd = None

    def turned(self) -> None:
        self._turns += 1

    def must_stop(self, reason: Reason) -> None:
        """The process is sick and stops in order; if it takes too long it is ended."""
        if self._must_stop is None:
            self._must_stop = reason

    def _run(self) -> None:
        clock, blocked, stop_at = RunningClock(2 * LOOK_S), Blocked(self._blocked_s), None
        while not self._ended.wait(LOOK_S):
            ran_s = clock.advance(time.monotonic())
            if (reason := blocked.look(ran_s, self._turns)) is not None:
                self._end(reason, self._log_fd)
                return
            if self._must_stop is not None:
                stop_at = ran_s + self._stop_within_s if stop_at is None else stop_at
                if ran_s >= stop_at:
                    text = f"the process has not stopped within {self._stop_within_s:.0f} s; it had to: {self._must_stop.text}"
                    self._end(Reason("not_stopped", text), self._log_fd)
                    return


def end_process(reason: Reason, log_fd: int | None) -> None:
    """Writes the reason and the stacks of all threads to the log and to standard error, and ends the process at once."""
    at = datetime.now().isoformat(" ", "milliseconds").replace(".", ",")
    for fd in (log_fd, STDERR):
        if fd is not None:
            with contextlib.suppress(OSError, ValueError):  # a full disk must not keep a sick process alive
                os.write(fd, f"{at} CRITICAL cmis.health this process ends: {reason.text}\n".encode())
                faulthandler.dump_traceback(fd, all_threads=True)
    os._exit(EX_SOFTWARE)
