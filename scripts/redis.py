"""Runs a real redis-server on this machine for tests and trials: loopback only, from whatever the system has installed.

    python -m scripts.redis --data DIR      runs until Ctrl-C and prints the URL; DIR keeps the data for the next time

Standard library only.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.server import Server, ServerError, run_until_stopped


class RedisError(ServerError):
    """One sentence for whoever wanted to run it."""


class Redis(Server):
    """A server on a folder: `with Redis(folder) as redis: redis.url`.

    appendonly: keep everything over kills and restarts; else only what a SAVE has put into the folder is there again.
    settings: directives of redis.conf.
    """

    name, error = "Redis", RedisError

    def __init__(self, data: Path, *, port: int = 0, appendonly: bool = False, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(data, port, settings)
        self.appendonly = appendonly

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

    def command(self, *words: str) -> bytes:
        """One command on a connection of its own; the first bytes of the answer, as they came. RedisError when it is an error."""
        request = f"*{len(words)}\r\n" + "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(request.encode())
            answer = connection.recv(65_536)
        if answer.startswith(b"-"):
            raise RedisError(f"{words[0]}: {answer[1:].decode(errors='replace').strip()}")
        return answer

    def _command(self) -> Sequence[str]:
        program = shutil.which("redis-server")
        if program is None:
            raise RedisError("redis-server is needed to run Redis; on Debian: apt-get install redis-server")
        settings = {
            "bind": "127.0.0.1", "port": str(self.port), "dir": str(self.data), "save": "", "daemonize": "no",
            "appendonly": "yes" if self.appendonly else "no", "appendfsync": "everysec", "loglevel": "notice", **self._settings,
        }  # fmt: skip
        return [program, *(word for name, value in settings.items() for word in (f"--{name}", value))]

    def _serves(self) -> bool:
        try:
            return self.command("PING") == b"+PONG\r\n"
        except (OSError, RedisError):  # not there yet, or loading
            return False


if __name__ == "__main__":
    run_until_stopped(lambda data, port: Redis(data, port=port), lambda redis: f"Redis is ready: {redis.url}")
