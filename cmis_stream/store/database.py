"""The database behind the store: engines, transactions in an org, and what differs between SQLite and PostgreSQL.

No other file knows that there are two. Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

import psycopg
from sqlalchemy import (
    URL,
    Column,
    ColumnElement,
    Connection,
    CursorResult,
    Engine,
    Executable,
    Table,
    create_engine,
    event,
    exc,
    func,
    make_url,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite

from cmis_stream.core.errors import CmisError, ConfigError

from .migrations import HEAD, revision, upgrade
from .turns import Turns, file_lock

LOCK_S: Final = 5
"""How long a writer waits for another one of its org."""
IDLE_S: Final = 30
"""PostgreSQL ends a transaction that says nothing for so long: whoever froze in it holds its org's lock."""
_REACH: Final[dict[str, Any]] = {
    "connect_timeout": LOCK_S, "keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 2, "tcp_user_timeout": 15_000,
}  # fmt: skip
"""Seconds, of tcp_user_timeout milliseconds: a PostgreSQL whose machine has gone without a word is away after a quarter of a
minute. Else whoever has asked it would wait for as long as the kernel does, a quarter of an hour."""
CHANNEL: Final = "cmis_changes"
_RELAY_LOCK: Final = 0x636D6973  # "cmis"
_POSTGRESQL_TROUBLE = (
    psycopg.OperationalError,
    psycopg.errors.ReadOnlySqlTransaction,
    psycopg.errors.IdleInTransactionSessionTimeout,
)
_SQLITE_TROUBLE = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN")
_log = logging.getLogger(__name__)


class Unavailable(CmisError):
    """The database cannot be reached or cannot write now. Nothing half-written; whether it was written at all is not known
    when it went away during the commit: the same idempotency key finds out."""


class Busy(Unavailable):
    """Another writer of the org, or all connections, took longer than LOCK_S."""


class TooSlow(CmisError):
    """A statement took longer than it was allowed to."""


class Transaction:
    """Statements of one transaction. org: the one it is in; None where it is in none (what a role may see without one)."""

    def __init__(self, connection: Connection, org: str | None) -> None:
        self.connection = connection
        self._org = org
        self._postgres = connection.dialect.name == "postgresql"
        self.after_commit: list[Callable[[], None]] = []
        """Called, in this order, once it is committed."""
        self.left_work = False
        """It has put effects or jobs there that somebody has to carry out."""

    @property
    def org(self) -> str:
        if self._org is None:
            raise ValueError("this transaction is in no org")
        return self._org

    def own(self, table: Table) -> ColumnElement[bool]:
        """The condition that stands in every statement: rows of this org. (On PostgreSQL its policies say so, too.)"""
        return table.c.org_id == self.org

    def enter(self, org: str) -> None:
        """From here on the transaction is in this org: for those who write in several."""
        if not org:
            raise ValueError("an org has a name")
        if self._postgres:
            self.connection.execute(_IN_ORG, {"org": org})
        self._org = org

    def rows(self, statement: Executable) -> Sequence[Any]:
        return self.connection.execute(statement).all()

    def run(
        self, statement: Executable, values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> CursorResult[Any]:
        return self.connection.execute(statement, values)

    def lock_head(self, table: Table) -> tuple[int, str]:
        """(seq, hash) of the org's last change. Until the end of this transaction nobody else writes in the org."""
        made = self._insert(table).values(org_id=self.org, seq=0, hash="")
        kept = made.on_conflict_do_update(index_elements=["org_id"], set_={"seq": table.c.seq}).returning(
            table.c.seq, table.c.hash
        )
        ((seq, digest),) = self.connection.execute(kept).all()
        return seq, digest

    def lock_org(self, table: Table) -> None:
        """As `lock_head`, for those who write no changes. SQLite has one writer at a time anyway."""
        if self._postgres:
            self.lock_head(table)

    def put(self, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of the same columns, of this org; they take the place of those with the same key."""
        if rows:
            self.connection.execute(_putting(self._insert, table, tuple(rows[0])), rows)

    def insert_new(self, table: Table, values: Mapping[str, Any]) -> bool:
        """False when there is a row with the same key."""
        made = self._insert(table).on_conflict_do_nothing().returning(*table.primary_key)
        return self.connection.execute(made, values).first() is not None

    def insert_or_raise(self, table: Table, key: Mapping[str, Any], name: str, value: int) -> None:
        """Sets a number that never goes down."""
        made = self._insert(table).values({**key, name: value})
        higher = table.c[name] < made.excluded[name]
        self.connection.execute(
            made.on_conflict_do_update(index_elements=list(key), set_={name: made.excluded[name]}, where=higher)
        )

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """What reads in the block may take so long: TooSlow from a statement that takes longer. The transaction ends with it."""
        if self._postgres:
            self.connection.execute(_LIMIT, {"limit": f"{max(1, round(seconds * 1000))}ms"})
            yield
            return
        over_s = time.monotonic() + seconds
        driver: Any = self.connection.connection.driver_connection
        driver.set_progress_handler(lambda: time.monotonic() > over_s, _STEPS_BETWEEN_LOOKS)
        try:
            yield
        finally:
            driver.set_progress_handler(None, 0)

    def contains(self, column: Column[Any], part: str) -> ColumnElement[bool]:
        """Letters from A to Z are the same in both cases."""
        found = func.strpos if self._postgres else func.instr
        return found(func.lower(column), _lower(part)) > 0

    def has_member(self, column: Column[Any], part: str) -> ColumnElement[bool]:
        return (func.strpos if self._postgres else func.instr)(column, part) > 0

    def notify(self) -> None:
        """At the commit, whoever follows changes is woken."""
        if self._postgres:
            self.connection.execute(text(f"notify {CHANNEL}"))

    @property
    def _insert(self) -> Callable[[Table], postgresql.Insert | sqlite.Insert]:
        return postgresql.insert if self._postgres else sqlite.insert


@lru_cache(maxsize=64)
def _putting(
    insert: Callable[[Table], postgresql.Insert | sqlite.Insert], table: Table, names: tuple[str, ...]
) -> postgresql.Insert | sqlite.Insert:
    """Kept, since making it takes longer than carrying it out."""
    made, key = insert(table), [column.name for column in table.primary_key]
    return made.on_conflict_do_update(index_elements=key, set_={name: made.excluded[name] for name in names if name not in key})


class Database:
    """url: sqlite:///PATH, brought to the newest tables when it is opened, or postgresql://ROLE@HOST/NAME, whose owner has to
    run `cmis db upgrade`. Safe for threads. Raises ConfigError when the tables are not those of this version."""

    def __init__(self, url: str, *, connections: int = 10) -> None:
        self._url = driver_url(url)
        self._postgres = self._url.get_backend_name() == "postgresql"
        if not self._postgres:
            _make_private(str(self._url.database))
        self._engine = _engine(self._url, connections)
        self._writer = None if self._postgres else Turns()
        self.changed = threading.Event()
        """Set after each commit of a writer in this process; cleared by the one who relays (`Watch`)."""
        self.on_commit: list[Callable[[Transaction], None]] = []
        """Called after each commit of a writer in this process, in its thread: what takes long there holds it up."""
        self.oversees: bool | None = None
        """On PostgreSQL: whether it is connected as cmis_relay, who sees what is due in all orgs, and not as cmis_app."""
        try:
            self._check_tables()
            if self._postgres:
                self.oversees = self._checked_role()
        except BaseException:  # whatever it was, connections must not stay open; it is raised again
            self.close()
            raise

    @property
    def shown_url(self) -> str:
        return shown_url(self._url)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def transaction(self, org: str | None, *, writes: bool = False) -> Iterator[Transaction]:
        """Committed at the end of the block, rolled back when it raises. Unavailable or Busy, when it is the database's fault."""
        if org == "":
            raise ValueError("an org has a name")
        if self._writer is not None and writes and not self._writer.acquire(timeout=LOCK_S):
            raise Busy(f"another transaction took longer than {LOCK_S} s")
        try:
            with self._engine.connect() as raw:
                connection = raw.execution_options(writes=writes)
                with connection.begin():
                    if self._postgres:
                        connection.execute(_ENTER, {"org": org or "", "wait": f"{LOCK_S}s", "idle": f"{IDLE_S}s"})
                    tx = Transaction(connection, org)
                    yield tx
        except (exc.DBAPIError, exc.TimeoutError) as error:
            raise _understood(error) from error
        finally:
            if self._writer is not None and writes:
                self._writer.release()
        for call in tx.after_commit:
            call()
        if writes:
            self.changed.set()
            for listener in self.on_commit:
                listener(tx)

    @contextmanager
    def following(self) -> Iterator[Watch | None]:
        """The right to relay, which one process at a time has: None when another one has it. It ends with the block, the
        process, or the connection."""
        if not self._postgres:
            with file_lock(f"{self._url.database}.relay") as had:
                yield Watch(self.changed, None) if had else None
            return
        try:
            url = self._url.set(drivername="postgresql").render_as_string(False)
            connection = psycopg.connect(url, autocommit=True, **_REACH)
        except psycopg.OperationalError as error:
            raise Unavailable(f"the database cannot be reached: {_first_line(error)}") from error
        with connection:
            try:
                had = connection.execute("select pg_try_advisory_lock(%s)", (_RELAY_LOCK,)).fetchone() == (True,)
                if had:
                    connection.execute(f"listen {CHANNEL}")
                yield Watch(self.changed, connection) if had else None
            except psycopg.OperationalError as error:
                raise Unavailable(f"the connection of the relay broke: {_first_line(error)}") from error

    def _check_tables(self) -> None:
        try:
            with self._engine.connect() as connection:
                found = revision(connection)
        except exc.DBAPIError as error:
            raise _understood(error) from error
        if found == HEAD:
            return
        if self._postgres:
            raise ConfigError(
                f"the database is at revision {found or 'none'}, this version needs {HEAD}: run `cmis db upgrade` as its owner"
            )
        upgrade(self._url)

    def _checked_role(self) -> bool:
        """Whether it is cmis_relay. ConfigError for a role that row security does not hold for, or that has other rights."""
        try:
            with self._engine.connect() as connection:
                role, exempt, app, relay = connection.execute(_ROLE).one()
        except exc.DBAPIError as error:
            raise _understood(error) from error
        if exempt or app == relay:
            why = "may see what belongs to any org" if exempt else "has not the rights of exactly one of them"
            raise ConfigError(f"store: expected the role cmis_app, or cmis_relay for --store-relay, got {role}, which {why}")
        return bool(relay)


class Watch:
    """Waits for changes to follow."""

    def __init__(self, changed: threading.Event, connection: psycopg.Connection[Any] | None) -> None:
        self._changed, self._connection = changed, connection

    def wait(self, seconds: float) -> None:
        """Returns at a commit or when the time is over; Unavailable when the right to relay is lost."""
        if self._connection is None:
            self._changed.wait(seconds)
            self._changed.clear()
            return
        try:
            for _ in self._connection.notifies(timeout=seconds, stop_after=1):
                pass
        except psycopg.OperationalError as error:
            raise Unavailable(f"the connection of the relay broke: {_first_line(error)}") from error


_IN_ORG = text("select set_config('cmis.org', :org, true)")
_ROLE = text(
    "select rolname, rolsuper or rolbypassrls, pg_has_role(oid, 'cmis_app', 'usage'), pg_has_role(oid, 'cmis_relay', 'usage')"
    " from pg_roles where rolname = current_user"
)
_LIMIT = text("select set_config('statement_timeout', :limit, true)")
_STEPS_BETWEEN_LOOKS = 1_000
"""Of SQLite's machine, a tenth of a millisecond."""
_ENTER = text(
    "select set_config('cmis.org', :org, true), set_config('lock_timeout', :wait, true),"
    " set_config('idle_in_transaction_session_timeout', :idle, true)"
)


def upgraded(url: str) -> str | None:
    """Brings the tables to this version; answers the revision they were at. ConfigError or Unavailable when it cannot be."""
    try:
        return upgrade(driver_url(url))
    except exc.DBAPIError as error:
        if isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
            raise ConfigError(f"tables are made by the owner of the database, cmis_owner: {_first_line(error.orig)}") from error
        raise _understood(error) from error


def driver_url(url: str | URL) -> URL:
    """With the drivers that are used here; ConfigError for other databases."""
    try:
        made = make_url(url)
    except (exc.ArgumentError, ValueError):  # its password may stand anywhere in it
        raise ConfigError("store: expected sqlite:///PATH or postgresql://…, got something else") from None
    if made.get_backend_name() not in ("sqlite", "postgresql") or made.database in (None, "", ":memory:"):
        raise ConfigError(f"store: expected sqlite:///PATH or postgresql://…, got {made.render_as_string()!r}")
    return made if made.get_backend_name() == "sqlite" else made.set(drivername="postgresql+psycopg")


def shown_url(url: URL) -> str:
    """Which database it is and as whom, for people: without the password, and without parameters, which may hold one."""
    return url.set(drivername=url.get_backend_name(), query={})._replace(password=None).render_as_string()


def _engine(url: URL, connections: int) -> Engine:
    if url.get_backend_name() == "postgresql":
        # A connection that died while it lay in the pool is replaced, instead of failing somebody's request.
        return create_engine(
            url, pool_size=connections, max_overflow=0, pool_timeout=LOCK_S, pool_pre_ping=True, connect_args=_REACH
        )
    engine = create_engine(url, pool_size=connections, max_overflow=0, pool_timeout=LOCK_S, connect_args={"timeout": LOCK_S})

    @event.listens_for(engine, "connect")
    def _(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # transactions begin as said below, not when the driver thinks so
        connection.execute("pragma journal_mode = wal")

    @event.listens_for(engine, "begin")
    def _(connection: Connection) -> None:
        connection.exec_driver_sql("begin immediate" if connection.get_execution_options().get("writes") else "begin")

    return engine


def _make_private(path: str) -> None:
    """Only the owner reads the file, nor its -wal and -shm, which take over its permissions: so before SQLite touches it."""
    try:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:  # not opened then: closing it would let go of all locks that this process has on it
            if os.stat(path).st_mode & 0o077:
                os.chmod(path, 0o600)
    except OSError as error:
        raise Unavailable(f"the database cannot be used: unable to open {path}: {error.strerror}") from error


def _understood(error: exc.DBAPIError | exc.TimeoutError) -> Exception:
    """What our callers can tell apart; the error itself when it is a mistake of ours."""
    if isinstance(error, exc.TimeoutError):
        return Busy(f"no connection to the database was free within {LOCK_S} s")
    cause = error.orig
    name = getattr(cause, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")) or isinstance(cause, psycopg.errors.LockNotAvailable):
        return Busy(f"another transaction took longer than {LOCK_S} s")
    if name == "SQLITE_INTERRUPT" or isinstance(cause, psycopg.errors.QueryCanceled):
        return TooSlow("a statement took longer than it may")
    ours = name.startswith(_SQLITE_TROUBLE) or isinstance(cause, _POSTGRESQL_TROUBLE)
    if not ours:
        return error
    _log.error("the database: %s", cause)
    return Unavailable(f"the database cannot be used: {_first_line(cause)}")


def _first_line(error: BaseException | None) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]


def _lower(part: str) -> str:
    """As `lower` does on both databases: A to Z only."""
    return part.translate(_A_TO_Z)


_A_TO_Z = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}
