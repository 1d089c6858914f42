"""One partition's engine: batches, ticks and rule sets in, transitions out. Pure: everything follows from its input.

The order of a record's work: clock, duplicates, events into panes, closed panes judged, live view judged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from cmis_stream.core.banks import Guards
from cmis_stream.core.batch import Batch, Int64
from cmis_stream.core.conditions import RuleBook, Transitions
from cmis_stream.core.dedup import Seen
from cmis_stream.core.entities import LEVELS, Entities
from cmis_stream.core.ids import incident_key
from cmis_stream.core.metrics import FIELDS
from cmis_stream.core.rules import Rule
from cmis_stream.core.time import FUTURE_MS, IDLE_MS, WINDOWS, Window
from cmis_stream.core.windows import NEVER, PANE_MS, Judged, Windows

_ORDER = itemgetter("at", "org", "rule", "level", "currency", "platform", "account", "campaign", "ad_set", "ad")

LONGEST_STEP_MS = 2_000
"""Of the clock between two records. Time in which nobody ran the partition does not make an org idle."""


@dataclass(slots=True)
class Step:
    """What one record led to."""

    transitions: list[Transitions] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)
    """(event index in the batch, code)."""
    leaves: Int64 | None = None
    """Leaf numbers int64[n] of the batch's rows, those of refused and repeated events included."""
    accepted: int = 0
    duplicates: int = 0
    late: int = 0

    @property
    def changes(self) -> int:
        return sum(len(part) for part in self.transitions)


class Engine:
    """levels: what entities are kept. live_windows: kept in the live view whether rules need them or not."""

    def __init__(self, levels: Sequence[str] = LEVELS, live_windows: Sequence[Window] = ()) -> None:
        self.entities = Entities(levels)
        self.windows = Windows(self.entities, live=live_windows)
        self.rules = RuleBook(self.entities)
        self.seen = Seen()
        self.versions: dict[str, int] = {}
        self.rules_as_given: dict[str, list[Any]] = {}
        self.evaluate_default: dict[str, str] = {}
        self.orgs_changed: set[str] = set()
        self.now_ms = 0
        self.uptime_ms = 0
        self.last_active: dict[int, int] = {}  # org number -> uptime of its last event
        self.idle_checked_ms = 0
        self.events = 0
        self.duplicates = 0
        self._always_live = dict.fromkeys(live_windows)

    # --- records ----------------------------------------------------------------------------------------------------

    def apply(self, batch: Batch, now_ms: int) -> Step:
        """Takes a batch that arrived at `now_ms` (its stamp, epoch ms)."""
        step = Step()
        self._advance_clock(now_ms)
        leaves = step.leaves = self.entities.numbers(batch.paths)[batch.leaf]
        event_new = self._first_times(batch, step)
        ts_ms, values = batch.ts_ms, batch.values
        events = batch.event
        if event_new is not None:
            rows = event_new[batch.event]
            ts_ms, leaves, values, events = ts_ms[rows], leaves[rows], values[:, rows], events[rows]
        idle = self._move_idle_orgs()
        if idle:
            self._judge_closed(idle, step)
        if len(ts_ms):
            sums = np.empty((len(FIELDS), len(ts_ms)), np.int64)
            sums[0] = 1
            sums[1:] = values
            late_before = self.windows.late_events
            judged, too_late = self.windows.add(ts_ms, leaves, sums)
            self._judge_closed(judged, step)
            active = np.zeros(len(self.entities.orgs), bool)
            active[self.entities.leaf_org[leaves]] = True
            self.last_active.update(dict.fromkeys(np.flatnonzero(active).tolist(), self.uptime_ms))
            if too_late is not None:
                step.refused.extend((event, "too_late") for event in np.unique(events[too_late]).tolist())
            step.late = self.windows.late_events - late_before
        self._judge_live(leaves, step)
        step.accepted = len(batch.uid) - step.duplicates - len(step.refused)
        self.events += step.accepted
        self.duplicates += step.duplicates
        return step

    def tick(self, now_ms: int, watermark_ms: int | None = None) -> Step:
        """Time passes. watermark_ms: every org is final up to here (the end of a replay)."""
        step = Step()
        self._advance_clock(now_ms)
        self.idle_checked_ms = 0
        idle = self._move_idle_orgs()
        if watermark_ms is not None:
            idle = idle + self.windows.move_to(np.full(len(self.entities.orgs), watermark_ms, np.int64))
        self._judge_closed(idle, step)
        self._judge_live(np.zeros(0, np.int64), step)
        return step

    def adopt(
        self, org: str, version: int, rules: Sequence[Rule], as_given: list[Any],
        guards_of: Mapping[str, Guards] | None = None, evaluate: str = "live",
    ) -> Step:  # fmt: skip
        """Puts an org's rules in force, unless this version or a newer one already is.

        as_given, evaluate: what the rules were parsed from, for the checkpoint. guards_of: recovery, `resume` follows.
        """
        step = Step()
        if version <= self.versions.get(org, 0):
            return step
        self.versions[org] = version
        self.rules_as_given[org] = as_given
        self.evaluate_default[org] = evaluate
        self.orgs_changed.add(org)
        number = self.entities.org_number.get(org)
        newest = int(self.windows.newest[number]) if number is not None and number < len(self.windows.newest) else NEVER
        resolved = self.rules.adopt(org, rules, newest if newest != NEVER else self.now_ms, guards_of)
        if resolved is not None:
            step.transitions.append(resolved)
        if guards_of is not None:
            return step
        self._keep_windows()
        if number is not None and newest != NEVER:
            own = np.flatnonzero(self.entities.entity_org[: len(self.entities)] == number)
            for window in self.windows.closed.gone:
                self.windows.unjudged.setdefault(window, set()).update(own[own > 0].tolist())
            self._judge_live(np.zeros(0, np.int64), step, everything_of=(number,))
        return step

    def resume(self) -> None:
        """After recovery: adds up the windows from the panes."""
        self._keep_windows(anew=True)

    # --- parts ----------------------------------------------------------------------------------------------------

    def _advance_clock(self, now_ms: int) -> None:
        if self.now_ms:
            self.uptime_ms += min(max(now_ms - self.now_ms, 0), LONGEST_STEP_MS)
        self.now_ms = max(self.now_ms, now_ms)

    def _move_idle_orgs(self) -> list[Judged]:
        """Orgs without events for a while follow the clock, so that their windows empty."""
        if self.uptime_ms < self.idle_checked_ms + 1_000:
            return []
        self.idle_checked_ms = self.uptime_ms
        watermark = np.full(len(self.entities.orgs), NEVER, np.int64)
        for number, active in self.last_active.items():
            if self.uptime_ms - active >= IDLE_MS:
                watermark[number] = self.now_ms - IDLE_MS
        return self.windows.move_to(watermark) if (watermark != NEVER).any() else []

    def _first_times(self, batch: Batch, step: Step) -> npt.NDArray[np.bool_] | None:
        """Flags of the events that are neither duplicates nor from the future; None when all are good."""
        good = np.ones(len(batch.uid), bool)
        ahead = batch.ts_ms > self.now_ms + FUTURE_MS
        if ahead.any():
            future = np.unique(batch.event[ahead])
            good[future] = False
            step.refused.extend((event, "in_future") for event in future.tolist())
        start = 0
        hashed: list[tuple[int, int]] = []
        numbers = batch.uid.view(np.int64)
        for segment in batch.segments:
            stop = start + segment.count
            if not segment.sequenced:
                hashed.append((start, stop))
            elif segment.count and not self.seen.all_new(
                segment.org, segment.source, int(numbers[start]), int(numbers[stop - 1])
            ):
                fresh = self.seen.new_numbers(segment.org, segment.source, numbers[start:stop])
                step.duplicates += int(np.count_nonzero(~fresh & good[start:stop]))
                good[start:stop] &= fresh
            start = stop
        if hashed:
            whole = np.zeros(len(good), bool)
            for first, stop in hashed:
                whole[first:stop] = True
            places = np.flatnonzero(whole & good)
            fresh = self.seen.new_ids(batch.uid[places], self.now_ms)
            step.duplicates += int(np.count_nonzero(~fresh))
            good[places[~fresh]] = False
        return None if good.all() else good

    def _judge_closed(self, judged: list[Judged], step: Step) -> None:
        """Windows that ended at the same moment are judged together: a rule may look at several."""
        moment: list[Judged] = []
        for part in judged:
            if moment and part.at_ms[0] != moment[0].at_ms[0]:
                step.transitions.extend(self.rules.judge("pane", moment))
                moment = []
            moment.append(part)
        if moment:
            step.transitions.extend(self.rules.judge("pane", moment))

    def _judge_live(self, leaves: Int64, step: Step, everything_of: Sequence[int] = ()) -> None:
        if self.windows.live.gone:
            judged = self.windows.judge_live(leaves, self._live_rules, everything_of)
            step.transitions.extend(self.rules.judge("live", judged))

    _live_rules: tuple[Window, ...] = ()

    def _keep_windows(self, anew: bool = False) -> None:
        """Views hold the windows that rules look at; new ones are added up from the panes."""
        self._live_rules = tuple(self.rules.windows("live"))
        judged = self.rules.levels()
        self.windows.judged_levels = tuple(i for i, level in enumerate(self.entities.levels) if level in judged)
        for view, wanted in (
            (self.windows.live, {**self._always_live, **dict.fromkeys(self._live_rules)}),
            (self.windows.closed, self.rules.windows("pane")),
        ):
            ordered = [window for window in WINDOWS.values() if window in wanted]
            if anew or list(view.gone) != ordered:
                self.windows.keep(view, ordered, anew)


def transition_lines(engine: Engine, step: Step) -> list[dict[str, Any]]:
    """A step's transitions as plain objects: org, rule, the entity, at (ms), state, value and the window's exact sums.
    `key` is the same for all transitions of a rule and an entity.

    Ordered by (at, org, rule, entity), whatever the order in which rules were compiled: the same record gives the same
    lines before and after a recovery, and their index in it is an identity.
    """
    rules = engine.rules
    lines = []
    for part in step.transitions:
        columns = zip(
            part.rule.tolist(), part.row.tolist(), part.firing.tolist(), part.at_ms.tolist(), part.value.tolist(), strict=True
        )
        for i, (rule, row, firing, at_ms, value) in enumerate(columns):
            entity = engine.entities.entity(row)
            rule_id = rules.rule_id(rule)
            lines.append(
                {
                    "key": incident_key(entity.org, rule_id, entity.level, entity[2:8]),
                    "org": entity.org,
                    "rule": rule_id,
                    "severity": rules.severity(rule),
                    "level": entity.level,
                    "currency": entity.currency,
                    "platform": entity.platform,
                    "account": entity.account,
                    "campaign": entity.campaign,
                    "ad_set": entity.ad_set,
                    "ad": entity.ad,
                    "at": at_ms,
                    "state": "firing" if firing else "resolved",
                    "value": value if math.isfinite(value) else None,
                    "window": part.window[i],
                    "sums": dict(zip(FIELDS, part.sums[:, i].tolist(), strict=True)),
                    **({"reason": part.reason} if part.reason else {}),
                }
            )
    lines.sort(key=_ORDER)
    return lines


def end_of_panes(largest_event_ms: int) -> int:
    """The end of the pane that holds the largest event time: where a replay's last tick puts the watermark."""
    return (largest_event_ms // PANE_MS + 1) * PANE_MS
