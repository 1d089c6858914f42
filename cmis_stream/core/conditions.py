"""Rules compiled for one partition: many thresholds over many entities judged in a few array operations.

Comparisons that need the same number share a `Bank`: (evaluation, window, metric, minimum, direction). In it thresholds
are sorted per scope (a `segment`), and what is kept per entity is one value and, per kind of scope, one rank: how many of
the segment's thresholds the value exceeds. When the value moves, the thresholds between the old rank and the new one
are the comparisons that changed: a million rules cost a binary search each step, not a million comparisons.

`lt` is `gt` of negated numbers; `gte` is `gt` of the next smaller number; `eq` and `ne` are two comparisons. Undefined
values and too little data are NaN, which exceeds nothing. An entity that is not judged keeps its state.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cmis_stream.core.banks import MAX_GUARDED_BANKS, Bank, BankKey, Guards, Layer, Scope, bounds, normal_form
from cmis_stream.core.batch import Int32, Int64
from cmis_stream.core.entities import LEVELS, Entities, Entity
from cmis_stream.core.metrics import CUSTOM_PREFIX, FIELDS, Float64, Sums
from cmis_stream.core.rules import Comparison, Condition, Rule, comparisons, holds
from cmis_stream.core.time import WINDOWS, Window
from cmis_stream.core.windows import Judged


class Flip(NamedTuple):
    """A comparison of a compound rule changed for an entity (bit -1: the entity was judged for the first time)."""

    rule: int
    row: int
    bit: int
    on: bool
    at_ms: int
    value: float
    sums: Int64
    window: str


class Term(NamedTuple):
    """One threshold: comparison number `bit` of a rule."""

    rule: int
    bit: int


@dataclass(slots=True)
class Transitions:
    """Changes of rules' states, columns of length t in the order in which they happened."""

    rule: Int32
    row: Int64
    firing: npt.NDArray[np.bool_]
    at_ms: Int64
    value: Float64
    sums: Sums
    window: list[str]
    reason: str = ""

    def __len__(self) -> int:
        return len(self.rule)


@dataclass(slots=True)
class _Compiled:
    rule: Rule
    when: Condition
    """In normal form; bit i is its i-th comparison."""
    places: list[tuple[BankKey, Scope, int]]
    """Where its comparisons stand: bank, scope, term."""
    simple: bool
    at_rest: bool
    """Its truth when no comparison holds."""
    guards_used: Guards
    """The minimums of its own that got banks; the same again gives the same banks."""


class RuleBook:
    """The rules in force of all orgs of a partition, and the state of each for each entity."""

    def __init__(self, entities: Entities) -> None:
        self.entities = entities
        self.banks: dict[BankKey, Bank] = {}
        self.rules: list[_Compiled | None] = []
        self.of_org: dict[str, dict[str, int]] = {}  # org -> rule id -> number
        self._ids: list[tuple[str, str, str]] = []  # number -> (org, rule id, severity), also of rules that are gone
        self.terms: list[Term] = []
        self._term_simple = np.zeros(0, bool)
        self._term_rule = np.zeros(0, np.int32)
        self._kinds: dict[str, set[tuple[tuple[str, ...], str, str]]] = defaultdict(set)  # org -> (kind, level, custom)
        self._placed = 1  # entities below this number have their segments
        self.truths: dict[tuple[int, int], int] = {}  # (compound rule, base entity) -> bits of comparisons that hold
        self.firing: set[tuple[int, int]] = set()  # (compound rule, base entity)
        self.waiting: dict[tuple[int, int], bool] = {}  # (term, entity): exceeded before its rule was in force

    def windows(self, evaluation: str) -> dict[Window, None]:
        """The windows that rules of this evaluation need."""
        return dict.fromkeys(WINDOWS[key.window] for key in self.banks if key.evaluate == evaluation)

    def levels(self) -> set[str]:
        """The levels that have rules."""
        return {kind[0] for bank in self.banks.values() for kind in bank.layers}

    def rule_id(self, number: int) -> str:
        return self._ids[number][1]

    def name(self, number: int) -> tuple[str, str]:
        """(org, rule id)."""
        return self._ids[number][:2]

    def severity(self, number: int) -> str:
        return self._ids[number][2]

    def term_of(self, number: int, bit: int) -> int:
        return self._compiled(number).places[bit][2]

    # --- changing rules -------------------------------------------------------------------------------------------

    def adopt(
        self, org: str, rules: Sequence[Rule], at_ms: int, guards_of: Mapping[str, Guards] | None = None
    ) -> Transitions | None:
        """Puts an org's rules in force instead of those before. What a removed or changed rule had firing is resolved.

        guards_of: per rule id, from a checkpoint (the banks must become what they were).
        """
        known = self.of_org.get(org, {})
        wanted = {rule.id: rule for rule in rules}
        gone = [number for rule_id, number in known.items() if wanted.get(rule_id) != self._compiled(number).rule]
        self._place_new_entities()
        resolved = self._resolve(gone, at_ms)
        self._remove(gone)
        kept = {rule_id: number for rule_id, number in known.items() if self.rules[number] is not None}
        guards = self._guards(rules)
        new_terms: list[int] = []
        for rule_id, rule in wanted.items():
            if rule_id not in kept:
                own = guards_of[rule_id] if guards_of is not None else guards
                kept[rule_id] = self._insert(rule, own, new_terms)
        self.of_org[org] = kept
        added = self.terms[len(self._term_rule) :]
        self._term_simple = np.append(self._term_simple, np.array([self._compiled(term.rule).simple for term in added], bool))
        self._term_rule = np.append(self._term_rule, np.array([term.rule for term in added], np.int32))
        self._place_org(org)
        self._recompile()
        self._wait_for_next_judgement(new_terms)
        return resolved

    def _compiled(self, number: int) -> _Compiled:
        compiled = self.rules[number]
        assert compiled is not None
        return compiled

    def _guards(self, rules: Sequence[Rule]) -> Guards:
        """The minimums that get banks of their own: those that have one, then the most used."""
        used: dict[tuple[str, str, tuple[str, float]], int] = defaultdict(int)
        for rule in rules:
            for c in comparisons(rule.when):
                if c.minimum:
                    used[c.metric, c.window.name, c.minimum] += 1
        chosen = {(key.metric, key.window, key.minimum) for key in self.banks if key.minimum}
        room: dict[tuple[str, str], int] = defaultdict(int)
        for metric, window, _ in chosen:
            room[metric, window] += 1
        for guard in sorted(used, key=lambda g: (-used[g], g)):
            # A custom metric's minimum of events is of its own series: it cannot become a comparison of the entity.
            if guard not in chosen and (room[guard[:2]] < MAX_GUARDED_BANKS or guard[0].startswith(CUSTOM_PREFIX)):
                chosen.add(guard)
                room[guard[:2]] += 1
        return frozenset(chosen)

    def _insert(self, rule: Rule, guards: Guards, new_terms: list[int]) -> int:
        number = len(self.rules)
        when = normal_form(rule.when, guards)
        used = frozenset((c.metric, c.window.name, c.minimum) for c in comparisons(when) if c.minimum)
        parts = list(comparisons(when))
        compiled = _Compiled(rule, when, [], isinstance(when, Comparison), holds(when, iter([False] * len(parts))), used)
        self.rules.append(compiled)
        self._ids.append((rule.org, rule.id, rule.severity))
        for bit, comparison in enumerate(parts):
            ((sign, threshold),) = bounds(comparison)
            custom = comparison.metric.removeprefix(CUSTOM_PREFIX) if comparison.metric.startswith(CUSTOM_PREFIX) else ""
            factor = comparison.value if comparison.than else 0.0
            key = BankKey(
                rule.evaluate, comparison.window.name, comparison.metric, comparison.than or "", factor, comparison.minimum, sign
            )
            scope = Scope(rule.level, rule.org, custom=custom, **dict(rule.scope))
            bank = self.banks.setdefault(key, Bank(key))
            layer = bank.layers.setdefault(scope.kind, Layer())
            segment = layer.segment_of(scope)
            layer.terms_of[segment][len(self.terms)] = threshold
            layer.stale.add(segment)
            compiled.places.append((key, scope, len(self.terms)))
            new_terms.append(len(self.terms))
            self.terms.append(Term(number, bit))
            self._kinds[rule.org].add((scope.kind, rule.level, custom))
        return number

    def _remove(self, numbers: Sequence[int]) -> None:
        if not numbers:
            return
        for number in numbers:
            for key, scope, term in self._compiled(number).places:
                layer = self.banks[key].layers[scope.kind]
                segment = layer.segments[scope]
                del layer.terms_of[segment][term]
                layer.stale.add(segment)
            self.rules[number] = None
        gone = set(numbers)
        self.truths = {pair: bits for pair, bits in self.truths.items() if pair[0] not in gone}
        self.firing = {pair for pair in self.firing if pair[0] not in gone}
        self.waiting = {pair: on for pair, on in self.waiting.items() if self.terms[pair[0]].rule not in gone}

    def _resolve(self, numbers: Iterable[int], at_ms: int) -> Transitions | None:
        pairs: list[tuple[int, int]] = []
        for number in numbers:
            compiled = self._compiled(number)
            if not compiled.simple:
                pairs.extend(sorted(pair for pair in self.firing if pair[0] == number))
                continue
            ((key, scope, term),) = compiled.places
            rows = self._exceeding(key, scope, term)
            pairs.extend((number, self._base(row)) for row in rows if (term, row) not in self.waiting)
        if not pairs:
            return None
        count = len(pairs)
        return Transitions(
            rule=np.array([rule for rule, _ in pairs], np.int32),
            row=np.array([row for _, row in pairs], np.int64),
            firing=np.zeros(count, bool),
            at_ms=np.full(count, at_ms, np.int64),
            value=np.full(count, np.nan),
            sums=np.zeros((len(FIELDS), count), np.int64),
            window=[""] * count,
            reason="rule_changed",
        )

    def _exceeding(self, key: BankKey, scope: Scope, term: int) -> list[int]:
        """The entities whose value exceeds a term's threshold."""
        layer = self.banks[key].layers[scope.kind]
        segment = layer.segments[scope]
        position = int(np.flatnonzero(layer.terms[layer.start[segment] :] == term)[0])
        rows = np.flatnonzero((layer.segment == segment) & (layer.rank > position))
        return [int(row) for row in rows]

    def _recompile(self) -> None:
        for key in [key for key, bank in self.banks.items() if not any(any(layer.terms_of) for layer in bank.layers.values())]:
            del self.banks[key]
        for bank in self.banks.values():
            for layer in bank.layers.values():
                if layer.stale:
                    layer.compile()
                    rows = np.flatnonzero(layer.segment)
                    layer.rank[rows] = layer.ranks(rows, bank.value[rows])

    def _wait_for_next_judgement(self, terms: list[int]) -> None:
        """A rule does not fire on numbers from before it was in force: entities that exceed already wait to be judged."""
        touched: dict[tuple[BankKey, tuple[str, ...]], set[int]] = defaultdict(set)
        for term in terms:
            compiled = self._compiled(self.terms[term].rule)
            key, scope, _ = compiled.places[self.terms[term].bit]
            bank, kind = self.banks[key], scope.kind
            layer = bank.layers[kind]
            touched[key, kind].add(layer.segments[scope])
            if compiled.at_rest:
                rows = np.flatnonzero(layer.segment == layer.segments[scope])
                bank.seen[rows] = False
                bank.note_change(rows)
        new = set(terms)
        waiting: list[tuple[int, int]] = []
        for (key, kind), segments in touched.items():
            layer = self.banks[key].layers[kind]
            for row in np.flatnonzero((layer.rank > 0) & np.isin(layer.segment, list(segments))).tolist():
                start = layer.start[layer.segment[row]]
                waiting.extend((term, row) for term in layer.terms[start : start + layer.rank[row]].tolist() if term in new)
        self.waiting.update(dict.fromkeys(sorted(waiting), True))

    # --- entities ---------------------------------------------------------------------------------------------------

    def _place_new_entities(self) -> None:
        total = len(self.entities)
        if self._placed == total:
            return
        for bank in self.banks.values():
            bank.make_room(total)
        for row in self._placed + np.flatnonzero(self._has_rules(slice(self._placed, total))):
            self._place(int(row), self.entities.entity(int(row)))
        self._placed = total

    def _place_org(self, org: str) -> None:
        """Finds the segments of all entities of an org anew: its scopes have changed."""
        for bank in self.banks.values():
            bank.make_room(len(self.entities))
        number = self.entities.org_number.get(org)
        if number is not None:
            own = (self.entities.entity_org[: len(self.entities)] == number) & self._has_rules(slice(0, len(self.entities)))
            for row in np.flatnonzero(own).tolist():
                if row:
                    self._place(row, self.entities.entity(row))

    def _has_rules(self, rows: slice) -> npt.NDArray[np.bool_]:
        """Flags of the entities of a level that has rules at all."""
        levels = {LEVELS.index(level) for kinds in self._kinds.values() for _, level, _ in kinds}
        return np.isin(self.entities.entity_level[rows], list(levels))

    def _place(self, row: int, entity: Entity) -> None:
        for kind, level, custom in self._kinds.get(entity.org, ()):
            if level != entity.level or custom != entity.custom:
                continue
            scope = Scope(level, entity.org, custom=custom, **{name: getattr(entity, name) for name in kind[1:]})
            for bank in self.banks.values():
                layer = bank.layers.get(kind)
                segment = layer.segments.get(scope) if layer else None
                if layer is not None and segment is not None:
                    layer.segment[row] = segment
                    bank.covered[row] = True

    def _base(self, row: int) -> int:
        """The entity itself for the series of one of its custom metrics: what a rule's state belongs to."""
        entity = self.entities.entity(row)
        if not entity.custom:
            return row
        return self.entities.find(entity._replace(custom="")) or row

    # --- judging ------------------------------------------------------------------------------------------------------

    def judge(self, evaluation: str, judged: Sequence[Judged]) -> Iterator[Transitions]:
        """The transitions that follow from entities' new sums; call with all windows of one moment together."""
        self._place_new_entities()
        flips: list[Flip] = []
        for part in judged:
            for bank in self.banks.values():
                if bank.key.evaluate == evaluation and bank.key.window == part.window.name:
                    yield from self._judge_bank(bank, part, flips)
        if flips:
            compound = self._judge_compound(flips)
            if compound is not None:
                yield compound

    def _judge_bank(self, bank: Bank, part: Judged, flips: list[Flip]) -> Iterator[Transitions]:
        chosen = bank.covered[part.rows]
        if not chosen.any():
            return
        everything = bool(chosen.all())
        rows = part.rows if everything else part.rows[chosen]
        sums = part.sums if everything else part.sums[:, chosen]
        at_ms = part.at_ms if everything else part.at_ms[chosen]
        values = bank.values(sums)
        bank.value[rows] = values
        bank.note_change(rows)
        fresh = ~bank.seen[rows]
        bank.seen[rows] = True
        for layer in bank.layers.values():
            old, new = layer.rank[rows], layer.ranks(rows, values)
            moved = np.flatnonzero(old != new)
            if len(moved) or self.waiting:
                layer.rank[rows] = new
                terms, which, on = self._crossed(layer, rows, moved, old, new)
                simple = self._term_simple[terms]
                if simple.any():
                    chosen = which[simple]
                    yield Transitions(
                        rule=self._term_rule[terms[simple]],
                        row=self._bases(rows[chosen], bank),
                        firing=on[simple],
                        at_ms=at_ms[chosen],
                        value=values[chosen] * bank.key.sign,
                        sums=sums[:, chosen],
                        window=[part.window.name] * len(chosen),
                    )
                for i in np.flatnonzero(~simple).tolist():
                    k, term = which[i], self.terms[terms[i]]
                    value = float(values[k]) * bank.key.sign
                    row = self._base(int(rows[k]))
                    flips.append(Flip(term.rule, row, term.bit, bool(on[i]), int(at_ms[k]), value, sums[:, k], part.window.name))
            if fresh.any():
                self._touch_resting(layer, rows, np.flatnonzero(fresh), flips, at_ms=at_ms, sums=sums, window=part.window.name)

    def _crossed(
        self, layer: Layer, rows: Int64, moved: Int64, old: Int32, new: Int32
    ) -> tuple[Int32, Int64, npt.NDArray[np.bool_]]:
        """The thresholds between the old and the new rank of each moved row: terms, places in `rows`, whether it now exceeds."""
        low = np.minimum(old, new)[moved]
        count = np.abs(new - old)[moved]
        which = np.repeat(moved, count)
        first = np.repeat(layer.start[layer.segment[rows[moved]]] + low - (count.cumsum() - count), count)
        terms = layer.terms[first + np.arange(len(which))]
        on = new[which] > old[which]
        return self._end_waiting(layer, rows, terms=terms, which=which, on=on) if self.waiting else (terms, which, on)

    def _bases(self, rows: Int64, bank: Bank) -> Int64:
        if not bank.key.metric.startswith(CUSTOM_PREFIX):
            return rows
        return np.array([self._base(row) for row in rows.tolist()], np.int64)

    def _end_waiting(
        self, layer: Layer, rows: Int64, *, terms: Int32, which: Int64, on: npt.NDArray[np.bool_]
    ) -> tuple[Int32, Int64, npt.NDArray[np.bool_]]:
        """Entities that were waiting are judged now: what still holds fires, what held no longer never did."""
        pairs = list(zip(terms.tolist(), rows[which].tolist(), strict=True))
        keep = np.array([self.waiting.pop(pair, None) is None for pair in pairs], bool)
        terms, which, on = terms[keep] if len(keep) else terms, which[keep] if len(keep) else which, on[keep] if len(keep) else on
        place = {row: i for i, row in enumerate(rows.tolist())}
        inside = set(layer.terms.tolist())
        fired = [pair for pair in self.waiting if pair[1] in place and pair[0] in inside]
        for pair in fired:
            del self.waiting[pair]
        if fired:
            terms = np.concatenate((terms, np.array([term for term, _ in fired], np.int32)))
            which = np.concatenate((which, np.array([place[row] for _, row in fired], np.int64)))
            on = np.concatenate((on, np.ones(len(fired), bool)))
        return terms, which, on

    def _touch_resting(
        self, layer: Layer, rows: Int64, fresh: Int64, flips: list[Flip],
        *, at_ms: Int64, sums: Sums, window: str,
    ) -> None:  # fmt: skip
        """Rules that hold while none of their comparisons does (`not …`) are decided when an entity is first judged."""
        for k in fresh.tolist():
            for term in layer.terms_of[layer.segment[rows[k]]]:
                rule = self.terms[term].rule
                if self._compiled(rule).at_rest:
                    row = self._base(int(rows[k]))
                    flips.append(Flip(rule, row, -1, False, int(at_ms[k]), np.nan, sums[:, k], window))

    def _judge_compound(self, flips: list[Flip]) -> Transitions | None:
        last: dict[tuple[int, int], tuple[int, float, Int64, str]] = {}
        for rule, row, bit, on, at_ms, value, sums, window in flips:
            if bit >= 0:
                before = self.truths.get((rule, row), 0)
                self.truths[rule, row] = before | 1 << bit if on else before & ~(1 << bit)
            last[rule, row] = (at_ms, value, sums, window)
        changed: list[tuple[tuple[int, int], bool]] = []
        for pair in last:
            compiled = self._compiled(pair[0])
            bits = self.truths.get(pair, 0)
            if not bits:
                self.truths.pop(pair, None)
            holding = holds(compiled.when, iter([bool(bits >> i & 1) for i in range(len(compiled.places))]))
            if holding != (pair in self.firing):
                changed.append((pair, holding))
                (self.firing.add if holding else self.firing.discard)(pair)
        if not changed:
            return None
        evidence = [last[pair] for pair, _ in changed]
        return Transitions(
            rule=np.array([pair[0] for pair, _ in changed], np.int32),
            row=np.array([pair[1] for pair, _ in changed], np.int64),
            firing=np.array([holding for _, holding in changed], bool),
            at_ms=np.array([e[0] for e in evidence], np.int64),
            value=np.array([e[1] for e in evidence], np.float64),
            sums=np.stack([e[2] for e in evidence], axis=1),
            window=[e[3] for e in evidence],
        )

    def firing_pairs(self) -> set[tuple[str, str, Entity]]:
        """(org, rule id, entity) of all that is firing now."""
        pairs = {(self._compiled(rule).rule, row) for rule, row in self.firing}
        for bank in self.banks.values():
            for layer in bank.layers.values():
                for row in np.flatnonzero(layer.rank).tolist():
                    start = layer.start[layer.segment[row]]
                    for term in layer.terms[start : start + layer.rank[row]].tolist():
                        if self._term_simple[term] and (term, row) not in self.waiting:
                            pairs.add((self._compiled(self.terms[term].rule).rule, self._base(row)))
        return {(rule.org, rule.id, self.entities.entity(row)) for rule, row in pairs}
