"""Jobs: each step once, whatever dies; one run at a time; on both databases."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from cmis_stream.core.errors import ConfigError, Rejected
from cmis_stream.jobs import runner as runner_module
from cmis_stream.jobs.runner import JobRunner
from cmis_stream.store import jobs as jobs_module
from cmis_stream.store import primitive_tables, tables
from cmis_stream.store.database import Busy, Database
from cmis_stream.store.due import Due
from cmis_stream.store.jobs import (
    BACKOFF_MS,
    LEASE_MS,
    MOST_FAILURES,
    MOST_QUEUED,
    MOST_RUNNING,
    Claim,
    Job,
    JobKind,
    JobKinds,
    Jobs,
    LeaseLost,
)
from tests.store.conftest import Places
from tests.store.primitives import JOB_KINDS, ROOT, process
from tests.store.support import Clock


class Steady(Clock):
    """Stands until it is moved."""

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def at() -> Steady:
    return Steady()


@pytest.fixture
def published() -> list[Job]:
    return []


@pytest.fixture
def jobs(database: Database, at: Steady, published: list[Job]) -> Jobs:
    return Jobs(database, JOB_KINDS, at, published.append)


@pytest.fixture
def due(places: Places) -> Iterator[Due]:
    opened = Database(places.relay)
    yield Due(opened)
    opened.close()


def claimed(jobs: Jobs, org: str = "acme") -> Claim:
    claim = jobs.claim(org, "here")
    assert claim is not None
    return claim


# --- rows -------------------------------------------------------------------------------------------------------------------


def test_a_job_is_run_with_progress_and_ends_with_its_result(jobs: Jobs, at: Steady, published: list[Job]) -> None:
    assert jobs.enqueue("acme", "j1", "count", {"to": 3}, "ada").state == "queued"
    assert jobs.enqueue("acme", "j1", "count", {"to": 9}, "bob").body == {"to": 3}  # asked for twice, there once
    claim = claimed(jobs)
    assert (claim.lease, claim.checkpoint, claim.job.state, claim.job.attempts) == (1, None, "running", 1)
    at.now_ms += 10_000
    assert jobs.progress(claim, 0.25, "a quarter").eta_at == at.now_ms + 30_000
    job = jobs.complete(claim, {"rows": 7})
    assert (job.state, job.result, job.progress_ratio, job.ended_at, job.eta_at) == ("done", {"rows": 7}, 1.0, at.now_ms, None)
    assert jobs.get("acme", "j1") == job and jobs.get("other", "j1") is None and jobs.claim("acme", "here") is None
    assert [one.state for one in published] == ["queued", "running", "running", "done"]
    assert [one.version for one in published] == sorted({one.version for one in published})


def test_the_next_run_begins_at_the_checkpoint_and_the_last_one_has_no_say_any_more(jobs: Jobs, at: Steady) -> None:
    jobs.enqueue("acme", "j1", "count", {"to": 3}, "ada")
    first = claimed(jobs)
    jobs.save(first, b"\x00two")
    at.now_ms += LEASE_MS - 1
    assert jobs.claim("acme", "there") is None
    at.now_ms += 1
    second = claimed(jobs)
    assert (second.lease, second.checkpoint, second.job.attempts) == (2, b"\x00two", 2)
    says: list[Callable[[], object]] = [
        lambda: jobs.progress(first, 0.9, ""),
        lambda: jobs.save(first, b"x"),
        lambda: jobs.complete(first, 1),
        lambda: jobs.fail(first, "a", "b"),
        lambda: jobs.cancelled(first),
        lambda: jobs.give_back(first, None),
        lambda: jobs.renew(first),
        lambda: jobs.asked_to_cancel(first),
    ]
    for say in says:
        with pytest.raises(LeaseLost):
            say()
    assert jobs.get("acme", "j1") == second.job
    jobs.complete(second, 1)
    for claim in (first, second):
        with pytest.raises(LeaseLost):
            jobs.complete(claim, 2)
    found = jobs.get("acme", "j1")
    assert found is not None and found.result == 1


def test_a_lease_that_is_renewed_is_not_taken_over(jobs: Jobs, at: Steady) -> None:
    jobs.enqueue("acme", "j1", "count", {}, "ada")
    claim = claimed(jobs)
    for _ in range(5):
        at.now_ms += LEASE_MS - 1
        jobs.renew(claim)
    assert jobs.claim("acme", "there") is None


def test_one_that_dies_without_getting_further_is_failed_and_waits_longer_each_time(jobs: Jobs, at: Steady) -> None:
    jobs.enqueue("acme", "j1", "count", {}, "ada")
    for number in range(MOST_FAILURES - 1):
        claim = claimed(jobs)
        if number % 2:
            jobs.give_back(claim, "signal 9")
            assert jobs.claim("acme", "here") is None
            at.now_ms += BACKOFF_MS[number]
        else:
            at.now_ms += LEASE_MS
    job = jobs.give_back(claimed(jobs), "signal 11")
    assert job.state == "failed" and job.problem is not None
    assert job.problem["code"] == "died" and "5 times" in job.problem["detail"] and "signal 11" in job.problem["detail"]


def test_one_that_gets_further_is_never_given_up(jobs: Jobs, at: Steady) -> None:
    jobs.enqueue("acme", "j1", "count", {}, "ada")
    for number in range(3 * MOST_FAILURES):
        claim = claimed(jobs)
        jobs.save(claim, str(number).encode())
        at.now_ms += LEASE_MS
    assert claimed(jobs).job.attempts == 3 * MOST_FAILURES + 1


def test_a_run_that_nobody_renews_is_failed_by_whoever_finds_it_dead_too_often(jobs: Jobs, at: Steady) -> None:
    jobs.enqueue("acme", "j1", "count", {}, "ada")
    for _ in range(MOST_FAILURES):
        claimed(jobs)
        at.now_ms += LEASE_MS
    assert jobs.claim("acme", "here") is None
    found = jobs.get("acme", "j1")
    assert found is not None and found.state == "failed" and found.problem is not None and found.problem["code"] == "died"


def test_stopping_a_process_costs_its_jobs_nothing(jobs: Jobs) -> None:
    jobs.enqueue("acme", "j1", "count", {}, "ada")
    for _ in range(3 * MOST_FAILURES):
        assert jobs.give_back(claimed(jobs), None).state == "queued"


def test_cancelling_ends_what_waits_at_once_and_asks_what_runs(jobs: Jobs, at: Steady, published: list[Job]) -> None:
    for name in ("j1", "j2", "j3"):
        jobs.enqueue("acme", name, "count", {}, "ada")
    first, second = claimed(jobs), claimed(jobs)
    waiting, running = jobs.cancel("acme", "j3"), jobs.cancel("acme", "j1")
    assert waiting is not None and waiting.state == "cancelled" and running is not None and running.state == "running"
    assert jobs.asked_to_cancel(first) and not jobs.asked_to_cancel(second)
    assert jobs.cancelled(first).state == "cancelled"
    count = len(published)
    assert jobs.cancel("acme", "j1") == jobs.get("acme", "j1") and jobs.cancel("other", "j2") is None
    assert len(published) == count  # nothing changed, nothing is told
    jobs.cancel("acme", "j2")
    at.now_ms += LEASE_MS  # and its process went away before it heard of it
    assert jobs.claim("acme", "here") is None
    found = jobs.get("acme", "j2")
    assert found is not None and found.state == "cancelled"


def test_an_org_has_so_many_that_run_and_so_many_that_wait(jobs: Jobs, due: Due, at: Steady) -> None:
    for number in range(MOST_QUEUED):
        jobs.enqueue("acme", f"j{number:03}", "count", {}, "ada")
    with pytest.raises(Rejected) as caught:
        jobs.enqueue("acme", "one more", "count", {}, "ada")
    assert caught.value.code == "too_many"
    jobs.enqueue("other", "j", "count", {}, "ada")
    assert due.jobs(at.now_ms) == ["acme", "other"]
    assert [claimed(jobs).job.id for _ in range(MOST_RUNNING)] == ["j000", "j001"]
    assert jobs.claim("acme", "there") is None and due.jobs(at.now_ms) == ["other"]
    assert claimed(jobs, "other").job.org == "other" and due.jobs(at.now_ms) == []
    at.now_ms += LEASE_MS
    assert set(due.jobs(at.now_ms)) == {"acme", "other"}


def test_those_with_fewer_running_come_first(jobs: Jobs, due: Due, at: Steady) -> None:
    for number in range(3):
        jobs.enqueue("busy", f"j{number}", "count", {}, "ada")
    claimed(jobs, "busy")
    at.now_ms += 1
    jobs.enqueue("quiet", "j", "count", {}, "ada")
    assert due.jobs(at.now_ms) == ["quiet", "busy"]


def test_of_many_that_claim_at_once_each_job_gets_one_and_the_org_no_more_than_it_may(
    places: Places, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        jobs.enqueue("acme", f"j{number}", "count", {}, "ada")
    together, got = threading.Barrier(6), list[Claim]()

    def claim() -> None:
        database = Database(places.app)
        mine = Jobs(database, JOB_KINDS)
        together.wait()
        for _ in range(3):
            if (found := mine.claim("acme", "x")) is not None:
                got.append(found)
        database.close()

    threads = [threading.Thread(target=claim) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == MOST_RUNNING and len({one.job.id for one in got}) == MOST_RUNNING


def test_what_cannot_be_kept_is_refused(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, body in (("nothing", {}), ("count", {"x": float("nan")})):
        with pytest.raises(Rejected):
            jobs.enqueue("acme", "j", kind, body, "ada")
    jobs.enqueue("acme", "j", "count", {}, "ada")
    claim = claimed(jobs)
    monkeypatch.setattr(jobs_module, "CHECKPOINT_BYTES", 10)
    with pytest.raises(Rejected, match="at most 10 bytes"):
        jobs.save(claim, bytes(11))
    with pytest.raises(Rejected):
        jobs.complete(claim, "x" * (1 << 21))
    with pytest.raises(Rejected):
        jobs.complete(claim, {"x": float("inf")})
    assert jobs.complete(claim, None).state == "done"


def test_lists_begin_with_the_newest(jobs: Jobs, at: Steady) -> None:
    for number in range(5):
        at.now_ms += number % 2
        jobs.enqueue("acme", f"j{number}", "count", {}, "ada")
    first = jobs.list("acme", 3)
    rest = jobs.list("acme", 3, (first[-1].created_at, first[-1].id))
    assert [job.id for job in (*first, *rest)] == ["j4", "j3", "j2", "j1", "j0"] and jobs.list("other") == []


def test_what_ended_long_ago_is_forgotten_and_nothing_else(jobs: Jobs, at: Steady) -> None:
    for org, name in (("acme", "old"), ("acme", "new"), ("acme", "runs"), ("other", "old")):
        jobs.enqueue(org, name, "count", {}, "ada")
    jobs.cancel("acme", "old")
    jobs.cancel("other", "old")
    at.now_ms += 1_000
    jobs.cancel("acme", "new")
    assert jobs.forget("acme", at.now_ms) == 1
    assert {job.id for job in jobs.list("acme")} == {"new", "runs"} and len(jobs.list("other")) == 1


@pytest.mark.parametrize("run", ["", "module", "a.b:", ":f", "a b:f", "a.b:f.g", "os;x:f"])
def test_a_kind_says_what_is_called(run: str) -> None:
    with pytest.raises(ConfigError):
        JobKinds(JobKind("a", run))
    with pytest.raises(ConfigError):
        JobKinds(JobKind("a", "a:b"), JobKind("a", "a:b"))


# --- processes ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def real(database: Database) -> Jobs:
    return Jobs(database, JOB_KINDS)


@asynccontextmanager
async def running(jobs: Jobs, due: Due, **more: Any) -> AsyncIterator[JobRunner]:
    stop = asyncio.Event()
    made = JobRunner(jobs, due, worker="here", settings={"data_dir": "/data"}, **more)
    task = asyncio.create_task(made.run(stop))
    try:
        yield made
    finally:
        stop.set()
        await task


async def reached(holds: Callable[[], bool], seconds: float = 60) -> None:
    give_up_at = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0.02)


async def ended(jobs: Jobs, identity: str, org: str = "acme") -> Job:
    found = list[Job]()

    def has() -> bool:
        job = jobs.get(org, identity)
        if job is not None and job.ended_at is not None:
            found.append(job)
        return bool(found)

    await reached(has)
    return found[0]


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children find the functions of these tests, and look often."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(runner_module, "LOOK_S", 0.05)
    monkeypatch.setattr(runner_module, "PROGRESS_S", 0.02)


def there(pid: int) -> bool:
    """Whether the process runs, a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_child_runs_it_in_a_clean_environment(real: Jobs, due: Due, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMIS_SECRET_KEYS", "secret")
    real.enqueue("acme", "j", "environment", {"password": "hunter2"}, "ada")
    async with running(real, due):
        job = await ended(real, "j")
    assert job.state == "done" and job.result["settings"] == {"data_dir": "/data"}
    assert set(job.result["environment"]) <= {*runner_module._KEPT, "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LC_CTYPE"}
    assert job.result["argv"][1:] == ["-P", "-m", "cmis_stream.jobs", ""]


async def test_progress_is_published_while_it_runs(database: Database, due: Due, tmp_path: Path) -> None:
    published = list[Job]()
    jobs = Jobs(database, JOB_KINDS, publish=published.append)
    jobs.enqueue("acme", "j", "count", {"to": 60, "trace": str(tmp_path / "t")}, "ada")
    async with running(jobs, due):
        job = await ended(jobs, "j")
    assert job.result == {"counted": 60, "from": 0}
    between = [one for one in published if 0 < one.progress_ratio < 1]
    assert between and all(one.said.endswith("of 60") and one.eta_at for one in between)


@pytest.mark.parametrize(
    ("kind", "body", "code", "said"),
    [
        ("reject", {}, "out_of_range", "at most 90"),
        ("give_up", {}, "failed", "the platform does not answer"),
        ("mistake", {}, "internal", "traceback"),
        ("not_json", {}, "internal", "traceback"),
        ("too_much", {"result": 1 << 21}, "too_long", "result"),
        ("too_much", {"save": 17 << 20}, "too_long", "checkpoint"),
    ],
)
async def test_what_went_wrong_is_the_jobs_problem_at_once(
    real: Jobs, due: Due, kind: str, body: dict[str, Any], code: str, said: str
) -> None:
    real.enqueue("acme", "j", kind, body, "ada")
    async with running(real, due):
        job = await ended(real, "j")
    assert job.state == "failed" and job.problem is not None and job.attempts == 1
    assert job.problem["code"] == code and said in job.problem["detail"]


async def test_a_kind_that_this_version_does_not_have_is_said(database: Database, due: Due) -> None:
    Jobs(database, JobKinds(JobKind("gone", "a:b"))).enqueue("acme", "j", "gone", {}, "ada")
    jobs = Jobs(database, JOB_KINDS)
    async with running(jobs, due):
        job = await ended(jobs, "j")
    assert job.problem is not None and job.problem["code"] == "unsupported"


async def test_a_child_that_dies_again_and_again_is_given_up_and_counted_from_its_last_step(
    real: Jobs, due: Due, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "BACKOFF_MS", (0, 0, 0, 0))
    real.enqueue("acme", "j", "die", {"steps": 2}, "ada")
    async with running(real, due):
        job = await ended(real, "j")
    assert job.problem is not None and job.problem["code"] == "died" and "signal 9" in job.problem["detail"]
    assert (
        job.attempts == 2 + MOST_FAILURES - 1
    )  # the two that got further count once each, as the first failure of the next step


async def test_a_running_job_that_is_cancelled_may_clean_up(real: Jobs, due: Due, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    real.enqueue("acme", "j", "wait", {"trace": str(trace)}, "ada")
    async with running(real, due):
        await reached(trace.exists)
        real.cancel("acme", "j")
        job = await ended(real, "j")
    assert job.state == "cancelled" and trace.read_text() == "cleaned up: cancel"


async def test_one_that_does_not_listen_is_killed(real: Jobs, due: Due, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "CANCEL_GRACE_S", 0.2)
    trace = tmp_path / "trace"
    real.enqueue("acme", "j", "deaf", {"trace": str(trace)}, "ada")
    async with running(real, due):
        await reached(lambda: trace.exists() and trace.read_text() != "")
        real.cancel("acme", "j")
        job = await ended(real, "j")
    assert job.state == "cancelled" and not there(int(trace.read_text()))


async def test_a_process_that_stops_ends_its_children_and_gives_their_jobs_back(
    real: Jobs, due: Due, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "STOP_GRACE_S", 0.5)
    for name in ("wait", "deaf"):
        real.enqueue("acme", name, name, {"trace": str(tmp_path / name)}, "ada")
    async with running(real, due, places=2):
        await reached(lambda: all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in ("wait", "deaf")))
        deaf = int((tmp_path / "deaf").read_text())
    assert (tmp_path / "wait").read_text() == "cleaned up: stop" and not there(deaf)
    assert [job.state for job in real.list("acme")] == ["queued", "queued"]


def counted(trace: Path) -> list[tuple[int, int]]:
    """(lease, step) in the order in which they were made."""
    return [(int(line.split()[0]), int(line.split()[1])) for line in trace.read_text().splitlines()]


async def test_killed_anywhere_children_and_parents_leave_every_step_counted_and_one_result(
    places: Places, real: Jobs, tmp_path: Path
) -> None:
    """Two parents with two children each; a random one of all four kinds of death falls every now and then."""
    names, steps = ["a", "b", "c"], 60
    for name in names:
        real.enqueue("acme", name, "count", {"to": steps, "step_s": 0.02, "trace": str(tmp_path / name)}, "ada")
    chance = random.Random(3)
    with ExitStack() as stack:

        def started(name: str) -> Any:
            return stack.enter_context(process("jobs", places.app, places.relay, name, "1500"))

        def all_ended() -> bool:
            return all(job.ended_at for job in real.list("acme"))

        parents = [started("p0"), started("p1")]
        for _ in range(10):
            seen = sum(len(counted(tmp_path / name)) for name in names if (tmp_path / name).exists())
            aim = seen + chance.randrange(3, 12)
            await reached(
                lambda aim=aim: (
                    all_ended()  # type: ignore[misc]
                    or sum(len(counted(tmp_path / name)) for name in names if (tmp_path / name).exists()) >= aim
                )
            )
            if all_ended():
                break
            if chance.random() < 0.5:
                one = chance.randrange(2)
                parents[one].kill()
                parents[one].wait()
                parents[one] = started(f"p{one}")
            else:
                traces = [tmp_path / name for name in names if (tmp_path / name).exists()]
                pid = int(chance.choice(traces).read_text().split()[-1])
                if there(pid):
                    os.kill(pid, signal.SIGKILL)
        await reached(all_ended, 120)
    for name in names:
        job = real.get("acme", name)
        assert job is not None and job.state == "done" and job.result["counted"] == steps
        made = counted(tmp_path / name)
        assert sorted({step for _, step in made}) == list(range(steps))
        # A run begins at a saved step: at most the one that was being made when the last run died is made again.
        runs = {lease: [step for of, step in made if of == lease] for lease, _ in made}
        assert all(of == list(range(of[0], of[0] + len(of))) for of in runs.values())
        leases = sorted(runs)
        assert all(runs[after][0] >= runs[before][-1] for before, after in itertools.pairwise(leases))
        assert made == sorted(made)  # never two runs at the same time


async def test_children_end_with_a_parent_that_is_killed(places: Places, real: Jobs, tmp_path: Path) -> None:
    real.enqueue("acme", "j", "deaf", {"trace": str(tmp_path / "deaf")}, "ada")
    with process("jobs", places.app, places.relay, "p", "30000") as parent:
        await reached(lambda: (tmp_path / "deaf").exists() and (tmp_path / "deaf").read_text() != "")
        child = int((tmp_path / "deaf").read_text())
        assert there(child)
        parent.kill()
        await reached(lambda: not there(child))


def free(database: Database) -> bool:
    """Whether the org's jobs can be written: nobody else is about to."""
    table = primitive_tables.jobs
    try:
        with database.transaction("acme", writes=True) as tx:
            tx.lock_head(tables.org_heads)
            tx.run(update(table).where(tx.own(table)).values(lease=table.c.lease))
    except Busy:
        return False
    return True


async def test_a_parent_that_slept_until_its_job_was_taken_over_changes_nothing(
    places: Places, database: Database, real: Jobs, due: Due, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    real.enqueue("acme", "j", "count", {"to": 120, "step_s": 0.02, "trace": str(trace)}, "ada")
    with process("jobs", places.app, places.relay, "sleeper", "1500") as sleeper:
        await reached(lambda: trace.exists() and len(counted(trace)) >= 5)
        while True:
            sleeper.send_signal(signal.SIGSTOP)
            if await asyncio.to_thread(free, database):
                break
            sleeper.send_signal(signal.SIGCONT)  # it fell asleep within a transaction, which holds up everybody
            await asyncio.sleep(0)
        async with running(real, due):
            job = await ended(real, "j")
        child = int(trace.read_text().split()[2])
        version = job.version
        sleeper.send_signal(signal.SIGCONT)
        await reached(lambda: not there(child))  # it was told, or killed, when it wanted to go on
        sleeper.send_signal(signal.SIGTERM)
        await asyncio.to_thread(sleeper.wait, 60)
        assert sleeper.returncode == 0
    found = real.get("acme", "j")
    assert found is not None and found.version == version and found.result["counted"] == 120 and found.result["from"] >= 4
    leases = [lease for lease, _ in counted(trace)]
    first = [step for lease, step in counted(trace) if lease == 1]
    assert set(leases) == {1, 2} and len(first) <= found.result["from"] + 1  # its child got no step further than was saved
