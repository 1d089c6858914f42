"""Runs the benchmark: every measurement in a fresh process, rounds interleaved, ratios within the run.

python -m bench.run [--events N] [--rounds K] [--rows core,levels,…] [--markdown]

Exits with 1 when a row's transitions are not exactly the expected ones or a measurement failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from bench.measure import Report
from bench.rows import GROUPS, ONCE, PEER, ROWS, Row
from bench.summary import results_table, targets_table, verdict
from bench.workloads import REPOSITORY, Workload, prepare

LONGEST_S = 900  # of one measurement
SPAN_S = 720
"""Of event time: with a million events the "dense" workload of the first measurements."""


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description="Measure against peers in the same run, as ratios.")
    parser.add_argument("--events", type=int, default=1_000_000, help="of the workload (default: 1,000,000)")
    parser.add_argument("--rounds", type=int, default=3, help="of all rows, interleaved (default: 3)")
    parser.add_argument("--rows", default=",".join(GROUPS), help=f"some of {','.join(GROUPS)} (default: all)")
    parser.add_argument("--markdown", action="store_true", help="tables in Markdown")
    arguments = parser.parse_args()
    unknown = set(arguments.rows.split(",")) - set(GROUPS)
    if unknown or arguments.rounds < 1:
        parser.error(f"no rows called {', '.join(sorted(unknown))}" if unknown else "--rounds: expected at least 1")
    return arguments


def measured(row: Row, workload: Workload | None) -> Report | None:
    """One run of a row in a process of its own; None when it failed (its message has been shown)."""
    command = [sys.executable, "-m", row.module, row.job, *([str(workload.path)] if workload else [])]
    path = os.pathsep.join([os.getcwd(), str(REPOSITORY)])
    try:
        ran = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, "PYTHONPATH": path}, timeout=LONGEST_S
        )
    except subprocess.TimeoutExpired:
        print(f"{row.name}: stopped after {LONGEST_S} s", file=sys.stderr)
        return None
    lines = ran.stdout.splitlines()
    if ran.returncode or not lines:
        print(f"{row.name}: the process ended with code {ran.returncode}", file=sys.stderr)
        return None
    return Report.parse(lines[-1])


def main() -> int:
    arguments = parsed()
    chosen = set(arguments.rows.split(","))
    rows = [row for row in ROWS if row.group in chosen or row.name == PEER]
    if "rules" in chosen and "core" not in chosen:
        rows.insert(1, next(row for row in ROWS if row.name == "core"))
    workloads = {rules: prepare(arguments.events, SPAN_S, rules) for rules in sorted({row.rules for row in rows}) if rules}
    results: dict[str, list[Report]] = {row.name: [] for row in rows}
    failed: set[str] = set()
    for number in range(arguments.rounds):
        for row in rows:
            if row.name in failed or (number and row.group in ONCE):
                continue
            print(f"round {number + 1}: {row.name}", file=sys.stderr)
            report = measured(row, workloads.get(row.rules))
            if report is None:
                failed.add(row.name)
            else:
                results[row.name].append(report)
    finished = {name: reports for name, reports in results.items() if reports}
    print(results_table(finished, markdown=arguments.markdown))
    targets = targets_table(finished, markdown=arguments.markdown)
    if targets:
        print("\n" + targets)
    for name in sorted(failed):
        print(f"\n{name}: FAILED")
    return 1 if failed or any(verdict(reports) == "NOT EXACT" for reports in finished.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
