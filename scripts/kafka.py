"""Runs a real Apache Kafka on this machine for tests and trials: one node, KRaft, loopback only, from Maven's artifacts.

    python -m scripts.kafka --data DIR      runs until Ctrl-C and prints the broker URL; DIR keeps the data for the next time

The jars are resolved once by Maven's ordinary client into .cache/kafka/VERSION. Needs Java 17 and Maven, nothing else.
Standard library only.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.server import Server, ServerError, free_port, run_until_stopped

VERSION = "4.3.1"
ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "kafka"
READY_S = 90
"""A busy machine may take long; alone it is ready within 4 s."""

_JVM = ["-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Djava.awt.headless=true"]
_QUIET = ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true"]

_POM = f"""<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>cmis-stream</groupId>
  <artifactId>kafka-for-tests</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"""

# One node, quick to start and to rebalance, and strict where a test should notice: no topic appears by itself.
_PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
log.dirs={data}/logs
auto.create.topics.enable=false
num.network.threads=2
num.io.threads=2
background.threads=2
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
log.cleaner.backoff.ms=200
log.cleaner.dedupe.buffer.size=8388608
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
"""


class KafkaError(ServerError):
    """One sentence for whoever wanted to run it."""


def classpath() -> str:
    """The jars, fetched if they are not here yet."""
    jars = CACHE / VERSION
    if not jars.is_dir():
        maven = shutil.which("mvn")
        if maven is None:
            raise KafkaError("Maven (mvn) is needed once to fetch Apache Kafka's jars; on Debian: apt-get install maven")
        _java()
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            (Path(folder) / "pom.xml").write_text(_POM)
            done = subprocess.run(
                [maven, "-q", "-B", "-ntp", "dependency:copy-dependencies", "-DoutputDirectory=jars", "-DincludeScope=runtime"],
                cwd=folder, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                said = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line]
                raise KafkaError(f"Maven could not fetch Apache Kafka {VERSION}: {said[0] if said else 'it said nothing'}")
            try:
                os.rename(Path(folder) / "jars", jars)
            except OSError:
                if not jars.is_dir():  # a neighbour who fetched them at the same time is fine
                    raise
    return str(jars / "*")


def _java() -> str:
    java = shutil.which("java")
    if java is None:
        raise KafkaError("Java 17 or newer is needed to run Apache Kafka; on Debian: apt-get install default-jre-headless")
    return java


class Kafka(Server):
    """A broker on a folder: `with Kafka(folder) as kafka: kafka.url`. settings: lines of server.properties."""

    name, error = "Kafka", KafkaError
    ready_s = READY_S

    def __init__(self, data: Path, *, port: int = 0, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(data, port, settings)
        self._controller = free_port()

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """For Faust's and our `broker` settings."""
        return f"kafka://{self.bootstrap}"

    @property
    def output(self) -> Path:
        """Warnings and errors of the broker."""
        return self.data / "broker.log"

    def _command(self) -> Sequence[str]:
        java, jars = _java(), classpath()
        properties = self.data / "server.properties"
        lines = _PROPERTIES.format(port=self.port, controller=self._controller, data=self.data)
        properties.write_text(lines + "".join(f"{name}={value}\n" for name, value in self._settings.items()))
        if not (self.data / "logs" / "meta.properties").exists():
            cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
            arguments = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", str(properties)]
            done = subprocess.run([java, *_JVM, *_QUIET, "-cp", jars, *arguments], capture_output=True, text=True, check=False)
            if done.returncode:
                raise KafkaError(f"Kafka could not format {self.data}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
        return [java, *_JVM, *_QUIET, "-cp", jars, "kafka.Kafka", str(properties)]

    def _serves(self) -> bool:
        return serves(self.port)


def serves(port: int) -> bool:
    """Whether a broker answers here: an ApiVersions request, the first that any client sends."""
    request = b"\x00\x12\x00\x00" + b"\x00\x00\x00\x01" + b"\x00\x05ready"  # key 18, version 0, correlation 1, client id
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(len(request).to_bytes(4, "big") + request)
            answer = connection.recv(8)
    except OSError:
        return False
    return answer[4:] == b"\x00\x00\x00\x01"


if __name__ == "__main__":
    run_until_stopped(lambda data, port: Kafka(data, port=port), lambda kafka: f"Apache Kafka {VERSION} is ready: {kafka.url}")
