"""Everything of one instance, built once and handed on: log, Faust app, packer, stores, backplane. No globals."""

from __future__ import annotations

import asyncio
import importlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import faust
import orjson

from cmis_stream.backplane.memory import MemoryBackplane
from cmis_stream.core.batch import Batch
from cmis_stream.core.engine import Engine
from cmis_stream.core.entities import LEVELS
from cmis_stream.core.errors import CmisError, shown
from cmis_stream.core.time import WINDOWS
from cmis_stream.feeds.decode import Refusal
from cmis_stream.live.delivery import Delivery
from cmis_stream.live.projection import STOP_WITHIN_S, Projection
from cmis_stream.live.snapshots import LiveSnapshots
from cmis_stream.live.tail import LogTail
from cmis_stream.log.embedded import EmbeddedLog, Record
from cmis_stream.log.owner import DEAD_LETTERS, ROLLUPS, TRANSITIONS, Owner
from cmis_stream.log.packer import Packer
from cmis_stream.log.topics import load_topics, partition_for
from cmis_stream.log.transport import PromptTableManager, broker_url
from cmis_stream.query.datasets import Panes, Queries
from cmis_stream.settings import Settings
from cmis_stream.store.facts import FactStore
from cmis_stream.store.rule_sets import RuleSetRow, RuleSetStore
from cmis_stream.store.tokens import TokenStore

RAW, METRICS, CHANGES = "cmis.events.raw", "cmis.metrics.v1", "cmis.changes.v1"
RECOVERY_TIMEOUT_S = 120.0
AGENTS = ("ingest", "metrics", "deliver", "project")

__all__ = ["CHANGES", "DEAD_LETTERS", "METRICS", "RAW", "ROLLUPS", "TRANSITIONS", "Change", "Runtime", "read_change"]
log = logging.getLogger("cmis")


class Change(NamedTuple):
    """A rule set as it stands in cmis.changes.v1."""

    org: str
    version: int
    evaluate: str
    rules: list[Any]


def read_change(value: bytes | None) -> Change | None:
    """The rule set in a record of cmis.changes.v1; None for other kinds."""
    if value is None:
        return None
    raw = orjson.loads(value)
    if raw.get("kind") != "alert_rules":
        return None
    return Change(raw["org"], raw["version"], raw["evaluate"], raw["rules"])


class Runtime:
    """One instance on one machine. `start` and `stop` in the running event loop; `failed` is set when it has to end."""

    def __init__(self, settings: Settings, clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self.settings, self.clock = settings, clock
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        self.topics = load_topics()
        self.partitions = self.topics[METRICS].partitions
        self.tokens = TokenStore.open(settings.data_dir / "store.db")
        self.rule_sets = RuleSetStore(settings.data_dir / "store.db")
        self.owners: dict[int, Owner] = {}
        self.recovered = asyncio.Event()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ticking = True
        self.on_transitions: list[Callable[[list[dict[str, Any]]], None]] = []
        self.packer = Packer(self._append_metrics, self.partitions, clock)
        self._nonce = secrets.token_hex(4)
        self.app = faust.App(
            "cmis",
            broker=broker_url(settings.log_path, sync=settings.sync),
            store="memory://",
            datadir=str(settings.data_dir / "faust"),
            topic_partitions=self.partitions,
            broker_max_poll_records=200,
            broker_commit_interval=1.0,
            stream_buffer_maxsize=256,
            web_enabled=False,
            stream_wait_empty=False,
            TableManager=PromptTableManager,
        )
        self.log = EmbeddedLog.open(settings.log_path, sync=settings.sync)
        self.tail = LogTail(settings.log_path, self.partitions)
        self.facts = FactStore(settings.data_dir / "store.db")
        self.backplane = MemoryBackplane(self.log.epoch, self.tail.place, self.tail.read, self.tail.moment)
        self.delivery = Delivery(self.backplane, self.heard)
        self.projection = Projection(self.facts, self.log.epoch, lambda: self.guard("project"), clock)
        self.snapshots = LiveSnapshots(self.owner_of, self.facts, self.tail.place, self.log.epoch)
        self.queries = Queries({"panes": Panes(self.owner_of, clock)})
        attach_agents(self.app, self)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns when the state is recovered and records flow."""
        await self.delivery.begin(self.tail, self.partitions)
        await self.projection.begin()
        await self.app.start()
        recovered: asyncio.Future[Any] = asyncio.ensure_future(self.recovered.wait())
        await asyncio.wait([recovered, self.failed], return_when=asyncio.FIRST_COMPLETED, timeout=RECOVERY_TIMEOUT_S)
        recovered.cancel()
        if not self.recovered.is_set() and not self.failed.done():
            # Faust logs an error in recovery as a warning and waits for ever.
            raise CmisError(
                f"the state was not recovered within {RECOVERY_TIMEOUT_S:.0f} s; cmis.log in the data folder says why"
            )
        if self.failed.done():
            self.failed.result()
        await self._publish_rule_sets()

    async def stop(self) -> None:
        """Everything accepted is durable and everything applied is in a checkpoint when this returns."""
        self.ticking = False
        try:
            await self.packer.drain()
            if not self.failed.done():
                for owner in self.owners.values():
                    await owner.checkpoint(wait=True)
                    await owner.checkpoint(wait=True)
        finally:
            await self.app.stop()
            await self.projection.settled(STOP_WITHIN_S)
            await asyncio.to_thread(self.tail.close)
            await self.log.aclose()
            for store in (self.facts, self.rule_sets, self.tokens):
                store.close()

    @contextmanager
    def guard(self, where: str) -> Iterator[None]:
        """Around every agent's work: an exception there would ack and skip the record, so it ends the process instead."""
        if self.failed.done():
            raise CmisError(
                "stopping after a failure"
            )  # Faust restarts an agent; nothing after the record that failed is applied
        try:
            yield
        except asyncio.CancelledError:
            raise
        except Exception as error:  # whatever it is, going on would lose the record silently
            log.exception("%s failed", where)
            if not self.failed.done():
                self.failed.set_exception(CmisError(f"{where} failed: {type(error).__name__}: {error}"))
            raise

    # --- ports --------------------------------------------------------------------------------------------------------

    def raw_topic(self, name: str) -> Any:
        spec = self.topics[name]
        return self.app.topic(
            name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw",
            partitions=spec.partitions, compacting=spec.compact, deleting=not spec.compact, allow_empty=True,
        )  # fmt: skip

    async def send(self, topic: str, partition: int, value: bytes) -> Awaitable[Any]:
        """Appends a record; what it returns completes when the record is durable."""
        sent: Awaitable[Any] = await self.app.producer.send(topic, None, value, partition, None, None)
        return sent

    async def _append_metrics(self, partition: int, value: bytes) -> None:
        await (await self.send(METRICS, partition, value))

    def highwater(self, topic: str, partition: int) -> int:
        """The next offset of a partition: all below it are durable."""
        return self.log.highwater(topic, partition)

    def read(self, topic: str, partition: int) -> Iterator[Record]:
        """All records of a partition, in order."""
        offset = self.log.earliest(topic, partition)
        while records := self.log.read(topic, partition, offset, 500, 8 << 20):
            yield from records
            offset = records[-1].offset + 1

    def owner_of(self, org: str) -> Owner | None:
        """The owner of an org's partition, when it is in this process."""
        return self.owners.get(partition_for(org.encode(), self.partitions))

    def new_engine(self) -> Engine:
        return Engine(LEVELS, live_windows=tuple(WINDOWS.values()))

    def generation(self) -> str:
        """Unique to an assignment of this process: no other ever writes the same keys."""
        return f"{self.app.consumer_generation_id:08d}-{self._nonce}-{secrets.token_hex(2)}"

    async def publish(self, org: str, batch: Batch) -> None:
        await self.packer.publish(org, batch)

    async def dead_letter(self, org: str, refusals: list[Refusal], source: str) -> None:
        """Events that the HTTP ingest refused, under the org that sent them."""
        body = {"org": org, "source": ["http", source], "reasons": [_reason(refusal) for refusal in refusals]}
        partition = partition_for(org.encode(), self.partitions)
        await (await self.send(DEAD_LETTERS, partition, orjson.dumps(body)))

    async def dead_letter_at(self, position: list[Any], refusals: list[Refusal]) -> None:
        body = {"source": position, "reasons": [_reason(refusal) for refusal in refusals]}
        await (await self.send(DEAD_LETTERS, position[1], orjson.dumps(body)))

    def heard(self, transitions: list[dict[str, Any]]) -> None:
        """Tells those in this process who listen (the terminal view)."""
        for listener in self.on_transitions:
            listener(transitions)

    # --- rules --------------------------------------------------------------------------------------------------------

    async def put_rules(self, org: str, rules: list[Any]) -> int:
        """Stores and publishes an org's rules; returns the version. Agents adopt it within a second."""
        row = self.rule_sets.put(org, self.settings.evaluate, rules, self.clock())
        await self._publish_rule_set(row)
        return row.version

    async def _publish_rule_sets(self) -> None:
        for row in self.rule_sets.unpublished():
            await self._publish_rule_set(row)

    async def _publish_rule_set(self, row: RuleSetRow) -> None:
        body = {"kind": "alert_rules", "org": row.org, "version": row.version, "evaluate": row.evaluate, "rules": row.rules}
        key = row.org.encode()
        partition = partition_for(key, self.partitions)
        await (await self.app.producer.send(CHANGES, key, orjson.dumps(body), partition, None, None))
        self.rule_sets.mark_published(row.org, row.version)


def _reason(refusal: Refusal) -> dict[str, Any]:
    return {**refusal.error.as_dict(), "id": refusal.id, "line": refusal.line, "raw": shown(refusal.raw, 4096)}


def attach_agents(app: faust.App, runtime: Runtime) -> None:
    """Loads each agent by name. (Faust's autodiscovery turns an import error into a warning and the agent vanishes.)"""
    package = importlib.import_module("agents")
    if getattr(package, "OWNER", None) != "cmis-stream":
        place = getattr(package, "__file__", "?")
        raise CmisError(f"the package `agents` found at {place} is not CMIS Stream's; remove it or change PYTHONPATH")
    for name in AGENTS:
        importlib.import_module(f"agents.{name}").attach(app, runtime)
