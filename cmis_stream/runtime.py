"""Everything of one process, built once and handed on: log, Faust app, packer, stores, backplane. No globals."""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import faust
import orjson

from cmis_stream.backplane.contract import Backplane
from cmis_stream.backplane.memory import MemoryBackplane
from cmis_stream.core.batch import Batch
from cmis_stream.core.engine import Engine
from cmis_stream.core.entities import LEVELS
from cmis_stream.core.errors import CmisError, ConfigError, shown
from cmis_stream.core.time import WINDOWS
from cmis_stream.feeds.decode import Refusal
from cmis_stream.gateway.ports import Snapshots
from cmis_stream.live.delivery import Delivery
from cmis_stream.live.projection import STOP_WITHIN_S, Projection
from cmis_stream.live.snapshots import IncidentSnapshots, MetricSnapshots, SnapshotsByTopic
from cmis_stream.live.tail import LogTail
from cmis_stream.log.catalog import Change, write_change
from cmis_stream.log.member import GROUP, Member, OnAssigned, OnRevoked
from cmis_stream.log.owner import DEAD_LETTERS, ROLLUPS, TRANSITIONS, Owner
from cmis_stream.log.packer import Packer
from cmis_stream.log.reader import LogReader
from cmis_stream.log.system import LogSystem, embedded_system, kafka_system
from cmis_stream.log.table import CheckpointTable
from cmis_stream.log.topics import load_topics, partition_for
from cmis_stream.query.datasets import Dataset, Panes, Queries
from cmis_stream.settings import Role, Settings
from cmis_stream.store.facts import FactStore
from cmis_stream.store.rule_sets import RuleSetRow, RuleSetStore
from cmis_stream.store.signing import PeerTokens, signing_key
from cmis_stream.store.tokens import TokenStore

RAW, METRICS, CHANGES = "cmis.events.raw", "cmis.metrics.v1", "cmis.changes.v1"
SETTLE_S = 10.0
"""What the end of a process may take for what is on its way to a log that does not answer."""
FULL_LOOK_S = 1.0
AGENTS = ("ingest", "metrics", "deliver", "project")

__all__ = ["CHANGES", "DEAD_LETTERS", "METRICS", "RAW", "ROLLUPS", "TRANSITIONS", "LogFull", "Runtime"]
log = logging.getLogger("cmis")


class LogFull(CmisError):
    """Nothing more is taken until there is room."""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Runtime:
    """What a process of a role needs. `open`, `start`, `stop` in the running event loop; `failed` is set when it has to end."""

    @classmethod
    async def open(cls, settings: Settings, address: str | None = None, clock: Callable[[], int] = _now_ms) -> Runtime:
        """Connects to the log and the store. address: URL under which other processes reach this one. clock: epoch ms."""
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        async with AsyncExitStack() as opened:
            system = log_system(settings)
            reader = await opened.enter_async_context(system.reading())
            stores = TokenStore.open(settings.store_path), RuleSetStore(settings.store_path), FactStore(settings.store_path)
            for store in stores:
                opened.callback(store.close)
            runtime = cls(settings, system, reader, stores, address, clock)
            runtime._opened = opened.pop_all()
        return runtime

    def __init__(
        self,
        settings: Settings,
        system: LogSystem,
        reader: LogReader,
        stores: tuple[TokenStore, RuleSetStore, FactStore],
        address: str | None,
        clock: Callable[[], int],
    ) -> None:
        self._opened = AsyncExitStack()
        self.log_full = system.full
        self._connected: list[Callable[[], Awaitable[None]]] = []
        self.peer_tokens = PeerTokens(signing_key(settings.gateway_key_path))
        self.settings, self.clock, role = settings, clock, settings.role
        self.topics = load_topics()
        self.partitions = self.topics[METRICS].partitions
        self.log, (self.tokens, self.rule_sets, self.facts) = reader, stores
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.owners: dict[int, Owner] = {}
        self.ticking = True
        self.dead_letters: Counter[str] = Counter()
        """Reason -> events, since the start."""
        self.on_transitions: list[Callable[[list[dict[str, Any]]], None]] = []
        self.tail = LogTail(self.log, self.partitions)
        self.backplane = self._made_backplane(settings)
        self.panes = Panes(self.owner_of, clock)
        """Of the partitions that this process owns."""
        self.pictures = MetricSnapshots(self._owner_up_to_date)
        panes, pictures = self._made_peers(system) if system.client is not None else (self.panes, self.pictures)
        incidents = IncidentSnapshots(self.facts, self.tail.place, self.log.epoch)
        self.snapshots = SnapshotsByTopic({"incidents": incidents, "metrics": pictures})
        self.queries = Queries({"panes": panes})
        self.packer = Packer(self._append_metrics, self.partitions, clock)
        self.member: Member | None = None
        if role.has_agents or role.has_api:
            self.member = Member(
                system, settings.data_dir, self.topics[METRICS], self.failed, address=address, sends_only=not role.has_agents
            )
        if role.has_agents:
            self.delivery = Delivery(self.backplane, self.tail, self.heard)
            self.projection = Projection(self.facts, self.log.epoch, lambda: self.guard("project"), clock)
            attach_agents(self.app, self)

    def _made_backplane(self, settings: Settings) -> Backplane:
        made = (self.log.epoch, self.tail.place, self.tail.read, self.tail.moment)
        if settings.backplane_url is None:
            return MemoryBackplane(*made)
        from cmis_stream.backplane.redis import RedisBackplane

        return RedisBackplane(settings.backplane_url, *made)

    def _made_peers(self, system: LogSystem) -> tuple[Dataset, Snapshots]:
        """Figures from the worker that has the org's partition, which may be this process."""
        from cmis_stream.log.kafka_group import GroupOwners
        from cmis_stream.peer.client import Peers, RemotePanes, RemoteSnapshots

        assert system.client is not None
        owners = GroupOwners(system.client, GROUP, METRICS)
        peers = Peers(owners, self.peer_tokens, self.partitions, self.clock)
        self._connected = [peers.close, owners.close]
        return RemotePanes(peers), RemoteSnapshots(peers)

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns when the state is recovered and records flow."""
        await self.backplane.open()
        if self.member is not None:
            await self.member.start()
        if self.settings.role.has_api:
            await self._publish_rule_sets()

    async def stop(self) -> None:
        """Everything accepted is durable and everything applied is in a checkpoint when this returns, if the log answers."""
        self.ticking = False
        try:
            async with asyncio.timeout(SETTLE_S):
                await self.packer.drain()
                if not self.failed.done():
                    for owner in list(self.owners.values()):
                        await owner.checkpoint(wait=True)
                        await owner.checkpoint(wait=True)
        except TimeoutError:
            log.warning("the log did not answer within %.0f s; what was not acknowledged is sent or applied again", SETTLE_S)
        finally:
            if self.member is not None:
                await self.member.stop()
            if self.settings.role.has_agents:
                await self.delivery.close()
                await self.projection.settled(STOP_WITHIN_S)
            for close in self._connected:
                await close()
            await self.backplane.close()
            await self._opened.aclose()

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

    @property
    def app(self) -> faust.App:
        return self._member.app

    @property
    def table(self) -> CheckpointTable:
        """Where the owners of partitions keep their checkpoints."""
        return self._member.table

    @property
    def on_assigned(self) -> Callable[[OnAssigned], None]:
        """See `Member`."""
        return self._member.on_assigned

    @property
    def on_revoked(self) -> Callable[[OnRevoked], None]:
        return self._member.on_revoked

    @property
    def _member(self) -> Member:
        assert self.member is not None, f"a {self.settings.role.value} neither reads nor writes records"
        return self.member

    async def send(self, topic: str, partition: int, value: bytes) -> Awaitable[Any]:
        """Appends a record; what it returns completes when the record is durable."""
        sent: Awaitable[Any] = await self.app.producer.send(topic, None, value, partition, None, None)
        return sent

    async def _append_metrics(self, partition: int, value: bytes) -> None:
        """LogFull when the disk has no room. What was under way then is written all the same once there is room; whoever sent it
        sends it again, under the same ids."""
        if self.log_full():
            raise LogFull("the disk is full")
        sent = asyncio.ensure_future(await self.send(METRICS, partition, value))
        while not sent.done():
            await asyncio.wait([sent], timeout=FULL_LOOK_S)
            if not sent.done() and self.log_full():
                raise LogFull("the disk is full")
        sent.result()

    def owner_of(self, org: str) -> Owner | None:
        """The owner of an org's partition, when it is in this process."""
        return self.owners.get(partition_for(org.encode(), self.partitions))

    def _owner_up_to_date(self, org: str) -> Owner | None:
        """None, too, while an owner after a crash or a move has not applied again what its predecessor had told: a picture of it
        would be older than what clients have, and what is told again they do not get."""
        owner = self.owner_of(org)
        return owner if owner is not None and owner.position >= self.delivery.passed(ROLLUPS, owner.partition) else None

    def unready(self) -> list[tuple[str, str]]:
        """Why the role cannot be done yet: (code, sentence)."""
        if self.member is not None and not self.member.ready:
            return [("recovering", "the state is being recovered from the log")]
        return []

    def new_engine(self) -> Engine:
        return Engine(LEVELS, live_windows=tuple(WINDOWS.values()))

    def generation(self) -> str:
        """Unique to an assignment of this process: no other ever writes the same keys."""
        return self._member.generation()

    async def publish(self, org: str, batch: Batch) -> None:
        await self.packer.publish(org, batch)

    async def dead_letter(self, org: str, refusals: list[Refusal], source: str) -> None:
        """Events that the HTTP ingest refused, under the org that sent them."""
        body = {"org": org, "source": ["http", source], "reasons": [_reason(refusal) for refusal in refusals]}
        partition = partition_for(org.encode(), self.partitions)
        self.dead_letters.update(refusal.error.code for refusal in refusals)
        await (await self.send(DEAD_LETTERS, partition, orjson.dumps(body)))

    async def dead_letter_at(self, position: list[Any], refusals: list[Refusal]) -> None:
        self.dead_letters.update(refusal.error.code for refusal in refusals)
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
        key, partition = row.org.encode(), partition_for(row.org.encode(), self.partitions)
        value = write_change(Change(row.org, row.version, row.evaluate, row.rules))
        await (await self.app.producer.send(CHANGES, key, value, partition, None, None))
        self.rule_sets.mark_published(row.org, row.version)


def log_system(settings: Settings) -> LogSystem:
    if settings.log_url is None:
        if settings.role is not Role.UP:
            raise ConfigError(f"a {settings.role.value} needs a log that several processes share: --log kafka://HOST:PORT")
        return embedded_system(settings.log_path, settings.sync)
    return kafka_system(settings.log_url, settings.replication)


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
