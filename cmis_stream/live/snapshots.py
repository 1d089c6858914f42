"""What holds now, for a client that subscribes without a past (`gateway.ports.Snapshots`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping

from cmis_stream.backplane.contract import Item, encoded
from cmis_stream.backplane.items import IncidentItem, MetricItem
from cmis_stream.core.channels import Channel, entity_key
from cmis_stream.core.metrics import FIELDS
from cmis_stream.core.windows import NEVER, PANE_MS
from cmis_stream.gateway.ports import Snapshot, Snapshots
from cmis_stream.live.projection import READER
from cmis_stream.live.results import six
from cmis_stream.log.owner import Owner
from cmis_stream.modules.alerts.incidents import FIRING, KIND, PATH
from cmis_stream.query.panes import FrozenPanes, TooManyRows, freeze, grouped, horizon
from cmis_stream.store.fact_kinds import Fact
from cmis_stream.store.facts import Facts, Place

MOST_INCIDENTS = 500
CLOSED_PANES = 6
"""The newest minute; what is older a page asks REST for."""
MOST_ROWS = 5_000
_PLATFORM, _CAMPAIGN = ("currency", "platform"), ("account", "campaign")
_DEPTHS = (1, 2, 4)
"""How many parts the paths of orgs (in a currency), platforms and campaigns have."""


class SnapshotsByTopic:
    """Each topic's from where it can be had."""

    def __init__(self, sources: Mapping[str, Snapshots]) -> None:
        self._sources = sources

    async def snapshot(self, channel: Channel) -> Snapshot | None:
        source = self._sources.get(channel.topic)
        return None if source is None else await source.snapshot(channel)


class LiveSnapshots(SnapshotsByTopic):
    """Of a process that has everything. owner_of: the owner of an org's partition, None when it is not in this process."""

    def __init__(self, owner_of: Callable[[str], Owner | None], facts: Facts, place: Callable[[str], Place], epoch: str) -> None:
        super().__init__({"incidents": IncidentSnapshots(facts, place, epoch), "metrics": MetricSnapshots(owner_of)})


class IncidentSnapshots:
    """What fires by the store. place: of a channel; epoch: of the log that its offsets count in."""

    def __init__(self, facts: Facts, place: Callable[[str], Place], epoch: str) -> None:
        self._facts, self._place, self._epoch = facts, place, epoch

    async def snapshot(self, channel: Channel) -> Snapshot:
        return await asyncio.to_thread(self._incidents, channel)

    def _incidents(self, channel: Channel) -> Snapshot:
        # The position first: what is written meanwhile is in the list, and comes again.
        position = self._facts.positions(READER, self._epoch).get(self._place(channel.whole), -1)
        wanted = [("filter[state]", FIRING), ("sort", "-id"), ("limit", str(MOST_INCIDENTS))]
        firing = self._facts.list(channel.org, KIND, wanted).items
        return Snapshot(encoded(_item(incident).item().json for incident in firing), position)


class MetricSnapshots:
    """What panes hold by the engine. owner_of: the owner of an org's partition, None when it is not in this process."""

    def __init__(self, owner_of: Callable[[str], Owner | None]) -> None:
        self._owner_of = owner_of

    async def snapshot(self, channel: Channel) -> Snapshot | None:
        owner = self._owner_of(channel.org)
        if owner is None:
            return None
        head = horizon(owner.engine, channel.org).head
        first = head - CLOSED_PANES + 1 if head != NEVER else 0
        frozen = freeze(owner.engine, channel.org, first, -NEVER, 0)
        return Snapshot(await asyncio.to_thread(_metrics, frozen, head))


def _item(incident: Fact) -> IncidentItem:
    body = incident.body
    same = ("key", "entity", "rule", "severity", "level", *PATH, "state", "value", "window", "events")
    told = {name: body[name] for name in same}
    return IncidentItem(id=incident.id, version=incident.version, at=body["started_at"], sums=six(body["sums"]), **told)


def _metrics(panes: FrozenPanes | None, head: int) -> bytes:
    return encoded(item.json for item in _metric_items(panes, head)) if panes is not None else encoded(())


def _metric_items(panes: FrozenPanes, head: int) -> Iterator[Item]:
    """The open and the newest closed panes as rollups tell them; of an org with very many campaigns only what is above them."""
    try:
        rows = grouped(panes, 1, (*_PLATFORM, *_CAMPAIGN, "custom"), {}, (), MOST_ROWS)
    except TooManyRows:
        rows = grouped(panes, 1, (*_PLATFORM, "custom"), {}, (), 10 * MOST_ROWS)
    sums: dict[tuple[str, int], list[int]] = {}
    for pane, (*path, custom), values in zip(rows.start.tolist(), rows.values, rows.sums.T.tolist(), strict=True):
        for depth in _DEPTHS:
            if depth <= len(path) and path[depth - 1]:
                held = sums.setdefault((entity_key(path[:depth], custom), pane), [0] * len(FIELDS))
                held[:] = [a + b for a, b in zip(held, values, strict=True)]
    for (entity, pane), held in sums.items():
        yield MetricItem(entity, pane * PANE_MS, PANE_MS, pane <= head, six(held)).item()
