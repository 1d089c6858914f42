"""A batch of ad metric events as columns: what ingest makes, an envelope carries and the engine reads.

Counts are integers; spend, conversions, revenue and custom metrics are integer micro-units (platforms report fractional
conversions), so sums are exact and do not depend on the order of their terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import xxhash

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
UInt64 = npt.NDArray[np.uint64]

MICROS = 1_000_000
VALUE_FIELDS = ("impressions", "clicks", "spend", "conversions", "revenue")
MICRO_FIELDS = frozenset({"spend", "conversions", "revenue"})
LARGEST = 2**53  # of one event's value in its unit: beyond this a JSON number is not exact

PATH_SEPARATOR = "\x1f"
"""Between the parts of a leaf path. Identifiers must not contain control characters, so it is never part of one."""


def leaf_path(
    org: str,
    currency: str,
    platform: str,
    account: str = "",
    campaign: str = "",
    ad_set: str = "",
    ad: str = "",
    custom: str = "",
) -> str:
    """The series an event belongs to. Trailing levels may be empty: a feed reports one leaf level, ancestors are derived.

    `custom` is the name of a custom metric; the standard metrics of an entity share the path with custom = "".
    """
    return PATH_SEPARATOR.join((org, currency, platform, account, campaign, ad_set, ad, custom))


def event_uid(org: str, source: str, event_id: str) -> int:
    """The 64-bit hash by which (orgid, source, id) is deduplicated; stable across processes and versions."""
    return xxhash.xxh3_64_intdigest(event_id.encode(), uid_seed(org, source))


def uid_seed(org: str, source: str) -> int:
    return xxhash.xxh3_64_intdigest(f"{org}{PATH_SEPARATOR}{source}".encode())


@dataclass(frozen=True, slots=True)
class Segment:
    """`count` consecutive events that came from one sender.

    sequenced: `uid` holds the sender's own sequence numbers, ascending without repeats, and the highest one seen per
    (org, source) is enough to drop what was sent twice. Otherwise `uid` is `event_uid` of each event.
    """

    org: str
    source: str
    sequenced: bool
    count: int


@dataclass(slots=True)
class Batch:
    """e events of one partition in arrival order (all of one segment together) as n rows; several orgs may be mixed.

    Rows: one per event, and one more, right behind it, for each custom metric that the event carries.

    ts_ms   int64[n]     event time, epoch milliseconds
    leaf    int32[n]     index into `paths`
    values  int64[5, n]  in the order of VALUE_FIELDS; a row of a custom metric has its micros in the place of spend
    event   int32[n]     the event a row came from, ascending; index into `uid` and `ids`
    uid     uint64[e]    see Segment
    """

    ts_ms: Int64
    leaf: Int32
    values: Int64
    event: Int32
    uid: UInt64
    paths: Sequence[str]
    segments: Sequence[Segment]
    ids: Sequence[str] = field(default_factory=list)
    """The events' own ids [e], for evidence and dead letters."""

    def __len__(self) -> int:
        return len(self.ts_ms)


def concatenate(batches: Sequence[Batch]) -> Batch:
    """One batch with the rows of all, in order; equal paths are merged."""
    if len(batches) == 1:
        return batches[0]
    number: dict[str, int] = {}
    leaves, events, ids = [], [], 0
    for batch in batches:
        mapped = np.array([number.setdefault(path, len(number)) for path in batch.paths], np.int32)
        leaves.append(mapped[batch.leaf])
        events.append(batch.event + np.int32(ids))
        ids += len(batch.uid)
    return Batch(
        ts_ms=np.concatenate([b.ts_ms for b in batches]),
        leaf=np.concatenate(leaves),
        values=np.concatenate([b.values for b in batches], axis=1),
        event=np.concatenate(events),
        uid=np.concatenate([b.uid for b in batches]),
        paths=list(number),
        segments=[segment for b in batches for segment in b.segments],
        ids=[event_id for b in batches for event_id in b.ids],
    )


def cut(batch: Batch, most: int) -> list[Batch]:
    """The batch in pieces of at most `most` events, in order; each with the paths that it uses."""
    total = len(batch.uid)
    if total <= most:
        return [batch]
    ends = np.cumsum([segment.count for segment in batch.segments])
    pieces = []
    for start in range(0, total, most):
        stop = min(start + most, total)
        rows = slice(*np.searchsorted(batch.event, [start, stop]).tolist())
        used, leaf = np.unique(batch.leaf[rows], return_inverse=True)
        segments = [
            Segment(s.org, s.source, s.sequenced, int(min(end, stop) - max(end - s.count, start)))
            for s, end in zip(batch.segments, ends, strict=True)
            if end > start and end - s.count < stop
        ]
        pieces.append(
            Batch(
                ts_ms=batch.ts_ms[rows],
                leaf=leaf.astype(np.int32),
                values=batch.values[:, rows],
                event=batch.event[rows] - np.int32(start),
                uid=batch.uid[start:stop],
                paths=[batch.paths[i] for i in used.tolist()],
                segments=segments,
                ids=batch.ids[start:stop],
            )
        )
    return pieces
