"""Processes of an installation on a broker, and what the kernel says of them while they work."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient  # type: ignore[import-untyped]

from bench.measure import memory_mb
from bench.pipeline import CMIS, _end_with_parent
from bench.workloads import REPOSITORY
from cmis_stream.runtime import METRICS
from scripts.server import free_port

START_S, STALLED_S, SAMPLE_S = 60.0, 120.0, 0.02
IDLE_SHARE, IDLE_S = 0.1, 0.2
"""Of one core, over so long: processes that use less have nothing to do but wait."""


def cpu_s(pid: int) -> float:
    """User and system seconds of all threads so far, also of those that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def redis(folder: Path) -> Iterator[tuple[str, int]]:
    """A Redis of one's own that keeps nothing: (its URL, its process id)."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise FileNotFoundError("redis-server is needed for these rows; on Debian: apt-get install redis-server")
    port = free_port()
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=_end_with_parent)  # noqa: PLW1509
    try:
        give_up_at = time.monotonic() + START_S
        while time.monotonic() < give_up_at:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0", process.pid
    finally:
        process.terminate()
        process.wait()


class Process:
    """One process of `cmis`. Its output goes to a file, where `Ready in … s: URL` stands when it is ready."""

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        self.name, self._output = name, folder / f"{name}.txt"
        with self._output.open("wb") as file:
            self.process = subprocess.Popen(
                [*CMIS, *arguments], cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT, preexec_fn=_end_with_parent,  # noqa: PLW1509
            )  # fmt: skip

    @property
    def url(self) -> str | None:
        """None until it is ready."""
        ready = [
            line for line in self._output.read_text().splitlines(keepends=True) if line.startswith("Ready") and line[-1] == "\n"
        ]
        return ready[0].split()[-1] if ready else None

    def cpu_s(self) -> float:
        if self.process.poll() is not None:
            told = self._output.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self.name} ended with code {self.process.returncode}: {told}")
        return cpu_s(self.process.pid)

    def peak_rss_mb(self) -> float:
        return memory_mb("VmHWM", self.process.pid)

    def end(self) -> None:
        """As an operator would; its state is of no more use."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def workers(count: int, broker: str, backplane: str, folder: Path) -> Iterator[list[Process]]:
    """`cmis worker`, so many of one group, started together."""
    common = ("--data-dir", str(folder / "data"), "--log", broker, "--backplane", backplane, "--port", "0")
    started: list[Process] = []
    try:
        started += [Process(folder, f"worker-{number}", "worker", *common) for number in range(count)]
        yield started
    finally:
        for process in started:
            process.end()


@dataclass(frozen=True, slots=True)
class Sample:
    """CPU seconds of each process at a moment of the clock."""

    at: float
    cpu_s: tuple[float, ...]


class Sampler:
    """Looks at processes every 20 ms."""

    def __init__(self, processes: Sequence[Process]) -> None:
        self._processes = processes
        self.samples: list[Sample] = []
        self.take()

    def take(self) -> Sample:
        self.samples.append(Sample(time.perf_counter(), tuple(process.cpu_s() for process in self._processes)))
        return self.samples[-1]

    async def until(self, done: asyncio.Task[None]) -> Sample:
        """Raises what `done` raises, or that a process has ended."""
        try:
            while not done.done():
                await asyncio.sleep(SAMPLE_S)
                self.take()
            done.result()
        finally:
            done.cancel()
        return self.samples[-1]

    def last_idle(self, before: Sample) -> Sample:
        """The last moment before one at which all of them had been waiting."""
        for i in range(self.samples.index(before), -1, -1):
            if self._idle(i):
                return self.samples[i]
        return self.samples[0]

    def last_busy(self) -> Sample:
        """The last moment at which they were at work."""
        return next((self.samples[i] for i in range(len(self.samples) - 1, 0, -1) if not self._idle(i)), self.samples[0])

    def _idle(self, i: int) -> bool:
        """Whether so little was used in the time up to a sample; not if it is not long enough to tell."""
        at = self.samples[i]
        earlier = next((s for s in reversed(self.samples[:i]) if at.at - s.at >= IDLE_S), None)
        return earlier is not None and sum(at.cpu_s) - sum(earlier.cpu_s) < IDLE_SHARE * (at.at - earlier.at)


async def all_ready(processes: Sequence[Process]) -> None:
    async with asyncio.timeout(START_S):
        while not all(process.url for process in processes):
            await asyncio.sleep(SAMPLE_S)


async def committed(bootstrap: str, ends: Mapping[int, int]) -> None:
    """Returns when the group has committed all of cmis.metrics.v1 up to `ends`: applied, safe, acked."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        left, behind, give_up_at = sum(ends.values()), -1, 0.0
        while left:
            await asyncio.sleep(0.1)
            found = await admin.list_consumer_group_offsets("cmis")
            offsets = {tp.partition: meta.offset for tp, meta in found.items() if tp.topic == METRICS}
            left = sum(max(0, end - max(0, offsets.get(partition, 0))) for partition, end in ends.items())
            if left != behind:
                behind, give_up_at = left, time.monotonic() + STALLED_S
            elif time.monotonic() > give_up_at:
                raise TimeoutError(f"nothing committed for {STALLED_S:.0f} s, {left} records left")
    finally:
        await admin.close()
