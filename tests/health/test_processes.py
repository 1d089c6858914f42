"""Whole processes fall ill and end with 70 and a reason in their log; those that wait for others, or were stopped, live on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENDS_WITHIN_S = 60
Start = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started = []

    def begin(what: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.health.sick_process", what, str(tmp_path)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("stalled", "cmis.metrics.v1, partition 3: 4 records wait and none was applied for 2 s (the next is 5)"),
        ("not-committed", "4 records are acked and the committed offset has stood at 5 for 2 s"),
        ("growing", "MB are resident, the limit is"),
        ("blocked", "the event loop has had no turn for 3 s"),
        ("growing-and-does-not-stop", "the process has not stopped within 2 s; it had to: memory:"),
    ],
)
def test_a_sick_process_ends_with_70_and_the_reason_in_its_log(start: Start, tmp_path: Path, what: str, reason: str) -> None:
    process = start(what)
    _, told = process.communicate(timeout=ENDS_WITHIN_S)
    assert process.returncode == 70
    log = (tmp_path / "cmis.log").read_text()
    assert "this process ends: " in log and reason in log and reason in told
    if what == "blocked":  # the stacks of all threads, also of the one that does not answer
        assert log.count("sick_process.py") >= 1 and "most recent call first" in log and "most recent call first" in told
    if what == "stalled":
        assert "what was under way:" in log and "sick_process.py" in log


@pytest.mark.slow
@pytest.mark.parametrize("what", ["stalled-while-the-log-is-away", "stalled-while-nothing-flows"])
def test_who_waits_for_a_broker_or_a_rebalance_is_not_sick(start: Start, what: str) -> None:
    process = start(what)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(8)  # four times as long as a partition may stall


@pytest.mark.slow
def test_a_process_that_was_stopped_lives_on_when_it_wakes_and_its_watch_too(start: Start, tmp_path: Path) -> None:
    process = start("well")
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(8)  # longer than any of its limits
    os.kill(process.pid, signal.SIGCONT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    assert (tmp_path / "cmis.log").read_text() == ""
