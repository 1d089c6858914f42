"""`cmis effects`: what the outbox has given up, for whoever has seen to the cause."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cmis_stream.cli_access import DATA_DIR, STORE, opened_database
from cmis_stream.core.errors import ConfigError

if TYPE_CHECKING:
    from cmis_stream.store.outbox import Outbox

MOST = 1_000


@contextmanager
def _outbox(data_dir: Path, store_url: str | None) -> Iterator[Outbox]:
    from cmis_stream.store.due import Due
    from cmis_stream.store.outbox import Outbox

    with opened_database(data_dir, store_url) as database:
        yield Outbox(database, Due(database), {}, worker="cmis effects")


@click.group()
def effects() -> None:
    """Effects that were given up after ten attempts, or at once because they can never work."""


@effects.command("list")
@click.argument("org_id", metavar="ORG")
@DATA_DIR
@STORE
def list_effects(org_id: str, data_dir: Path, store_url: str | None) -> None:
    """Those of ORG, the newest first: id, since when, attempts, what it is, why it failed."""
    from cmis_stream.core.time import rfc3339

    with _outbox(data_dir, store_url) as outbox:
        for one in outbox.failed(org_id, MOST):
            click.echo(f"{one.id}\t{rfc3339(one.failed_at)}\t{one.attempts}\t{one.effect}\t{one.problem}")


@effects.command("retry")
@click.argument("org_id", metavar="ORG")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that ORG has.")
@DATA_DIR
@STORE
def retry(org_id: str, ids: tuple[str, ...], everything: bool, data_dir: Path, store_url: str | None) -> None:
    """Have them tried again, as often as new ones; a process with agents does it within a second."""
    if bool(ids) == everything:
        raise ConfigError("name the effects that are to be tried again, or say --all")
    with _outbox(data_dir, store_url) as outbox:
        wanted = ids or tuple(one.id for one in outbox.failed(org_id, MOST))
        unknown = [one for one in wanted if not outbox.retry(org_id, one)]
    click.echo(f"{len(wanted) - len(unknown)} will be tried again.")
    if unknown:
        raise ConfigError(f"{org_id} has given up no effect {', '.join(unknown)}")
