"""Commands on their way into the store: each once, whatever is repeated or killed."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from sqlalchemy import func, select

from cmis_stream.core.errors import Rejected
from cmis_stream.live.commands import COMMANDS, READER, CommandsOnFacts, decode, encode
from cmis_stream.store import tables
from cmis_stream.store.decisions import Actor
from cmis_stream.store.fact_commands import FactCommands
from cmis_stream.store.fact_kinds import FactCommand
from cmis_stream.store.facts import Change, Facts
from tests.live.command_worker import ends_the_process
from tests.log.written import WrittenEmbedded, written_embedded
from tests.servers.postgres import postgres, postgres_urls
from tests.store.conftest import Places, places
from tests.store.fact_support import NOW, fact_kinds, opened

__all__ = ["places", "postgres", "postgres_urls"]
ROOT = Path(__file__).resolve().parents[2]
MANY = 200
LONG_S = 60


def command(identity: str, fact: str = "f", **more: object) -> FactCommand:
    given: dict[str, object] = {"body": {"note": identity}, "actor": Actor("ada", frozenset({"admin"})), "at": NOW, **more}
    return FactCommand(identity, "acme", "finding", fact, "add", **given)  # type: ignore[arg-type]


def finding(facts: Facts) -> None:
    assert facts.write([Change("acme", "finding", "f", NOW, lambda _: {"name": "a"})], "w", "e", {("t", 0): 0}, {})


def test_a_command_is_read_as_it_was_sent() -> None:
    for one in (command("c"), command("é", expected_version=7, body={"a": [None, {"b": 1.5}]})):
        assert decode(encode(one)) == one


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"id": ""}, "invalid"), ({"org": "x" * 256}, "invalid"), ({"fact": "a\0"}, "invalid"), ({"at": -1}, "out_of_range"),
        ({"at": "now"}, "malformed"), ({"body": []}, "malformed"), ({"body": {"n": 2**64 - 1}}, "out_of_range"),
        ({"actor": {}}, "malformed"), ({"actor": {"id": "\0"}}, "invalid"),
    ],
)  # fmt: skip
def test_what_is_no_command_is_refused(more: dict[str, object], code: str) -> None:
    with pytest.raises(Rejected) as caught:
        decode(orjson.dumps({**orjson.loads(encode(command("c"))), **more}))
    assert caught.value.code == code


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"1", b"\xff", b"[" * 100_000])
def test_what_is_no_json_of_ours_is_refused(value: bytes) -> None:
    with pytest.raises(Rejected):
        decode(value)


async def test_a_foreign_record_is_passed_over(tmp_path: Path) -> None:
    with opened(Places(f"sqlite:///{tmp_path / 'store.db'}", f"sqlite:///{tmp_path / 'store.db'}")) as facts:
        finding(facts)
        runner = CommandsOnFacts(FactCommands(facts._database, fact_kinds(), facts), facts, "e", ends_the_process)
        acked: list[int] = []
        for offset, value in enumerate([b"{", encode(command("c0")), b"", encode(command("c1")), b"?"]):
            await runner.put(3, offset, value, lambda offset=offset: acked.append(offset))
        await runner.settled()
        found = facts.get("acme", "finding", "f")
        assert found is not None and found.body["notes"] == ["c0", "c1"]
        assert acked == [0, 1, 2, 3, 4] and facts.positions(READER, "e") == {(COMMANDS, 3): 4} and runner.reached == {3: 4}


class Worker:
    def __init__(self, places: Places, log: Path) -> None:
        command = [sys.executable, "-m", "tests.live.command_worker", places.app, str(log)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.returncode == -signal.SIGKILL, "it had ended by itself"
        assert self.process.stdout is not None
        self.process.stdout.close()


async def until(held: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG_S):
        while not await asyncio.to_thread(held):
            await asyncio.sleep(0.002)


@pytest.mark.timeout(180)
async def test_each_command_is_carried_out_once_however_processes_are_killed(places: Places, tmp_path: Path) -> None:
    """Two workers at once, either of them a zombie, as it were; one of them is killed again and again, then the other, too."""
    ids = [f"c{number}" for number in range(MANY)]
    sent = [one for number, one in enumerate(ids) for one in ([one, ids[number - 7]] if number % 10 == 9 else [one])]
    async with written_embedded(tmp_path) as written:
        await prepare(written, sent)
        reader = await written.reader()
        epoch = reader.epoch
        await reader.close()
        with opened(places) as facts:
            finding(facts)

            def reached(offset: int) -> bool:
                return facts.positions(READER, epoch).get((COMMANDS, 0), -1) >= offset

            in_the_middle = 0
            workers = [Worker(places, written.log.path) for _ in range(2)]
            try:
                for number, at in enumerate((12, 60, 110, 160)):
                    await until(lambda at=at: reached(at))
                    workers[number % 2].kill()
                    in_the_middle += not reached(len(sent) - 1)
                    workers[number % 2] = Worker(places, written.log.path)
                await until(lambda: reached(len(sent) - 1))
            finally:
                for worker in workers:
                    worker.kill()
            assert in_the_middle, "kills that came too late show nothing"
            found = facts.get("acme", "finding", "f")
            assert found is not None and found.body["notes"] == ids and found.body["count"] == MANY
            assert found.version == MANY + 1
            commands = FactCommands(facts._database, fact_kinds(), facts)
            results = [commands.result("acme", one) for one in ids]
            assert [result and result.version for result in results] == [number + 2 for number in range(MANY)]
            with facts._database.transaction("acme") as tx:
                counted = tx.rows(select(func.count()).select_from(tables.outbox).where(tx.own(tables.outbox)))
            assert counted[0][0] == MANY
            assert facts.positions(READER, epoch) == {(COMMANDS, 0): len(sent) - 1}


async def prepare(written: WrittenEmbedded, sent: list[str]) -> None:
    await written.create(COMMANDS, 1)
    await written.append(COMMANDS, 0, *((b"acme", encode(command(one))) for one in sent))
