"""The commands that look at the log from outside: `topics` and `tail`, on either log; `topics plan` and `apply` on Kafka."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cmis_stream.cli_access import DATA_DIR
from cmis_stream.core.errors import ConfigError

if TYPE_CHECKING:
    from cmis_stream.log.kafka_topics import Difference
    from cmis_stream.log.reader import LogReader
    from cmis_stream.log.system import LogSystem
    from cmis_stream.log.topics import TopicSpec

DIFFERS = 3
"""Exit code of `plan` when something is missing or differs."""

_LOG = click.option(
    "--log", "log_url", envvar="CMIS_LOG", metavar="URL",
    help="kafka://HOST:PORT, several with ; between them; default: the log in --data-dir.",
)  # fmt: skip
_CLUSTER = click.option(
    "--log", "log_url", envvar="CMIS_LOG", metavar="URL", help="kafka://HOST:PORT, several with ; between them."
)
_REPLICATION = click.option(
    "--replication", type=click.IntRange(1, 32_767), default=1, show_default=True, envvar="CMIS_REPLICATION",
    help="How many brokers keep each record.",
)  # fmt: skip


@click.group(invoke_without_command=True)
@DATA_DIR
@_LOG
@click.pass_context
def topics(ctx: click.Context, data_dir: Path, log_url: str | None) -> None:
    """The topics: declared, what the log holds of each, and what waits for the agents.

    On Kafka, `plan` tells what is missing there, and `apply` creates it.
    """
    if ctx.invoked_subcommand is None:
        asyncio.run(_table(data_dir, log_url))


@topics.command()
@_CLUSTER
@_REPLICATION
@click.pass_context
def plan(ctx: click.Context, log_url: str | None, replication: int) -> None:
    """Compare the declared topics with those of a Kafka cluster; changes nothing.

    Exits with 0 when nothing is to do, with 3 when something is missing or differs.
    """
    from cmis_stream.log import kafka_topics
    from cmis_stream.log.topics import load_topics

    client = _cluster(ctx, log_url, replication)
    found = asyncio.run(kafka_topics.plan(client, load_topics().values(), replication))
    for spec in found.missing:
        click.echo(f"{spec.name} is missing; apply would create it with {_shape(spec, replication)}.")
    for difference in found.differences:
        click.echo(_told(difference))
    if found.missing or found.differences:
        ctx.exit(DIFFERS)
    click.echo("All topics are as declared.")


@topics.command()
@_CLUSTER
@_REPLICATION
@click.pass_context
def apply(ctx: click.Context, log_url: str | None, replication: int) -> None:
    """Create the declared topics that a Kafka cluster lacks. Topics that exist are never changed or deleted."""
    from cmis_stream.log import kafka_topics
    from cmis_stream.log.topics import load_topics

    client = _cluster(ctx, log_url, replication)
    found = asyncio.run(kafka_topics.apply(client, load_topics().values(), replication))
    for spec in found.missing:
        click.echo(f"Created {spec.name} with {_shape(spec, replication)}.")
    for difference in found.differences:
        click.echo(_told(difference), err=True)
    if not found.missing:
        click.echo("No topic is missing.")


@click.command()
@click.argument("topic")
@click.option("-n", "count", type=click.IntRange(0), default=10, show_default=True, help="How many of the newest to show first.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new ones as they come.")
@click.option(
    "--events", is_flag=True, help="Show the events of envelopes and the rows of rollups, not only what they are about."
)
@DATA_DIR
@_LOG
def tail(topic: str, count: int, follow: bool, events: bool, data_dir: Path, log_url: str | None) -> None:
    """Show the newest records of TOPIC as JSON lines; works beside running instances."""
    try:
        asyncio.run(_tail(topic, count, follow, events, data_dir, log_url))
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; Python would complain about flushing at exit


async def _table(data_dir: Path, log_url: str | None) -> None:
    from cmis_stream.inspection import topics_table
    from cmis_stream.log.embedded_reader import EmbeddedReader

    if log_url is None and not _log_path(data_dir).exists():
        click.echo(await topics_table(None))
        return
    async with _reading(data_dir, log_url) as log:
        click.echo(await topics_table(log, log.bytes_held if isinstance(log, EmbeddedReader) else None))


async def _tail(topic: str, count: int, follow: bool, events: bool, data_dir: Path, log_url: str | None) -> None:
    from cmis_stream.inspection import tail_lines

    async with _reading(data_dir, log_url) as log:
        async for line in tail_lines(log, topic, count, follow=follow, events=events):
            click.echo(line)


@asynccontextmanager
async def _reading(data_dir: Path, log_url: str | None) -> AsyncIterator[LogReader]:
    """Beside whoever writes: without a lock on the embedded log."""
    if log_url is not None:
        async with _kafka(log_url).reading() as log:
            yield log
        return
    from cmis_stream.log.embedded_reader import EmbeddedReader

    if not _log_path(data_dir).exists():
        raise ConfigError(f"{data_dir}: there is no log yet; `cmis up` makes one, and --log names one on Kafka")
    embedded = EmbeddedReader.open(_log_path(data_dir))
    try:
        yield embedded
    finally:
        await embedded.close()


def _log_path(data_dir: Path) -> Path:
    from cmis_stream.settings import Settings

    return Settings(data_dir=data_dir).log_path


def _kafka(log_url: str, replication: int = 1) -> LogSystem:
    from cmis_stream.log.system import kafka_system

    logging.getLogger("aiokafka").addHandler(logging.NullHandler())  # errors are told as sentences, once
    return kafka_system(log_url, replication)


def _cluster(ctx: click.Context, log_url: str | None, replication: int) -> dict[str, object]:
    """Settings of aiokafka's clients; --log may stand before or behind the subcommand."""
    assert ctx.parent is not None
    url = log_url or ctx.parent.params["log_url"]
    if url is None:
        raise ConfigError("--log: got nothing, expected kafka://HOST:PORT (the embedded log makes its topics by itself)")
    return dict(_kafka(url, replication).client or {})


def _shape(spec: TopicSpec, replication: int) -> str:
    from cmis_stream.inspection import kept

    copies = f"{replication} cop{'y' if replication == 1 else 'ies'} of each"
    return f"{spec.partitions} partitions, {copies}, kept: {kept(spec)}"


def _told(difference: Difference) -> str:
    reason = {
        "partitions": "apply cannot change it, since orgs lie where the old count put them; it takes new topics",
        "replication": "apply cannot change it; move the replicas with Kafka's kafka-reassign-partitions",
    }.get(difference.setting, "apply does not change topics that exist; use Kafka's kafka-configs --alter")
    return f"{difference}: {reason}."
