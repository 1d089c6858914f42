"""What a measuring process reports: one JSON line on standard output."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.workloads import Transition, Workload


@dataclass(slots=True)
class Report:
    """events: of the job (0 where there are none). exact: None when the job has no exact answer to compare with."""

    events: int
    wall_s: float
    cpu_s: float
    peak_rss_mb: float
    transitions: int = 0
    exact: bool | None = None
    extra: dict[str, float] = field(default_factory=dict)
    note: str = ""

    def print(self) -> None:
        json.dump(asdict(self), sys.stdout)
        sys.stdout.write("\n")

    @classmethod
    def parse(cls, line: str) -> Report:
        return cls(**json.loads(line))


class Stopwatch:
    """Wall and CPU seconds (user and system, all threads of this process) since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def report(self, events: int, transitions: int = 0) -> Report:
        """Call at the end of the job, before anything else (such as comparing with the answer) takes time or memory."""
        cpu, wall = time.process_time() - self._cpu, time.perf_counter() - self._wall
        return Report(events, wall, cpu, memory_mb("VmHWM"), transitions)


def memory_mb(name: str, pid: int | str = "self") -> float:
    """VmRSS (resident now) or VmHWM (its peak) of a process, MB of 10^6 bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"/proc/{pid}/status has no {name}")


def settle(report: Report, workload: Workload, found: Iterable[Transition]) -> Report:
    """Compares with the workload's answer; differences go to standard error."""
    differences = workload.differences(found)
    report.exact = not differences
    for line in differences[:5]:
        print(line, file=sys.stderr)
    if differences:
        report.note = f"{len(differences)} transitions differ"
    return report


def job_arguments(jobs: Iterable[str]) -> tuple[str, Path]:
    """The command line of a measuring process: the job's name and the workload's folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", choices=sorted(jobs))
    parser.add_argument("workload", type=Path, nargs="?", default=Path())
    arguments = parser.parse_args()
    return arguments.job, arguments.workload
