"""What the engine must answer, in plain Python: dictionaries, one event at a time, sums added up anew for every judgement.

Slow and short on purpose. It shares with the engine only the parsed rules and the table of windows.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cmis_stream.core.entities import Entity
from cmis_stream.core.rules import Comparison, Condition, Rule, comparisons
from cmis_stream.core.time import WINDOWS, Window

PANE_MS, LATENESS_MS, RETENTION_PANES = 10_000, 5_000, 7 * 24 * 360
FIELDS = ("events", "impressions", "clicks", "spend", "conversions", "revenue")
DEPTHS = {"org": 2, "platform": 3, "campaign": 5, "ad_set": 6, "ad": 7}

Sums = tuple[int, ...]
ZERO: Sums = (0,) * 6


class Event(NamedTuple):
    """leaf: org, currency, platform, account, campaign, ad_set, ad. values: as in a batch. custom: (name, micros) pairs."""

    ts: int
    leaf: tuple[str, str, str, str, str, str, str]
    values: tuple[int, int, int, int, int]
    custom: tuple[tuple[str, int], ...] = ()

    @property
    def org(self) -> str:
        return self.leaf[0]

    def rows(self) -> Iterator[tuple[str, Sums]]:
        """(custom metric or "", sums) of the event itself and of each custom metric that it carries."""
        yield "", (1, *self.values)
        for name, micros in self.custom:
            yield name, (1, 0, 0, micros, 0, 0)


class Change(NamedTuple):
    """A transition; `sums` are those of the last judged comparison, for rules of one comparison."""

    org: str
    at: int
    rule: str
    entity: Entity
    firing: bool


def plus(a: Sums, b: Sums) -> Sums:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def entities_of(event: Event, custom: str) -> Iterator[Entity]:
    for level, depth in DEPTHS.items():
        if event.leaf[depth - 1] or level == "org":
            yield Entity(level, *event.leaf[:depth])._replace(custom=custom)


def divide(a: float, b: float) -> float:
    return a / b if b else math.nan


def metric(name: str, sums: Sums) -> float:
    """The metric's value, NaN where it is undefined."""
    events, impressions, clicks, spend, conversions, revenue = (float(value) for value in sums)
    if name.startswith("custom.") or name == "spend":
        return spend / 1e6
    return {
        "events": events,
        "impressions": impressions,
        "clicks": clicks,
        "conversions": conversions / 1e6,
        "revenue": revenue / 1e6,
        "ctr": divide(clicks, impressions),
        "cpc": divide(spend / 1e6, clicks),
        "cpm": divide(spend / 1e6 * 1000, impressions),
        "cpa": divide(spend, conversions),
        "roas": divide(revenue, spend),
        "cvr": divide(conversions / 1e6, clicks),
    }[name]


def compare(comparison: Comparison, sums: Sums) -> bool:
    value = metric(comparison.metric, sums)
    limit = comparison.value if comparison.than is None else comparison.value * metric(comparison.than, sums)
    if not math.isfinite(value) or not math.isfinite(limit):
        return False
    if comparison.minimum is not None and not metric(comparison.minimum[0], sums) >= comparison.minimum[1]:
        return False
    return {
        "gt": value > limit, "gte": value >= limit, "lt": value < limit,
        "lte": value <= limit, "eq": value == limit, "ne": value != limit,
    }[comparison.op]  # fmt: skip


def true(condition: Condition, truth: dict[Comparison, bool]) -> bool:
    if isinstance(condition, Comparison):
        return truth.get(condition, False)
    parts = [true(part, truth) for part in condition.parts]
    return all(parts) if condition.kind == "all" else any(parts) if condition.kind == "any" else not parts[0]


def custom_of(comparison: Comparison) -> str:
    return comparison.metric.removeprefix("custom.") if comparison.metric.startswith("custom.") else ""


@dataclass
class Org:
    """One org: its time, its panes, what is judged next."""

    newest: int
    head: int
    """The last pane that is closed."""
    live_head: int
    panes: dict[int, dict[int, dict[Entity, Sums]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(dict)))
    """Unit (panes of 10 s in one) -> number -> entity -> sums. All that has ever arrived."""
    known: set[Entity] = field(default_factory=set)
    amended: dict[Window, set[Entity]] = field(default_factory=lambda: defaultdict(set))

    def put(self, pane: int, event: Event) -> set[Entity]:
        touched = set()
        for custom, sums in event.rows():
            for entity in entities_of(event, custom):
                touched.add(entity)
                for unit in UNITS:
                    cells = self.panes[unit][pane // unit]
                    cells[entity] = plus(cells.get(entity, ZERO), sums)
        return touched

    def sums(self, window: Window, head: int, entity: Entity) -> Sums:
        """Of the window whose newest pane (of 10 s) is `head`."""
        unit = unit_of(window)
        last = head // unit
        total = ZERO
        for number, cells in self.panes[unit].items():
            if last - window.panes < number <= last and entity in cells:
                total = plus(total, cells[entity])
        return total

    def closed_sums(self, window: Window, entity: Entity) -> Sums:
        """Of the closed view: panes that are not closed yet do not count."""
        unit = unit_of(window)
        first = (self.head // unit - window.panes + 1) * unit
        total = ZERO
        for number, cells in self.panes[1].items():
            if first <= number <= self.head and entity in cells:
                total = plus(total, cells[entity])
        return total


UNITS = tuple(sorted({window.pane_ms // PANE_MS for window in WINDOWS.values()}))


def unit_of(window: Window) -> int:
    return window.pane_ms // PANE_MS


def last_closed(newest: int) -> int:
    """The last pane whose end lies 5 s or more behind."""
    return (newest - LATENESS_MS) // PANE_MS - 1


class Model:
    """All orgs. Feed it records (lists of events) and rules; `changes` collects the transitions in order."""

    def __init__(self) -> None:
        self.orgs: dict[str, Org] = {}
        self.rules: dict[str, dict[str, Rule]] = {}
        self.truth: dict[tuple[str, str, Entity], dict[Comparison, bool]] = defaultdict(dict)
        self.firing: set[tuple[str, str, Entity]] = set()
        self.changes: list[Change] = []
        self.too_late = 0
        self.late = 0

    # --- records ---

    def record(self, events: Sequence[Event]) -> None:
        received: dict[str, set[Entity]] = defaultdict(set)
        for event in events:
            received[event.org] |= self.event(event)
        self.judge_live(received)

    def event(self, event: Event) -> set[Entity]:
        pane = event.ts // PANE_MS
        org = self.orgs.get(event.org)
        if org is None:
            org = self.orgs[event.org] = Org(event.ts, last_closed(event.ts), pane)
        own = {entity for custom, _ in event.rows() for entity in entities_of(event, custom)}
        org.known |= own
        if pane < org.head + 1 - RETENTION_PANES:
            self.too_late += 1
            return own
        if pane <= org.head:
            self.late += 1
            for window in WINDOWS.values():
                org.amended[window] |= own
        org.put(pane, event)
        self.advance(event.org, max(org.newest, event.ts))
        return own

    def move_to(self, watermark: dict[str, int]) -> None:
        for name, ms in watermark.items():
            if name in self.orgs:
                self.advance(name, max(self.orgs[name].newest, ms + LATENESS_MS))
        self.judge_live({})

    def advance(self, name: str, newest: int) -> None:
        """Closes panes one after the other: those at which any window has something to judge."""
        org = self.orgs[name]
        org.newest = newest
        target = max(org.head, last_closed(newest))
        moments: dict[int, list[tuple[Window, set[Entity]]]] = defaultdict(list)
        for window in WINDOWS.values():
            unit = unit_of(window)
            touched: dict[int, set[Entity]] = defaultdict(set)
            for number, cells in org.panes[unit].items():
                touched[number] |= set(cells)
                touched[number + window.panes] |= set(cells)
            touched[(org.head + 1) // unit] |= org.amended[window]
            for number, entities in touched.items():
                end = (number + 1) * unit - 1
                if org.head < end <= target:
                    moments[end].append((window, entities))
                    if number == (org.head + 1) // unit:
                        org.amended[window] = set()
        for end in sorted(moments):
            self.judge(name, "pane", (end + 1) * PANE_MS, end, moments[end])
        org.head = target

    # --- judging ---

    def judge_live(self, received: dict[str, set[Entity]]) -> None:
        for name, org in self.orgs.items():
            head = max(org.live_head, org.newest // PANE_MS)
            parts = []
            for window in WINDOWS.values():
                unit = unit_of(window)
                entities = set(received.get(name, ()))
                for number, cells in org.panes[unit].items():
                    if org.live_head // unit < number + window.panes <= head // unit:
                        entities |= set(cells)
                parts.append((window, entities))
            org.live_head = head
            self.judge(name, "live", org.newest, head, parts)

    def judge(self, name: str, evaluation: str, at: int, head: int, parts: Iterable[tuple[Window, set[Entity]]]) -> None:
        """All windows of one moment together: what was judged brings its comparisons up to date, then rules are decided."""
        org = self.orgs[name]
        rules = [rule for rule in self.rules.get(name, {}).values() if rule.evaluate == evaluation]
        concerned: dict[tuple[str, Entity], Rule] = {}
        for window, entities in parts:
            own = [(rule, c) for rule in rules for c in comparisons(rule.when) if c.window == window]
            for entity in entities if own else ():
                sums = org.sums(window, head, entity)
                if not sums[0]:
                    continue
                base = entity._replace(custom="")
                for rule, comparison in own:
                    in_scope = all(getattr(entity, part) == value for part, value in rule.scope)
                    if rule.level == entity.level and in_scope and custom_of(comparison) == entity.custom:
                        self.truth[name, rule.id, base][comparison] = compare(comparison, sums)
                        concerned[rule.id, base] = rule
        for (rule_id, entity), rule in concerned.items():
            firing = true(rule.when, self.truth[name, rule_id, entity])
            self.set(name, rule_id, entity, firing, at)

    def set(self, org: str, rule: str, entity: Entity, firing: bool, at: int) -> None:
        if firing != ((org, rule, entity) in self.firing):
            (self.firing.add if firing else self.firing.discard)((org, rule, entity))
            self.changes.append(Change(org, at, rule, entity, firing))

    # --- rules ---

    def adopt(self, name: str, rules: Sequence[Rule], now_ms: int) -> None:
        wanted, before = {rule.id: rule for rule in rules}, self.rules.get(name, {})
        org = self.orgs.get(name)
        at = org.newest if org else now_ms
        for rule_id, rule in before.items():
            if wanted.get(rule_id) != rule:
                for pair in [pair for pair in self.firing if pair[:2] == (name, rule_id)]:
                    self.set(*pair, False, at)
                for key in [key for key in self.truth if key[:2] == (name, rule_id)]:
                    del self.truth[key]
        self.rules[name] = wanted
        if org:
            for window in WINDOWS.values():
                org.amended[window] |= org.known
            self.judge(name, "live", at, org.live_head, [(window, set(org.known)) for window in WINDOWS.values()])
