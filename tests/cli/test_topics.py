"""`cmis topics` and `cmis tail` on either log, and `cmis topics plan` and `apply` on Kafka."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from click.testing import CliRunner, Result

from cmis_stream.cli import main
from cmis_stream.log.topics import load_topics
from scripts.kafka import Kafka
from scripts.server import free_port
from tests.e2e.support import Processes
from tests.log.written import NOW, Written, written_embedded, written_kafka

TOPIC = "cmis.dead_letters.v1"


class Installation:
    """A log, and the command line pointed at it."""

    def __init__(self, options: list[str], fill: Callable[[Callable[[Written], Awaitable[None]]], None]) -> None:
        self.options, self.fill = options, fill

    def cmis(self, *arguments: str) -> Result:
        return cmis(*arguments, *self.options)


def cmis(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), env={"CMIS_LOG": None, "CMIS_DATA_DIR": None})


def a_sentence(result: Result) -> str:
    assert result.exit_code == 1 and result.stdout == "", result.output
    assert result.stderr.startswith("cmis: ") and result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.slow)])
def installation(request: pytest.FixtureRequest, tmp_path: Path) -> Installation:
    url = request.getfixturevalue("kafka").url if request.param == "kafka" else None

    def fill(work: Callable[[Written], Awaitable[None]]) -> None:
        async def run() -> None:
            async with written_kafka(url) if url is not None else written_embedded(tmp_path) as written:
                await work(written)

        asyncio.run(run())

    return Installation(["--log", url] if url is not None else ["--data-dir", str(tmp_path)], fill)


async def some_records(written: Written) -> None:
    await written.create(TOPIC, 8)
    for number in range(6):
        await written.append(TOPIC, number % 2, (b"k", b'{"n":%d}' % number), ts_ms=NOW + number)
    await written.commit("cmis", TOPIC, {0: 1, 1: 3})


def row(result: Result, topic: str) -> list[str]:
    assert result.exit_code == 0, result.output
    return next(re.split(r"  +", line.strip()) for line in result.stdout.splitlines() if line.startswith(f"{topic} "))


def test_the_table_says_what_is_held_and_what_waits_for_the_agents(installation: Installation) -> None:
    installation.fill(some_records)
    table = installation.cmis("topics")
    _, partitions, records, megabytes, lag, kept = row(table, TOPIC)
    assert (partitions, records, lag, kept) == ("8", "6", "2", "14 days")
    assert megabytes == ("–" if "--log" in installation.options else "0.0")
    assert all(row(table, name)[5] == "newest per key" for name, spec in load_topics().items() if spec.compact)


def test_the_table_without_a_log_says_what_is_declared(tmp_path: Path) -> None:
    table = cmis("topics", "--data-dir", str(tmp_path / "nothing"))
    assert [row(table, name)[1:5] for name in load_topics()] == [["8", "–", "–", "–"]] * len(load_topics())
    assert not (tmp_path / "nothing").exists()


def test_tail_shows_the_newest_in_the_order_of_their_times(installation: Installation) -> None:
    installation.fill(some_records)
    shown = installation.cmis("tail", TOPIC, "-n", "4")
    assert shown.exit_code == 0, shown.output
    lines = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [(line["partition"], line["offset"], line["key"], line["value"]["n"]) for line in lines] == [
        (n % 2, n // 2, "k", n) for n in range(2, 6)
    ]
    assert installation.cmis("tail", TOPIC, "-n", "0").output == ""


def test_tail_of_an_unknown_topic_names_those_there_are(installation: Installation) -> None:
    installation.fill(some_records)
    said = a_sentence(installation.cmis("tail", "no.such.topic"))
    assert "'no.such.topic'" in said and "there are: " in said and TOPIC in said


def test_tail_without_a_log_says_how_to_get_one(tmp_path: Path) -> None:
    said = a_sentence(cmis("tail", TOPIC, "--data-dir", str(tmp_path)))
    assert "there is no log yet" in said and "cmis up" in said and "--log" in said


def test_tail_goes_on_with_what_comes_and_ends_with_ctrl_c(installation: Installation, processes: Processes) -> None:
    installation.fill(some_records)
    following = processes.cmis("tail", TOPIC, "-n", "1", "--follow", *installation.options)
    following.says('"n":5')

    async def more(written: Written) -> None:
        await written.append(TOPIC, 7, (None, b'{"n":77}'))
        await written.append(TOPIC, 0, (None, b'{"n":78}'))

    installation.fill(more)
    following.says('"n":77')
    following.says('"n":78')
    assert following.stop() == 130
    found = [(line["partition"], line["offset"]) for line in map(json.loads, following.text.splitlines())]
    assert sorted(found) == [(0, 3), (1, 2), (7, 0)] and found[0] == (1, 2), following.text


COMMANDS = [["topics"], ["tail", TOPIC], ["topics", "plan"], ["topics", "apply"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    "url", ["redpanda", "http://host:9092", "kafka://", "kafka://host:port", "kafka://host:99999", "host:9092"]
)
def test_a_url_that_is_none_of_kafka_is_told_with_what_is_expected(command: list[str], url: str) -> None:
    said = a_sentence(cmis(*command, "--log", url))
    assert f"--log: got '{url}', expected kafka://HOST:PORT" in said


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_broker_that_cannot_be_reached_is_told_with_its_address(command: list[str]) -> None:
    port = free_port()
    assert f"127.0.0.1:{port}" in a_sentence(cmis(*command, "--log", f"kafka://127.0.0.1:{port}"))


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_plan_and_apply_are_about_kafka(command: str) -> None:
    assert "--log: got nothing, expected kafka://" in a_sentence(cmis("topics", command))


# --- plan and apply ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(kafka: Kafka) -> Kafka:
    """Without any of the declared topics."""

    async def delete() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        await admin.start()
        try:
            if there := [name for name in await admin.list_topics() if name in load_topics()]:
                await admin.delete_topics(there)
            while not load_topics().keys().isdisjoint(await admin.list_topics()):
                await asyncio.sleep(0.05)
        finally:
            await admin.close()

    asyncio.run(delete())
    return kafka


@pytest.mark.slow
def test_plan_says_what_apply_would_do_and_apply_does_it(cluster: Kafka) -> None:
    planned = cmis("topics", "plan", "--log", cluster.url)
    assert planned.exit_code == 3
    assert f"{TOPIC} is missing; apply would create it with 8 partitions, 1 copy of each, kept: 14 days." in planned.stdout
    assert len(planned.stdout.splitlines()) == len(load_topics())
    assert cmis("topics", "plan", "--log", cluster.url).stdout == planned.stdout, "a plan changes nothing"
    applied = cmis("topics", "--log", cluster.url, "apply")
    assert applied.exit_code == 0 and applied.stderr == "", applied.output
    assert applied.stdout.count("Created ") == len(load_topics())
    again = cmis("topics", "plan", "--log", cluster.url)
    assert (again.exit_code, again.stdout) == (0, "All topics are as declared.\n")
    assert cmis("topics", "apply", "--log", cluster.url).stdout == "No topic is missing.\n"
    assert row(cmis("topics", "--log", cluster.url), TOPIC)[1:5] == ["8", "0", "–", "–"]


@pytest.mark.slow
def test_what_differs_is_told_and_stays_as_it_is(cluster: Kafka) -> None:
    async def three_partitions() -> None:
        async with written_kafka(cluster.url) as written:
            await written.create(TOPIC, 3)

    asyncio.run(three_partitions())
    applied = cmis("topics", "apply", "--log", cluster.url)
    assert applied.exit_code == 0 and f"{TOPIC}: partitions: got 3, expected 8: apply cannot change it" in applied.stderr
    planned = cmis("topics", "plan", "--log", cluster.url)
    assert planned.exit_code == 3 and "is missing" not in planned.stdout
    assert f"{TOPIC}: partitions: got 3, expected 8: apply cannot change it" in planned.stdout
    assert re.search(rf"{TOPIC}: retention\.ms: .* apply does not change topics that exist", planned.stdout)


@pytest.mark.slow
def test_what_the_cluster_refuses_is_a_sentence(cluster: Kafka) -> None:
    assert "replication factor" in a_sentence(cmis("topics", "apply", "--log", cluster.url, "--replication", "3"))


@pytest.mark.slow
def test_topics_of_others_are_not_in_the_table(kafka: Kafka) -> None:
    theirs = f"orders-{secrets.token_hex(4)}"

    async def create() -> None:
        async with written_kafka(kafka.url) as written:
            await written.create(theirs, 1)

    asyncio.run(create())
    assert theirs not in cmis("topics", "--log", kafka.url).stdout
    assert theirs in a_sentence(cmis("tail", "no.such.topic", "--log", kafka.url))
