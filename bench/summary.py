"""The tables: medians, spreads, ratios to the peer of the same run, and the targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from bench.measure import Report
from bench.rows import PEER, TARGETS, Target

Results = Mapping[str, Sequence[Report]]


def rate(report: Report) -> float:
    """Events a CPU-second."""
    return report.events / report.cpu_s


def figure(reports: Sequence[Report], name: str) -> float:
    return median(rate(report) if name == "rate" else report.extra[name] for report in reports)


def verdict(reports: Sequence[Report]) -> str:
    answers = {report.exact for report in reports}
    if False in answers:
        return "NOT EXACT"
    return "exact" if True in answers else "–"


def results_table(results: Results, *, markdown: bool) -> str:
    peer = figure(results[PEER], "rate") if results.get(PEER) else None
    rows = [("row", "ev/cpu-s", "spread", f"× {PEER}", "peak MB", "transitions", "answer", "besides")]
    for name, reports in results.items():
        timed = reports[0].events > 0 and "resident_mb" not in reports[0].extra
        speed = figure(reports, "rate") if timed else 0.0
        rates = [rate(report) for report in reports] if timed else []
        rows.append(
            (
                name,
                f"{speed:,.0f}" if timed else "–",
                f"±{(max(rates) - min(rates)) / 2 / speed:.0%}" if timed else "–",
                f"{speed / peer:.2f}" if timed and peer else "–",
                f"{median(report.peak_rss_mb for report in reports):,.0f}",
                f"{reports[0].transitions:,}",
                verdict(reports),
                _besides(reports),
            )
        )
    return laid_out(rows, markdown=markdown)


def _besides(reports: Sequence[Report]) -> str:
    parts = [f"{name} {figure(reports, name):,.3g}" if figure(reports, name) < 1000 else f"{name} {figure(reports, name):,.0f}"
             for name in reports[0].extra]  # fmt: skip
    return "; ".join([*parts, *([reports[0].note] if reports[0].note else [])])


def targets_table(results: Results, *, markdown: bool) -> str:
    """Only ratios within this run; rows that did not run are left out."""
    rows = [("target", "good", "aim", "measured", "")]
    for target in TARGETS:
        if results.get(target.row) and (not target.per or results.get(target.per)):
            value = _measured(results, target)
            sign = "≤" if target.smaller else "≥"
            rows.append(
                (target.text, f"{sign} {target.good:.2f}", f"{sign} {target.aim:.2f}", f"{value:.2f}", _word(target, value))
            )
    return laid_out(rows, markdown=markdown) if len(rows) > 1 else ""


def _measured(results: Results, target: Target) -> float:
    value = figure(results[target.row], target.figure)
    return value / figure(results[target.per], target.figure) if target.per else value


def _word(target: Target, value: float) -> str:
    sign = -1 if target.smaller else 1
    if sign * value >= sign * target.aim:
        return "aim"
    return "good" if sign * value >= sign * target.good else "missed"


def laid_out(rows: Iterable[tuple[str, ...]], *, markdown: bool) -> str:
    """The first row is the head."""
    table = list(rows)
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in table]
        return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table)
