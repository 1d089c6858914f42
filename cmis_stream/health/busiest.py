"""Who makes the work: the orgs with the most events, the clients with the longest queues, the org whose feed is oldest."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import numpy as np

from cmis_stream.core.entities import LEVELS, SINK
from cmis_stream.core.metrics import EVENTS
from cmis_stream.core.time import MINUTE_MS, WINDOWS
from cmis_stream.core.windows import NEVER, PANE_MS
from cmis_stream.gateway.client import Client
from cmis_stream.health.ports import Partition

SHOWN = 5
_MINUTE = WINDOWS["1m"]


class Watermark(NamedTuple):
    """Of the org that is final least far: everything of it before `at_ms` (epoch) is."""

    org: str
    at_ms: int


def slowest_watermark(partition: Partition) -> Watermark | None:
    """None while no org has a final pane."""
    orgs = partition.engine.entities.orgs
    heads = partition.engine.windows.closed.head[: len(orgs)]
    known = np.flatnonzero(heads != NEVER)
    if not len(known):
        return None
    number = int(known[heads[known].argmin()])
    return Watermark(orgs[number], (int(heads[number]) + 1) * PANE_MS)


def busiest_orgs(partitions: Iterable[Partition], shown: int = SHOWN) -> list[dict[str, Any]]:
    """The orgs with the most events in their newest minute, of those that had any within the last one."""
    found: list[dict[str, Any]] = []
    for partition in partitions:
        engine = partition.engine
        if _MINUTE not in engine.windows.live.gone:
            continue
        entities = engine.entities
        active = {number for number, at in engine.last_active.items() if engine.uptime_ms - at < MINUTE_MS}
        view = engine.windows.live
        known = min(len(entities), view.total.shape[1])  # entities of events that were refused have no sums yet
        rows = np.flatnonzero(entities.entity_level[:known] == LEVELS.index("org"))
        rows = rows[rows > SINK]
        rows = rows[np.isin(entities.entity_org[rows], list(active))]
        events: Counter[str] = Counter()
        for row, count in zip(rows.tolist(), view.sums(_MINUTE, rows)[EVENTS].tolist(), strict=True):
            entity = entities.entity(row)  # one for each of the org's currencies
            if not entity.custom and count:
                events[entity.org] += count
        found += [{"org": org, "events": count, "partition": partition.partition} for org, count in events.most_common(shown)]
    return heapq.nlargest(shown, found, key=lambda one: one["events"])


def slowest_clients(clients: Collection[Client], shown: int = SHOWN) -> list[dict[str, Any]]:
    """The connections for which most is waiting."""
    waiting = [client for client in clients if client.outbox.lossless_bytes or client.outbox.conflated_items]
    slowest = heapq.nlargest(shown, waiting, key=lambda c: (c.outbox.lossless_bytes, c.outbox.conflated_items))
    return [
        {
            "client": client.id,
            "orgs": sorted(client.grant.orgs)[:shown] if client.grant is not None else [],
            "queue_bytes": client.outbox.lossless_bytes,
            "conflated_items": client.outbox.conflated_items,
            "subscriptions": len(client.subscriptions),
        }
        for client in slowest
    ]
