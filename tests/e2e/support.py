"""What the end-to-end and fault tests share: `cmis` as a process, the workload and its exact answer, the log from outside.

Every process is started with `Processes`, which ends it by its id; nothing here waits for a fixed time.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import orjson
import pytest

from cmis_stream.core.engine import Engine, Step, end_of_panes, transition_lines
from cmis_stream.core.entities import LEVELS
from cmis_stream.core.errors import CmisError
from cmis_stream.core.rules import parse_rule
from cmis_stream.core.time import WINDOWS
from cmis_stream.core.windows import NEVER
from cmis_stream.feeds.decode import decode_ndjson
from cmis_stream.instance import Instance
from cmis_stream.log import envelope
from cmis_stream.log.embedded import EmbeddedLog, Record
from cmis_stream.log.envelope import Tick, encode
from cmis_stream.log.positions import Passed
from cmis_stream.log.reader import read_all
from cmis_stream.runtime import METRICS, TRANSITIONS

ROOT = Path(__file__).resolve().parents[2]
BENCH = Path(os.environ.get("CMIS_BENCH", ROOT / "../shared/bench"))
DATA = Path(os.environ.get("CMIS_DATA", ROOT / "../shared/data"))
COMMAND = (sys.executable, "-c", "import sys; sys.argv[0] = 'cmis'; from cmis_stream.cli import main; main()")
PATIENCE_S = 60
"""How long to wait for what has to come; much longer than it takes, since a test machine may be busy."""

needs_workload = pytest.mark.skipif(not (BENCH / "workload.py").exists(), reason="needs CMIS_BENCH (../shared/bench)")


def until(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """What `condition` returns, once it is true."""
    give_up_at = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < give_up_at, f"waited {patience_s:g} s for {what}"
        time.sleep(0.02)
    return found


# --- the program as a process ----------------------------------------------------------------------------------------


def free_port() -> int:
    """A port that nobody listens on, below those that clients are given."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class Process:
    """A running `cmis …`; its output goes to a file that can be read at any time."""

    def __init__(
        self,
        arguments: Iterable[object],
        output: Path,
        stdin: int | Any = subprocess.DEVNULL,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """environment: besides this process's own, and before it."""
        self.output = output
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CMIS_")}
        environment = {**inherited, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(environment or {})}
        with output.open("wb") as file:
            self.popen = subprocess.Popen(
                [*COMMAND, *map(str, arguments)], stdin=stdin, stdout=file, stderr=subprocess.STDOUT, env=environment,
                cwd=output.parent, start_new_session=True,
            )  # fmt: skip

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def says(self, words: str) -> str:
        """Waits until its output holds `words`; fails with all of it when the process ends without."""

        def said() -> bool:
            if words in self.text:
                return True
            assert self.running or words in self.text, f"ended with {self.popen.returncode} before {words!r}:\n{self.text}"
            return False

        until(said, f"{words!r}; its output:\n{self.text}")
        return self.text

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def ended(self, patience_s: float = PATIENCE_S) -> int:
        """Waits for its end; the exit code."""
        return self.popen.wait(patience_s)

    def stop(self) -> int:
        """Ctrl-C."""
        self.popen.send_signal(signal.SIGINT)
        return self.ended()


class Processes:
    """Starts `cmis …` and sees to it that nothing is left. environment: of all of them."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder, self.environment = folder, environment
        self.all: list[Process] = []

    def cmis(self, *arguments: object, stdin: int | Any = subprocess.DEVNULL) -> Process:
        self.folder.mkdir(exist_ok=True)
        process = Process(arguments, self.folder / f"output-{len(self.all)}.txt", stdin, self.environment)
        self.all.append(process)
        return process

    def end(self) -> None:
        for process in self.all:
            if process.running:
                process.kill()


class Up:
    """`cmis up` on a folder and always the same port, started again after every kill."""

    def __init__(self, processes: Processes, data_dir: Path, *arguments: object) -> None:
        self.processes, self.data_dir, self.arguments = processes, data_dir, arguments
        self.port = free_port()
        self.kills = 0
        self.process = self._started()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _started(self) -> Process:
        return self.processes.cmis("up", "--data-dir", self.data_dir, "--port", self.port, "--no-live", *self.arguments)

    def ready(self) -> Up:
        said = self.process.says("Ready in")
        assert self.url in said, said
        return self

    def kill(self) -> None:
        """kill -9, then up again, without waiting until it is."""
        assert self.process.running, f"ended by itself:\n{self.process.text}"
        self.process.kill()
        self.kills += 1
        self.process = self._started()

    def stop(self) -> None:
        self.ready()
        assert self.process.stop() == 0, self.process.text


# --- the workload with its answer ------------------------------------------------------------------------------------


@cache
def _workload() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_workload", BENCH / "workload.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Workload:
    """Events and rules as files, and every transition that the rules must make of the events."""

    events: Path
    rules: Path
    answer: list[dict[str, Any]]
    count: int

    @property
    def rules_given(self) -> list[dict[str, Any]]:
        return list(json.loads(self.rules.read_text()))


def make_workload(folder: Path, *, events: int, rules: int = 100, span_s: int = 720, orgs: int = 50, seed: int = 42) -> Workload:
    folder.mkdir(exist_ok=True)
    w = _workload()
    columns = w.make_events(events, span_s * 1000, orgs, np.random.default_rng(seed))
    w.write_events(columns, folder / "events.ndjson")
    sums, first_pane = w.window_sums(columns, orgs * w.CAMPAIGNS_PER_ORG)
    values = w.metrics(sums)
    made = w.make_rules(rules, values, orgs, np.random.default_rng(seed + 1))
    (folder / "rules.json").write_text(json.dumps(made, indent=0))
    answer = w.expected(made, sums, values, first_pane)
    assert answer, "a workload without transitions shows nothing"
    return Workload(folder / "events.ndjson", folder / "rules.json", answer, events)


def as_answer(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Transitions in the form of the workload's answer."""
    rows = ({name: line[name] for name in ("rule", "campaign", "at", "state")} for line in lines)
    return sorted(rows, key=lambda t: (t["at"], t["rule"], t["campaign"]))


def undisturbed(workload: Workload) -> Engine:
    """The pure engine after the same file, with all windows and levels."""
    engine = Engine(LEVELS, live_windows=tuple(WINDOWS.values()))
    by_org: dict[str, list[Any]] = {}
    for raw in workload.rules_given:
        by_org.setdefault(raw["org"], []).append(raw)
    for org, raws in by_org.items():
        engine.adopt(org, 1, [parse_rule(raw, evaluate="pane") for raw in raws], raws, evaluate="pane")
    now_ms, number = time.time_ns() // 1_000_000, 0
    with workload.events.open("rb") as file:
        while lines := file.readlines(1 << 21):
            decoded = decode_ndjson(b"".join(lines), org=None, source="file", now_ms=None, sequence=number)
            assert decoded.batch is not None and not decoded.refused
            number += decoded.events
            engine.apply(decoded.batch, now_ms)
    engine.tick(now_ms, end_of_panes(int(engine.windows.newest.max())))
    return engine


def window_sums(engine: Engine) -> dict[tuple[Any, ...], tuple[int, ...]]:
    """(view, window, entity) -> sums, of every entity and window; without those that are empty."""
    found = {}
    rows = np.arange(1, len(engine.entities), dtype=np.int64)
    for name, view in (("live", engine.windows.live), ("closed", engine.windows.closed)):
        for window in view.gone:
            sums = view.sums(window, rows)
            for row in np.flatnonzero(sums.any(axis=0)).tolist():
                found[name, window.name, *engine.entities.entity(row + 1)] = tuple(sums[:, row].tolist())
    return found


# --- the log ---------------------------------------------------------------------------------------------------------


@contextmanager
def reading(data_dir: Path) -> Iterator[EmbeddedLog]:
    """The log beside whoever writes it."""
    log = EmbeddedLog.open(data_dir / "log.db", read_only=True)
    try:
        yield log
    finally:
        log.close()


def records(log: EmbeddedLog, topic: str) -> Iterator[tuple[int, Record]]:
    if topic not in log.topics:
        return
    for partition in range(log.topics[topic].partitions):
        offset = log.earliest(topic, partition)
        while found := log.read(topic, partition, offset, 500, 8 << 20):
            yield from ((partition, record) for record in found)
            offset = found[-1].offset + 1


def envelopes(data_dir: Path) -> list[envelope.Record]:
    with reading(data_dir) as log:
        return [envelope.decode(record.value or b"") for _, record in records(log, METRICS)]


def logged_ids(data_dir: Path) -> list[str]:
    """The ids of all events in the metrics log, in its order, repeated ones included."""
    return [i for record in envelopes(data_dir) if isinstance(record, envelope.Events) for i in record.batch.ids]


def dead_letters(data_dir: Path) -> list[dict[str, Any]]:
    with reading(data_dir) as log:
        return [orjson.loads(record.value or b"") for _, record in records(log, "cmis.dead_letters.v1")]


def rules_in_log(data_dir: Path) -> dict[str, int]:
    """org -> the newest version of its rules that is in the metrics log."""
    try:
        found = [record for record in envelopes(data_dir) if isinstance(record, envelope.RuleSet)]
    except (OSError, sqlite3.Error, CmisError):  # not there yet
        return {}
    return {record.org: record.version for record in sorted(found, key=lambda r: r.version)}


def passed_transitions(found: Iterable[tuple[int, Record]]) -> list[dict[str, Any]]:
    """The lines of the transitions topic behind every consumer's rule."""
    passed, lines = Passed(), []
    for _, record in found:
        body = orjson.loads(record.value or b"{}")
        if passed.is_new(*body["source"]):
            lines.extend(body["transitions"])
    return lines


async def records_of(instance: Instance, topic: str, partition: int) -> list[Record]:
    return [record async for record in read_all(instance.runtime.log, topic, partition)]


async def transitions_of(instance: Instance) -> list[dict[str, Any]]:
    partitions = range(instance.runtime.partitions)
    return passed_transitions([(p, record) for p in partitions for record in await records_of(instance, TRANSITIONS, p)])


async def finish(instance: Instance) -> None:
    """All is applied and, as at the end of a replay, final."""
    runtime = instance.runtime
    await instance.drained()
    newest = max((int(owner.engine.windows.newest.max()) for owner in instance.owners), default=NEVER)
    if newest != NEVER:
        tick = encode(Tick(runtime.clock(), end_of_panes(newest)))
        for partition in range(runtime.partitions):
            await (await runtime.send(METRICS, partition, tick))
        await instance.drained()
    for owner in instance.owners:
        await owner.checkpoint(wait=True)
        await owner.checkpoint(wait=True)


# --- following transitions -------------------------------------------------------------------------------------------

_ENTITY = ("level", "org", "currency", "platform", "account", "campaign", "ad_set", "ad")


def follow(lines: Iterable[dict[str, Any]]) -> set[tuple[Any, ...]]:
    """(org, rule, *entity) of what fires after these transitions; each must change something, and no id comes twice."""
    firing: set[tuple[Any, ...]] = set()
    ids: set[str] = set()
    for line in lines:
        assert line["id"] not in ids, f"twice: {line}"
        ids.add(line["id"])
        pair = (line["org"], line["rule"], *(line[name] for name in _ENTITY))
        assert (pair in firing) != (line["state"] == "firing"), f"changes nothing: {line}"
        (firing.add if line["state"] == "firing" else firing.discard)(pair)
    return firing


def firing_of(engine: Engine) -> set[tuple[Any, ...]]:
    return {(org, rule, *entity[: len(_ENTITY)]) for org, rule, entity in engine.rules.firing_pairs()}


def evaluated(log_records: Iterable[Record], engine: Engine) -> list[dict[str, Any]]:
    """The transitions that the pure engine makes of a partition's records, from the first to the last."""
    lines = []
    for record in log_records:
        entry = envelope.decode(record.value or b"")
        step: Step
        match entry:
            case envelope.Events(stamp_ms, batch):
                step = engine.apply(batch, stamp_ms)
            case envelope.Tick(stamp_ms, watermark_ms):
                step = engine.tick(stamp_ms, watermark_ms)
            case envelope.RuleSet(_, org, version, rules, evaluate):
                parsed = [parse_rule(rule, evaluate=evaluate) for rule in rules]
                step = engine.adopt(org, version, parsed, rules, evaluate=evaluate)
        lines.extend({**line, "offset": record.offset} for line in transition_lines(engine, step))
    return lines


async def evaluate_anew(instance: Instance) -> tuple[list[dict[str, Any]], set[tuple[Any, ...]]]:
    """What fresh engines make of the instance's metrics log: transitions in the order of partition and log, what fires."""
    runtime = instance.runtime
    lines, firing = [], set()
    for partition in range(runtime.partitions):
        engine = runtime.new_engine()
        lines.extend(
            {**line, "partition": partition} for line in evaluated(await records_of(instance, METRICS, partition), engine)
        )
        firing |= firing_of(engine)
    return lines, firing


def without_identity(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Transitions without what only the pipeline adds to them (ids, evidence) and what `evaluate_anew` adds."""
    added = ("id", "incident", "events", "partition", "offset")
    return [{name: value for name, value in line.items() if name not in added} for line in lines]
