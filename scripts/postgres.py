"""Runs a real PostgreSQL on this machine for tests and trials: loopback only, from the system's packages.

    python -m scripts.postgres --data DIR      runs until Ctrl-C and prints the URL of each role; DIR keeps the data

PostgreSQL does not run as root: started by root it changes to the user `postgres`, who then has to reach the folder.
Standard library only.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.server import Server, ServerError, run_until_stopped

DATABASE = "cmis"
OWNER, APP, RELAY = "cmis_owner", "cmis_app", "cmis_relay"

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


class PostgresError(ServerError):
    """One sentence for whoever wanted to run it."""


class Postgres(Server):
    """A server on a folder: `with Postgres(folder) as postgres: postgres.url(APP)`. settings: lines of postgresql.conf.

    kill ends the server with -9; its children notice and end.
    """

    name, error = "PostgreSQL", PostgresError
    stop_signal = signal.SIGINT  # a fast shutdown: clients are cut off, nothing is lost

    def __init__(self, data: Path, *, port: int = 0, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(data, port, {**_SETTINGS, **(settings or {})})

    def url(self, role: str, database: str = DATABASE) -> str:
        """For the setting `store`. role: OWNER (migrations), APP, RELAY, or "postgres", who may do everything."""
        return f"postgresql://{role}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """As every server; the first time it makes the database and its roles."""
        new = not self._cluster.exists()
        super().start()
        if new:
            self.execute(_ROLES, database="postgres")

    def execute(self, sql: str, *, role: str = "postgres", database: str = DATABASE) -> str:
        """What psql prints for these statements, each in a transaction of its own."""
        arguments = [str(_binaries() / "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", self.url(role, database)]
        done = subprocess.run(arguments, input=sql, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PostgresError(done.stderr.strip())
        return done.stdout

    def _ran(self, arguments: Sequence[str], user: pwd.struct_passwd | None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(arguments, cwd=self.data, capture_output=True, text=True, check=False, **_as(user))

    @property
    def _cluster(self) -> Path:
        return self.data / "cluster"

    def _command(self) -> Sequence[str]:
        binaries, user = _binaries(), _user()
        if user is not None:
            os.chown(self.data, user.pw_uid, user.pw_gid)
        if not self._cluster.exists():
            done = self._ran([str(binaries / "initdb"), f"--pgdata={self._cluster}", *_INITDB], user)
            if done.returncode:
                said = (done.stderr or done.stdout).strip().splitlines()
                raise PostgresError(f"initdb failed on {self._cluster}: {said[-1] if said else 'it said nothing'}")
        settings = {**self._settings, "port": str(self.port)}
        given = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(binaries / "postgres"), "-D", str(self._cluster), *given]

    def _process_options(self) -> Mapping[str, Any]:
        return _as(_user())

    def _serves(self) -> bool:
        ready = [str(_binaries() / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return not subprocess.run(ready, check=False).returncode


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


if __name__ == "__main__":
    run_until_stopped(
        lambda data, port: Postgres(data, port=port),
        lambda postgres: "\n".join(postgres.url(role) for role in (OWNER, APP, RELAY)),
    )
