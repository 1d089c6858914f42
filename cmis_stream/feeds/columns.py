"""Metric events to the columns of a `Batch`: numbers through one packed buffer, paths through one dict for a whole
request."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from ..core.batch import LARGEST, MICROS, Batch, Int32, Int64, Segment, UInt64, leaf_path, uid_seed
from ..core.time import EARLIEST_MS, FUTURE_MS, LATEST_MS
from .events import CURRENCY, DEFAULT_CURRENCY, LARGEST_MONEY, MetricEvent, PlainEvent, WideEvent
from .reading import CONTROL

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


def suspects(events: Sequence[MetricEvent], table: Numbers, *, org: str | None, now_ms: int | None, escapes: bool) -> list[int]:
    """Positions of events that may break a rule, ascending: the plain reading has to judge them.

    `escapes`: the text held a backslash or DEL, so an identifier may hold a control character (raw ones are not JSON).
    """
    upper = _UPPER
    if now_ms is not None:
        upper = _UPPER.copy()
        upper[0] = min(now_ms + FUTURE_MS, LATEST_MS)
    found: set[int] = set()
    if not (bool((table.max(0) <= upper).all()) and bool((table.min(0) >= _LOWER).all())):
        found.update(np.flatnonzero(~((table <= upper) & (table >= _LOWER)).all(1)).tolist())
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


@dataclass(slots=True)
class Columns:
    """Grows a batch from pieces of one request. `org` None: events of many orgs, each naming its own."""

    org: str | None
    source: str
    leaf_level: str = "ad"
    first_sequence: int | None = None
    _paths: dict[str, int] = field(default_factory=dict)
    _senders: dict[tuple[str, str], int] = field(default_factory=dict)
    _seeds: list[int] = field(default_factory=list)
    _ids: list[str] = field(default_factory=list)
    _ts: list[Int64] = field(default_factory=list)
    _leaf: list[Int32] = field(default_factory=list)
    _values: list[Int64] = field(default_factory=list)
    _event: list[Int32] = field(default_factory=list)
    _uid: list[UInt64] = field(default_factory=list)
    _sender: list[Int32] = field(default_factory=list)

    def add(self, events: Sequence[MetricEvent], table: Numbers, indices: npt.NDArray[np.int64]) -> None:
        """Appends judged events; `indices` int64[e]: their positions in the request, for sequence numbers."""
        number = self._paths
        leaf = np.array([number.setdefault(path, len(number)) for path in self._leaf_paths(events)], np.int32)
        values = np.empty((5, len(events)), np.int64)
        values[:2] = table[:, 1:3].T
        # Half a micro is the most that rounding can be off: LARGEST_MONEY keeps the product within 2^53.
        values[2:] = np.rint(table[:, 3:].T * MICROS)
        ts = table[:, 0].astype(np.int64)
        event = np.arange(len(self._ids), len(self._ids) + len(events), dtype=np.int32)
        plain = isinstance(events[0], PlainEvent)
        sources = None if plain or self.first_sequence is not None else [_source(e, self.source) for e in events]
        self._add_identity(events, sources, indices)
        if not plain:
            ts, leaf, values, event = self._with_custom(events, ts, leaf, values, event)
        self._ts.append(ts)
        self._leaf.append(leaf)
        self._values.append(values)
        self._event.append(event)

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

    def _add_identity(self, events: Sequence[MetricEvent], sources: list[str] | None, indices: npt.NDArray[np.int64]) -> None:
        ids = [e.id for e in events]
        self._ids += ids
        if sources is None and (self.org is not None or self.first_sequence is not None):
            # Numbers of a file count through all its orgs: one sender, and nothing to sort.
            sender = np.full(len(ids), self._sender_number(self.org or "", self.source), np.int32)
        elif sources is None:
            orgs: list[Any] = [e.org for e in events]
            codes = {org: self._sender_number(org, self.source) for org in dict.fromkeys(orgs)}
            sender = np.array([codes[org] for org in orgs], np.int32)
        else:
            named = [self.org or e.org or "" for e in events]
            sender = np.array([self._sender_number(org, source) for org, source in zip(named, sources, strict=True)], np.int32)
        self._sender.append(sender)
        if self.first_sequence is not None:
            self._uid.append((indices + self.first_sequence).astype(np.uint64))
            return
        hashed, seeds = xxhash.xxh3_64_intdigest, self._seeds
        if len(seeds) == 1:
            seed = seeds[0]
            uids = [hashed(event_id.encode(), seed) for event_id in ids]
        else:
            uids = [hashed(event_id.encode(), seeds[code]) for event_id, code in zip(ids, sender.tolist(), strict=True)]
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
        number, campaign_only = self._paths, self.leaf_level == "campaign"
        for position in np.flatnonzero(counts).tolist():
            e: Any = events[position]
            own = self.org if self.org is not None else e.org
            for row, (name, value) in enumerate(e.custom.items(), int(first[position]) + 1):
                ad_set, ad = ("", "") if campaign_only else (e.ad_set, e.ad)
                path = leaf_path(own, e.currency, e.platform, e.account, e.campaign, ad_set, ad, name)
                leaf[row] = number.setdefault(path, len(number))
                wide[2, row] = round(value * MICROS)
        return ts, leaf, wide, event

    def batch(self) -> Batch | None:
        """Everything added; None when that is nothing. Mixed orgs come out grouped by org, each org's events in
        order."""
        if not self._ids:
            return None
        batch = Batch(
            ts_ms=_joined(self._ts), leaf=_joined(self._leaf), values=_joined(self._values), event=_joined(self._event),
            uid=_joined(self._uid), paths=list(self._paths), segments=(), ids=self._ids,
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


def _source(event: MetricEvent, default: str) -> str:
    return (event.source if isinstance(event, WideEvent) else None) or default


def _joined(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
