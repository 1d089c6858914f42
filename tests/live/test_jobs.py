"""Changes of jobs on their way from whoever makes them to browsers."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from cmis_stream.backplane.memory import MemoryBackplane
from cmis_stream.core.channels import Channel
from cmis_stream.core.errors import CmisError, Rejected
from cmis_stream.live import jobs as module
from cmis_stream.live.delivery import Delivery
from cmis_stream.live.jobs import JOBS, NEWEST, JobSnapshots, JobTeller, job_item
from cmis_stream.live.results import read_result
from cmis_stream.store.database import Database
from cmis_stream.store.jobs import LISTED_RESULT, Job, JobKind, JobKinds, Jobs
from tests.gateway.world import until
from tests.live.support import ACME, NOW, PARTITIONS, Results
from tests.store.support import Clock

CHANNEL = "org:acme:jobs"
KINDS = JobKinds(JobKind("count", "tests.store.job_functions:count"))


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    yield Jobs(database, KINDS, Clock())
    database.close()


class Log:
    """Where a teller's records go, unless it is away."""

    def __init__(self, world: Results) -> None:
        self.world, self.away = world, False
        self.sent: list[tuple[int, dict[str, Any]]] = []

    async def send(self, topic: str, partition: int, value: bytes) -> Awaitable[Any]:
        assert topic == JOBS
        if self.away:
            raise CmisError("the log is away")
        self.sent.append((partition, orjson.loads(value)))
        return asyncio.ensure_future(self.world.append(topic, value, partition=partition))

    def told(self) -> list[tuple[str, int]]:
        return [(job["id"], job["version"]) for _, body in self.sent for job in body["jobs"]]


def items(data: bytes) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(data)["items"]
    return found


def a_run(jobs: Jobs, name: str, org: str = "acme") -> list[Job]:
    """All changes of a job from its beginning to its end."""
    made, before = list[Job](), jobs.publish
    jobs.publish = made.append
    jobs.enqueue(org, name, "count", {}, "ada")
    claim = jobs.claim(org, "w")
    assert claim is not None and claim.job.id == name
    jobs.progress(claim, 0.5, "half")
    jobs.complete(claim, {"rows": 3})
    jobs.publish = before
    return made


def record(job: Job) -> bytes:
    return orjson.dumps({"org": job.org, "jobs": [json.loads(job_item(job).item().json)]})


# --- records ------------------------------------------------------------------------------------------------------------


def test_an_item_says_what_the_job_is(jobs: Jobs) -> None:
    done = a_run(jobs, "j/1")[-1]
    item = job_item(done).item()
    assert (item.entity, item.key) == ("j%2F1", "j/1")
    assert json.loads(item.json) == {
        "entity": "j%2F1", "id": "j/1", "kind": "count", "state": "done", "progress_ratio": 1.0, "said": "half", "eta_at": None,
        "created_at": done.created_at, "started_at": done.started_at, "ended_at": done.ended_at, "attempts": 1,
        "cancel_asked_at": None, "actor": "ada", "result": {"rows": 3}, "result_length": 10, "problem": None,
        "version": done.version,
    }  # fmt: skip


def test_a_long_result_is_not_sent_to_everybody(jobs: Jobs) -> None:
    jobs.enqueue("acme", "j", "count", {}, "ada")
    claim = jobs.claim("acme", "w")
    assert claim is not None
    item = job_item(jobs.complete(claim, "x" * LISTED_RESULT))
    assert (item.result, item.result_length) == (None, LISTED_RESULT + 2)


def test_a_record_is_a_publication_of_its_org_and_follows_from_itself(jobs: Jobs) -> None:
    made = a_run(jobs, "j")
    first, second = (read_result(JOBS, offset, record(job)) for offset, job in ((4, made[0]), (5, made[1])))
    assert first.source == (JOBS, 0, 4) and second.source == (JOBS, 0, 5) and not first.lines
    (publication,) = first.publications.values()
    assert list(first.publications) == [CHANNEL] and publication.offset == 4
    assert [(one["id"], one["state"]) for one in items(publication.data())] == [("j", "queued")]
    assert items(publication.data("j")) == items(publication.data()) and items(publication.data("other")) == []


@pytest.mark.parametrize(
    "change",
    [{"org": ""}, {"org": "a:b"}, {"org": 7}, {"jobs": {}}, {"jobs": [{}]}, {"jobs": [7]}, {"jobs": None}],
)  # fmt: skip
def test_what_is_no_record_of_jobs_is_refused(jobs: Jobs, change: dict[str, Any]) -> None:
    good = orjson.loads(record(a_run(jobs, "j")[0]))
    assert read_result(JOBS, 0, orjson.dumps(good)).publications
    with pytest.raises(Rejected):
        read_result(JOBS, 0, orjson.dumps({**good, **change}))


@pytest.mark.parametrize("value", [b"", b"\xff\x00", b"null", b"{}", b"[" * 100_000, b'{"org": "acme"}'])
def test_noise_is_refused(value: bytes) -> None:
    with pytest.raises(Rejected):
        read_result(JOBS, 0, value)


# --- told -----------------------------------------------------------------------------------------------------------------


async def test_every_change_made_in_any_thread_reaches_the_log_in_order(world: Results, jobs: Jobs) -> None:
    log = Log(world)
    jobs.publish = teller = JobTeller(log.send, PARTITIONS)
    await asyncio.to_thread(jobs.enqueue, "acme", "j", "count", {}, "ada")
    claim = await asyncio.to_thread(jobs.claim, "acme", "w")
    assert claim is not None
    for step in range(5):
        await asyncio.to_thread(jobs.progress, claim, step / 5, "")
    await asyncio.to_thread(jobs.complete, claim, None)
    await teller.close()
    told = log.told()
    assert [name for name, _ in told] == ["j"] * len(told) and {partition for partition, _ in log.sent} == {ACME}
    versions = [version for _, version in told]
    assert versions == sorted(set(versions)) and versions[-1] == 8, "what came together may be told together, the newest always"
    assert (await world.reader.ends(JOBS))[ACME] == len(log.sent), "all of it is durable"


async def test_while_the_log_is_away_the_newest_of_each_job_waits(
    world: Results, jobs: Jobs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    log = Log(world)
    log.away = True
    teller = JobTeller(log.send, PARTITIONS)
    one, other, foreign = a_run(jobs, "one"), a_run(jobs, "other"), a_run(jobs, "theirs", "globex")
    with caplog.at_level(logging.WARNING):
        for changes in zip(one, other, foreign, strict=True):
            for job in changes:
                teller(job)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await until(lambda: "the log is away" in caplog.text)
    assert log.sent == []
    log.away = False
    await until(lambda: len(log.told()) >= 3)
    await teller.close()
    assert sorted(log.told()) == sorted((job.id, job.version) for job in (one[-1], other[-1], foreign[-1]))
    assert {body["org"] for _, body in log.sent} == {"acme", "globex"}
    assert all({job["id"] for job in body["jobs"]} <= {"one", "other"} for _, body in log.sent if body["org"] == "acme")


async def test_an_older_change_that_comes_late_does_not_replace_the_newer(world: Results, jobs: Jobs) -> None:
    log, made = Log(world), a_run(jobs, "j")
    teller = JobTeller(log.send, PARTITIONS)
    for job in (made[0], made[3], made[2], made[1]):
        teller(job)
    await teller.close()
    assert log.told() == [("j", made[3].version)]


async def test_the_end_waits_for_no_log_that_is_away_and_drops_what_comes_later(world: Results, jobs: Jobs) -> None:
    log, made = Log(world), a_run(jobs, "j")
    log.away = True
    teller = JobTeller(log.send, PARTITIONS)
    teller(made[0])
    await teller.close(within_s=0.05)
    log.away = False
    teller(made[1])
    await asyncio.sleep(0.05)
    assert log.sent == []


# --- delivered --------------------------------------------------------------------------------------------------------------


class Node:
    """A process with the agent deliver that has just started on the log."""

    def __init__(self, world: Results, **memory: Any) -> None:
        tail = world.tail
        self.backplane = MemoryBackplane("e", tail.place, tail.read, tail.moment, patience_s=0.01, **memory)
        self.delivery = Delivery(self.backplane, tail, lambda _: None)
        self.got: list[int] = []

    async def begin(self) -> Node:
        await self.delivery.begin(range(PARTITIONS))
        await self.backplane.listen(CHANNEL, lambda _, publication: self.got.append(publication.offset))
        return self


async def test_each_record_is_published_once_before_a_restart_and_after_it(world: Results, jobs: Jobs) -> None:
    values = [record(job) for name in ("a", "b") for job in a_run(jobs, name)]
    before = await Node(world).begin()
    for value in values[:6]:
        offset = await world.append(JOBS, value)
        await before.delivery.take(JOBS, ACME, offset, value)
        await before.delivery.take(JOBS, ACME, offset, value)
    assert before.got == [0, 1, 2, 3, 4, 5]
    after = await Node(world).begin()  # of the six it had acked three
    for offset in range(3, 6):
        await after.delivery.take(JOBS, ACME, offset, values[offset])
    for value in values[6:]:
        await after.delivery.take(JOBS, ACME, await world.append(JOBS, value), value)
    assert after.got == [6, 7]
    found = await after.backplane.recover(CHANNEL, 1, "e", 100)
    assert [one.offset for one in found.publications or ()] == [2, 3, 4, 5, 6, 7]


async def test_a_change_that_is_told_twice_is_published_twice_with_its_version(world: Results, jobs: Jobs) -> None:
    """Nothing says that it is a repeat: who has the version already is told nothing new."""
    node, value = await Node(world).begin(), record(a_run(jobs, "j")[0])
    for _ in range(2):
        await node.delivery.take(JOBS, ACME, await world.append(JOBS, value), value)
    found = (await node.backplane.recover(CHANNEL, -1, "e", 100)).publications or ()
    assert [items(one.data())[0]["version"] for one in found] == [1, 1]


async def test_who_was_away_longer_than_memory_reaches_gets_everything_from_the_log(world: Results, jobs: Jobs) -> None:
    changes = [job for number in range(10) for job in a_run(jobs, f"j{number}")]
    node = await Node(world, per_channel=2).begin()
    for job in changes:
        await node.delivery.take(JOBS, ACME, await world.append(JOBS, record(job)), record(job))
    found = await node.backplane.page(CHANNEL, 4, "e", 1000)
    told = [(one.offset, items(one.data())[0]["id"]) for one in found.publications or ()]
    assert told == [(offset, changes[offset].id) for offset in range(5, 40)]


async def test_a_foreign_record_is_said_to_be_one_and_passed_over(world: Results, jobs: Jobs) -> None:
    node, value = await Node(world).begin(), record(a_run(jobs, "j")[0])
    wrong = await node.delivery.take(JOBS, ACME, await world.append(JOBS, b"noise"), b"noise")
    assert wrong is not None and wrong.code == "malformed"
    assert await node.delivery.take(JOBS, ACME, await world.append(JOBS, value), value) is None
    assert node.got == [1]


# --- what holds now ---------------------------------------------------------------------------------------------------------


async def test_a_snapshot_has_what_is_open_and_the_newest(jobs: Jobs) -> None:
    jobs.enqueue("acme", "waits", "count", {}, "ada", due_at=NOW + 10**9)
    for number in range(NEWEST + 5):
        a_run(jobs, f"j{number}")
    a_run(jobs, "theirs", "globex")
    snapshot = await JobSnapshots(jobs).snapshot(Channel("acme", "jobs"))
    told = {one["id"]: one["state"] for one in items(snapshot.json)}
    assert told == {"waits": "queued", **{f"j{number}": "done" for number in range(5, NEWEST + 5)}}
    assert snapshot.offset is None


async def test_a_snapshot_of_one_job_is_that_job_however_old(jobs: Jobs) -> None:
    for number in range(NEWEST + 5):
        a_run(jobs, f"j/{number}")
    (told,) = items((await JobSnapshots(jobs).snapshot(Channel("acme", "jobs", "j%2F0"))).json)
    assert told["id"] == "j/0" and told["entity"] == "j%2F0"
    assert items((await JobSnapshots(jobs).snapshot(Channel("globex", "jobs", "j%2F0"))).json) == []
