"""Faust's transport over the embedded log.

Broker URL: ``embedded:///absolute/path/log.db?sync=normal|full``; ``embedded://./path/log.db`` is relative to the
working directory; ``topics=path`` names another topics.yaml. ``broker_url`` makes one.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from faust.topics import Topic
from faust.transport import base, drivers
from faust.transport.conductor import Conductor

from cmis_stream.core.errors import ConfigError
from cmis_stream.log.embedded import EmbeddedLog
from cmis_stream.log.embedded_consumer import EmbeddedConsumer
from cmis_stream.log.embedded_producer import EmbeddedProducer
from cmis_stream.log.recovery import PromptTableManager
from cmis_stream.log.topics import TopicSpec, load_topics

__all__ = ["EmbeddedConductor", "PromptTableManager", "Transport", "broker_url"]
RESUBSCRIBE_AFTER_S = 1.0


def broker_url(path: Path, *, sync: str = "normal") -> str:
    """Return the broker URL of the log at a path."""
    return f"embedded://{quote(str(path.absolute()))}?sync={sync}"


class EmbeddedConductor(Conductor):
    """Faust's, but a topic added to a running app is subscribed after a second, not 45: a rebalance is cheap here."""

    _resubscribe_sleep_lock_seconds = RESUBSCRIBE_AFTER_S


class Transport(base.Transport):
    """Registered as ``embedded`` under the entry point group ``faust.transports``."""

    Consumer: ClassVar[type[EmbeddedConsumer]] = EmbeddedConsumer
    Producer: ClassVar[type[EmbeddedProducer]] = EmbeddedProducer
    Conductor: ClassVar[type[EmbeddedConductor]] = EmbeddedConductor
    default_port = 0
    driver_version = "embedded 1"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        url = self.url[0]
        if url.host not in (None, "", ".") or not url.path.strip("/"):
            raise ConfigError(f"broker: got {url}, expected embedded:///absolute/path/log.db or embedded://./path/log.db")
        self.path = Path(url.path.lstrip("/") if url.host == "." else url.path)
        self.sync = url.query.get("sync", "normal")
        self._topics_path = Path(url.query["topics"]) if "topics" in url.query else None

    @cached_property
    def declared(self) -> dict[str, TopicSpec]:
        """The topics of topics.yaml, by name."""
        return load_topics(self._topics_path)

    def open_log(self) -> EmbeddedLog:
        """Open the log; the caller closes it."""
        return EmbeddedLog.open(self.path, sync=self.sync)

    def create_topic(self, log: EmbeddedLog, name: str, partitions: int, compact: bool, retention_ms: int | None) -> None:
        """Create a topic if it is not there, as declared in topics.yaml if it is declared."""
        spec = self.declared.get(name)
        if spec is not None:
            log.create_topic(name, spec.partitions, spec.compact, spec.retention_ms, spec.retention_bytes)
        else:
            log.create_topic(name, partitions, compact, retention_ms)

    def require_topic(self, log: EmbeddedLog, name: str) -> int:
        """Create a topic that somebody uses without declaring it, if it is not there; return its partition count."""
        info = log.topics.get(name)
        if info is None:
            asked = (t.partitions for t in self.app.topics if isinstance(t, Topic) and name in t.topics)
            partitions = next(filter(None, asked), None) or self.app.conf.topic_partitions
            self.create_topic(log, name, partitions, False, None)
            info = log.topics[name]
        return info.partitions


# Works without the entry point too, as in a source checkout that is not installed.
drivers.TRANSPORTS.aliases["embedded"] = f"{__name__}:Transport"
