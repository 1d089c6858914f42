"""Workload files: made once by the shared generator, cached outside the repository, read as chunks of whole lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
GENERATOR = Path(os.environ.get("CMIS_BENCH", REPOSITORY.parent / "shared" / "bench" / "workload.py"))
CACHE = Path(os.environ.get("CMIS_BENCH_CACHE", "/tmp/cmis-bench"))
CHUNK_LINES, PANE_MS = 5_000, 10_000
NOW_MS = 1_800_000_000_000
"""The arrival stamp of every chunk of a replay: later than every event time of the workload."""

Transition = tuple[int, str, str, str]
"""(at_ms, rule id, campaign id, state)."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A generated folder: events.ndjson, rules.json, expected.ndjson and the byte offsets of chunks."""

    path: Path

    @property
    def events_file(self) -> Path:
        return self.path / "events.ndjson"

    def rules(self) -> list[dict[str, Any]]:
        loaded: list[dict[str, Any]] = json.loads((self.path / "rules.json").read_text())
        return loaded

    def events(self) -> int:
        """How many there are."""
        return int(json.loads((self.path / "parameters.json").read_text())["events"])

    def end_ms(self) -> int:
        """The end of the pane of the newest event: the last moment that the answer speaks of."""
        return int(json.loads((self.path / "chunks.json").read_text())["end_ms"])

    def chunks(self) -> Iterator[bytes]:
        """The events as bodies of CHUNK_LINES lines; the file is never in memory whole."""
        ends: list[int] = json.loads((self.path / "chunks.json").read_text())["ends"]
        with self.events_file.open("rb", buffering=0) as file:
            start = 0
            for end in ends:
                yield file.read(end - start)
                start = end

    def differences(self, found: Iterable[Transition]) -> list[str]:
        """What is missing and what is too much against the exact answer; empty when they are equal as multisets."""
        with (self.path / "expected.ndjson").open() as file:
            wanted = Counter(transition_of(json.loads(line)) for line in file)
        have = Counter(found)
        return [f"missing {t}" for t in (wanted - have).elements()] + [f"extra {t}" for t in (have - wanted).elements()]


def transition_of(line: Mapping[str, Any]) -> Transition:
    return (int(line["at"]), str(line["rule"]), str(line["campaign"]), str(line["state"]))


def prepare(events: int, span_s: int, rules: int, *, orgs: int = 50, seed: int = 42) -> Workload:
    """The workload of these parameters, generated unless it is cached."""
    folder = CACHE / f"e{events}-s{span_s}-r{rules}-o{orgs}-seed{seed}"
    if not (folder / "chunks.json").exists():
        arguments = {"events": events, "span-s": span_s, "rules": rules, "orgs": orgs, "seed": seed, "out": folder}
        command = [sys.executable, str(GENERATOR), *(part for k, v in arguments.items() for part in (f"--{k}", str(v)))]
        subprocess.run(command, check=True, stdout=sys.stderr)
        (folder / "parameters.json").write_text(json.dumps(arguments, default=str))
        (folder / "chunks.json").write_text(json.dumps(_chunks(folder / "events.ndjson")))
    return Workload(folder)


def _chunks(path: Path) -> dict[str, Any]:
    ends, end, lines, newest_ms = [], 0, 0, 0
    with path.open("rb") as file:
        for line in file:
            end += len(line)
            lines += 1
            newest_ms = max(newest_ms, int(line.partition(b'"ts":')[2].partition(b",")[0]))
            if lines % CHUNK_LINES == 0:
                ends.append(end)
    return {"ends": ends if ends and ends[-1] == end else [*ends, end], "end_ms": (newest_ms // PANE_MS + 1) * PANE_MS}
