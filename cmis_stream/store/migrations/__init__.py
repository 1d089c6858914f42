"""Brings a database to the tables of this version (Alembic): SQLite when it is opened, PostgreSQL when its owner says so."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import URL, Connection, create_engine, inspect, make_url, text

from cmis_stream.core.errors import ConfigError

HEAD: Final = "0006"
"""The newest revision in versions/: known here, so that opening a database that has it does not load Alembic."""
_LOCK: Final = 0x636D6974  # "cmit"


def revision(connection: Connection) -> str | None:
    """The one that the database is at; None when it has no tables of ours."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(text("select version_num from alembic_version")).scalar()
    return found


def upgrade(url: str | URL) -> str | None:
    """To HEAD; all of it or nothing. Whoever comes second waits and finds it done. Answers the revision it was at.

    url: on PostgreSQL that of the owner of the database. ConfigError when it is newer than this version, or roles are missing.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    url = make_url(url)
    postgres = url.get_backend_name() == "postgresql"
    engine = create_engine(url.set(drivername="postgresql+psycopg") if postgres else url)
    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    try:
        with engine.connect() as connection:
            if postgres:
                connection.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            else:
                connection.exec_driver_sql("pragma journal_mode = wal")
                connection.exec_driver_sql("pragma busy_timeout = 30000")
                connection.commit()
                connection.connection.driver_connection.isolation_level = None  # type: ignore[union-attr]
                connection.exec_driver_sql("begin immediate")
            found = revision(connection)
            known = {script.revision for script in ScriptDirectory.from_config(settings).walk_revisions()}
            if found is not None and found not in known:
                raise ConfigError(f"the database is at revision {found}, made by a newer version than this one ({HEAD})")
            if found != HEAD:
                settings.attributes["connection"] = connection
                command.upgrade(settings, HEAD)
            connection.commit()
    finally:
        engine.dispose()
    return found
