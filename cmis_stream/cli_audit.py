"""`cmis audit`: whether what was written down about changes is what was written down."""

from __future__ import annotations

from pathlib import Path

import click

from cmis_stream.cli_access import DATA_DIR, STORE, opened_database


@click.group()
def audit() -> None:
    """The record of who changed what: a hash chain per org."""


@audit.command("verify")
@click.argument("org_ids", metavar="[ORG]...", nargs=-1)
@DATA_DIR
@STORE
def verify(org_ids: tuple[str, ...], data_dir: Path, store_url: str | None) -> None:
    """Walk the chains of these orgs, or of all: exit code 1 when one does not hold, with the change where it breaks.

    Whoever may write everything could make a whole chain anew: keep the last hash somewhere else, and compare.
    """
    from cmis_stream.core.errors import ConfigError
    from cmis_stream.store.changes import Changes
    from cmis_stream.store.tokens import TokenStore

    broken = False
    with opened_database(data_dir, store_url) as database:
        tokens, changes = TokenStore(database), Changes(database)
        orgs = [tokens.org(one) for one in org_ids] if org_ids else list(tokens.orgs())
        for given, org in zip(org_ids or [None] * len(orgs), orgs, strict=True):
            if org is None:
                raise ConfigError(f"the org {given!r} is not known")
            found = changes.verify(org.id)
            broken |= found.broken is not None
            sound = f"{found.seq} changes, the last one {found.hash or 'none'}"
            told = sound if found.broken is None else f"BROKEN behind change {found.seq}: {found.broken}"
            click.echo(f"{org.id}\t{told}")
    if broken:
        raise SystemExit(1)
