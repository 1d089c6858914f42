"""The toy where roles are processes of their own: a worker and an api on Kafka, Redis and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.kafka import Kafka
from scripts.redis import Redis
from tests.e2e.support import Processes, free_port, until
from tests.faults.test_rules_over_rest import Store
from tests.modules_e2e.toy_site import Org, environment, tokens_of
from tests.servers.kafka import own_kafka
from tests.servers.postgres import Urls
from tests.servers.redis import own_redis

__all__ = ["own_kafka", "own_redis"]
pytestmark = pytest.mark.slow


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    started = Processes(tmp_path / "processes", environment(tmp_path))
    yield started
    started.end()


@pytest.fixture
def acme(tmp_path: Path, processes: Processes, own_kafka: Kafka, own_redis: Redis, postgres_urls: Urls) -> Iterator[Org]:
    """They share a folder, for the bytes of files."""
    applied = processes.cmis("topics", "apply", "--log", own_kafka.url)
    assert applied.ended() == 0 and "toy.played.v1" in applied.text, applied.text
    texts = tokens_of(Store(postgres_urls.app, [], []))
    port, shared = free_port(), ["--data-dir", tmp_path / "data", "--log", own_kafka.url, "--store", postgres_urls.app]
    worker = processes.cmis(
        "worker", "--port", free_port(), "--backplane", own_redis.url, "--store-relay", postgres_urls.relay, *shared
    )
    api = processes.cmis("api", "--port", port, *shared)
    for process in (worker, api):
        process.says("Ready in")
    org = Org(f"http://127.0.0.1:{port}", "acme", texts["acme"])
    yield org
    org.client.close()


def test_what_the_api_decides_the_worker_does(acme: Org) -> None:
    acme.post("toy/toys", {"name": "Train", "slug": "train"})
    acme.post("toy/toys/train/play")
    (fact,) = until(lambda: acme.everything("toy/playdates"), "the playdate")
    praised = acme.sure("POST", f"toy/playdates/{fact['id']}/praise", "praise", {"words": "Fast"})
    assert praised["item"]["praises"] == 1
    until(lambda: acme.get("toy/toys/train")["rung"] == 1, "what follows from the praise")
    acme.post("toy/toys/count-toys", {})
    (job,) = until(lambda: acme.get("jobs", **{"filter[state]": "done"})["items"], "the job")
    assert acme.ask("GET", f"files/{job['result']['file']}/content").text == "train\r\n"
    answer = acme.post("query", {"dataset": "playdates", "measures": ["count"]})
    assert answer["rows"] == [[1]] and answer["position"]["topic"] == "toy.played.v1" and answer["position"]["offset"] >= 0
