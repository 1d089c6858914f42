"""topics.yaml against a Kafka cluster: what is missing, what differs, and creating what is missing. Nothing is deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # type: ignore[import-untyped]
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code  # type: ignore[import-untyped]

from cmis_stream.core.errors import CmisError
from cmis_stream.log.topics import TopicSpec

MESSAGE_BYTES = 16 << 20
"""The largest record: an envelope of 8,000 events with the longest identifiers on distinct entities."""
CREATE_MS = 30_000


class TopicsError(CmisError):
    """The cluster refused to create a topic, or could not be asked."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A topic of the cluster that is not as declared. `setting` is partitions, replication, or the name of a topic config."""

    topic: str
    setting: str
    got: str
    expected: str

    def __str__(self) -> str:
        return f"{self.topic}: {self.setting}: got {self.got}, expected {self.expected}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What `apply` would do (or has done), and what a person has to decide."""

    missing: list[TopicSpec] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)


def topic_config(spec: TopicSpec, replication: int) -> dict[str, str]:
    """The topic configs of a declared topic. By age alone: the limits in bytes are for the one disk of an embedded log."""
    config = {
        "cleanup.policy": spec.cleanup,
        "max.message.bytes": str(MESSAGE_BYTES),
        "min.insync.replicas": str(max(1, replication - 1)),  # with acks=all: one replica may be away
    }
    if spec.retention_ms is not None:
        config["retention.ms"] = str(spec.retention_ms)
    return config


async def plan(client: Mapping[str, Any], specs: Iterable[TopicSpec], replication: int = 1) -> Plan:
    """Compare declared topics with those of a cluster.

    client: settings of aiokafka's clients: bootstrap_servers and credentials, as `Transport.client_settings` returns them.
    """
    async with _admin(client) as admin:
        return await _compare(admin, list(specs), replication)


async def apply(client: Mapping[str, Any], specs: Iterable[TopicSpec], replication: int = 1) -> Plan:
    """Create what is missing; returns what was, and what differs and was left as it is. TopicsError when refused."""
    async with _admin(client) as admin:
        found = await _compare(admin, list(specs), replication)
        if found.missing:
            wanted = [
                NewTopic(s.name, s.partitions, replication, topic_configs=topic_config(s, replication)) for s in found.missing
            ]
            response: Any = await admin.create_topics(wanted, timeout_ms=CREATE_MS)
            for name, code, reason, *_ in response.topic_errors:
                if code and code != TopicAlreadyExistsError.errno:  # a neighbour who was quicker is fine
                    raise TopicsError(f"topic {name} cannot be created: {reason or for_code(code).__name__}")
            await appeared(admin, {spec.name for spec in found.missing})
        return found


async def partition_counts(client: Mapping[str, Any]) -> dict[str, int]:
    """All topics of a cluster with their partition counts."""
    async with _admin(client) as admin:
        return {name: len(partitions) for name, partitions in (await _described(admin)).items()}


async def appeared(admin: AIOKafkaAdminClient, names: set[str]) -> None:
    """Wait until the brokers have heard of the topics, and each partition has a leader."""
    async with asyncio.timeout(CREATE_MS / 1000):
        while True:
            there = await _described(admin)
            if names <= there.keys() and all(partition["leader"] >= 0 for name in names for partition in there[name]):
                return
            await asyncio.sleep(0.05)


async def _compare(admin: AIOKafkaAdminClient, specs: list[TopicSpec], replication: int) -> Plan:
    there = await _described(admin)
    known = [spec for spec in specs if spec.name in there]
    configs = await _configs(admin, [spec.name for spec in known])
    differences = []
    for spec in known:
        partitions = there[spec.name]
        expected = {
            "partitions": str(spec.partitions),
            "replication": str(replication),
            **topic_config(spec, replication),
        }
        got = {
            "partitions": str(len(partitions)),
            "replication": str(max(len(partition["replicas"]) for partition in partitions)),
            **configs[spec.name],
        }
        differences += [
            Difference(spec.name, name, got.get(name, "nothing"), value)
            for name, value in expected.items()
            if got.get(name) != value
        ]
    return Plan([spec for spec in specs if spec.name not in there], differences)


async def _described(admin: AIOKafkaAdminClient) -> dict[str, list[Any]]:
    """Topic -> its partitions."""
    return {topic["topic"]: topic["partitions"] for topic in await admin.describe_topics()}


async def _configs(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    found: dict[str, dict[str, str]] = {}
    for response in await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names]):
        for code, reason, _kind, name, entries in response.resources:
            if code:
                raise TopicsError(f"the configuration of topic {name} cannot be read: {reason or for_code(code).__name__}")
            found[name] = {entry[0]: entry[1] for entry in entries}
    return found


@asynccontextmanager
async def _admin(client: Mapping[str, Any]) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**client)
    try:
        await admin.start()
        yield admin
    except (KafkaError, TimeoutError) as error:
        raise TopicsError(f"the cluster at {client['bootstrap_servers']} could not be asked: {error}") from error
    finally:
        await admin.close()
