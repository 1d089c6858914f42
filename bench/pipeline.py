"""The whole instance: HTTP in, deduplication, embedded log, agents, checkpoints, transitions out.

python -m bench.pipeline ingest WORKLOAD      CPU of the `cmis up` process while another process sends it the events
python -m bench.pipeline recovery WORKLOAD    seconds from the start of `cmis up` after kill -9 until it answers

`cmis up` runs on a folder of its own; its CPU is read from /proc (all its threads and nothing else), from before the first
event until the instance has become quiet. Panes still open then close when their orgs have been idle for a minute of
running time, so the comparison with the exact answer waits for that, outside the measurement.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from bench.measure import Report, job_arguments, memory_mb, settle
from bench.workloads import REPOSITORY, Transition, Workload, transition_of

CMIS = (sys.executable, "-c", "from cmis_stream.cli import main; main()")
TRANSITIONS_TOPIC = "cmis.transitions.v1"
START_S, SETTLE_S, QUIET_S = 120.0, 150.0, 1.5
PR_SET_PDEATHSIG = 1  # linux/prctl.h
QUIET_SHARE = 0.1
"""Of one core: an instance that uses less (its ticks and checkpoints) has nothing left to do."""


def _end_with_parent() -> None:
    """In the child: the kernel kills it when the measuring process dies, however that happens."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Instance:
    """A running `cmis up`."""

    def __init__(self, data_dir: Path, rules: Path | None, *options: str) -> None:
        """options: further ones of `cmis up`; they win over those given here."""
        self.data_dir = data_dir
        options = ("--data-dir", str(data_dir), "--port", "0", "--evaluate", "pane", "--no-live", *options)
        if rules is not None:
            options += ("--rules", str(rules))
        self.process = subprocess.Popen(
            [*CMIS, "up", *options],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509  # no other thread runs while a process is started
        )
        self.url = self._ready()

    def _ready(self) -> str:
        """Waits for its line `Ready in … s: URL/docs`; one that is not ready after START_S is killed."""
        assert self.process.stdout is not None
        too_long = threading.Timer(START_S, self.process.kill)
        too_long.start()
        try:
            for line in self.process.stdout:
                if line.startswith("Ready"):
                    return line.split()[-1].removesuffix("/docs")
        finally:
            too_long.cancel()
        code = self.process.wait()
        raise RuntimeError(
            f"cmis up was not ready: it ended with code {code} (killed after {START_S:.0f} s if {-signal.SIGKILL})"
        )

    def cpu_s(self) -> float:
        """User and system seconds of all threads so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_rss_mb(self) -> float:
        return memory_mb("VmHWM", self.process.pid)

    def until_quiet(self) -> tuple[float, float]:
        """Waits until it does next to nothing: its CPU seconds and the clock when the quiet began."""
        while True:
            cpu, at = self.cpu_s(), time.perf_counter()
            time.sleep(QUIET_S)
            if self.cpu_s() - cpu < QUIET_SHARE * QUIET_S:
                return cpu, at

    def end(self, how: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.process.wait()


@contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="cmis-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def send(workload: Workload, data_dir: Path) -> None:
    """All events by `cmis ingest`, a process of its own."""
    command = [*CMIS, "ingest", str(workload.events_file), "--data-dir", str(data_dir), "--create-orgs"]
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=sys.stderr)


def transitions(data_dir: Path) -> list[Transition]:
    """All transitions in the log, as `cmis tail` shows them; a record sent again after a restart counts once."""
    command = [*CMIS, "tail", TRANSITIONS_TOPIC, "-n", "10000000", "--data-dir", str(data_dir)]
    output = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[tuple[object, ...], Transition] = {}
    for text in output.splitlines():
        record = json.loads(text)["value"]
        for index, line in enumerate(record["transitions"]):
            found[(*record["source"], index)] = transition_of(line)
    return list(found.values())


def ingest(workload: Workload) -> Report:
    with scratch() as data_dir:
        instance = Instance(data_dir, workload.path / "rules.json")
        try:
            cpu, _ = instance.until_quiet()
            began = time.perf_counter()
            send(workload, data_dir)
            cpu_end, ended = instance.until_quiet()
            report = Report(workload.events(), ended - began, cpu_end - cpu, instance.peak_rss_mb())
            found = _settled(workload, data_dir)
        finally:
            instance.end(signal.SIGTERM)
        report.transitions = len(found)
        return settle(report, workload, found)


def _settled(workload: Workload, data_dir: Path) -> list[Transition]:
    """The transitions once they are as many as expected, or when waiting longer makes no sense.

    Without those after the end of the workload: an instance goes on, and idle orgs' windows empty.
    """
    expected = sum(1 for _ in (workload.path / "expected.ndjson").open())
    deadline = time.monotonic() + SETTLE_S
    while True:
        found = [transition for transition in transitions(data_dir) if transition[0] <= workload.end_ms()]
        if len(found) >= expected or time.monotonic() > deadline:
            return found
        time.sleep(2)


def recovery(workload: Workload) -> Report:
    with scratch() as data_dir:
        instance = Instance(data_dir, workload.path / "rules.json")
        try:
            send(workload, data_dir)
        finally:
            instance.end(signal.SIGKILL)
        began = time.perf_counter()
        instance = Instance(data_dir, workload.path / "rules.json")
        try:
            _answers(instance.url)
            wall = time.perf_counter() - began
            report = Report(workload.events(), wall, instance.cpu_s(), instance.peak_rss_mb())
        finally:
            instance.end(signal.SIGTERM)
        report.extra = {"ready_s": wall}
        return report


def _answers(url: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            with urlopen(f"{url}/docs", timeout=5):
                return
        except HTTPError:
            return  # an answer too: it serves
        except URLError:
            time.sleep(0.05)
    raise TimeoutError(f"{url} did not answer within {START_S:.0f} s")


JOBS = {"ingest": ingest, "recovery": recovery}

if __name__ == "__main__":
    name, folder = job_arguments(JOBS)
    JOBS[name](Workload(folder)).print()
