"""The sender against a real server that fails in several ways: every line stored exactly once, in order."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import signal
import socket
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvicorn

from cmis_stream.api.app import create_app
from cmis_stream.api.auth import Auth
from cmis_stream.api.hosts import Hosts
from cmis_stream.api.ingest import ApiPorts, Busy
from cmis_stream.core.batch import Batch
from cmis_stream.core.errors import ConfigError
from cmis_stream.feeds import client as client_module
from cmis_stream.feeds.client import IngestStopped, Progress, Summary, send_file
from cmis_stream.feeds.decode import Refusal
from cmis_stream.store.database import Database
from cmis_stream.store.sessions import SessionStore
from cmis_stream.store.tokens import TokenStore

NOW = 1_767_225_600_000
ROOT = Path(__file__).parents[2]
ORGS = ("acme", "globex", "initech")


def write_lines(path: Path, count: int, orgs: tuple[str, ...] = ORGS, start: int = 0, mode: str = "w") -> dict[str, list[str]]:
    """Flat events, mixed orgs; returns each org's ids in order."""
    ids: dict[str, list[str]] = defaultdict(list)
    with path.open(mode) as out:
        for i in range(start, start + count):
            org = orgs[i * i % 7 % len(orgs)]
            ids[org].append(f"e{i}")
            event = {"id": f"e{i}", "ts": NOW, "org": org, "platform": "meta", "campaign": "c", "impressions": i}
            out.write(json.dumps(event) + "\n")
    return ids


class Server:
    """The real app on a loopback port; keeps what was published, counted once by (org, source, sequence)."""

    def __init__(self, tmp_path: Path) -> None:
        self.database = Database(f"sqlite:///{tmp_path / 'store.db'}")
        self.tokens = TokenStore(self.database)
        self.texts: dict[str, str] = {}
        for org in ORGS:
            self.tokens.create_org(org, org)
            self.texts[org] = self.tokens.create(org, ["ingest"])[1]
        self.stored: dict[tuple[str, str], list[str]] = defaultdict(list)
        self.next: dict[tuple[str, str], int] = defaultdict(int)
        self.repeated = 0
        self.dead: list[Refusal] = []
        self.busy = 0
        self.requests = 0
        self.fault: Callable[[int], str | None] = lambda number: None
        self.pause_s = 0.0
        auth = Auth(self.tokens, SessionStore(self.database, self.tokens), Hosts(), lambda: NOW)
        self.app = create_app(ApiPorts(auth, self.publish, self.dead_letter, lambda: NOW))
        self.port = 0

    async def publish(self, org: str, batch: Batch) -> None:
        if self.busy:
            self.busy -= 1
            raise Busy(0.05)
        await asyncio.sleep(self.pause_s)
        (segment,) = batch.segments
        assert segment.sequenced and segment.org == org
        key = (org, segment.source)
        for number, event_id in zip(batch.uid.tolist(), batch.ids, strict=True):
            if number >= self.next[key]:
                self.stored[key].append(event_id)
                self.next[key] = number + 1
            else:
                self.repeated += 1

    async def dead_letter(self, org: str, refusals: list[Refusal], source: str) -> None:
        self.dead += refusals

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        fault = None
        if scope["type"] == "http":
            self.requests += 1
            fault = self.fault(self.requests)
        if fault == "503":
            await send({"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})
        elif fault == "drop after storing":

            async def nothing(message: Any) -> None:
                return

            await self.app(scope, receive, nothing)
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"99")]})
            await send({"type": "http.response.body", "body": b"{", "more_body": True})
            raise ConnectionAbortedError
        else:
            await self.app(scope, receive, send)

    @asynccontextmanager
    async def served(self) -> AsyncIterator[str]:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port))
            self.port = listener.getsockname()[1]
            server = uvicorn.Server(uvicorn.Config(self, log_level="critical", lifespan="off"))
            task = asyncio.create_task(server.serve([listener]))
            while not server.started:
                await asyncio.sleep(0.01)
            try:
                yield f"http://127.0.0.1:{self.port}"
            finally:
                server.should_exit = True
                server.force_exit = True
                await task

    def by_org(self) -> dict[str, list[str]]:
        """What each org has; a second source of one org would show as a repeated id."""
        found: dict[str, list[str]] = defaultdict(list)
        for (org, _), ids in self.stored.items():
            found[org] += ids
        return found


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


async def sent(server: Server, path: Any, tmp_path: Path, url: str, **more: Any) -> Summary:
    given: dict[str, Any] = {"batch_events": 50, "retry_for_s": 20, "window_bytes": 20_000, **more}
    return await send_file(path, url=url, token_for=server.texts.__getitem__, state_dir=tmp_path / "state", **given)


async def test_a_mixed_file_arrives_whole_and_in_order(server: Server, tmp_path: Path) -> None:
    ids = write_lines(tmp_path / "events.ndjson", 1_000)
    seen: list[Progress] = []
    async with server.served() as url:
        summary = await sent(
            server,
            tmp_path / "events.ndjson",
            tmp_path,
            url,
            progress=lambda p: seen.append(msgspec.convert(p, Progress, from_attributes=True)),
        )
    assert server.by_org() == ids and server.repeated == 0
    assert (summary.sent, summary.accepted, summary.rejected, summary.retries, summary.resumed_from) == (
        1_000,
        1_000,
        0,
        0,
        0,
    )
    assert seen[-1].sent == 1_000 and seen[-1].bytes_done == seen[-1].bytes_total == (tmp_path / "events.ndjson").stat().st_size


@pytest.mark.parametrize("fault", ["503", "drop after storing"])
async def test_failures_are_tried_again_and_counted_once(server: Server, tmp_path: Path, fault: str) -> None:
    ids = write_lines(tmp_path / "events.ndjson", 1_000)
    server.fault = lambda number: fault if number % 3 == 0 else None
    async with server.served() as url:
        summary = await sent(server, tmp_path / "events.ndjson", tmp_path, url)
    assert server.by_org() == ids and summary.retries > 5 and summary.sent == 1_000
    assert (server.repeated > 0) == (fault == "drop after storing")


async def test_a_busy_server_is_given_the_time_it_asks_for(server: Server, tmp_path: Path) -> None:
    ids = write_lines(tmp_path / "events.ndjson", 300)
    server.busy = 6
    async with server.served() as url:
        summary = await sent(server, tmp_path / "events.ndjson", tmp_path, url, concurrency=1)
    assert server.by_org() == ids and summary.retries == 6


async def test_a_server_that_restarts_is_waited_for(server: Server, tmp_path: Path) -> None:
    ids = write_lines(tmp_path / "events.ndjson", 600)
    server.pause_s = 0.02
    async with server.served() as url:
        task = asyncio.create_task(sent(server, tmp_path / "events.ndjson", tmp_path, url))
        while server.requests < 5:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    async with server.served():
        summary = await task
    assert server.by_org() == ids and summary.retries > 0


async def test_an_absent_server_stops_it_after_a_while_and_the_next_run_goes_on(server: Server, tmp_path: Path) -> None:
    ids = write_lines(tmp_path / "events.ndjson", 900)
    server.fault = lambda number: "503" if number > 9 else None
    async with server.served() as url:
        with pytest.raises(IngestStopped, match="no answer within"):
            await sent(server, tmp_path / "events.ndjson", tmp_path, url, retry_for_s=0.3)
        stored = sum(map(len, server.stored.values()))
        server.fault = lambda number: None
        summary = await sent(server, tmp_path / "events.ndjson", tmp_path, url)
    assert server.by_org() == ids and summary.sent == 900 - stored and server.repeated == 0


async def test_a_killed_sender_resumes_and_nothing_is_doubled(server: Server, tmp_path: Path) -> None:
    ids = write_lines(tmp_path / "events.ndjson", 3_000)
    server.pause_s = 0.01
    script = tmp_path / "send.py"
    script.write_text(
        "import asyncio, json, sys\nfrom pathlib import Path\nfrom cmis_stream.feeds.client import send_file\n"
        "path, url, state, tokens = sys.argv[1:]\n"
        "asyncio.run(send_file(Path(path), url=url, token_for=json.loads(tokens).__getitem__, state_dir=Path(state),"
        " batch_events=20, window_bytes=20_000))\n"
    )
    async with server.served() as url:
        arguments = [
            str(script),
            str(tmp_path / "events.ndjson"),
            url,
            str(tmp_path / "state"),
            json.dumps(server.texts),
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        resumed = 0
        for stop_after in (600, 1_700, None):
            process = await asyncio.create_subprocess_exec(sys.executable, *arguments, env=environment)
            if stop_after is not None:
                while sum(map(len, server.stored.values())) < stop_after:
                    await asyncio.sleep(0.005)
                process.send_signal(signal.SIGKILL)
                resumed += 1
            assert await process.wait() == (0 if stop_after is None else -signal.SIGKILL)
    assert resumed == 2 and server.by_org() == ids
    assert len(server.stored) == len(ORGS) and server.repeated < 1_500
    state = next((tmp_path / "state").glob("*.json"))
    assert json.loads(state.read_bytes())["offset"] == (tmp_path / "events.ndjson").stat().st_size


async def test_the_same_file_again_sends_nothing_and_a_grown_one_its_new_lines(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    ids = write_lines(path, 100)
    async with server.served() as url:
        await sent(server, path, tmp_path, url)
        again = await sent(server, path, tmp_path, url)
        assert (again.sent, again.requests, again.resumed_from) == (0, 0, path.stat().st_size)
        for org, more in write_lines(path, 50, start=100, mode="a").items():
            ids[org] += more
        assert (await sent(server, path, tmp_path, url)).sent == 50
        assert server.by_org() == ids and server.repeated == 0
        write_lines(path, 10, start=9_000)
        assert (await sent(server, path, tmp_path, url)).sent == 10
    assert len(server.stored) > len(ORGS)


async def test_bad_lines_are_reported_by_their_number_and_kept_in_a_file(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    good = {"id": "g", "ts": NOW, "org": "acme", "platform": "meta", "campaign": "c"}
    lines = [good, b"", {**good, "spend": -1}, b"nonsense", {**good, "org": None}, {**good, "org": "NO"}, b" ", good]
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    async with server.served() as url:
        summary = await sent(server, path, tmp_path, url)
    assert (summary.sent, summary.accepted, summary.rejected) == (3, 2, 4)
    assert sorted((e["line"], e["code"]) for e in summary.errors) == [
        (3, "out_of_range"),
        (4, "malformed"),
        (5, "missing"),
        (6, "invalid"),
    ]
    assert summary.rejected_file is not None
    kept = [json.loads(line) for line in summary.rejected_file.read_bytes().splitlines()]
    assert sorted(error["line"] for error in kept) == [3, 4, 5, 6] and json.loads(kept[-1]["raw"])["spend"] == -1
    assert server.stored[next(iter(server.stored))] == ["g", "g"]


async def test_a_line_of_fifty_megabytes_is_one_error(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    ids = write_lines(path, 10)
    with path.open("ab") as out:
        out.write(b'{"org":"acme","x":"' + b"x" * 50_000_000 + b'"}\n')
        out.write(b'{"org":"acme","x":"' + b"x" * 1_500_000 + b'"}\n')
    for org, more in write_lines(path, 10, start=10, mode="a").items():
        ids[org] += more
    async with server.served() as url:
        for source in (path, io.BytesIO(path.read_bytes())):
            server.stored.clear()
            summary = await sent(server, source, tmp_path, url)
            assert [(e["line"], e["code"]) for e in summary.errors] == [(11, "too_long"), (12, "too_long")]
            assert server.by_org() == ids


async def test_long_lines_and_no_newline_at_the_end_are_fine(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    event = {"id": "long", "ts": NOW, "org": "acme", "platform": "meta", "campaign": "c", "note": "x" * 900_000}
    path.write_text(json.dumps(event) + "\n" + json.dumps({**event, "id": "end", "note": ""}))
    async with server.served() as url:
        await sent(server, path, tmp_path, url)
    assert server.by_org() == {"acme": ["long", "end"]}


async def test_a_wrong_token_stops_it_and_loses_nothing(server: Server, tmp_path: Path) -> None:
    ids = write_lines(tmp_path / "events.ndjson", 100)
    right, server.texts["globex"] = server.texts["globex"], "cmis_wrong_token"
    async with server.served() as url:
        with pytest.raises(IngestStopped, match=r"globex.*401") as error:
            await sent(server, tmp_path / "events.ndjson", tmp_path, url)
        assert error.value.summary.retries == 0
        server.texts["globex"] = right
        await sent(server, tmp_path / "events.ndjson", tmp_path, url)
    assert server.by_org() == ids


async def test_gzip_files_streams_and_compressed_requests(server: Server, tmp_path: Path) -> None:
    plain = tmp_path / "events.ndjson"
    ids = write_lines(plain, 500)
    packed = tmp_path / "events.ndjson.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    read, write = os.pipe()
    async with server.served() as url:
        assert (await sent(server, packed, tmp_path, url, compress=True)).sent == 500
        assert server.by_org() == ids
        server.stored.clear()

        def feed() -> None:
            with os.fdopen(write, "wb") as out:
                out.write(plain.read_bytes())

        feeding = asyncio.create_task(asyncio.to_thread(feed))
        with os.fdopen(read, "rb") as pipe:
            assert (await sent(server, pipe, tmp_path, url)).sent == 500
        await feeding
    assert server.by_org() == ids and all(source.startswith("stdin:") for _, source in server.stored)


async def test_with_one_org_lines_need_not_name_it(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "events.ndjson"
    event = '{"id":"%d","ts":1700000000000,"platform":"x","account":"a"}\n'
    path.write_text(f"{event % 1}\n \nnope\n{event % 2}")
    async with server.served() as url:
        summary = await sent(server, path, tmp_path, url, org="acme", source="crm")
    assert (summary.accepted, summary.rejected, summary.errors[0]["line"]) == (2, 1, 4)
    ((org, source),) = server.stored
    assert org == "acme" and source.startswith("crm:") and server.dead[0].raw == b"nope"


async def test_two_senders_of_one_file_exclude_each_other(server: Server, tmp_path: Path) -> None:
    write_lines(tmp_path / "events.ndjson", 500)
    server.pause_s = 0.05
    async with server.served() as url:
        task = asyncio.create_task(sent(server, tmp_path / "events.ndjson", tmp_path, url))
        await asyncio.sleep(0.1)
        with pytest.raises(ConfigError, match="another sender"):
            await sent(server, tmp_path / "events.ndjson", tmp_path, url)
        await task


async def test_a_missing_file_and_a_damaged_state_are_told(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        await sent(server, tmp_path / "nothing.ndjson", tmp_path, "http://127.0.0.1:9")
    path = tmp_path / "events.ndjson"
    write_lines(path, 1)
    client_module.resume.state_path(tmp_path / "state", path, "http://127.0.0.1:9", None).write_bytes(b"{")
    with pytest.raises(ConfigError, match="damaged"):
        await sent(server, path, tmp_path, "http://127.0.0.1:9")
