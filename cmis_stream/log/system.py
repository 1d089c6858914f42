"""Which log an installation runs on: the embedded one in the data folder, or Kafka; the same ports over either."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faust
from yarl import URL

from cmis_stream.core.errors import ConfigError
from cmis_stream.log import kafka
from cmis_stream.log.embedded import EmbeddedLog
from cmis_stream.log.embedded_reader import EmbeddedReader
from cmis_stream.log.kafka_reader import KafkaReader
from cmis_stream.log.reader import LogReader
from cmis_stream.log.topics import load_topics
from cmis_stream.log.transport import PromptTableManager, broker_url


@dataclass(frozen=True, slots=True)
class LogSystem:
    """broker, options: of Faust apps on it. reading: what reads it outside of any group. client: settings of aiokafka's
    clients, None on the embedded log."""

    broker: str
    options: Mapping[str, Any]
    reading: Callable[[], AbstractAsyncContextManager[LogReader]]
    client: Mapping[str, Any] | None = None
    full: Callable[[], bool] = lambda: False
    """The disk has no room: what is sent now waits for some."""

    async def check(self, app: faust.App) -> None:
        """ConfigError when a topic that we use is missing, with the command that makes it. (The embedded log makes them.)"""
        if self.client is not None:
            transport: Any = app.transport
            await transport.require_topics(set(load_topics()))


def embedded_system(path: Path, sync: str) -> LogSystem:
    opened: list[EmbeddedLog] = []

    @asynccontextmanager
    async def reading() -> AsyncIterator[LogReader]:
        log = EmbeddedLog.open(path, sync=sync)  # takes the lock: what fails fails here, in a sentence
        log.wait_for_room()
        opened.append(log)
        try:
            reader = EmbeddedReader.open(path)
            try:
                yield reader
            finally:
                await reader.close()
        finally:
            opened.remove(log)
            await log.aclose()

    options = {"TableManager": PromptTableManager, "stream_wait_empty": False, "web_enabled": False}
    return LogSystem(broker_url(path, sync=sync), options, reading, full=lambda: any(log.full for log in opened))


def brokers(url: str) -> list[URL]:
    """The addresses in --log; ConfigError when it is none of Kafka's."""
    try:
        found = [URL(part) for part in url.split(";")]
    except ValueError:
        found = []
    if not found or any(broker.scheme != "kafka" or not broker.host for broker in found):
        raise ConfigError(f"--log: got {url!r}, expected kafka://HOST:PORT, several with ; between them")
    return found


def kafka_system(url: str, replication: int) -> LogSystem:
    """url: kafka://host:port, several with ; between them."""
    client = kafka.client_settings(brokers(url))

    @asynccontextmanager
    async def reading() -> AsyncIterator[LogReader]:
        reader = await KafkaReader.open(client)
        try:
            yield reader
        finally:
            await reader.close()

    return LogSystem(url, kafka.app_options(replication=replication), reading, client)
