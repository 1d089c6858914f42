"""`cmis db`: the tables of the store on PostgreSQL. (SQLite's are brought up to date when they are opened.) `cmis new-keys`: what
processes that share no disk have to be given."""

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


@click.command("new-keys")
def new_keys() -> None:
    """Print new keys as lines for the environment of processes that share no data folder: the same for all of them.

    \b
    CMIS_GATEWAY_KEY  signs what they tell each other, and links to files; these end with it
    CMIS_SECRET_KEYS  encrypts secrets and personal data in the database, which are lost without it: keep a copy.
                      To change it, put a new one before the old one, with a comma between them.
    """
    from cmis_stream.store.signing import new_key

    click.echo(f"CMIS_GATEWAY_KEY={new_key()}")
    click.echo(f"CMIS_SECRET_KEYS={new_key()}")
