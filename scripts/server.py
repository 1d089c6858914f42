"""A server process on a folder, for tests and trials: loopback only, ready when it answers, killed, paused and started again.

`scripts.kafka`, `scripts.redis` and `scripts.postgres` say which. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

STOP_S = 30
LAST_WORDS = 5


class ServerError(Exception):
    """One sentence for whoever wanted to run it."""


class Server:
    """`with SomeServer(folder) as server`: runs from entry to exit. It keeps its port and its data over restarts."""

    name: ClassVar[str]
    error: ClassVar[type[ServerError]]
    ready_s: ClassVar[float] = 60
    """A busy machine may take long."""
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    """By which an operator would end it."""

    def __init__(self, data: Path, port: int = 0, settings: Mapping[str, str] | None = None) -> None:
        """settings: of the server's configuration, replacing or adding to the usual ones."""
        self.data = data.absolute()
        self.port = port or free_port()
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def output(self) -> Path:
        """What the server says."""
        return self.data / "server.log"

    def _command(self) -> Sequence[str]:
        """What starts it; makes what has to be there before. Raises `error`."""
        raise NotImplementedError

    def _process_options(self) -> Mapping[str, Any]:
        return {}

    def _serves(self) -> bool:
        """Whether it answers."""
        raise NotImplementedError

    # --- its life -----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self._running().pid

    def start(self) -> None:
        """Returns when it serves clients; raises `error` with its last words when it does not."""
        if self._process is not None:
            raise self.error(f"{self.name} is running already")
        self.data.mkdir(parents=True, exist_ok=True)
        command = self._command()
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                **self._process_options(),
            )  # fmt: skip
        self._wait_until_ready(self._process)

    def stop(self) -> None:
        """Ends it as an operator would; its data stays."""
        self._end(self.stop_signal)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stops it and starts it again on the same data and port."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nobody answers."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._running().send_signal(signal.SIGCONT)

    def memory_mb(self) -> int:
        """Resident memory (Linux)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) // 1024

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise self.error(f"{self.name} is not running")
        return self._process

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(how)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        give_up_at = time.monotonic() + self.ready_s
        while not self._serves():
            ended = process.poll() is not None
            if ended or time.monotonic() > give_up_at:
                self.kill()
                why = f"ended with {process.returncode}" if ended else f"did not answer within {self.ready_s:g} s"
                last = self.output.read_text(errors="replace").strip().splitlines()[-LAST_WORDS:]
                raise self.error(f"{self.name} {why}; {self.output} ends with: " + " | ".join(last))
            time.sleep(0.03)


S = TypeVar("S", bound=Server)


def run_until_stopped(make: Callable[[Path, int], S], tell: Callable[[S], str]) -> None:
    """The command line of such a script: runs until Ctrl-C. tell: what to print when it is ready."""
    parser = argparse.ArgumentParser(description="A real server on loopback, until Ctrl-C.")
    parser.add_argument("--data", type=Path, help="folder for its data; a scratch folder if not given")
    parser.add_argument("--port", type=int, default=0, help="any free one if not given")
    given = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="cmis-server-") as scratch:
        try:
            with make(given.data or Path(scratch), given.port) as server:
                print(f"{tell(server)}\n  {server.memory_mb()} MB; what it says: {server.output}; Ctrl-C ends it", flush=True)
                stop.wait()
        except ServerError as error:
            sys.exit(str(error))


def free_port() -> int:
    """A port that nobody listens on, below those that the system gives to clients (a restart must find it free)."""
    for _ in range(200):
        port = 20_000 + int.from_bytes(os.urandom(2), "big") % 12_000
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServerError("no free port found between 20000 and 32000")
