"""Housekeeping: what the store's processes have to do is done, at once, by threads that end; their mistakes end the process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from cmis_stream import housekeeping as housekeeping_module
from cmis_stream.housekeeping import JOBS_KEPT_MS, Housekeeping
from cmis_stream.settings import Role, Settings
from cmis_stream.store import outbox as outbox_module
from cmis_stream.store import primitive_tables, tables
from cmis_stream.store.changes import Change
from cmis_stream.store.database import Unavailable
from cmis_stream.store.decisions import Command, Schedule
from cmis_stream.store.outbox import KEPT_MS
from cmis_stream.stores import Stores
from tests.store.conftest import Places, places, postgres, postgres_urls
from tests.store.errands import ask, errand_kinds
from tests.store.support import ADA

__all__ = ["places", "postgres", "postgres_urls"]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def until(holds: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 60
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0.01)


class World:
    def __init__(self, stores: Stores) -> None:
        self.stores = stores
        self.sent: list[tuple[str, int]] = []
        self.published: list[tuple[str, str]] = []
        self.failures: list[BaseException] = []
        self.send: Callable[[], None] = lambda: None

    def made(self) -> Housekeeping:
        def send(org: str, changes: Sequence[Change]) -> None:
            self.send()
            self.sent += [(org, change.seq) for change in changes]

        return Housekeeping(
            self.stores, send=send, epoch="e", publish=lambda org, topic, identity, body: self.published.append((org, topic)),
            worker="here", job_settings={"place": "test"}, failed=self.failures.append, job_places=2,
        )  # fmt: skip

    def run(self, name: str, /, **body: Any) -> None:
        self.stores.documents.execute("acme", ADA, Command(name, "errand", body=body))


@pytest.fixture
def world(places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr("cmis_stream.stores.all_kinds", errand_kinds)
    remote = places.app != places.relay
    settings = Settings(
        data_dir=tmp_path, role=Role.WORKER,
        store_url=places.app if remote else None, store_relay_url=places.relay if remote else None,
    )  # fmt: skip
    stores = Stores(settings, now_ms)
    yield World(stores)
    stores.close()


async def test_changes_effects_schedules_and_jobs_are_done_and_everything_ends_when_it_is_stopped(world: World) -> None:
    housekeeping = world.made()
    await housekeeping.start()
    jobs = world.stores.jobs
    await asyncio.to_thread(world.run, "start", job={"kind": "environment"})
    await asyncio.to_thread(ask, world.stores.documents, ("publish", {"topic": "t"}))
    await asyncio.to_thread(world.run, "create", name="made")
    await until(lambda: world.sent == [("acme", 1), ("acme", 2)] and world.published == [("acme", "t")])
    await until(lambda: [job.state for job in jobs.list("acme")] == ["done"])
    assert jobs.list("acme")[0].result["settings"] == {"place": "test"}
    await asyncio.to_thread(world.stores.schedules.put, "acme", Schedule("s", "UTC", "* * * * *", "publish", {"topic": "each"}))
    with world.stores.database.transaction("acme", writes=True) as tx:
        table = primitive_tables.schedules
        tx.run(update(table).where(tx.own(table)).values(due_at=now_ms()))
    await until(lambda: ("acme", "each") in world.published)
    await housekeeping.stop()
    assert world.failures == [] and world.stores.database.on_commit == []
    await asyncio.to_thread(ask, world.stores.documents, ("publish", {"topic": "after"}))
    again = world.made()
    await again.start()
    await until(lambda: ("acme", "after") in world.published)
    await again.stop()


async def test_a_commit_wakes_who_has_to_do_something_with_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, their looks would be an hour apart."""
    monkeypatch.setattr(outbox_module, "LOOK_S", 3_600.0)
    monkeypatch.setattr("cmis_stream.jobs.runner.LOOK_S", 3_600.0)
    housekeeping = world.made()
    await housekeeping.start()
    try:
        for number in range(5):
            await asyncio.sleep(0.2)  # so that it waits
            await asyncio.to_thread(ask, world.stores.documents, ("publish", {"topic": "t"}))
            await until(lambda: len(world.published) == number + 1)  # noqa: B023
        await asyncio.to_thread(world.run, "start", job={"kind": "count", "body": {"trace": "/dev/null", "to": 1}})
        await until(lambda: [job.state for job in world.stores.jobs.list("acme")] == ["done"])
    finally:
        await housekeeping.stop()


async def test_a_mistake_of_ours_is_told_once_so_that_the_process_ends(world: World) -> None:
    def send() -> None:
        raise ZeroDivisionError

    world.send = send
    housekeeping = world.made()
    await housekeeping.start()
    await asyncio.to_thread(world.run, "create", name="made")
    await until(lambda: bool(world.failures))
    await housekeeping.stop()
    assert [type(one) for one in world.failures] == [ZeroDivisionError]


async def test_a_database_that_is_away_is_no_mistake(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("relay.RETRY_S", "schedules.RETRY_S", "outbox.RETRY_S"):
        monkeypatch.setattr(f"cmis_stream.store.{place}", 0.05)
    monkeypatch.setattr(housekeeping_module, "SWEEP_S", 0.05)
    away, whole = True, world.stores.overseer.transaction
    asked = list[str | None]()

    def transaction(org: str | None, *, writes: bool = False) -> Any:
        if away and org is None:
            asked.append(org)
            raise Unavailable("away")
        return whole(org, writes=writes)

    monkeypatch.setattr(world.stores.overseer, "transaction", transaction)
    await asyncio.to_thread(ask, world.stores.documents, ("publish", {"topic": "t"}))
    await asyncio.to_thread(world.run, "create", name="made")
    housekeeping = world.made()
    await housekeeping.start()
    await until(lambda: len(asked) > 20)
    away = False
    await until(lambda: len(world.sent) == len(world.published) == 1)
    await housekeeping.stop()
    assert world.failures == []


async def test_what_is_over_is_swept_away_and_what_failed_is_told(world: World) -> None:
    housekeeping, stores = world.made(), world.stores
    with stores.files.create("acme", "a.csv", "text/csv", "ada", lasts_ms=0) as upload:
        upload.finish()
    with stores.files.create("acme", "b.csv", "text/csv", "ada") as upload:
        kept = upload.finish()
    for number in range(2):
        stores.jobs.enqueue("acme", str(number), "count", {}, "ada")
        stores.jobs.cancel("acme", str(number))
    ask(stores.documents, ("publish", {"topic": "t"}), ("publish", {"topic": "u"}), ("unheard_of", {}))
    ask(stores.documents, ("unheard_of", {}), org="other")
    assert housekeeping.outbox.once() == 4 and housekeeping.troubles() == []
    outbox, jobs, files = tables.outbox, primitive_tables.jobs, primitive_tables.files
    with stores.database.transaction("acme", writes=True) as tx:
        tx.run(update(outbox).where(tx.own(outbox), outbox.c.body.contains('"u"')).values(done_at=now_ms() - KEPT_MS - 1))
        tx.run(update(jobs).where(tx.own(jobs), jobs.c.id == "0").values(ended_at=now_ms() - JOBS_KEPT_MS - 1))
    housekeeping.sweep()
    with stores.database.transaction("acme") as tx:
        assert tx.rows(select(files.c.id).where(tx.own(files))) == [(kept.id,)]
        assert sorted(tx.rows(select(outbox.c.body).where(tx.own(outbox)))) == [('{"topic":"t"}',), ("{}",)]
    assert [job.id for job in stores.jobs.list("acme")] == ["1"]
    assert housekeeping.failed_effects() == 2
    assert housekeeping.troubles() == [
        ("effects_failed", "2 effects were given up and wait to be retried by somebody, of acme, other")
    ]
