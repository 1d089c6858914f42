"""`cmis db`: the tables of the store on PostgreSQL. (SQLite's are brought up to date when they are opened.)"""

from __future__ import annotations

import click


@click.group()
def db() -> None:
    """The store's database, when it is PostgreSQL."""


@db.command("upgrade")
@click.option(
    "--url", envvar="CMIS_STORE_OWNER", required=True, metavar="URL",
    help="postgresql://cmis_owner@HOST/NAME: as whom the tables are made; no other command needs it.",
)  # fmt: skip
def upgrade(url: str) -> None:
    """Bring the tables to this version: all of it or nothing. Run it before processes of a new version start."""
    from cmis_stream.store.database import upgraded
    from cmis_stream.store.migrations import HEAD

    before = upgraded(url)
    if before == HEAD:
        click.echo(f"The tables are at revision {HEAD} already.")
    else:
        click.echo(f"Brought from revision {before or 'none'} to {HEAD}.")
