"""What holds now, for a subscriber without a past."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from cmis_stream.core.channels import Channel
from cmis_stream.core.engine import Engine
from cmis_stream.core.rollups import Rollups
from cmis_stream.gateway.ports import Snapshot
from cmis_stream.live import snapshots as snapshots_module
from cmis_stream.live.projection import READER
from cmis_stream.live.snapshots import LiveSnapshots
from cmis_stream.log.owner import TRANSITIONS, Owner
from cmis_stream.modules.alerts.incidents import incident_after
from cmis_stream.store.facts import Change, Facts
from tests.core.reference import Event
from tests.core.support import MINUTE, NOW, SECOND, batch_of, event, examples, streams
from tests.core.test_rollups import cells_of
from tests.live.support import ACME, ProcessFacts, line


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Facts]:
    with closing(ProcessFacts(tmp_path / "store.db")) as opened:
        yield opened


def owner_of(events: list[Event]) -> Owner:
    owner = Owner("cmis.metrics.v1", ACME, Engine(), generation="g", send=_nobody, store=_nobody)
    if events:
        owner.engine.apply(batch_of(events), NOW)
    return owner


async def _nobody(*_: Any) -> Any:
    raise AssertionError("nothing is sent")


def snapshots(store: Any, owner: Owner | None = None) -> LiveSnapshots:
    return LiveSnapshots(lambda _: owner, store, lambda _: (TRANSITIONS, ACME), "e")


def items(snapshot: Snapshot | None) -> list[dict[str, Any]]:
    assert snapshot is not None
    found: list[dict[str, Any]] = json.loads(snapshot.json)["items"]
    return found


def put(store: Facts, *lines: dict[str, Any], position: int) -> None:
    changes = [Change(one["org"], "incident", one["incident"], one["at"], partial(incident_after, line=one)) for one in lines]
    assert store.write(changes, READER, "e", {(TRANSITIONS, ACME): position}, {})


async def test_incidents_that_fire_are_told_as_their_opening_transition_told_them_up_to_a_position(store: Facts) -> None:
    opened = [line(n, campaign=f"c{n}") for n in range(3)]
    put(store, *opened, line(7, state="resolved", campaign="c1", opened=opened[1]["id"]), line(8, org="globex"), position=5)
    found = await snapshots(store).snapshot(Channel("acme", "incidents"))
    assert [(item["campaign"], item["state"], item["at"], item["version"]) for item in items(found)] == [
        ("c2", "firing", opened[2]["at"], 1), ("c0", "firing", opened[0]["at"], 1)
    ]  # fmt: skip
    assert found is not None and found.offset == 5
    assert items(found)[1]["sums"] == [1, 2, 3, 4, 5, 6] and items(found)[1]["entity"] == "USD/meta//c0"


async def test_before_the_first_transition_nothing_fires_and_everything_is_to_come(store: Facts) -> None:
    found = await snapshots(store).snapshot(Channel("acme", "incidents"))
    assert found is not None and (items(found), found.offset) == ([], -1)


async def test_of_very_many_incidents_the_newest_are_told(store: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots_module, "MOST_INCIDENTS", 2)
    put(store, *[line(n, campaign=f"c{n}") for n in range(5)], position=0)
    assert [item["campaign"] for item in items(await snapshots(store).snapshot(Channel("acme", "incidents")))] == ["c4", "c3"]


@given(streams)
@examples(60)
def test_the_figures_are_those_that_rollups_tell_of_the_open_and_the_newest_closed_panes(events: list[Event]) -> None:
    owner = Owner("cmis.metrics.v1", ACME, Engine(), generation="g", send=_nobody, store=_nobody)
    rollups, cells = Rollups(owner.engine.windows), {}
    for number, one in enumerate(events):
        owner.engine.apply(batch_of([one], number), NOW)
        told = rollups.take()
        cells.update(cells_of(told) if told is not None else {})
    for org, number in owner.engine.entities.org_number.items():
        head = int(owner.engine.windows.closed.head[number])
        found = items(asyncio.run(snapshots(None, owner).snapshot(Channel(org, "metrics"))))
        want = {
            cell[1:]: value
            for cell, value in cells.items()
            if cell[0] == org and cell[3] == 10_000 and cell[2] // 10_000 > head - 6
        }
        assert {(i["entity"], i["at"], i["pane_ms"]): (i["closed"], tuple(i["sums"])) for i in found} == want


async def test_of_an_org_with_very_many_campaigns_only_what_is_above_them_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots_module, "MOST_ROWS", 10)
    owner = owner_of([event(n * SECOND, campaign=f"c{n}", custom={"views": 1}) for n in range(8)])
    found = items(await snapshots(None, owner).snapshot(Channel("acme", "metrics")))
    assert {item["entity"]: item["sums"][0] for item in found} == {"USD": 8, "USD/meta": 8, "USD#views": 8, "USD/meta#views": 8}


async def test_an_org_whose_partition_is_elsewhere_has_no_snapshot_and_one_without_events_an_empty_one() -> None:
    assert await snapshots(None).snapshot(Channel("acme", "metrics")) is None
    owner = owner_of([event(0, org="globex"), event(MINUTE, org="globex")])
    assert items(await snapshots(None, owner).snapshot(Channel("acme", "metrics"))) == []
