"""The two logs as the contract suite sees them: options of a Faust app, and the log from outside."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import faust
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import for_code

from cmis_stream.log import kafka as kafka_transport
from cmis_stream.log.embedded import EmbeddedLog
from cmis_stream.log.kafka_reader import read_to_end
from cmis_stream.log.kafka_topics import appeared
from cmis_stream.log.recovery import PromptTableManager
from cmis_stream.log.table import CheckpointTable
from cmis_stream.log.transport import broker_url

PARTITIONS = 8


class Row(NamedTuple):
    offset: int
    key: bytes | None
    value: bytes | None


class Backend(Protocol):
    """A log without Faust. Names are unique to a test, so that tests may share a broker."""

    name: str

    @property
    def options(self) -> dict[str, Any]: ...

    async def create(self, topic: str, *, partitions: int = PARTITIONS, **config: str) -> None: ...

    async def append(self, topic: str, partition: int, rows: Iterable[tuple[bytes | None, bytes | None]]) -> None: ...

    async def rows(self, topic: str, partition: int) -> list[Row]: ...

    async def committed(self, group: str, topic: str) -> dict[int, int]: ...


class Embedded:
    name = "embedded"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.db"

    @property
    def options(self) -> dict[str, Any]:
        return {"broker": broker_url(self.path), "TableManager": PromptTableManager, "web_enabled": False}

    async def create(self, topic: str, *, partitions: int = PARTITIONS, **config: str) -> None:
        log = EmbeddedLog.open(self.path)
        log.create_topic(topic, partitions, config.get("cleanup_policy") == "compact")
        await log.aclose()

    async def append(self, topic: str, partition: int, rows: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        log = EmbeddedLog.open(self.path)
        await asyncio.gather(*(log.append(topic, partition, key, value) for key, value in rows))
        await log.aclose()

    async def rows(self, topic: str, partition: int) -> list[Row]:
        log = EmbeddedLog.open(self.path, read_only=True)
        try:
            return [Row(r.offset, r.key, r.value) for r in log.read(topic, partition, 0, 1 << 30, 1 << 40)]
        finally:
            log.close()

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        log = EmbeddedLog.open(self.path, read_only=True)
        offsets = log.groups().get(group, {})
        log.close()
        return {partition: offset for (name, partition), offset in offsets.items() if name == topic}


class OnKafka:
    name = "kafka"

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap

    @property
    def options(self) -> dict[str, Any]:
        # A session as short as the broker allows: a killed process keeps its partitions for so long.
        session = {"broker_session_timeout": 3.0, "broker_heartbeat_interval": 0.3}
        return {"broker": f"kafka://{self.bootstrap}", **kafka_transport.app_options(), **session}

    async def create(self, topic: str, *, partitions: int = PARTITIONS, **config: str) -> None:
        """config: as Kafka names them, with underscores for dots."""
        configs = {name.replace("_", "."): value for name, value in config.items()}
        async with _running(AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)) as admin:
            response = await admin.create_topics([NewTopic(topic, partitions, 1, topic_configs=configs)])
            code, reason = response.topic_errors[0][1:3]
            assert code == 0, f"{topic}: {for_code(code).__name__} {reason}"
            await appeared(admin, {topic})

    async def append(self, topic: str, partition: int, rows: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        async with _running(AIOKafkaProducer(bootstrap_servers=self.bootstrap, acks="all")) as producer:
            sent = [await producer.send(topic, value, key=key, partition=partition) for key, value in rows]
            await asyncio.gather(*sent)

    async def rows(self, topic: str, partition: int) -> list[Row]:
        reading = read_to_end({"bootstrap_servers": self.bootstrap}, topic, partition)
        return [Row(record.offset, record.key, record.value) async for records in reading for record in records]

    async def committed(self, group: str, topic: str) -> dict[int, int]:
        async with _running(AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)) as admin:
            offsets = await admin.list_consumer_group_offsets(group)
        return {tp.partition: found.offset for tp, found in offsets.items() if tp.topic == topic and found.offset >= 0}


@asynccontextmanager
async def _running(client: Any) -> AsyncIterator[Any]:
    await client.start()
    try:
        yield client
    finally:
        await (client.close if isinstance(client, AIOKafkaAdminClient) else client.stop)()


# --- Faust apps --------------------------------------------------------------------------------------------------------


class Received:
    """What an agent got, and a way to wait for it."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self._changed = asyncio.Event()

    def add(self, event: Any) -> None:
        self.events.append(event)
        self._changed.set()

    async def reach(self, count: int, patience_s: float = 30) -> None:
        async with asyncio.timeout(patience_s):
            while len(self.events) < count:
                self._changed.clear()
                await self._changed.wait()

    @property
    def positions(self) -> list[tuple[int, int]]:
        return [(event.message.partition, event.message.offset) for event in self.events]


class Rig:
    """One test's apps on one backend. `topic("events")` and groups get names of their own."""

    def __init__(self, backend: Backend, folder: Path) -> None:
        self.backend, self.folder = backend, folder
        self._mark = secrets.token_hex(4)

    def named(self, name: str) -> str:
        return f"{name}-{self._mark}"

    def app(self, name: str = "app", **options: Any) -> Any:
        usual = {
            "store": "memory://",
            "topic_partitions": PARTITIONS,
            "datadir": str(self.folder / "data"),
            "broker_commit_interval": 0.05,
        }
        return faust.App(self.named(name), **{**usual, **self.backend.options, **options})

    def topic(self, app: Any, name: str = "events", **options: Any) -> Any:
        return app.topic(
            self.named(name), key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw",
            partitions=PARTITIONS, **options,
        )  # fmt: skip

    async def create(self, name: str = "events", **config: str) -> None:
        await self.backend.create(self.named(name), **config)

    async def fill(self, counts: dict[int, int], name: str = "events", start: int = 0) -> None:
        """counts[partition] records each, values counting up from `start`."""
        for partition, count in counts.items():
            await self.backend.append(self.named(name), partition, [(b"key", b"%d" % (start + i)) for i in range(count)])

    async def committed(self, app: str = "app", topic: str = "events") -> dict[int, int]:
        return await self.backend.committed(self.named(app), self.named(topic))

    async def values(self, name: str, partition: int) -> list[bytes | None]:
        return [row.value for row in await self.backend.rows(self.named(name), partition)]


@asynccontextmanager
async def running(*apps: Any) -> AsyncIterator[None]:
    try:
        for app in apps:
            await app.start()
        yield
    finally:  # an app that is not stopped keeps asyncio.run from ending
        for app in reversed(apps):
            await app.stop()


def collect(app: Any, topic: Any, received: Received, name: str = "collect") -> None:
    async def agent(stream: Any) -> None:
        async for event in stream.events():
            received.add(event)

    app.agent(topic, name=name)(agent)


def checkpoints(app: Any) -> CheckpointTable:
    table = CheckpointTable(
        app, name="state", key_type=bytes, value_type=bytes, partitions=PARTITIONS, beacon=app.tables.beacon
    )  # fmt: skip
    app.tables.add(table)
    return table
