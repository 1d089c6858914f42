"""Runs a real PostgreSQL on this machine for tests and trials: loopback only, from the system's packages.

    python scripts/postgres.py --data DIR      runs until Ctrl-C and prints the URL of each role; DIR keeps the data

PostgreSQL does not run as root: started by root it changes to the user `postgres`, who then has to reach the folder.
Standard library only.
"""

from __future__ import annotations

import argparse
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

DATABASE = "cmis"
OWNER, APP, RELAY = "cmis_owner", "cmis_app", "cmis_relay"
READY_S = 60
"""A busy machine may take long; alone it is ready within 2 s."""

# The collation of the cluster is one of a language, so that whatever relies on the order of code points has to say so.
_INITDB = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"]
_INITDB += ["--locale-provider=icu", "--icu-locale=en-US", "--no-instructions"]
_SETTINGS = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": "60", "shared_buffers": "64MB"}
_ROLES = f"""
create role {OWNER} login;
create role {APP} login;
create role {RELAY} login;
create database {DATABASE} owner {OWNER};
"""


class PostgresError(Exception):
    """One sentence for whoever wanted to run it."""


class Postgres:
    """A server on a folder: `with Postgres(folder) as postgres: postgres.url(APP)`. It keeps its port over restarts.

    settings: lines of postgresql.conf that replace or add to the usual ones.
    """

    def __init__(self, data: Path, *, port: int = 0, settings: Mapping[str, str] | None = None) -> None:
        self.data = data.absolute()
        self.port = port or free_port()
        self._settings = {**_SETTINGS, **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, role: str, database: str = DATABASE) -> str:
        """For the setting `store`. role: OWNER (migrations), APP, RELAY, or "postgres", who may do everything."""
        return f"postgresql://{role}@127.0.0.1:{self.port}/{database}"

    @property
    def output(self) -> Path:
        """What the server says."""
        return self.data / "server.log"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise PostgresError("the server is not running")
        return self._process.pid

    def __enter__(self) -> Postgres:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when it serves clients; raises PostgresError with its last words when it does not."""
        if self._process is not None:
            raise PostgresError("the server is running already")
        binaries, user = _binaries(), _user()
        self.data.mkdir(parents=True, exist_ok=True)
        if user is not None:
            os.chown(self.data, user.pw_uid, user.pw_gid)
        cluster, new = self.data / "cluster", not (self.data / "cluster" / "PG_VERSION").exists()
        if new:
            done = self._ran([str(binaries / "initdb"), f"--pgdata={cluster}", *_INITDB], user)
            if done.returncode:
                said = (done.stderr or done.stdout).strip().splitlines()
                raise PostgresError(f"initdb failed on {cluster}: {said[-1] if said else 'it said nothing'}")
        given = [part for name, value in {**self._settings, "port": str(self.port)}.items() for part in ("-c", f"{name}={value}")]
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                [str(binaries / "postgres"), "-D", str(cluster), *given],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, **_as(user),
            )  # fmt: skip
        self._wait_until_ready(self._process, binaries)
        if new:
            self.execute(_ROLES, database="postgres")

    def stop(self) -> None:
        """A fast shutdown: clients are cut off, nothing is lost; its data stays."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """kill -9 of the server; its children notice and end."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stops it and starts it again on the same data and port."""
        self.stop()
        self.start()

    def execute(self, sql: str, *, role: str = "postgres", database: str = DATABASE) -> str:
        """What psql prints for these statements, each in a transaction of its own."""
        arguments = [str(_binaries() / "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", self.url(role, database)]
        done = subprocess.run(arguments, input=sql, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PostgresError(done.stderr.strip())
        return done.stdout

    def _ran(self, arguments: Sequence[str], user: pwd.struct_passwd | None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(arguments, cwd=self.data, capture_output=True, text=True, check=False, **_as(user))

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait_until_ready(self, process: subprocess.Popen[bytes], binaries: Path) -> None:
        give_up_at = time.monotonic() + READY_S
        ready = [str(binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while subprocess.run(ready, check=False).returncode:
            ended = process.poll() is not None
            if ended or time.monotonic() > give_up_at:
                self.kill()
                why = f"ended with {process.returncode}" if ended else f"did not answer within {READY_S} s"
                last = self.output.read_text(errors="replace").strip().splitlines()[-3:]
                raise PostgresError(f"PostgreSQL {why}; {self.output} ends with: " + " | ".join(last))
            time.sleep(0.05)


def _binaries() -> Path:
    """Where initdb and postgres are: on Debian in a folder of their own per version, the newest is taken."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if not folders:
        raise PostgresError("PostgreSQL's server is needed; on Debian: apt-get install postgresql")
    return max(folders, key=lambda folder: int(folder.parent.name))


def _user() -> pwd.struct_passwd | None:
    """Whom root has to become; None: who runs this may run the server."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        raise PostgresError("PostgreSQL does not run as root, and there is no user `postgres` to become") from None


def _as(user: pwd.struct_passwd | None) -> dict[str, object]:
    return {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


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
    raise PostgresError("no free port found between 20000 and 32000")


def main() -> None:
    parser = argparse.ArgumentParser(description="A real PostgreSQL on loopback, until Ctrl-C.")
    parser.add_argument("--data", type=Path, help="folder for its data; a scratch folder if not given")
    parser.add_argument("--port", type=int, default=0, help="any free one if not given")
    given = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="postgres-") as scratch:
        try:
            with Postgres(given.data or Path(scratch), port=given.port) as postgres:
                for role in (OWNER, APP, RELAY):
                    print(postgres.url(role), flush=True)
                print(f"What it says: {postgres.output}; Ctrl-C ends it", flush=True)
                stop.wait()
        except PostgresError as error:
            sys.exit(f"postgres: {error}")


if __name__ == "__main__":
    main()
