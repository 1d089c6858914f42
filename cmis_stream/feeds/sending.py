"""What `cmis ingest` needs beside the sender: tokens of a local installation, and a progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from cmis_stream.core.errors import ConfigError
from cmis_stream.core.time import DAY_MS
from cmis_stream.feeds import client
from cmis_stream.store.database import Database
from cmis_stream.store.tokens import TokenStore


def local_tokens(data_dir: Path, create_orgs: bool, store_url: str | None = None) -> Callable[[str], str]:
    """Tokens for a day, made in the installation's own store: who can write there needs no other proof."""
    if store_url is None and not (data_dir / "store.db").exists():
        raise ConfigError(f"{data_dir} is not an installation on this machine; give a token with --token")
    url = store_url or f"sqlite:///{(data_dir / 'store.db').absolute()}"
    made: dict[str, str] = {}

    def token_for(org: str) -> str:
        if org not in made:
            with closing(Database(url)) as database, closing(TokenStore(database)) as store:
                if store.org(org) is None:
                    if not create_orgs:
                        raise ConfigError(
                            f"the org {org!r} is not known; create it with `cmis org create {org}`, or pass --create-orgs"
                        )
                    store.create_org(org, org)
                made[org] = store.create(org, ["ingest"], int(time.time() * 1000) + DAY_MS, "cmis ingest")[1]
        return made[org]

    return token_for


@contextmanager
def progress_bar() -> Iterator[Callable[[client.Progress], None]]:
    """A bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    columns = (
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[sent]:,} events, {task.fields[rate]:,.0f}/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=None, sent=0, rate=0.0, note="")

        def show(progress: client.Progress) -> None:
            rate = progress.sent / progress.elapsed_s if progress.elapsed_s else 0.0
            note = progress.waiting or (f"{progress.rejected:,} rejected" if progress.rejected else "")
            bar.update(
                task,
                total=progress.bytes_total,
                completed=progress.bytes_done,
                sent=progress.sent,
                rate=rate,
                note=note,
            )

        yield show
