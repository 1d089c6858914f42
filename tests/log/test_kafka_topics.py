"""topics.yaml on a real Apache Kafka: what is missing is created as declared, what differs is told, nothing else happens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from yarl import URL

from cmis_stream.log.kafka import client_settings
from cmis_stream.log.kafka_topics import Difference, Plan, TopicsError, apply, partition_counts, plan, topic_config
from cmis_stream.log.topics import TopicSpec, load_topics
from scripts.kafka import Kafka
from scripts.server import free_port
from tests.log.backends import OnKafka, Rig


def spec(name: str, **fields: object) -> TopicSpec:
    return replace(load_topics()["cmis.metrics.v1"], name=name, **fields)


def test_limits_of_all_partitions_together_become_limits_of_each() -> None:
    config = topic_config(spec("t", partitions=8, retention_bytes=8_000, retention_ms=60_000), replication=3)
    assert config["retention.ms"] == "60000" and "retention.bytes" not in config, "bytes are for an embedded log's disk"
    assert config["cleanup.policy"] == "delete" and config["min.insync.replicas"] == "2"
    compacted = topic_config(load_topics()["cmis.changes.v1"], replication=1)
    assert compacted["cleanup.policy"] == "compact" and compacted["min.insync.replicas"] == "1"
    assert "retention.ms" not in compacted


@pytest.mark.slow
async def test_what_is_missing_is_created_as_declared_and_then_there_is_nothing_left_to_do(kafka: Kafka, tmp_path: Path) -> None:
    client, mark = client_settings_of(kafka), Rig(OnKafka(kafka.bootstrap), tmp_path).named("t")
    specs = [replace(own, name=f"{name}-{mark}") for name, own in load_topics().items()]
    assert await plan(client, specs) == Plan(missing=specs)
    assert (await partition_counts(client)).keys().isdisjoint(own.name for own in specs), "a plan creates nothing"
    assert await apply(client, specs) == Plan(missing=specs)
    assert await plan(client, specs) == Plan()
    assert {name: count for name, count in (await partition_counts(client)).items() if mark in name} == {
        own.name: own.partitions for own in specs
    }
    assert await apply(client, specs) == Plan()


@pytest.mark.slow
async def test_what_differs_is_told_and_left_as_it_is(kafka: Kafka, tmp_path: Path) -> None:
    client, rig = client_settings_of(kafka), Rig(OnKafka(kafka.bootstrap), tmp_path)
    await rig.create("t", partitions=3, retention_ms="1000", max_message_bytes=str(16 << 20))
    wanted = spec(rig.named("t"), retention_ms=60_000, retention_bytes=None)
    expected = Plan(
        differences=[
            Difference(wanted.name, "partitions", "3", "8"),
            Difference(wanted.name, "replication", "1", "2"),
            Difference(wanted.name, "retention.ms", "1000", "60000"),
        ]
    )
    assert await plan(client, [wanted], replication=2) == expected
    assert await apply(client, [wanted], replication=2) == expected
    assert await plan(client, [wanted], replication=2) == expected
    assert str(expected.differences[0]) == f"{wanted.name}: partitions: got 3, expected 8"


@pytest.mark.slow
async def test_a_topic_that_the_cluster_refuses_is_an_error_with_its_reason(kafka: Kafka, tmp_path: Path) -> None:
    rig = Rig(OnKafka(kafka.bootstrap), tmp_path)
    with pytest.raises(TopicsError, match=r"cannot be created: .*replication factor"):
        await apply(client_settings_of(kafka), [spec(rig.named("t"))], replication=3)


async def test_a_cluster_that_does_not_answer_is_an_error_that_names_its_address() -> None:
    port = free_port()
    with pytest.raises(TopicsError, match=f"127.0.0.1:{port}"):
        await plan(client_settings([URL(f"kafka://127.0.0.1:{port}")]), [spec("t")])


def client_settings_of(kafka: Kafka) -> dict[str, object]:
    return client_settings([URL(kafka.url)])
