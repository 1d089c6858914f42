"""The command `cmis`."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import click

from cmis_stream.cli_access import DATA_DIR, STORE, org, session, sign_in, token
from cmis_stream.cli_apply import apply
from cmis_stream.cli_audit import audit
from cmis_stream.cli_db import db, new_keys
from cmis_stream.cli_effects import effects
from cmis_stream.cli_roles import api, gateway, running, up, worker
from cmis_stream.cli_status import status
from cmis_stream.cli_topics import tail, topics
from cmis_stream.core.errors import CmisError, ConfigError


class Cli(click.Group):
    """Errors are sentences, without tracebacks; Ctrl-C is not an error."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (CmisError, OSError, sqlite3.Error) as error:
            click.echo(f"cmis: {error}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            ctx.exit(130)


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="cmis-stream", prog_name="cmis")
def main() -> None:
    """CMIS Stream: ad and social events in, alerts and figures out, as they happen.

    \b
    Try it:       cmis up --demo
    Your events:  cmis org create acme && cmis token create acme --scope ingest
                  cmis up --rules rules.json
                  cmis ingest events.ndjson
    Look:         cmis sign-in; cmis topics; cmis tail cmis.transitions.v1 --follow
    """


for _command in (
    up,
    worker,
    api,
    gateway,
    org,
    token,
    sign_in,
    session,
    status,
    topics,
    tail,
    db,
    effects,
    new_keys,
    apply,
    audit,
):
    main.add_command(_command)


@main.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True, dir_okay=False))
@DATA_DIR
@STORE
@click.option("--url", help="The instance; default: the one running on --data-dir.")
@click.option("--org", help="The org of every line; default: each line names its own.")
@click.option(
    "--token", envvar="CMIS_TOKEN", help="A token with scope ingest; default: one is made, if --data-dir is of this machine."
)
@click.option("--create-orgs", is_flag=True, help="Create orgs that are named in the file and not known yet.")
@click.option("--retry-for", default=300.0, show_default=True, help="Seconds to go on trying while the instance does not answer.")
@click.option("--batch", default=5000, show_default=True, help="Events per request.")
@running
async def ingest(
    file: Path,
    data_dir: Path,
    store_url: str | None,
    url: str | None,
    org: str | None,
    token: str | None,
    create_orgs: bool,
    retry_for: float,
    batch: int,
) -> None:
    """Send FILE (flat events, one JSON object a line; - for standard input) to a running instance.

    Shows progress, tries again while the instance is away, resumes where it stopped and sends nothing twice.
    """
    from cmis_stream.feeds.client import IngestStopped, send_file
    from cmis_stream.feeds.sending import local_tokens, progress_bar
    from cmis_stream.instance import running_url

    if str(file) != "-" and not file.exists():
        raise ConfigError(f"{file}: there is no such file")
    address = url or running_url(data_dir)
    if address is None:
        raise ConfigError(f"no instance is running on {data_dir}; start one with `cmis up`, or name it with --url")
    token_for = (lambda _: token) if token else local_tokens(data_dir, create_orgs, store_url)
    source = sys.stdin.buffer if str(file) == "-" else file
    with progress_bar() as progress:
        try:
            summary = await send_file(
                source, url=address, token_for=token_for, org=org, state_dir=data_dir / "ingest",
                progress=progress, retry_for_s=retry_for, batch_events=batch,
            )  # fmt: skip
        except IngestStopped as stopped:
            _tell(stopped.summary)
            raise
    _tell(summary)
    if summary.rejected:
        raise SystemExit(2)


def _tell(summary: Any) -> None:
    for error in summary.errors:
        click.echo(f"rejected: {json.dumps(error, ensure_ascii=False)}", err=True)
    if summary.rejected_file is not None and summary.rejected:
        click.echo(f"The {summary.rejected:,} rejected lines are in {summary.rejected_file}.", err=True)
    resumed = f", resumed at byte {summary.resumed_from:,}" if summary.resumed_from else ""
    how = f"{summary.requests:,} requests, {summary.retries:,} retries{resumed}"
    click.echo(f"{summary.accepted:,} accepted, {summary.rejected:,} rejected ({how})")


@main.command()
@click.argument("events", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--rules", "rules_path", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Alert rules (JSON).")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Transitions, one JSON line each.")
@click.option("--engine", type=click.Choice(["core", "pipeline"]), default="core", show_default=True,
              help="core: the pure engine; pipeline: HTTP ingest, log, agents and checkpoints on a scratch folder.")  # fmt: skip
@click.option("--evaluate", type=click.Choice(["pane", "live"]), default="pane", show_default=True,
              help="pane: however events are batched, the same answer; live: pipeline only.")  # fmt: skip
@click.option("--batch", default=5000, show_default=True, help="Events per request (pipeline).")
def replay(events: Path, rules_path: Path, out: Path, engine: str, evaluate: str, batch: int) -> None:
    """Run EVENTS (flat events, one JSON object a line) through rules and write every transition."""
    from cmis_stream import replay as replaying
    from cmis_stream.modules.alerts.rule_file import read_rules

    if engine == "core" and evaluate == "live":
        raise ConfigError("--engine core evaluates panes only; live evaluation needs --engine pipeline")
    rules = read_rules(rules_path, evaluate=evaluate)
    for error in rules.errors:
        click.echo(error, err=True)
    refused = 0

    def report(error: object) -> None:
        nonlocal refused
        refused += 1
        if refused <= 20:
            click.echo(f"left out: {error}", err=True)

    began = time.monotonic()
    if engine == "core":
        lines = list(replaying.replay_core(events, rules, lambda r: report(f"line {r.line}: {r.error}")))
    else:
        lines = asyncio.run(replaying.replay_pipeline(events, rules, evaluate, report, batch_events=batch))
    replaying.written(lines, out)
    count = sum(len(own) for own in rules.rules.values())
    left_out = f", {refused:,} events left out" if refused else ""
    click.echo(f"{len(lines):,} transitions of {count:,} rules in {time.monotonic() - began:.1f} s{left_out}: {out}")


@main.command()
@click.option("--rate", default=100, show_default=True, help="Events a second, over all orgs.")
@click.option("--seconds", default=0.0, help="Of event time; 0: until stopped.")
@click.option("--seed", default=0, show_default=True)
@click.option("--fast", is_flag=True, help="Do not wait for the clock (needs --seconds).")
def simulate(rate: int, seconds: float, seed: int, fast: bool) -> None:
    """Write sample events to standard output: cmis simulate | cmis ingest -"""
    import orjson

    from cmis_stream.feeds.simulator import Simulator

    if fast and not seconds:
        raise ConfigError("--fast would never end; say how much with --seconds")
    if rate < 1:
        raise ConfigError(f"--rate: expected at least 1 event a second, got {rate}")
    start = at = time.time_ns() // 1_000_000
    simulator = Simulator(seed=seed, start_ms=start, rate=rate)
    end = start + int(seconds * 1000) if seconds else None
    try:
        while end is None or at < end:
            until = at + 1000 if fast else time.time_ns() // 1_000_000
            until = until if end is None else min(until, end)
            for event in simulator.events_between(at, until):
                sys.stdout.buffer.write(orjson.dumps(event) + b"\n")
            sys.stdout.buffer.flush()
            at = until
            if not fast:
                time.sleep(0.1)
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; Python would complain about flushing at exit
