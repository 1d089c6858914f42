"""Faust's transport over Apache Kafka: `broker="kafka://host:9092;kafka://host2:9092"`. docs/design/kafka.md."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from faust.topics import Topic
from faust.transport import drivers
from faust.transport.drivers import aiokafka as driver
from yarl import URL

from cmis_stream.core.errors import ConfigError
from cmis_stream.log.kafka_consumer import KafkaConsumer
from cmis_stream.log.kafka_producer import REQUEST_S, KafkaProducer
from cmis_stream.log.kafka_topics import partition_counts
from cmis_stream.log.recovery import PromptTableManager
from cmis_stream.log.topics import load_topics

APPEARS_S = 5.0
"""A topic that has just been created, a changelog for one, is not known to every broker at once."""


def app_options(*, replication: int = 1) -> dict[str, Any]:
    """The settings of a Faust app on Kafka beside `broker`: a killed worker's partitions move within 10 s."""
    return {
        "TableManager": PromptTableManager,
        "broker_session_timeout": 10.0,
        "broker_heartbeat_interval": 2.0,
        "broker_rebalance_timeout": 30.0,
        "topic_replication_factor": replication,
        "topic_disable_leader": True,
        "stream_wait_empty": False,
        "web_enabled": False,
    }


def client_settings(urls: Iterable[URL], **credentials: Any) -> dict[str, Any]:
    """What every aiokafka client of a broker URL needs to connect."""
    return {
        "bootstrap_servers": driver.server_list(list(urls), driver.Transport.default_port),
        "request_timeout_ms": int(REQUEST_S * 1000),
        **credentials,
    }


class Transport(driver.Transport):
    """Registered as ``kafka`` under the entry point group ``faust.transports``, in place of Faust's own."""

    Consumer: ClassVar[type[KafkaConsumer]] = KafkaConsumer
    Producer: ClassVar[type[KafkaProducer]] = KafkaProducer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.partition_counts: dict[str, int] = {}
        """Of all topics, as of the start or the last subscription."""

    def client_settings(self) -> Mapping[str, Any]:
        """Addresses and credentials for aiokafka's consumers, producers and admin clients alike."""
        conf = self.app.conf
        credentials = driver.credentials_to_aiokafka_auth(conf.broker_credentials, conf.ssl_context)
        return client_settings(self.url, client_id=conf.broker_client_id, **credentials)

    async def learn_topics(self) -> dict[str, int]:
        """The partition counts of all topics that are there; from now on the producer can send to those that we use."""
        self.partition_counts = there = await partition_counts(self.client_settings())
        ours = {*load_topics(), *(name for topic in self.app.topics if isinstance(topic, Topic) for name in topic.topics)}
        producer: Any = self.app.producer
        await producer.know(name for name in there if name in ours)
        return there

    async def require_topics(self, names: set[str]) -> None:
        """Raise ConfigError for a topic that is missing or has another partition count than the app declares.

        Nothing is created: a topic that appears by itself has the cluster's default of partitions.
        """
        give_up_at = self.loop.time() + APPEARS_S
        there = await self.learn_topics()
        while not names <= there.keys() and self.loop.time() < give_up_at:
            await asyncio.sleep(0.1)
            there = await self.learn_topics()
        declared = {name: t.partitions for t in self.app.topics if isinstance(t, Topic) for name in t.topics if t.partitions}
        wrong = [
            f"topic {name}: got {f'{there[name]} partitions' if name in there else 'nothing'}, "
            f"expected {f'{declared[name]} partitions' if name in declared else 'it to exist'}"
            for name in sorted(names)
            if name not in there or there[name] != declared.get(name, there[name])
        ]
        if wrong:
            raise ConfigError(f"{'; '.join(wrong)}: create topics with `cmis topics apply`")


# Works without the entry point too, as in a source checkout that is not installed.
drivers.TRANSPORTS.aliases["kafka"] = f"{__name__}:Transport"
