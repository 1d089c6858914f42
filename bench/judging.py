"""Judging alone: what `RuleBook.judge` costs for 2,000 campaigns, by the number of rules.

python -m bench.judging rules100 | rules10k | rules1m

Steady state: every step moves each campaign's sums by up to 0.1 %, so that values move, some cross a threshold, and what
is measured is the evaluation, not the output. Thresholds lie in the upper 15 % of where the campaigns' values lie, half of
the rules are for one campaign, half for all campaigns of an org. Also measured: how long the rules take to be put in force.
"""

from __future__ import annotations

import time

import numpy as np

from bench.measure import Report, Stopwatch, job_arguments, memory_mb
from cmis_stream.core.batch import Int64, leaf_path
from cmis_stream.core.conditions import RuleBook
from cmis_stream.core.entities import Entities
from cmis_stream.core.metrics import METRICS
from cmis_stream.core.rules import Comparison, Rule
from cmis_stream.core.time import WINDOWS
from cmis_stream.core.windows import PANE_MS, Judged

JOBS = {"rules100": 100, "rules10k": 10_000, "rules1m": 1_000_000}
ORGS, CAMPAIGNS_PER_ORG = 50, 40
STEPS, WARM_UP = 60, 10
START_MS = 1_767_225_600_000
GUARDS = {"spend": ("impressions", 0.0), "ctr": ("impressions", 1000.0), "cpc": ("clicks", 20.0), "roas": ("clicks", 20.0)}
OPERATORS = {"spend": "gt", "ctr": "lt", "cpc": "gt", "roas": "lt"}


def base_sums(random: np.random.Generator) -> Int64:
    """Sums int64[6, campaigns] that look like five minutes of the workload."""
    count = ORGS * CAMPAIGNS_PER_ORG
    impressions = random.lognormal(12, 0.7, count)
    clicks = impressions * random.lognormal(-3.7, 0.4, count)
    spend = clicks * random.lognormal(-0.5, 0.3, count) * 1e6
    conversions = clicks * 0.06 * 1e6
    revenue = conversions * random.lognormal(3, 0.4, count)
    return np.stack([np.full(count, 200.0), impressions, clicks, spend, conversions, revenue]).astype(np.int64)


def make_rules(count: int, sums: Int64, random: np.random.Generator) -> dict[str, list[Rule]]:
    """Rules per org, evenly over the metrics."""
    rules: dict[str, list[Rule]] = {f"org_{org:03d}": [] for org in range(ORGS)}
    window = WINDOWS["5m"]
    values = {metric: np.sort(METRICS[metric](sums)) for metric in GUARDS}
    quantiles = random.uniform(0.85, 0.999, count)
    for number in range(count):
        metric = tuple(GUARDS)[number % 4]
        quantile = quantiles[number] if OPERATORS[metric] == "gt" else 1 - quantiles[number]
        near = values[metric][int(quantile * len(values[metric]))]
        comparison = Comparison(metric, window, OPERATORS[metric], float(near * random.uniform(0.99, 1.01)), None, GUARDS[metric])
        org = int(random.integers(ORGS))
        campaign = f"cmp_{org * CAMPAIGNS_PER_ORG + int(random.integers(CAMPAIGNS_PER_ORG)):05d}"
        scope = (("campaign", campaign),) if random.random() < 0.5 else ()
        name = f"org_{org:03d}"
        rules[name].append(Rule(f"r{number:07d}", name, comparison, "campaign", scope, "pane"))
    return rules


def known_campaigns() -> tuple[Entities, Int64]:
    entities = Entities(("campaign",))
    campaigns = range(ORGS * CAMPAIGNS_PER_ORG)
    leaves = entities.numbers(
        [leaf_path(f"org_{n // CAMPAIGNS_PER_ORG:03d}", "USD", "meta", "", f"cmp_{n:05d}") for n in campaigns]
    )
    return entities, entities.rows[0, leaves].astype(np.int64)


def run(count: int) -> Report:
    random = np.random.default_rng(7)
    entities, rows = known_campaigns()
    base = base_sums(random)
    rules = make_rules(count, base, random)
    before_mb, started = memory_mb("VmRSS"), time.process_time()
    book = RuleBook(entities)
    for org, own in rules.items():
        book.adopt(org, own, START_MS)
    adopt_s, book_mb = time.process_time() - started, memory_mb("VmRSS") - before_mb
    moments = []
    for step in range(STEPS + WARM_UP):
        sums = (base * (1 + random.uniform(-1e-3, 1e-3, base.shape))).astype(np.int64)
        moments.append([Judged(WINDOWS["5m"], rows, sums, np.full(len(rows), START_MS + step * PANE_MS, np.int64))])
    for moment in moments[:WARM_UP]:
        list(book.judge("pane", moment))
    watch, changes = Stopwatch(), 0
    for moment in moments[WARM_UP:]:
        changes += sum(len(part) for part in book.judge("pane", moment))
    report = watch.report(0, changes)
    report.extra = {"ms_per_judgement": report.cpu_s / STEPS * 1e3, "adopt_s": adopt_s, "rules_mb": book_mb}
    return report


if __name__ == "__main__":
    name, _ = job_arguments(JOBS)
    run(JOBS[name]).print()
