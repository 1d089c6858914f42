"""Everything of one process, built once and handed on: log, Faust app, packer, stores, backplane. No globals."""

from __future__ import annotations

import asyncio
import importlib
import logging
import pkgutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from importlib.metadata import entry_points
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
from cmis_stream.history.recorder import History
from cmis_stream.live.commands import COMMANDS, CommandsOnFacts
from cmis_stream.live.delivery import Delivery
from cmis_stream.live.fact_writer import ChangesOf, FactWriter
from cmis_stream.live.jobs import JobSnapshots, JobTeller
from cmis_stream.live.projection import STOP_WITHIN_S, Projection
from cmis_stream.live.snapshots import IncidentSnapshots, MetricSnapshots, SnapshotsByTopic
from cmis_stream.live.tail import LogTail
from cmis_stream.log.catalog import Catalog, write_catalog
from cmis_stream.log.member import GROUP, Member, OnAssigned, OnRevoked
from cmis_stream.log.owner import DEAD_LETTERS, ROLLUPS, TRANSITIONS, Owner
from cmis_stream.log.packer import Packer
from cmis_stream.log.reader import LogReader
from cmis_stream.log.system import LogSystem, embedded_system, kafka_system
from cmis_stream.log.table import CheckpointTable
from cmis_stream.log.topics import load_topics, partition_for
from cmis_stream.query.datasets import Dataset, Panes, Queries
from cmis_stream.query.history import HistoryFigures
from cmis_stream.query.stored import datasets_of
from cmis_stream.settings import Role, Settings
from cmis_stream.store.fact_kinds import FactKind
from cmis_stream.store.signing import PeerTokens, gateway_key
from cmis_stream.stores import Stores

RAW, METRICS, CHANGES = "cmis.events.raw", "cmis.metrics.v1", "cmis.changes.v1"
SETTLE_S = 10.0
"""What the end of a process may take for what is on its way to a log that does not answer."""
FULL_LOOK_S = 1.0
AGENTS = "cmis_stream.agents"
"""Entry points of other packages' agents: modules that export `attach(app, runtime)`."""

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
            stores = await asyncio.to_thread(Stores, settings, clock)
            opened.callback(stores.close)
            runtime = cls(settings, system, reader, stores, address, clock)
            runtime._opened = opened.pop_all()
        return runtime

    def __init__(
        self,
        settings: Settings,
        system: LogSystem,
        reader: LogReader,
        stores: Stores,
        address: str | None,
        clock: Callable[[], int],
    ) -> None:
        self._opened = AsyncExitStack()
        self.log_full = system.full
        self._connected: list[Callable[[], Awaitable[None]]] = []
        self.peer_tokens = PeerTokens(gateway_key(settings.gateway_key, settings.gateway_key_path))
        self.settings, self.clock, role = settings, clock, settings.role
        self.topics = load_topics()
        self.partitions = self.topics[METRICS].partitions
        self.log, self.stores = reader, stores
        self.tokens, self.facts = stores.tokens, stores.facts
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
        sources: dict[str, Snapshots] = {"incidents": incidents, "jobs": JobSnapshots(stores.jobs), "metrics": pictures}
        self.snapshots = SnapshotsByTopic(sources)
        kept = HistoryFigures(
            settings.history_path, self.partitions, self.log.epoch, clock, keep_days=settings.history_days
        )  # fmt: skip
        stored = datasets_of(stores.documents, stores.facts, stores.kinds, self._facts_position, clock)
        self.queries = Queries({"panes": panes, "history": kept}, stored)
        self.packer = Packer(self._append_metrics, self.partitions, clock)
        self.member: Member | None = None
        if role.has_agents or role.has_api:
            self.member = Member(
                system, settings.data_dir, self.topics[METRICS], self.failed, address=address, sends_only=not role.has_agents
            )
        self.teller = JobTeller(self.send, self.partitions) if self.member is not None else None
        if self.teller is not None:
            stores.jobs.publish = self.teller
        self._fact_writers: list[FactWriter] = []
        if role.has_agents:
            self.delivery = Delivery(self.backplane, self.tail, self.heard)
            self.projection = Projection(self.facts, self.log.epoch, lambda: self.guard("project"), clock)
            self.commands = CommandsOnFacts(
                stores.fact_commands, self.facts, self.log.epoch, lambda: self.guard("commands")
            )  # fmt: skip
            self.history = History(
                self.log, settings.history_path, self.partitions, clock, keep_days=settings.history_days
            )  # fmt: skip
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

    def _facts_position(self, org: str, kind: FactKind) -> dict[str, Any]:
        """Up to which record of what they follow from an org's facts are in the store, if the kind says what that is; blocks."""
        if not kind.reader:
            return {}
        place = kind.topic, partition_for(org.encode(), self.partitions)
        offset = self.stores.facts.positions(kind.reader, self.log.epoch).get(place, -1)
        return {"topic": place[0], "partition": place[1], "offset": offset}

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns when the state is recovered and records flow."""
        await self.backplane.open()
        if self.member is not None:
            await self.member.start()

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
            if self.teller is not None:
                await self.teller.close()
            if self.member is not None:
                await self.member.stop()
            if self.settings.role.has_agents:
                await self.delivery.close()
                await self.projection.settled(STOP_WITHIN_S)
                await self.commands.settled(STOP_WITHIN_S)
                for writer in self._fact_writers:
                    await writer.settled(STOP_WITHIN_S)
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

    def fact_writer(self, reader: str, topic: str, changes_of: ChangesOf) -> FactWriter:
        """For an agent that finds facts in the records of a topic. reader: its name, which no other agent has."""
        writer = FactWriter(self.facts, topic, reader, self.log.epoch, lambda: self.guard(reader), changes_of)
        self.on_assigned(writer.begin)
        self._fact_writers.append(writer)
        return writer

    async def send(self, topic: str, partition: int, value: bytes) -> Awaitable[Any]:
        """Appends a record; what it returns completes when the record is durable."""
        sent: Awaitable[Any] = await self.app.producer.send(topic, None, value, partition, None, None)
        return sent

    async def send_command(self, org: str, value: bytes) -> None:
        """A command on a fact; returns when it is durable. LogFull when the disk has no room."""
        if self.log_full():
            raise LogFull("the disk is full")
        await (await self.send(COMMANDS, partition_for(org.encode(), self.partitions), value))

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

    async def publish_catalog(self, catalog: Catalog) -> None:
        """Returns when the set is durable in the log; agents adopt it within a second."""
        partition = partition_for(catalog.org.encode(), self.partitions)
        await (await self.app.producer.send(CHANGES, catalog.key, write_catalog(catalog), partition, None, None))


def log_system(settings: Settings) -> LogSystem:
    if settings.log_url is None:
        if settings.role is not Role.UP:
            raise ConfigError(f"a {settings.role.value} needs a log that several processes share: --log kafka://HOST:PORT")
        return embedded_system(settings.log_path, settings.sync)
    return kafka_system(settings.log_url, settings.replication)


def _reason(refusal: Refusal) -> dict[str, Any]:
    return {**refusal.error.as_dict(), "id": refusal.id, "line": refusal.line, "raw": shown(refusal.raw, 4096)}


def attach_agents(app: faust.App, runtime: Runtime) -> None:
    """Loads each file of `agents`, and what other packages bring.

    (Faust's autodiscovery turns an import error into a warning, and the agent vanishes.)
    """
    package = importlib.import_module("agents")
    if getattr(package, "OWNER", None) != "cmis-stream":
        place = getattr(package, "__file__", "?")
        raise CmisError(f"the package `agents` found at {place} is not CMIS Stream's; remove it or change PYTHONPATH")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"agents.{module.name}").attach(app, runtime)
    for point in entry_points(group=AGENTS):
        point.load().attach(app, runtime)
