"""Metrics: reads envelopes of cmis.metrics.v1, keeps windows per partition, judges rules, sends transitions.

Keyed by org (so all of an org is in one partition), acked by checkpoint: a record is acked to the source when its
outputs and the state that includes it are durable. docs/design/checkpoints.md is the protocol.
"""

from __future__ import annotations

import asyncio
from typing import Any

import faust

from cmis_stream.core.errors import Rejected
from cmis_stream.feeds.decode import Refusal
from cmis_stream.log.catalog import RULES, read_catalog
from cmis_stream.log.envelope import RuleSet, Tick, encode
from cmis_stream.log.owner import Owner
from cmis_stream.runtime import CHANGES, METRICS, Runtime

TICK_S = 1.0
SAVE_S = 0.25


def attach(app: faust.App, runtime: Runtime) -> None:
    owners = runtime.owners
    ticks: dict[int, asyncio.Future[Any]] = {}
    """Partition -> the last tick, on its way."""

    async def take_over(partitions: set[int]) -> None:
        """An owner for each partition that has none yet, with the state of its changelog."""
        for partition in sorted(partitions - owners.keys()):
            owner = Owner(
                METRICS, partition, runtime.new_engine(), generation=runtime.generation(), send=runtime.send,
                store=runtime.table.put, log=runtime.log.epoch, dead_letters=runtime.dead_letters,
            )  # fmt: skip
            await asyncio.to_thread(owner.load, runtime.table.take(partition))
            owners[partition] = owner

    def let_go(partitions: set[int]) -> None:
        for partition in partitions & owners.keys():
            owners.pop(partition).abandon()

    runtime.on_assigned(take_over)
    runtime.on_revoked(let_go)

    @app.agent(runtime.raw_topic(METRICS), concurrency=1, name="metrics")
    async def metrics(stream: Any) -> None:
        async for event in stream.noack().events():
            owner = owners.get(event.message.partition)
            if owner is None:
                continue  # revoked while it was queued: whoever owns the partition now reads it again
            with runtime.guard("metrics"):
                await owner.apply(event.message.offset, event.value, event.ack)

    @app.timer(interval=SAVE_S, name="checkpoints")  # type: ignore[untyped-decorator]
    async def save() -> None:
        for owner in [] if runtime.failed.done() else list(owners.values()):
            with runtime.guard("checkpoint"):
                await owner.tell_if_quiet()
                await owner.save_if_due()

    @app.timer(interval=TICK_S, name="ticks")  # type: ignore[untyped-decorator]
    async def tick() -> None:
        """Idle partitions learn from the log, too, that time passes; not of time in which nothing could be written."""
        for owner in list(owners.values()):
            last = ticks.get(owner.partition)
            if owner.idle_s >= TICK_S and runtime.ticking and (last is None or last.done()):
                sent = await runtime.send(METRICS, owner.partition, encode(Tick(runtime.clock())))
                ticks[owner.partition] = asyncio.ensure_future(sent)

    @app.agent(runtime.raw_topic(CHANGES), concurrency=1, name="catalog")
    async def catalog(stream: Any) -> None:
        """Copies each new rule set into the metrics log: its place there says from which event on it is in force."""
        async for event in stream.noack().events():
            with runtime.guard("catalog"):
                try:
                    rules = read_catalog(event.value, RULES)
                except Rejected as error:
                    rules, message = None, event.message
                    refusal = Refusal(0, None, None, error, (event.value or b"")[:4096])
                    await runtime.dead_letter_at([CHANGES, message.partition, message.offset], [refusal])
                if rules is not None:
                    record = RuleSet(runtime.clock(), rules.org, rules.version, rules.items)
                    await (await runtime.send(METRICS, event.message.partition, encode(record)))
                event.ack()
