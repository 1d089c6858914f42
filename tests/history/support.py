"""A history of random events: an engine, what its rollups tell as records, files of them, a query over those."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from cmis_stream.core.engine import Engine
from cmis_stream.core.entities import LEVELS
from cmis_stream.core.rollups import Rollups
from cmis_stream.history import merging
from cmis_stream.history.layout import EVENTS, ROLLUPS, Place, days_of, orgs_of
from cmis_stream.history.merging import Day
from cmis_stream.history.recorder import Line
from cmis_stream.log import envelope, rollup
from cmis_stream.log.owner import Owner
from cmis_stream.log.reader import Record
from cmis_stream.query.history import HistoryFigures
from tests.core.reference import Event
from tests.core.support import NOW, batch_of

METRICS = "cmis.metrics.v1"
PLACE = Place("first/log", 0)


class Told:
    """An engine and the records of both topics."""

    def __init__(self) -> None:
        self.engine = Engine(LEVELS)
        self.owner = Owner(METRICS, 0, self.engine, generation="g", send=_nobody, store=_nobody)
        self.rollups = Rollups(self.engine.windows)
        self.metrics: list[Record] = []
        self.told: list[Record] = []
        self._number = 0

    def take(self, events: list[Event], *, tell: bool = True, stamp_ms: int = NOW) -> None:
        batch = batch_of(events, self._number)
        batch.ids = [f"e{self._number + n}" for n in range(len(events))]
        self._number += len(events)
        self.metrics.append(Record(len(self.metrics), stamp_ms, None, envelope.encode(envelope.Events(stamp_ms, batch)), []))
        self.engine.apply(batch, stamp_ms)
        if tell:
            self.tell()

    def tell(self) -> None:
        rolled_up = self.rollups.take()
        if rolled_up is not None:
            value = rollup.encode((METRICS, 0, len(self.metrics) - 1), NOW, rolled_up)
            self.told.append(Record(len(self.told), NOW, None, value, []))

    def again(self, back: int) -> None:
        """A crashed agent tells anew what it has told, so many records back."""
        if back <= len(self.told):
            self.told.append(self.told[-back]._replace(offset=len(self.told)))


async def _nobody(*_: Any) -> Any:
    raise AssertionError("nothing is sent")


def write(root: Path, dataset: str, records: list[Record], place: Place = PLACE) -> Line:
    """A segment of what has not been written of these records, by a process that has just begun."""
    line = Line(root, dataset, place)
    coming = [record for record in records if record.offset >= line.position]
    if coming:
        line.add(coming)
        line.write()
    return line


def merge_all(root: Path, *, quiet: bool = True) -> None:
    for dataset in (EVENTS, ROLLUPS):
        for org in orgs_of(root, dataset):
            for day in days_of(root, dataset, org):
                merging.merge(root, Day(dataset, org, 0, day), quiet=quiet)


def ask(root: Path, org: str = "acme", now_ms: int = NOW, epoch: str = PLACE.epoch, **query: Any) -> dict[str, Any]:
    asked = HistoryFigures(root, 1, epoch, lambda: now_ms)
    raw = {"dataset": "history", "measures": ["events"], "from": "2025-01-01T00:00:00Z", **query}
    found: dict[str, Any] = json.loads(asyncio.run(asked.answer(org, raw)))
    return found
