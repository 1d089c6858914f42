"""What the tests of the core share: events to batches, engines fed by records, transitions as plain tuples."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from cmis_stream.core.batch import Batch, Segment, leaf_path
from cmis_stream.core.conditions import Transitions
from cmis_stream.core.engine import Engine
from cmis_stream.core.rules import Rule, parse_rule
from cmis_stream.core.time import WINDOWS
from tests.core.reference import Change, Event

START = 1_767_225_600_000
NOW = START + 400 * 86_400_000  # all records arrive at once, long after: no event is from the future, no org gets idle
SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000

EXAMPLES = float(os.environ.get("CORE_EXAMPLES", "1"))


def examples(count: int) -> settings:
    """The same examples each time, so that a suite that passed passes again; CORE_EXAMPLES=20 looks further, at random."""
    return settings(
        max_examples=max(1, int(count * EXAMPLES)), deadline=None, derandomize=EXAMPLES == 1, database=None,
        suppress_health_check=list(HealthCheck), print_blob=False,
        phases=[phase for phase in Phase if phase != Phase.shrink or "CORE_NO_SHRINK" not in os.environ],
    )  # fmt: skip


def event(ts: int, org: str = "acme", campaign: str = "c1", *, custom: dict[str, float] | None = None, **values: Any) -> Event:
    """An event by its amounts: spend=2.5 becomes micros. ts counts from START when it is small."""
    leaf = (org, values.pop("currency", "USD"), values.pop("platform", "meta"), values.pop("account", ""), campaign,
            values.pop("ad_set", ""), values.pop("ad", ""))  # fmt: skip
    amounts = (
        values.pop("impressions", 0), values.pop("clicks", 0), round(values.pop("spend", 0) * 1e6),
        round(values.pop("conversions", 0) * 1e6), round(values.pop("revenue", 0) * 1e6),
    )  # fmt: skip
    assert not values, values
    return Event(
        ts + START if ts < START // 2 else ts, leaf, amounts, tuple((k, round(v * 1e6)) for k, v in (custom or {}).items())
    )


def batch_of(events: Sequence[Event], first_number: int = 0, source: str = "feed") -> Batch:
    """Rows as ingest makes them; the events are numbered by their sender from `first_number`."""
    ts, leaves, values, owner = [], [], [], []
    number: dict[str, int] = {}
    for i, e in enumerate(events):
        for custom, sums in e.rows():
            ts.append(e.ts)
            leaves.append(number.setdefault(leaf_path(*e.leaf, custom=custom), len(number)))
            values.append(sums[1:])
            owner.append(i)
    return Batch(
        ts_ms=np.array(ts, np.int64),
        leaf=np.array(leaves, np.int32),
        values=np.array(values, np.int64).reshape(len(ts), 5).T.copy(),
        event=np.array(owner, np.int32),
        uid=np.arange(first_number, first_number + len(events), dtype=np.uint64),
        paths=list(number),
        segments=[Segment("*", source, True, len(events))],
    )


def changes_of(engine: Engine, parts: Iterable[Transitions]) -> list[Change]:
    found = []
    for part in parts:
        for i in range(len(part)):
            entity = engine.entities.entity(int(part.row[i]))
            found.append(
                Change(entity.org, int(part.at_ms[i]), engine.rules.rule_id(int(part.rule[i])), entity, bool(part.firing[i]))
            )
    return found


class Run:
    """An engine that remembers all its transitions."""

    def __init__(self, rules: Sequence[Rule] = (), **engine: Any) -> None:
        self.engine = Engine(**engine)
        self.parts: list[Transitions] = []
        self.number = 0
        self.refused: list[tuple[int, str]] = []
        by_org: dict[str, list[Rule]] = {}
        for rule in rules:
            by_org.setdefault(rule.org, []).append(rule)
        for org, own in by_org.items():
            self.adopt(org, 1, own)

    def adopt(self, org: str, version: int, rules: Sequence[Rule]) -> list[Change]:
        return self._take(self.engine.adopt(org, version, rules, []).transitions)

    def record(self, events: Sequence[Event], now_ms: int = NOW) -> list[Change]:
        step = self.engine.apply(batch_of(events, self.number), now_ms)
        self.number += len(events)
        self.refused.extend(step.refused)
        return self._take(step.transitions)

    def tick(self, now_ms: int = NOW, watermark_ms: int | None = None) -> list[Change]:
        return self._take(self.engine.tick(now_ms, watermark_ms).transitions)

    def _take(self, parts: list[Transitions]) -> list[Change]:
        self.parts.extend(parts)
        return changes_of(self.engine, parts)

    @property
    def changes(self) -> list[Change]:
        return changes_of(self.engine, self.parts)

    def evidence(self) -> list[tuple[Any, ...]]:
        """Every transition with all that it says, in an order that does not depend on how orgs were interleaved."""
        found = []
        for part in self.parts:
            for i, change in enumerate(changes_of(self.engine, [part])):
                found.append((*change, repr(float(part.value[i])), part.window[i], tuple(part.sums[:, i].tolist())))
        return sorted(found)


def rule(**raw: Any) -> Rule:
    return parse_rule({"id": "r", "org": "acme", **raw}, evaluate="pane")


def follow(changes: Iterable[Change], firing: set[tuple[str, str, Any]] | None = None) -> set[tuple[str, str, Any]]:
    """What is firing after these transitions; each must change something."""
    firing = set() if firing is None else firing
    for change in changes:
        pair = (change.org, change.rule, change.entity)
        assert (pair in firing) != change.firing, f"not a change: {change}"
        (firing.add if change.firing else firing.discard)(pair)
    return firing


# --- random streams and rules -----------------------------------------------------------------------------------------

ORGS = ("acme", "beta", "zeta")
LEAVES = (
    ("USD", "meta", "", "c1", "s1", "a1"), ("USD", "meta", "", "c1", "s1", "a2"), ("USD", "meta", "", "c1", "s2", "a1"),
    ("USD", "google", "", "c2", "", ""), ("EUR", "meta", "acc", "c1", "", ""), ("USD", "x", "", "", "", ""),
)  # fmt: skip

_steps = st.one_of(
    st.integers(0, 12 * SECOND),
    st.integers(0, 12 * SECOND),
    st.integers(-8 * SECOND, 0),
    st.builds(
        lambda size, share: int(size * share),
        st.sampled_from([MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 6 * HOUR, DAY, 7 * DAY]),
        st.sampled_from([-1.02, -1, -0.7, -0.3, 0.3, 0.97, 1, 1.03, 1.2]),
    ),
)
_small = st.integers(0, 4)
_moves = st.tuples(
    st.integers(0, 2), _steps, st.integers(0, len(LEAVES) - 1), st.tuples(_small, _small, _small, _small, _small),
    st.one_of(st.just(()), st.just(()), st.tuples(st.tuples(st.just("views"), st.integers(-2, 3).map(lambda n: n * 1_000_000)))),
)  # fmt: skip


def _stream(moves: list[Any]) -> list[Event]:
    """Steps count from the largest time of the org so far (that of its last step forward)."""
    newest = {org: START + 7 * n for n, org in enumerate(ORGS)}
    events = []
    for org_number, step, leaf, (impressions, clicks, *money), custom in moves:
        org = ORGS[org_number]
        ts = newest[org] + step
        newest[org] = max(newest[org], ts)
        values = (impressions, clicks, *(m * 1_000_000 for m in money))
        events.append(Event(ts, (org, *LEAVES[leaf]), values, custom))
    return events


streams = st.lists(_moves, min_size=1, max_size=30).map(_stream)

_metrics = st.sampled_from(
    ["events", "impressions", "clicks", "spend", "conversions", "revenue", "ctr", "cpc", "cpm", "cpa", "roas", "cvr"]
)
_ops = st.sampled_from(["gt", "gte", "lt", "lte", "eq", "ne"])
_limits = st.sampled_from([-1, 0, 0.5, 1, 1.5, 2, 3, 4, 5, 8, 12])
_minimums = st.one_of(st.none(), st.none(), st.builds(lambda m, v: {m: v}, _metrics, _limits))


def _comparison(windows: Sequence[str]) -> st.SearchStrategy[dict[str, Any]]:
    window = st.sampled_from(list(windows))
    plain = st.fixed_dictionaries({"metric": _metrics, "window": window, "op": _ops, "value": _limits, "min": _minimums})
    than = st.fixed_dictionaries({
        "metric": _metrics, "window": window, "op": _ops, "min": _minimums,
        "than": st.fixed_dictionaries({"metric": _metrics, "factor": st.sampled_from([0.5, 1, 2, -1])}),
    })  # fmt: skip
    custom = st.fixed_dictionaries({
        "metric": st.just("custom.views"), "window": window, "op": _ops, "value": _limits,
        "min": st.sampled_from([None, {"events": 1}, {"events": 2}, {"custom.views": 1}]),
    })  # fmt: skip
    return st.one_of(plain, plain, than, custom)


def _rules(windows: Sequence[str], evaluations: Sequence[str]) -> st.SearchStrategy[Any]:
    comparison = _comparison(windows)
    tree = st.recursive(
        comparison,
        lambda part: st.one_of(
            st.builds(lambda p: {"all": p}, st.lists(part, min_size=1, max_size=3)),
            st.builds(lambda p: {"any": p}, st.lists(part, min_size=1, max_size=3)),
            st.builds(lambda p: {"not": p}, part),
        ),
        max_leaves=4,
    )
    scope = st.sampled_from([
        {}, {}, {"campaign": "c1"}, {"platform": "meta"}, {"currency": "EUR"}, {"platform": "meta", "campaign": "c1"},
        {"account": "acc"}, {"ad_set": "s1"}, {"ad": "a1"},
    ])  # fmt: skip
    return st.fixed_dictionaries({
        "org": st.sampled_from(ORGS), "level": st.sampled_from(["org", "platform", "campaign", "campaign", "ad_set", "ad"]),
        "evaluate": st.sampled_from(list(evaluations)), "scope": scope, "when": st.one_of(comparison, comparison, tree),
    }).map(_without_scope_below_its_level)  # fmt: skip


def _without_scope_below_its_level(raw: dict[str, Any]) -> dict[str, Any]:
    fits = {
        "org": ("currency",),
        "platform": ("currency", "platform"),
        "campaign": ("currency", "platform", "account", "campaign"),
    }
    fits["ad_set"] = (*fits["campaign"], "ad_set")
    allowed = fits.get(raw["level"], (*fits["ad_set"], "ad"))
    return {**raw, "scope": {name: value for name, value in raw["scope"].items() if name in allowed}}


def rule_sets(
    evaluations: Sequence[str] = ("pane",), windows: Sequence[str] = tuple(WINDOWS), size: int = 8
) -> st.SearchStrategy[list[Rule]]:
    return st.lists(_rules(windows, evaluations), min_size=1, max_size=size).map(
        lambda raws: [parse_rule({"id": f"r{i}", **raw}) for i, raw in enumerate(raws)]
    )


cuts = st.lists(st.integers(1, 12), min_size=1, max_size=8)


def cut(events: Sequence[Event], sizes: Sequence[int]) -> list[list[Event]]:
    """Consecutive parts of these sizes, over and over."""
    borders, i = [0], 0
    while borders[-1] < len(events):
        borders.append(borders[-1] + sizes[i % len(sizes)])
        i += 1
    return [list(events[a:b]) for a, b in pairwise(borders)]
