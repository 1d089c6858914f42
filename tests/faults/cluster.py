"""An installation of real processes on loopback: a broker, Redis, workers, an API and gateways, or `cmis up` alone.

`async with Cluster(folder, rules, shape) as cluster`: everything runs from entry to exit, with outputs kept in the folder. The
kernel ends its `cmis` processes when this one dies, however that happens.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cmis_stream.feeds.sending import local_tokens
from cmis_stream.log import envelope
from cmis_stream.runtime import METRICS
from cmis_stream.store.database import Database
from cmis_stream.store.tokens import TokenStore
from scripts.kafka import Kafka
from scripts.redis import Redis
from tests.e2e.support import COMMAND, ROOT, Process, free_port, reading, records
from tests.log.backends import PARTITIONS, OnKafka

T = TypeVar("T")
PR_SET_PDEATHSIG = 1  # linux/prctl.h
PATIENCE_S = 90.0
"""How long to wait for what has to come; much longer than it takes, since a test machine may be busy."""
MOST_RESTARTS = 5
RESTART = 70
"""EX_SOFTWARE: a watchdog or a failure has ended the process, and whoever runs it starts it again."""


async def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """What `condition` returns, once it is true."""
    give_up_at = time.monotonic() + patience_s
    while not (found := condition()):
        if time.monotonic() > give_up_at:
            raise AssertionError(f"waited {patience_s:g} s for {what}")
        await asyncio.sleep(0.02)
    return found


def _end_with_parent() -> None:
    """In the child, before it becomes the program. Processes are therefore started by the main thread only."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class _Started(Process):
    """One run of a part."""

    def __init__(self, command: Sequence[str], output: Path) -> None:
        self.output = output
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CMIS_")}
        with output.open("wb") as file:
            self.popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, cwd=output.parent,
                env={**inherited, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
                preexec_fn=_end_with_parent,  # noqa: PLW1509  # nothing is locked by other threads that it uses
            )  # fmt: skip


class Part:
    """A process of the installation, which can be killed, stopped and started again: same arguments, same port, a new output."""

    def __init__(self, folder: Path, name: str, program: Sequence[str], arguments: Sequence[object]) -> None:
        self.folder, self.name, self.port = folder, name, free_port()
        self.command = [*program, *map(str, arguments), "--port", str(self.port)]
        self.runs: list[_Started] = []
        self.failures: list[str] = []
        """What it said when it ended by itself."""
        self._meant_to_run = False
        self.start()

    @property
    def run(self) -> _Started:
        return self.runs[-1]

    @property
    def text(self) -> str:
        return "".join(run.text for run in self.runs)

    def start(self) -> None:
        self._meant_to_run = True
        self.runs.append(_Started(self.command, self.folder / f"{self.name}-{len(self.runs)}.txt"))

    async def ready(self) -> None:
        def said() -> bool:
            if "Ready in" in self.run.text:
                return True
            if not self.run.running:
                raise AssertionError(f"{self.name} ended with {self.run.popen.returncode}:\n{self.run.text}")
            return False

        await until(said, f"{self.name} to be ready")
        if f":{self.port}" not in self.run.text:
            raise AssertionError(f"{self.name}: its port {self.port} was taken:\n{self.run.text}")

    def kill(self) -> None:
        """kill -9; AssertionError when it had ended by itself."""
        self.must_run()
        self._meant_to_run = False
        self.run.kill()

    async def restart(self) -> None:
        self.kill()
        self.start()
        await self.ready()

    def pause(self) -> None:
        """SIGSTOP: its connections stay open and nobody answers."""
        self.must_run()
        self.run.popen.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.run.popen.send_signal(signal.SIGCONT)

    async def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Waits for its end; the exit code."""
        self.must_run()
        self._meant_to_run = False
        self.run.popen.send_signal(how)
        await until(lambda: not self.run.running, f"the end of {self.name}")
        return int(self.run.popen.returncode)

    def must_run(self) -> None:
        if not self.run.running:
            raise AssertionError(f"{self.name} ended by itself with {self.run.popen.returncode}:\n{self.run.text}")

    def looked_after(self) -> None:
        """As compose or systemd would: started again when it has ended by itself with the code that asks for it."""
        if self._meant_to_run and not self.run.running:
            if self.run.popen.returncode != RESTART:
                self.must_run()
            self.failures.append(self.run.text)
            if len(self.failures) > MOST_RESTARTS:
                raise AssertionError(f"{self.name} ends again and again:\n{self.run.text}")
            self.start()


@dataclass(frozen=True)
class Shape:
    """workers 0: `cmis up` on the embedded log, with its one gateway; else that many on Kafka and Redis."""

    workers: int = 0
    gateways: int = 1

    @property
    def embedded(self) -> bool:
        return not self.workers


class Cluster:
    """data_dir: of the installation, if it is to be elsewhere than in `folder`. program: what runs `cmis`."""

    def __init__(
        self, folder: Path, rules: Path, shape: Shape, *, data_dir: Path | None = None, program: Sequence[str] | None = None
    ) -> None:
        self.folder, self.shape, self.data_dir = folder, shape, data_dir or folder / "data"
        self._rules, self._program = rules, program or COMMAND
        self.kafka: Kafka | None = None
        self.redis: Redis | None = None
        self.api: Part | None = None
        self.gateways: list[Part] = []
        self.workers: list[Part] = []
        self.parts: list[Part] = []
        """All that were ever started."""
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Cluster:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._opened.callback(self._end)
        try:
            await (self._start_embedded() if self.shape.embedded else self._start_roles())
        except BaseException:  # whatever kept it from starting, what runs already has to end
            await self._opened.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened.aclose()

    def _end(self) -> None:
        for part in self.parts:
            if part.run.running:
                part.run.kill()

    # --- starting -------------------------------------------------------------------------------------------------------

    async def _start_embedded(self) -> None:
        self._gateway_port = free_port()
        self.api = self._part(
            "up", "--rules", self._rules, "--evaluate", "pane", "--gateway-port", self._gateway_port, "--no-live"
        )
        self.gateways = [self.api]
        await self.api.ready()

    async def _start_roles(self) -> None:
        self.kafka, self.redis = Kafka(self.folder / "kafka"), Redis(self.folder / "redis")
        self._opened.callback(self.kafka.stop)
        self._opened.callback(self.redis.stop)
        await asyncio.gather(asyncio.to_thread(self.kafka.start), asyncio.to_thread(self.redis.start))
        applied = _Started([*COMMAND, "topics", "apply", "--log", self.kafka.url], self.folder / "topics.txt")
        await until(lambda: not applied.running, "cmis topics apply")
        if applied.popen.returncode:
            raise AssertionError(applied.text)
        self.api = self._part("api", "--log", self.kafka.url, "--rules", self._rules, "--evaluate", "pane")
        for _ in range(self.shape.workers):
            self.start_worker()
        self.gateways = [
            self._part("gateway", "--log", self.kafka.url, "--backplane", self.redis.url, "--page-port", self.api.port)
            for _ in range(self.shape.gateways)
        ]
        for part in list(self.parts):
            await part.ready()

    def start_worker(self) -> Part:
        assert self.kafka is not None and self.redis is not None
        self.workers.append(part := self._part("worker", "--log", self.kafka.url, "--backplane", self.redis.url))
        return part

    def _part(self, role: str, *arguments: object) -> Part:
        name = f"{role}{sum(part.name.startswith(role) for part in self.parts) + 1}"
        part = Part(self.folder, name, self._program, [role, "--data-dir", self.data_dir, *arguments])
        self.parts.append(part)
        return part

    # --- using it -------------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        assert self.api is not None
        return f"http://127.0.0.1:{self.api.port}"

    @property
    def gateway_urls(self) -> list[str]:
        ports = [self._gateway_port] if self.shape.embedded else [part.port for part in self.gateways]
        return [f"ws://127.0.0.1:{port}/connection/websocket" for port in ports]

    def ingest_tokens(self) -> Callable[[str], str]:
        """The token of an org, which is made if it is not there."""
        return local_tokens(self.data_dir, create_orgs=True)

    def read_token(self, org: str) -> str:
        with closing(Database(f"sqlite:///{self.data_dir / 'store.db'}")) as database, closing(TokenStore(database)) as store:
            return store.create(org, ["read"])[1]

    async def adopted(self) -> set[str]:
        """Orgs whose rules are in the metrics log, and so in force."""
        records = [envelope.decode(value) for _, value in await self.records(METRICS)]
        return {record.org for record in records if isinstance(record, envelope.RuleSet)}

    async def records(self, topic: str) -> list[tuple[int, bytes]]:
        """(partition, value) of all records of a topic, in the order of partition and offset."""
        if self.kafka is None:
            with reading(self.data_dir) as log:
                return [(partition, record.value or b"") for partition, record in records(log, topic)]
        kafka = OnKafka(self.kafka.bootstrap)
        return [(p, row.value or b"") for p in range(PARTITIONS) for row in await kafka.rows(topic, p)]

    async def while_supervised(self, running: Awaitable[T]) -> T:
        """Awaits it, and starts parts again meanwhile that ask for it by their exit code."""
        task = asyncio.ensure_future(running)
        try:
            while not task.done():
                await asyncio.wait([task], timeout=0.1)
                for part in list(self.parts):
                    part.looked_after()
            return task.result()
        finally:
            task.cancel()

    def endings(self) -> list[str]:
        """The last words of parts that ended by themselves."""
        return [f"{part.name} {_last_words(said)}" for part in self.parts for said in part.failures]

    def told(self) -> str:
        """The ends of all outputs and logs, to be shown with a failure."""
        outputs = [run.output for part in self.parts for run in part.runs]
        others = [*self.folder.glob("kafka/broker.log"), *self.folder.glob("redis/*.log"), *self.data_dir.glob("*.log")]
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in [*outputs, *others])


def _last_words(said: str) -> str:
    """Of our own, if there are some."""
    lines = said.strip().splitlines() or ["said nothing"]
    return next((line for line in reversed(lines) if line.startswith("cmis: ")), lines[-1])[:300]
