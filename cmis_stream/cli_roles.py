"""The commands that run a process of an installation: `up` for all of it, `worker`, `api` and `gateway` for its parts."""

from __future__ import annotations

import asyncio
import atexit
import gc
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cmis_stream.cli_access import DATA_DIR
from cmis_stream.core.errors import CmisError

if TYPE_CHECKING:
    from cmis_stream.instance import Instance
    from cmis_stream.settings import Settings

SICK = 70
"""Exit code of a process that had to end (EX_SOFTWARE): start it again."""


def running(command: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A command that runs in an event loop."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            asyncio.run(command(*args, **kwargs))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None  # stopped before it was ready

    return run


def _bytes(given: str | None) -> int | None:
    from cmis_stream.health.memory import parse_limit

    return None if given is None else parse_limit(given)


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _port(default: int, text: str) -> Callable[[Any], Any]:
    return click.option(
        "--port", type=click.IntRange(0, 65_535), default=default, show_default=True, envvar="CMIS_PORT", help=text
    )


_LOG_HELP = "kafka://HOST:PORT, several with ; between them"
_LOG = click.option("--log", "log_url", envvar="CMIS_LOG", metavar="URL", help=f"{_LOG_HELP}; default: the log in --data-dir.")
_SHARED_LOG = click.option("--log", "log_url", envvar="CMIS_LOG", metavar="URL", required=True, help=f"{_LOG_HELP}.")
_BACKPLANE = click.option(
    "--backplane", "backplane_url", envvar="CMIS_BACKPLANE", metavar="URL",
    help="redis://HOST:PORT/DB, for gateways of their own; default: in this process.",
)  # fmt: skip
_SHARED_BACKPLANE = click.option(
    "--backplane", "backplane_url", envvar="CMIS_BACKPLANE", metavar="URL", required=True, help="redis://HOST:PORT/DB."
)
_REPLICATION = click.option(
    "--replication", type=click.IntRange(1), default=1, show_default=True, envvar="CMIS_REPLICATION",
    help="Of the topic that keeps state, on Kafka.",
)  # fmt: skip
_STORE = click.option(
    "--store", "store_url", envvar="CMIS_STORE", metavar="URL",
    help="postgresql://cmis_app@HOST/NAME; default: SQLite in --data-dir.",
)  # fmt: skip
_STORE_RELAY = click.option(
    "--store-relay", "store_relay_url", envvar="CMIS_STORE_RELAY", metavar="URL",
    help="The same database as cmis_relay, which sees what is due in all orgs.",
)  # fmt: skip
_FILES = click.option(
    "--files", "files_url", envvar="CMIS_FILES", metavar="URL",
    help="s3://BUCKET/PREFIX?endpoint=URL&region=NAME, with credentials in AWS_*; default: the folder files in --data-dir.",
)  # fmt: skip
_HISTORY_DAYS = click.option(
    "--history-days", type=click.IntRange(9), default=400, show_default=True, envvar="CMIS_HISTORY_DAYS",
    help="How long history is kept, in --data-dir.",
)  # fmt: skip
_EVALUATE = click.option(
    "--evaluate", type=click.Choice(["live", "pane"]), default="live", show_default=True,
    help="When rules of --rules that do not say so are judged: after each record, or at each closed pane of their window.",
)  # fmt: skip
_RULES = click.option(
    "--rules", "rules_file", type=click.Path(path_type=Path, dir_okay=False), help="Alert rules (JSON), re-read on change."
)
_PUBLIC = click.option(
    "--public-host", "public_hosts", multiple=True,
    help="NAME or NAME:PORT under which browsers reach it besides this machine's own; repeat for several.",
)  # fmt: skip
_PROCESS = _options(
    DATA_DIR,
    click.option(
        "--host", default="127.0.0.1", show_default=True, help="Address to listen on; others than loopback are your decision."
    ),
    _STORE,
    _FILES,
    click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        envvar="CMIS_LOG_FORMAT",
        help="Of the process log: lines for people, or JSON lines.",
    ),
    click.option(
        "--memory-limit",
        callback=lambda _ctx, _param, given: _bytes(given),
        envvar="CMIS_MEMORY_LIMIT",
        metavar="SIZE",
        help="Of the process (2GiB, 800MB), beyond which it ends to be started again; default: 85 % of what there is.",
    ),
    click.option(
        "--address",
        envvar="CMIS_ADDRESS",
        help="Name under which other processes reach this one; default: --host, or this machine's name.",
    ),
)


@click.command()
@_PROCESS
@_STORE_RELAY
@_EVALUATE
@_port(8600, "The next free one is taken when it is in use; 0: any.")
@click.option("--gateway-port", type=click.IntRange(0, 65_535),
              help="Of the websocket gateway, likewise; default: the one after --port, 8601.")  # fmt: skip
@_PUBLIC
@_RULES
@_LOG
@_BACKPLANE
@_REPLICATION
@_HISTORY_DAYS
@click.option("--sync", type=click.Choice(["normal", "full"]), default="normal", show_default=True,
              help="full: what was answered survives a power cut too, at the price of a disk sync per commit.")  # fmt: skip
@click.option("--demo", is_flag=True, help="Live sample feeds of two orgs on six platforms, with an overspend now and then.")
@click.option("--live/--no-live", default=True, help="Show moving figures in the terminal.")
@running
async def up(demo: bool, live: bool, **given: Any) -> None:
    """Run everything in one process: page, HTTP API, gateway, log, agents. Ctrl-C stops it cleanly."""
    from rich.console import Console

    from cmis_stream import demo as samples
    from cmis_stream.console import View
    from cmis_stream.instance import sign_in_link
    from cmis_stream.settings import Role, Settings

    settings = Settings(role=Role.UP, **_keys(), **given)
    console = Console()
    async with _started(settings, quiet=live and console.is_terminal) as (instance, stop):
        if settings.gateway_port and instance.gateway_port != settings.gateway_port:
            click.echo(f"Port {settings.gateway_port} is taken; the gateway uses {instance.gateway_port}.")
        click.echo(f"Events: POST {instance.url}/api/orgs/ORG/events, or: cmis ingest FILE --data-dir {settings.data_dir}")
        click.echo(f"Gateway: {instance.gateway_url}")
        code = await asyncio.to_thread(instance.sessions.make_code)
        click.echo(f"Sign in: {sign_in_link(instance.url, code)}")
        click.echo(f"         (once, within 15 minutes; another link: cmis sign-in --data-dir {settings.data_dir})")
        tasks = []
        if demo:
            tokens = await samples.prepare(instance)
            click.echo("Sample feeds are running; the first alerts come within two minutes.")
            tasks.append(asyncio.create_task(samples.feed(instance, tokens)))
        if live:
            tasks.append(asyncio.create_task(View(instance, console).run()))
        try:
            await instance.wait(stop)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    click.echo("Stopped; everything accepted is safe.")


@click.command()
@_PROCESS
@_STORE_RELAY
@_port(8610, "Of health, metrics and the other processes' questions; the next free one when it is taken, 0: any.")
@_SHARED_LOG
@_SHARED_BACKPLANE
@_REPLICATION
@_HISTORY_DAYS
@running
async def worker(**given: Any) -> None:
    """Run the agents: one of any number of workers, which share the partitions of the log."""
    await _run("worker", given)


@click.command()
@_PROCESS
@_EVALUATE
@_port(8600, "The next free one is taken when it is in use; 0: any.")
@click.option("--gateway-port", type=click.IntRange(1, 65_535), default=8601, show_default=True,
              help="Where the page finds the gateway, on the name that it is called by.")  # fmt: skip
@_PUBLIC
@_RULES
@_SHARED_LOG
@_HISTORY_DAYS
@running
async def api(**given: Any) -> None:
    """Serve the page, the HTTP API and the ingest; any number of these."""
    await _run("api", given)


@click.command()
@_PROCESS
@_port(8601, "The next free one is taken when it is in use; 0: any.")
@click.option("--page-port", type=click.IntRange(1, 65_535), default=8600, show_default=True,
              help="Where the page is that may connect, on the same names.")  # fmt: skip
@_PUBLIC
@_SHARED_LOG
@_SHARED_BACKPLANE
@running
async def gateway(**given: Any) -> None:
    """Serve websockets; any number of these. SIGTERM sends the clients to the others, without a gap."""
    await _run("gateway", given)


async def _run(role: str, given: dict[str, Any]) -> None:
    from cmis_stream.settings import Role, Settings

    settings = Settings(role=Role(role), **_keys(), **given)
    async with _started(settings) as (instance, stop):
        await instance.wait(stop)
    click.echo("Stopped.")


def _keys() -> dict[str, Any]:
    """No options: everybody on the machine reads those in the list of processes."""
    return {"gateway_key": os.environ.get("CMIS_GATEWAY_KEY"), "secret_keys": os.environ.get("CMIS_SECRET_KEYS")}


@asynccontextmanager
async def _started(settings: Settings, *, quiet: bool = False) -> AsyncIterator[tuple[Instance, asyncio.Event]]:
    """The process of a role, and what SIGINT and SIGTERM set. quiet: errors of the rule file are shown elsewhere."""
    from cmis_stream.instance import Instance

    _log_to(settings)
    gc.freeze()  # what is imported stays; the collector need not look at it again
    atexit.register(gc.unfreeze)  # else duckdb's binding complains, on standard error, of what is left at the end
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    starting = asyncio.current_task()
    assert starting is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, starting.cancel)
    began = time.monotonic()
    async with Instance(settings, (lambda _: None) if quiet else (lambda error: click.echo(error, err=True))) as instance:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        if settings.port and instance.port != settings.port:
            click.echo(f"Port {settings.port} is taken; using {instance.port}.")
        click.echo(f"Ready in {time.monotonic() - began:.1f} s: {instance.url}")
        try:
            yield instance, stop
        except CmisError as error:  # not of the user's making: whoever runs this starts it again
            click.echo(f"cmis: {error}", err=True)
            raise SystemExit(SICK) from error


def _log_to(settings: Settings) -> None:
    """Logs go to a file: the terminal shows figures. A role's go to standard error, where its supervisor looks for them."""
    from cmis_stream.logs import formatter
    from cmis_stream.settings import Role

    settings.data_dir.mkdir(parents=True, exist_ok=True)
    to_file = settings.role is Role.UP
    handler = logging.FileHandler(settings.data_dir / "cmis.log", encoding="utf-8") if to_file else logging.StreamHandler()
    handler.setFormatter(formatter(settings.log_format))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
