"""From a record of a results topic to publications of the channels that it concerns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

from cmis_stream.backplane.contract import Item, Publication
from cmis_stream.backplane.items import IncidentItem, MetricItem, Sums
from cmis_stream.core.channels import Channel
from cmis_stream.live import jobs
from cmis_stream.live.jobs import JOBS
from cmis_stream.log import rollup, transitions
from cmis_stream.log.owner import ROLLUPS, TRANSITIONS
from cmis_stream.log.rollup import Told
from cmis_stream.modules.alerts.incidents import PATH, VERSIONS, entity_of, sums_of

TOPIC_OF = {"metrics": ROLLUPS, "incidents": TRANSITIONS, "jobs": JOBS}
"""Topic of a channel -> the results topic that it comes from."""
_ITEM_BYTES = 160  # of a metric item's JSON, about


class Result(NamedTuple):
    """source: the position that the record follows from, its own when it follows from none. publications: of each org's channel.
    lines: its transitions."""

    source: tuple[str, int, int]
    publications: Mapping[str, Publication]
    lines: Sequence[dict[str, Any]]


def read_result(topic: str, offset: int, value: bytes) -> Result:
    """What the record at `offset` of a results topic says. Rejected when it is none of ours."""
    if topic == ROLLUPS:
        told = rollup.decode(value)
        return Result(told.source, metric_publications(offset, told), ())
    if topic == JOBS:
        change = jobs.decode(value)
        publication = Publication(offset, [item.item() for item in change.jobs])
        # Whoever asks whether a source was passed asks within one partition, so it need not be known which.
        return Result((JOBS, 0, offset), {Channel(change.org, "jobs").whole: publication}, ())
    source, lines = transitions.decode(value)
    return Result(source, incident_publications(offset, lines), lines)


def has_channels(org: str) -> bool:
    """Whether channels can name this org. A foreign event may name any; to what is about this one nobody can subscribe."""
    return org != "" and ":" not in org


def metric_publications(offset: int, told: Told) -> dict[str, Publication]:
    found = {}
    for place, org in enumerate(told.orgs):
        if not has_channels(org):
            continue
        items = MetricItems(told, told.bounds[place], told.bounds[place + 1])
        found[Channel(org, "metrics").whole] = Publication(offset, items, size=_ITEM_BYTES * len(items))
    return found


class MetricItems(Sequence[Item]):
    """Rows of a rollup as items, made when somebody wants them: most of what is published nobody looks at."""

    __slots__ = ("_first", "_last", "_made", "_told")

    def __init__(self, told: Told, first: int, last: int) -> None:
        self._told, self._first, self._last = told, first, last
        self._made: list[Item] | None = None

    def __len__(self) -> int:
        return self._last - self._first

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> list[Item]: ...
    def __getitem__(self, place: int | slice) -> Item | list[Item]:
        return self._items()[place]

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items())

    def _items(self) -> list[Item]:
        if self._made is None:
            rows, own = slice(self._first, self._last), self._told.rollup
            columns = (own.entity, own.start_ms, own.pane_ms, own.closed, own.sums.T)
            self._made = [
                MetricItem(own.keys[entity], at, pane_ms, closed, six(sums)).item()
                for entity, at, pane_ms, closed, sums in zip(*(column[rows].tolist() for column in columns), strict=True)
            ]
        return self._made


def incident_publications(offset: int, lines: Sequence[dict[str, Any]]) -> dict[str, Publication]:
    items: dict[str, list[Item]] = {}
    for line in lines:
        if not has_channels(line["org"]):
            continue
        items.setdefault(Channel(line["org"], "incidents").whole, []).append(incident_item(line).item())
    return {channel: Publication(offset, own) for channel, own in items.items()}


def incident_item(line: Mapping[str, Any]) -> IncidentItem:
    return IncidentItem(
        id=line["incident"],
        key=line["key"],
        entity=entity_of(line),
        rule=line["rule"],
        severity=line["severity"],
        level=line["level"],
        **{name: line[name] for name in PATH},
        state=line["state"],
        at=line["at"],
        value=line["value"],
        window=line["window"],
        sums=six(sums_of(line)),
        events=line.get("events", []),
        version=VERSIONS[line["state"]],
    )


def six(values: Sequence[int]) -> Sums:
    events, impressions, clicks, spend, conversions, revenue = values
    return events, impressions, clicks, spend, conversions, revenue
