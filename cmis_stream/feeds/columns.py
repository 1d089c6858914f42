"""Metric events to the columns of a `Batch`: numbers through one packed buffer, paths numbered once for a whole request."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ..core.batch import LARGEST, MICROS, PATH_SEPARATOR, Batch, Int32, Int64, Segment, UInt64, leaf_path, uid_seed
from ..core.time import EARLIEST_MS, FUTURE_MS, LATEST_MS
from .events import CURRENCY, DEFAULT_CURRENCY, LARGEST_MONEY, MetricEvent, PlainEvent, WideEvent
from .leaves import Leaves
from .reading import CONTROL
from .uniform import Rows

Numbers = npt.NDArray[np.float64]
"""float64[n, 6]: ts, impressions, clicks, spend, conversions, revenue. All are exact: integers up to 2^53, or as JSON
has them."""

_pack = struct.Struct("6d").pack
_UPPER = np.array([LATEST_MS, LARGEST - 1, LARGEST - 1, LARGEST_MONEY, LARGEST_MONEY, LARGEST_MONEY], np.float64)
_LOWER = np.array([EARLIEST_MS, 0, 0, 0, 0, 0], np.float64)


def numbers(events: Sequence[MetricEvent]) -> Numbers:
    """The numeric columns. OverflowError when a number exceeds a double."""
    # One pass over the events: each is in cache once, which six list comprehensions are not (130 against 180 ns an
    # event).
    try:
        packed = b"".join([_pack(e.ts, e.impressions, e.clicks, e.spend, e.conversions, e.revenue) for e in events])
    except struct.error:
        raise OverflowError("an integer beyond any double") from None
    return np.frombuffer(packed, np.float64).reshape(-1, 6)


def beyond(table: Numbers, now_ms: int | None) -> list[int]:
    """Positions of events with a number that is too small or too large, or that are in the future."""
    upper = _UPPER
    if now_ms is not None:
        upper = _UPPER.copy()
        upper[0] = min(now_ms + FUTURE_MS, LATEST_MS)
    if bool((table.max(0) <= upper).all()) and bool((table.min(0) >= _LOWER).all()):
        return []
    found: list[int] = np.flatnonzero(~((table <= upper) & (table >= _LOWER)).all(1)).tolist()
    return found


def suspects(events: Sequence[MetricEvent], table: Numbers, *, org: str | None, now_ms: int | None, escapes: bool) -> list[int]:
    """Positions of events that may break a rule, ascending: the plain reading has to judge them.

    `escapes`: the text held a backslash or DEL, so an identifier may hold a control character (raw ones are not JSON).
    """
    found = set(beyond(table, now_ms))
    # The usual event needs one look: complete, its own org's, in the default currency (whose default is always one
    # object).
    usual = DEFAULT_CURRENCY
    if org is None:
        unusual = [e for e in events if not (e.ad and e.ad_set and e.campaign and e.currency is usual and e.org)]
    else:
        unusual = [e for e in events if not (e.ad and e.ad_set and e.campaign and e.currency is usual and e.org == org)]
    if unusual:
        odd = {code for code in {e.currency for e in unusual} if not CURRENCY.fullmatch(code)}
        found.update(i for i, e in enumerate(events) if e.currency in odd or _broken_path(e) or _wrong_org(e, org))
    if escapes:
        found.update(i for i, e in enumerate(events) if _has_control(e))
    return sorted(found)


def _broken_path(event: MetricEvent) -> bool:
    return bool((event.ad and not event.ad_set) or (event.ad_set and not event.campaign) or not (event.campaign or event.account))


def _wrong_org(event: MetricEvent, org: str | None) -> bool:
    return event.org is None if org is None else event.org is not None and event.org != org


def _has_control(event: MetricEvent) -> bool:
    text = f"{event.id}{event.org}{event.account}{event.campaign}{event.ad_set}{event.ad}"
    if isinstance(event, WideEvent) and event.source:
        text += event.source
    return CONTROL.search(text) is not None


class _Paths:
    """Numbers paths in the order in which they come."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._number: dict[str, int] = {}  # made only when a path could come again

    def numbers(self, paths: Iterable[str]) -> list[int]:
        number = self._number
        if len(number) < len(self.all):
            number.update(zip(self.all, range(len(self.all)), strict=True))
        found = [number.setdefault(path, len(number)) for path in paths]
        self.all += islice(number, len(self.all), None)
        return found

    def numbers_of_distinct(self, paths: list[str]) -> Int32:
        if self.all:
            return np.array(self.numbers(paths), np.int32)
        self.all = paths
        return np.arange(len(paths), dtype=np.int32)


@dataclass(slots=True)
class Columns:
    """Grows a batch from pieces of one request. `org` None: events of many orgs, each naming its own."""

    org: str | None
    source: str
    leaf_level: str = "ad"
    first_sequence: int | None = None
    _paths: _Paths = field(default_factory=_Paths)
    _senders: dict[tuple[str, str], int] = field(default_factory=dict)
    _seeds: list[int] = field(default_factory=list)
    _ids: list[str] = field(default_factory=list)
    _ts: list[Int64] = field(default_factory=list)
    _leaf: list[Int32] = field(default_factory=list)
    _values: list[Int64] = field(default_factory=list)
    _event: list[Int32] = field(default_factory=list)
    _uid: list[UInt64] = field(default_factory=list)
    _sender: list[Int32] = field(default_factory=list)
    _leaves: Leaves | None = None
    _waiting: list[Int64] = field(default_factory=list)
    """Numbers in `_leaves` that have none in `_paths` yet."""

    def add(self, events: Sequence[MetricEvent], table: Numbers, indices: Int64) -> None:
        """Appends judged events; `indices` int64[e]: their positions in the request, for sequence numbers."""
        self._number_waiting()
        leaf = np.array(self._paths.numbers(self._leaf_paths(events)), np.int32)
        ts, values = _exact(table)
        event = self._next_events(len(events))
        ids = [e.id for e in events]
        self._add_identity(ids, lambda: map(str.encode, ids), self._senders_of(events), indices)
        if not isinstance(events[0], PlainEvent):
            ts, leaf, values, event = self._with_custom(events, ts, leaf, values, event)
        self._ts.append(ts)
        self._leaf.append(leaf)
        self._values.append(values)
        self._event.append(event)

    def add_rows(self, rows: Rows, indices: Int64) -> None:
        """Appends the judged events of a uniform window; `indices` as in `add`."""
        if self._leaves is not rows.leaves:
            self._number_waiting()
            self._leaves = rows.leaves
        self._waiting.append(rows.leaf)
        ts, values = _exact(rows.table)
        self._event.append(self._next_events(len(ts)))
        if self._is_one_sender:
            sender = self._one_sender(len(ts))
        else:
            paths = rows.leaves.paths
            sender = self._senders_by_org([paths[leaf].partition(PATH_SEPARATOR)[0] for leaf in rows.leaf.tolist()])
        self._add_identity(rows.id_texts(), rows.ids.tolist, sender, indices)
        self._ts.append(ts)
        self._values.append(values)

    def _number_waiting(self) -> None:
        """Numbers the leaves of the windows since the last call, in the order of their first events."""
        if not self._waiting or self._leaves is None:
            return
        found = _joined(self._waiting)
        self._waiting = []
        order = np.arange(len(found), dtype=np.int32)
        number = np.empty(len(self._leaves.paths), np.int32)  # of each leaf, but only of those that are found
        number[found] = len(found)
        np.minimum.at(number, found, order)
        distinct = found[number[found] == order]
        paths = [self._leaves.paths[leaf] for leaf in distinct.tolist()]
        number[distinct] = self._paths.numbers_of_distinct(paths)
        self._leaf.append(number[found])

    def _next_events(self, count: int) -> Int32:
        return np.arange(len(self._ids), len(self._ids) + count, dtype=np.int32)

    def _leaf_paths(self, events: Sequence[MetricEvent]) -> list[str]:
        """`core.batch.leaf_path` of each event, spelled out: a call per event would double its cost (a test holds them
        equal)."""
        if self.leaf_level == "campaign":
            if self.org is None:
                return [f"{e.org}\x1f{e.currency}\x1f{e.platform}\x1f{e.account}\x1f{e.campaign}\x1f\x1f\x1f" for e in events]
            head = self.org
            return [f"{head}\x1f{e.currency}\x1f{e.platform}\x1f{e.account}\x1f{e.campaign}\x1f\x1f\x1f" for e in events]
        if self.org is None:
            return [
                f"{e.org}\x1f{e.currency}\x1f{e.platform}\x1f{e.account}\x1f{e.campaign}\x1f{e.ad_set}\x1f{e.ad}\x1f"
                for e in events
            ]
        head = self.org
        return [
            f"{head}\x1f{e.currency}\x1f{e.platform}\x1f{e.account}\x1f{e.campaign}\x1f{e.ad_set}\x1f{e.ad}\x1f" for e in events
        ]

    @property
    def _is_one_sender(self) -> bool:
        """Unless events name another. Numbers of a file count through all its orgs: nothing to sort then."""
        return self.org is not None or self.first_sequence is not None

    def _one_sender(self, events: int) -> Int32:
        return np.full(events, self._sender_number(self.org or "", self.source), np.int32)

    def _senders_by_org(self, orgs: Sequence[str]) -> Int32:
        codes = {org: self._sender_number(org, self.source) for org in dict.fromkeys(orgs)}
        return np.array([codes[org] for org in orgs], np.int32)

    def _senders_of(self, events: Sequence[MetricEvent]) -> Int32:
        if isinstance(events[0], PlainEvent) or self.first_sequence is not None:
            return self._one_sender(len(events)) if self._is_one_sender else self._senders_by_org([e.org or "" for e in events])
        return np.array([self._sender_number(self.org or e.org or "", _source(e, self.source)) for e in events], np.int32)

    def _add_identity(self, ids: list[str], encoded: Callable[[], Iterable[bytes]], sender: Int32, indices: Int64) -> None:
        self._ids += ids
        self._sender.append(sender)
        if self.first_sequence is not None:
            self._uid.append((indices + self.first_sequence).astype(np.uint64))
            return
        hashed, seeds = xxhash.xxh3_64_intdigest, self._seeds
        if len(seeds) == 1:
            seed = seeds[0]
            uids = [hashed(event_id, seed) for event_id in encoded()]
        else:
            uids = [hashed(event_id, seeds[code]) for event_id, code in zip(encoded(), sender.tolist(), strict=True)]
        self._uid.append(np.array(uids, np.uint64))

    def _sender_number(self, org: str, source: str) -> int:
        number = self._senders.get((org, source))
        if number is None:
            number = self._senders[org, source] = len(self._seeds)
            self._seeds.append(uid_seed(org, source))
        return number

    def _with_custom(
        self, events: Sequence[MetricEvent], ts: Int64, leaf: Int32, values: Int64, event: Int32
    ) -> tuple[Int64, Int32, Int64, Int32]:
        """The rows, and behind each event's row one for each of its custom metrics."""
        counts = np.array([len(getattr(e, "custom", None) or ()) for e in events], np.int64)
        if not counts.any():
            return ts, leaf, values, event
        first = np.arange(len(events)) + np.cumsum(counts) - counts
        repeat = counts + 1
        ts, leaf, event = np.repeat(ts, repeat), np.repeat(leaf, repeat), np.repeat(event, repeat)
        wide = np.zeros((5, len(ts)), np.int64)
        wide[:, first] = values
        campaign_only = self.leaf_level == "campaign"
        rows: list[int] = []
        paths: list[str] = []
        for position in np.flatnonzero(counts).tolist():
            e: Any = events[position]
            own = self.org if self.org is not None else e.org
            ad_set, ad = ("", "") if campaign_only else (e.ad_set, e.ad)
            for row, (name, value) in enumerate(e.custom.items(), int(first[position]) + 1):
                rows.append(row)
                paths.append(leaf_path(own, e.currency, e.platform, e.account, e.campaign, ad_set, ad, name))
                wide[2, row] = round(value * MICROS)
        leaf[rows] = self._paths.numbers(paths)
        return ts, leaf, wide, event

    def batch(self) -> Batch | None:
        """Everything added; None when that is nothing. Mixed orgs come out grouped by org, each org's events in
        order."""
        if not self._ids:
            return None
        self._number_waiting()
        batch = Batch(
            ts_ms=_joined(self._ts), leaf=_joined(self._leaf), values=_joined(self._values), event=_joined(self._event),
            uid=_joined(self._uid), paths=self._paths.all, segments=(), ids=self._ids,
        )  # fmt: skip
        senders, sequenced = list(self._senders), self.first_sequence is not None
        if len(senders) == 1:
            batch.segments = (Segment(*senders[0], sequenced, len(batch.uid)),)
            return batch
        sender = _joined(self._sender)
        orgs: dict[str, int] = {}
        org_of = np.array(
            [orgs.setdefault(org, len(orgs)) for org, _ in senders], np.uint16 if len(senders) < 65_536 else np.int32
        )[sender]  # a stable sort of 16 bits is a radix sort
        if len(orgs) > 1:
            order = np.argsort(org_of, kind="stable")
            rows = order if len(batch) == len(order) else np.argsort(org_of[batch.event], kind="stable")
            rank = np.empty(len(order), np.int32)
            rank[order] = np.arange(len(order), dtype=np.int32)
            batch.ts_ms, batch.leaf, batch.values = batch.ts_ms[rows], batch.leaf[rows], batch.values[:, rows]
            batch.event, batch.uid, sender = rank[batch.event[rows]], batch.uid[order], sender[order]
            batch.ids = list(map(self._ids.__getitem__, order.tolist()))
        starts = np.flatnonzero(np.diff(sender, prepend=-1))
        counts = np.diff(starts, append=len(sender))
        segments = []
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            org, source = senders[int(sender[start])]
            segments.append(Segment(org, source, sequenced, count))
        batch.segments = tuple(segments)
        return batch


def _exact(table: Numbers) -> tuple[Int64, Int64]:
    """ts [n] and values [5, n] of a batch."""
    values = np.empty((5, len(table)), np.int64)
    values[:2] = table[:, 1:3].T
    # Half a micro is the most that rounding can be off: LARGEST_MONEY keeps the product within 2^53.
    values[2:] = np.rint(table[:, 3:].T * MICROS)
    return table[:, 0].astype(np.int64), values


def _source(event: MetricEvent, default: str) -> str:
    return (event.source if isinstance(event, WideEvent) else None) or default


def _joined(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
