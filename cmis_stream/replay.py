"""`cmis replay`: a file of flat events through the rules, exactly, by the pure engine or by the whole pipeline."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from cmis_stream.core.engine import Engine, end_of_panes, transition_lines
from cmis_stream.core.errors import ConfigError
from cmis_stream.core.metrics import CUSTOM_PREFIX
from cmis_stream.core.rules import comparisons, parse_rule
from cmis_stream.core.windows import NEVER
from cmis_stream.feeds.client import send_file
from cmis_stream.feeds.decode import Refusal, decode_ndjson
from cmis_stream.instance import Instance
from cmis_stream.log.catalog import RULES, Catalog
from cmis_stream.log.envelope import Tick, encode
from cmis_stream.log.positions import Passed
from cmis_stream.log.reader import read_all
from cmis_stream.modules.alerts.rule_file import RuleFile
from cmis_stream.runtime import METRICS, TRANSITIONS
from cmis_stream.settings import Settings

CHUNK_LINES = 5_000
COLUMNS = ("rule", "org", "campaign", "at", "state", "value")


def replay_core(events: Path, rules: RuleFile, report: Callable[[Refusal], None]) -> Iterator[dict[str, Any]]:
    """Transitions by the pure engine, pane evaluation, keeping only the levels and windows that the rules need."""
    parsed = {org: [parse_rule(raw, evaluate="pane") for raw in own] for org, own in rules.rules.items()}
    levels = {rule.level for own in parsed.values() for rule in own} or {"campaign"}
    below_campaign = bool(levels & {"ad_set", "ad"})
    custom = any(c.metric.startswith(CUSTOM_PREFIX) for own in parsed.values() for rule in own for c in comparisons(rule.when))
    engine = Engine([level for level in ("org", "platform", "campaign", "ad_set", "ad") if level in levels])
    for org, own in parsed.items():
        engine.adopt(org, 1, own, rules.rules[org], evaluate="pane")
    newest, number = NEVER, 0
    now_ms = time.time_ns() // 1_000_000
    for body, first_line in _chunks(events):
        decoded = decode_ndjson(
            body, org=None, source="replay", now_ms=None, sequence=number, first_line=first_line,
            leaf_level="ad" if below_campaign or custom else "campaign",
        )  # fmt: skip
        number += decoded.events
        for refusal in decoded.refused:
            report(refusal)
        if decoded.batch is not None:
            newest = max(newest, int(decoded.batch.ts_ms.max()))
            yield from transition_lines(engine, engine.apply(decoded.batch, max(now_ms, newest)))
    if newest != NEVER:
        yield from transition_lines(engine, engine.tick(now_ms, end_of_panes(newest)))


def _chunks(path: Path) -> Iterator[tuple[bytes, int]]:
    first = 0
    with path.open("rb") as file:
        while lines := file.readlines(CHUNK_LINES * 230):
            yield b"".join(lines), first
            first += len(lines)


async def replay_pipeline(
    events: Path, rules: RuleFile, evaluate: str, report: Callable[[dict[str, Any]], None], *, batch_events: int = 5000
) -> list[dict[str, Any]]:
    """Transitions by the whole pipeline on a scratch folder: HTTP ingest, embedded log, Faust agents, checkpoints."""
    scratch = Path(tempfile.mkdtemp(prefix="cmis-replay-"))
    try:
        async with Instance(Settings(data_dir=scratch, port=0, evaluate=evaluate)) as instance:
            runtime = instance.runtime
            runtime.ticking = False  # the file says what time it is
            for org, own in rules.rules.items():
                await runtime.publish_catalog(Catalog(RULES, org, 1, [{"evaluate": evaluate, **rule} for rule in own]))
            await _adopted(instance, set(rules.rules))
            tokens: dict[str, str] = {}

            def token_for(org: str) -> str:
                if org not in tokens:
                    if runtime.tokens.org(org) is None:
                        runtime.tokens.create_org(org, org)
                    tokens[org] = runtime.tokens.create(org, ["ingest"], name="replay")[1]
                return tokens[org]

            summary = await send_file(
                events, url=instance.url, token_for=token_for, state_dir=scratch / "ingest", batch_events=batch_events
            )
            for error in summary.errors:
                report(error)
            await instance.drained()
            newest = max((int(owner.engine.windows.newest.max()) for owner in instance.owners), default=NEVER)
            if newest != NEVER:
                tick = encode(Tick(runtime.clock(), end_of_panes(newest)))
                for partition in range(runtime.partitions):
                    await (await runtime.send(METRICS, partition, tick))
                await instance.drained()
            for owner in instance.owners:
                await owner.checkpoint(wait=True)
                await owner.checkpoint(wait=True)
            return [line async for line in _transitions(instance)]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


async def _adopted(instance: Instance, orgs: set[str]) -> None:
    """Waits until the agents have adopted the rules of these orgs."""
    while orgs - {org for owner in instance.owners for org in owner.engine.versions}:
        if instance.runtime.failed.done():
            instance.runtime.failed.result()
        await asyncio.sleep(0.02)


async def _transitions(instance: Instance) -> AsyncIterator[dict[str, Any]]:
    """All transitions of the log, behind the rule of every consumer: the highest position, each once."""
    passed = Passed()
    for partition in range(instance.runtime.partitions):
        async for record in read_all(instance.runtime.log, TRANSITIONS, partition):
            body = orjson.loads(record.value or b"{}")
            if passed.is_new(*body["source"]):
                for line in body["transitions"]:
                    yield line


def written(lines: list[dict[str, Any]], out: Path) -> None:
    """One JSON line per transition, sorted by (at, rule, campaign); replaced whole or not at all."""
    rows = sorted(({name: line[name] for name in COLUMNS} for line in lines), key=lambda r: (r["at"], r["rule"], r["campaign"]))
    partial = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        partial.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
        partial.replace(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(f"{out}: cannot be written ({error.strerror})") from None
