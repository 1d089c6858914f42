"""What the owner of a partition answers to another process is what it would have answered itself; and when it has moved."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from cmis_stream.core.channels import Channel
from cmis_stream.gateway.ports import Snapshot
from cmis_stream.live.snapshots import LiveSnapshots, MetricSnapshots, SnapshotsByTopic
from cmis_stream.peer import client, server
from cmis_stream.peer.client import RemotePanes, RemoteSnapshots
from cmis_stream.query import datasets
from cmis_stream.query.datasets import Crowded, NotHere, Queries
from cmis_stream.query.model import Faulty
from tests.peer.support import QUERY, Map, Worker, peers

METRICS = Channel("acme", "metrics")


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    made = Worker()
    async with made.served():
        yield made


@asynccontextmanager
async def asking(owners: Map) -> AsyncIterator[Queries]:
    """As the API asks."""
    async with peers(owners) as made:
        yield Queries({"panes": RemotePanes(made)})


async def snapshot(owners: Map) -> Snapshot | None:
    async with peers(owners) as made:
        return await RemoteSnapshots(made).snapshot(METRICS)


async def test_the_answer_is_the_owner_s_own(worker: Worker) -> None:
    async with asking(Map(worker.url)) as queries:
        found = await queries.answer("acme", QUERY)
        assert found == await worker.panes.queries.answer("acme", QUERY)
        assert json.loads(found)["rows"] == [["c1", "USD", 3, 1_500_000]]


@pytest.mark.parametrize(
    "more",
    [
        {"measures": ["spend"], "step": "5m"},
        {"from": "-1h", "step": "10s"},
        {"dataset": "mentions"},
        {"filters": {"campaign": ["\x00\ud7ff~/'\""] * 2}, "most": 3},
        {"measures": ["events", 10**30, None]},
        {"from": "x" * 300},
    ],
)
async def test_what_the_owner_refuses_is_refused_in_its_words(worker: Worker, more: dict[str, Any]) -> None:
    raw = orjson.loads(json.dumps({**QUERY, **more}))
    with pytest.raises(Faulty) as here:
        await worker.panes.queries.answer("acme", raw)
    async with peers(Map(worker.url)) as made:
        with pytest.raises(Faulty) as there:
            await RemotePanes(made).answer("acme", raw)
    assert (there.value.faults, there.value.code, str(there.value)) == (here.value.faults, here.value.code, str(here.value))


async def test_too_many_rows_are_a_problem_of_their_own(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MOST_ROWS", 0)
    async with asking(Map(worker.url)) as queries:
        with pytest.raises(Faulty) as refused:
            await queries.answer("acme", QUERY)
    assert refused.value.code == "too_many_rows"


async def test_a_snapshot_of_metrics_is_the_owner_s_own(worker: Worker) -> None:
    own = await MetricSnapshots(lambda _: worker.panes.owner).snapshot(METRICS)
    assert own is not None and b"USD/meta" in own.json
    assert await snapshot(Map(worker.url)) == own


async def test_a_snapshot_s_offset_comes_with_it() -> None:
    class Told:
        async def snapshot(self, channel: Channel) -> Snapshot:
            return Snapshot(b'{"items":[]}', len(channel.org))

    worker = Worker()
    worker.app.router.routes.clear()
    worker.app.include_router(server.peer_router(worker.panes.queries, Told(), client.PeerTokens(bytes(32)), lambda: 0))
    async with worker.served():
        assert await snapshot(Map(worker.url)) == Snapshot(b'{"items":[]}', 4)


async def test_each_topic_s_snapshot_comes_from_its_own_source(worker: Worker) -> None:
    local = LiveSnapshots(lambda _: None, None, lambda _: ("", 0), "e")  # type: ignore[arg-type]
    async with peers(Map(worker.url)) as made:
        combined = SnapshotsByTopic({"incidents": local, "metrics": RemoteSnapshots(made)})
        assert await combined.snapshot(METRICS) is not None and await local.snapshot(METRICS) is None
        assert await combined.snapshot(Channel("acme", "nothing")) is None
    assert await snapshot(Map(None)) is None


# --- moves ------------------------------------------------------------------------------------------------------------


async def test_where_the_partition_has_moved_the_new_owner_is_asked_once(worker: Worker) -> None:
    new = Worker()
    async with new.served():
        worker.panes.here = False
        async with asking(Map(worker.url, new.url)) as queries:
            assert json.loads(await queries.answer("acme", QUERY))["rows"]
        assert (worker.requests, new.requests) == (1, 1)
        assert await snapshot(Map(worker.url, new.url)) is not None
        new.panes.here = False
        async with asking(Map(worker.url, new.url)) as queries:
            with pytest.raises(NotHere):
                await queries.answer("acme", QUERY)
        assert await snapshot(Map(worker.url, new.url)) is None
    assert (worker.requests, new.requests) == (4, 4)


async def test_an_owner_that_is_still_recovering_is_not_asked_twice(worker: Worker) -> None:
    worker.panes.here = False
    async with asking(Map(worker.url, worker.url)) as queries:
        with pytest.raises(NotHere):
            await queries.answer("acme", QUERY)
    assert worker.requests == 1


async def test_while_nobody_owns_the_partition_it_is_not_here() -> None:
    async with asking(Map(None)) as queries:
        with pytest.raises(NotHere, match="not here yet"):
            await queries.answer("acme", QUERY)


async def test_where_nobody_listens_any_more_the_new_owner_is_asked(worker: Worker) -> None:
    gone = Worker()
    async with gone.served() as address:
        pass
    async with asking(Map(address, worker.url)) as queries:
        assert json.loads(await queries.answer("acme", QUERY))["rows"]
    async with asking(Map(address, address)) as queries:
        with pytest.raises(NotHere):
            await queries.answer("acme", QUERY)


async def test_a_worker_that_has_restarted_at_the_same_address_is_asked_over_a_new_connection() -> None:
    worker = Worker()
    async with peers(Map("unknown")) as made:
        owners = made._owners
        assert isinstance(owners, Map)
        for _ in range(3):
            async with worker.served() as address:
                owners.known = owners.said = address
                assert await RemotePanes(made).answer("acme", QUERY)
                assert await RemotePanes(made).answer("acme", QUERY)


async def test_an_owner_that_accepts_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "QUERY_S", 0.3)
    monkeypatch.setattr(client, "SNAPSHOT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with asking(Map(address, address)) as queries:
            with pytest.raises(NotHere, match="does not answer"):
                await queries.answer("acme", QUERY)
        assert await snapshot(Map(address, address)) is None


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_of_a_crowd_those_who_would_wait_too_long_are_sent_away_and_the_others_are_answered(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "MOST_WAITING", 3)
    turn, answered = threading.Event(), datasets._answered
    monkeypatch.setattr(datasets, "_answered", lambda *given: turn.wait() and answered(*given))
    async with asking(Map(worker.url)) as queries:
        crowd = [asyncio.ensure_future(queries.answer("acme", QUERY)) for _ in range(12)]
        async with asyncio.timeout(30):
            while sum(task.done() for task in crowd) < 12 - datasets.AT_ONCE - 3:
                await asyncio.sleep(0.01)
        refused = [task for task in crowd if task.done()]
        turn.set()
        answers = [await task for task in crowd if task not in refused]
        assert len(answers) == datasets.AT_ONCE + 3 and len(set(answers)) == 1
        for task in refused:
            with pytest.raises(Crowded, match="too many queries"):
                await task
        assert await queries.answer("acme", QUERY), "and the crowd is gone"
    assert worker.requests == 13, "a crowded owner is not asked twice"


# --- another version --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (404, b'{"type":"/problems/not_found","detail":"There is nothing at this path."}', "another version"),
        (401, b"", "gateway.key"),
        (422, b"<html>", "422"),
        (422, b'{"errors":3}', "422"),
        (500, b'{"detail":"a mistake"}', "its log says why"),
        (503, b'["not_here"]', "503"),
        (503, b'{"reason":"something newer"}', "503"),
    ],
)
async def test_an_answer_that_is_not_understood_is_a_readable_error(
    status: int, body: bytes, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with answering(status, body) as address, asking(Map(address, address)) as queries:
        with pytest.raises(NotHere, match=text) as refused:
            await queries.answer("acme", QUERY)
        assert address not in str(refused.value), "which machine it was is for the log"
        assert address in caplog.text and str(status) in caplog.text
        assert await snapshot(Map(address, address)) is None


async def test_what_a_newer_worker_adds_is_ignored() -> None:
    error = {"pointer": "/step", "code": "invalid", "got": "'5m'", "expected": "10s", "hint": "new"}
    body = orjson.dumps({"type": "/problems/newer", "errors": [error], "trace": 1})
    async with answering(422, body) as address, asking(Map(address)) as queries:
        with pytest.raises(Faulty) as refused:
            await queries.answer("acme", QUERY)
    assert refused.value.faults == [("/step", "invalid", "'5m'", "10s")] and refused.value.code == "newer"


@asynccontextmanager
async def answering(status: int, body: bytes) -> AsyncIterator[str]:
    """A worker of another version."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 %d X\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
