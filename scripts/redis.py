"""Runs a real redis-server on this machine for tests and trials: loopback only, from whatever the system has installed.

    python scripts/redis.py --data DIR      runs until Ctrl-C and prints the URL; DIR keeps the data for the next time

Standard library only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

READY_S = 30
"""A busy machine may take long; alone it is ready within 0.1 s."""


class RedisError(Exception):
    """One sentence for whoever wanted to run it."""


class Redis:
    """A server on a folder: `with Redis(folder) as redis: redis.url`. It keeps its port over restarts.

    appendonly: keep everything over kills and restarts; else only what a SAVE has put into the folder is there again.
    settings: directives of redis.conf that replace or add to the usual ones.
    """

    def __init__(self, data: Path, *, port: int = 0, appendonly: bool = False, settings: Mapping[str, str] | None = None) -> None:
        self.data = data.absolute()
        self.port = port or free_port()
        self.appendonly = appendonly
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For our `backplane` setting."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def output(self) -> Path:
        """What the server says."""
        return self.data / "redis.log"

    @property
    def snapshot(self) -> Path:
        """What SAVE writes, and what is loaded at the start without `appendonly`."""
        return self.data / "dump.rdb"

    @property
    def pid(self) -> int:
        return self._running().pid

    def __enter__(self) -> Redis:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when it serves clients; raises RedisError with its last words when it does not."""
        if self._process is not None:
            raise RedisError("the server is running already")
        program = shutil.which("redis-server")
        if program is None:
            raise RedisError("redis-server is needed to run Redis; on Debian: apt-get install redis-server")
        self.data.mkdir(parents=True, exist_ok=True)
        settings = {
            "bind": "127.0.0.1", "port": str(self.port), "dir": str(self.data), "save": "", "daemonize": "no",
            "appendonly": "yes" if self.appendonly else "no", "appendfsync": "everysec", "loglevel": "notice", **self._settings,
        }  # fmt: skip
        arguments = [word for name, value in settings.items() for word in (f"--{name}", value)]
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                [program, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._wait_until_ready(self._process)

    def stop(self) -> None:
        """Ends it as an operator would (SIGTERM)."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stops it and starts it again on the same folder and port."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nobody answers."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._running().send_signal(signal.SIGCONT)

    def command(self, *words: str) -> bytes:
        """One command on a connection of its own; the first bytes of the answer, as they came. RedisError when it is an error."""
        request = f"*{len(words)}\r\n" + "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(request.encode())
            answer = connection.recv(65_536)
        if answer.startswith(b"-"):
            raise RedisError(f"{words[0]}: {answer[1:].decode(errors='replace').strip()}")
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RedisError("the server is not running")
        return self._process

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        give_up_at = time.monotonic() + READY_S
        while not self._serves():
            ended = process.poll() is not None
            if ended or time.monotonic() > give_up_at:
                self.kill()
                why = f"ended with {process.returncode}" if ended else f"did not answer within {READY_S} s"
                last = self.output.read_text(errors="replace").strip().splitlines()[-5:]
                raise RedisError(f"Redis {why}; {self.output} ends with: " + " | ".join(last))
            time.sleep(0.02)

    def _serves(self) -> bool:
        try:
            return self.command("PING") == b"+PONG\r\n"
        except (OSError, RedisError):  # not there yet, or loading
            return False


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
    raise RedisError("no free port found between 20000 and 32000")


def main() -> None:
    parser = argparse.ArgumentParser(description="A real redis-server on loopback, until Ctrl-C.")
    parser.add_argument("--data", type=Path, help="folder for its data; a scratch folder if not given")
    parser.add_argument("--port", type=int, default=0, help="any free one if not given")
    parser.add_argument("--appendonly", action="store_true", help="keep everything over restarts")
    given = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="redis-") as scratch:
        try:
            with Redis(given.data or Path(scratch), port=given.port, appendonly=given.appendonly) as redis:
                print(f"Redis is ready: {redis.url}; what it says: {redis.output}; Ctrl-C ends it", flush=True)
                stop.wait()
        except RedisError as error:
            sys.exit(f"redis: {error}")


if __name__ == "__main__":
    main()
