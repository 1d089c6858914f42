"""Queries over panes against the plain reference; what is kept; what is refused."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmis_stream.core.engine import Engine
from cmis_stream.core.entities import LEVELS
from cmis_stream.core.time import parse_rfc3339, rfc3339
from cmis_stream.core.windows import PANE_MS
from cmis_stream.log.owner import Owner
from cmis_stream.query import datasets
from cmis_stream.query.datasets import Crowded, NotHere, Panes, Queries
from cmis_stream.query.model import MEASURES, Faulty
from cmis_stream.query.panes import freeze, grouped
from tests.core.reference import Event
from tests.core.support import DAY, HOUR, LEAVES, MINUTE, NOW, ORGS, SECOND, START, batch_of, cut, cuts, event, examples, streams
from tests.query.reference import PARTS, SIZES, answer, taken


class World:
    """An owner that has taken these events, asked at a moment of its own."""

    def __init__(self, events: list[Event], sizes: list[int] | None = None, *, partition: int = 2) -> None:
        self.owner = Owner("cmis.metrics.v1", partition, Engine(LEVELS), generation="g", send=_nobody, store=_nobody)
        number = 0
        for part in cut(events, sizes or [len(events) or 1]):
            self.owner.engine.apply(batch_of(part, number), NOW)
            number += len(part)
        self.here = True
        self.now_ms = max((e.ts for e in events), default=START) + 1
        self.queries = Queries({"panes": Panes(lambda _: self.owner if self.here else None, lambda: self.now_ms)})

    def ask(self, org: str = "acme", **query: Any) -> dict[str, Any]:
        raw = {"dataset": "panes", "measures": ["events"], "from": "-15m", **query}
        found: dict[str, Any] = json.loads(asyncio.run(self.queries.answer(org, raw)))
        return found

    def refused(self, **query: Any) -> Faulty:
        with pytest.raises(Faulty) as refused:
            self.ask(**query)
        return refused.value


async def _nobody(*_: Any) -> Any:
    raise AssertionError("nothing is sent")


_measures = st.lists(st.sampled_from([*MEASURES, "custom.views"]), min_size=1, max_size=5, unique=True)
_dimensions = st.lists(st.sampled_from(["time", *PARTS]), max_size=4, unique=True)
_filters = st.dictionaries(
    st.sampled_from(PARTS),
    st.sets(st.sampled_from(sorted({part for leaf in LEAVES for part in leaf})), min_size=1, max_size=4),
    max_size=2,
)
_spans = st.tuples(st.sampled_from(list(SIZES)), st.integers(0, 200), st.integers(1, 60))


@given(streams, cuts, _measures, _dimensions, _filters, _spans)
@examples(300)
def test_an_answer_is_what_all_events_add_up_to(
    events: list[Event],
    sizes: list[int],
    measures: list[str],
    dimensions: list[str],
    filters: dict[str, set[str]],
    span: tuple[str, int, int],
) -> None:
    world = World(events, sizes)
    step, back, length = span
    size = SIZES[step]
    for org in ORGS:
        newest = [e.ts for e in events if e.org == org]
        if not newest:
            continue
        first = first_kept(world, org, step)
        start = max(first, max(newest) // size * size - back * size)
        end = start + length * size
        found = world.ask(
            org, measures=measures, dimensions=dimensions, filters={part: sorted(values) for part, values in filters.items()},
            **{"from": rfc3339(start), "to": rfc3339(end), "step": step},
        )  # fmt: skip
        want = answer(taken(events), org, measures, dimensions, filters, start, end, step)
        names = [column["name"] for column in found["columns"]]
        rows = [
            [parse_rfc3339(value) if name == "time" else value for name, value in zip(names, row, strict=True)]
            for row in found["rows"]
        ]
        assert len(rows) == len(want) and all(
            same(*pair) for row, other in zip(rows, want, strict=True) for pair in zip(row, other, strict=True)
        )
        head = int(world.owner.engine.windows.closed.head[world.owner.engine.entities.org_number[org]])
        assert found["provisional"] == (end > (head + 1) * 10_000)


def same(value: Any, other: Any) -> bool:
    """Ratios may be computed in another order; everything else is exact."""
    return bool(value == pytest.approx(other, rel=1e-12)) if isinstance(other, float) else bool(value == other)


def plain(ms: int) -> str:
    return rfc3339(ms).replace(".000Z", "Z")


def first_kept(world: World, org: str, step: str) -> int:
    engine = world.owner.engine
    head = int(engine.windows.closed.head[engine.entities.org_number[org]])
    panes = {"10s": 90, "1m": 360, "15m": 96, "1h": 168}[step]
    return (head // (SIZES[step] // 10_000) - panes + 1) * SIZES[step]


# --- what is kept -----------------------------------------------------------------------------------------------------

STEADY = [event(n * 5 * MINUTE, clicks=1, campaign="ab"[n % 2]) for n in range(8 * 24 * 12)]


@pytest.fixture(scope="module")
def week() -> World:
    """Eight days, an event every five minutes."""
    return World(STEADY, [50])


@pytest.mark.parametrize(("step", "reach"), [("10s", 15 * MINUTE), ("1m", 6 * HOUR), ("15m", DAY), ("1h", 7 * DAY)])
def test_each_step_reaches_as_far_back_as_its_panes_and_no_further(week: World, step: str, reach: int) -> None:
    first = first_kept(week, "acme", step)
    assert -2 * SIZES[step] <= first - (week.now_ms - reach) <= SIZES[step]
    assert week.ask(**{"from": rfc3339(first), "step": step})["from"] == plain(first)
    refused = week.refused(**{"from": rfc3339(first - 1), "step": step})
    (fault,) = refused.faults
    assert (refused.code, fault.pointer, fault.code) == ("not_kept", "/from", "out_of_range")
    assert f"{step} from {plain(first)}" in fault.expected


@pytest.mark.parametrize(("ago", "step"), [("-10m", "10s"), ("-20m", "1m"), ("-7h", "15m"), ("-2d", "1h")])
def test_without_a_step_the_finest_that_reaches_back_is_taken(week: World, ago: str, step: str) -> None:
    found = week.ask(**{"from": ago})
    assert found["step"] == step
    events = [e for e in STEADY if e.ts >= parse_rfc3339(found["from"])]
    assert found["rows"] == [[len(events)]]


def test_beyond_a_week_nothing_is_kept(week: World) -> None:
    assert week.refused(**{"from": "-8d"}).code == "not_kept"


def test_times_are_moved_outward_to_the_borders_of_the_step(week: World) -> None:
    start, end = START + 7 * DAY, START + 7 * DAY + 5 * MINUTE
    found = week.ask(**{"from": rfc3339(start + 1), "to": rfc3339(end - 59_999), "step": "1h"})
    assert (found["from"], found["to"]) == ("2026-01-08T00:00:00Z", "2026-01-08T01:00:00Z")
    assert found["rows"] == [[12]]


# --- what an answer says ----------------------------------------------------------------------------------------------


def test_an_answer_names_its_columns_their_types_and_units_and_the_log_position() -> None:
    world = World([event(0, spend=2.5, clicks=5, impressions=50, custom={"views": 3})])
    world.owner.begun = 41
    found = world.ask(
        measures=["spend_micros", "ctr", "cpc", "custom.views", "events"], dimensions=["campaign", "time"], step="10s"
    )
    assert [(c["name"], c["type"], c["unit"]) for c in found["columns"]] == [
        ("campaign", "string", None), ("time", "time", None), ("currency", "string", None),
        ("spend_micros", "integer", "micros"), ("ctr", "number", "ratio"), ("cpc", "number", "currency"),
        ("custom.views", "number", None), ("events", "integer", "count"),
    ]  # fmt: skip
    assert found["rows"] == [["c1", "2026-01-01T00:00:00Z", "USD", 2_500_000, 0.1, 0.5, 3.0, 1]]
    assert found["position"] == {"topic": "cmis.metrics.v1", "partition": 2, "offset": 41}
    assert (found["watermark"], found["provisional"]) == ("2025-12-31T23:59:55Z", True)


def test_an_answer_is_final_up_to_the_watermark() -> None:
    world = World([event(0), event(MINUTE)])
    at = [rfc3339(START + ms) for ms in (0, 50_000, 60_000)]
    assert world.ask(**{"from": at[0], "to": at[1]})["provisional"] is False
    assert world.ask(**{"from": at[0], "to": at[2]})["provisional"] is True


def test_an_undefined_ratio_is_null() -> None:
    assert World([event(0, spend=1.0)]).ask(measures=["cpc", "cpa", "roas"])["rows"] == [["USD", None, None, 0.0]]


def test_currencies_are_kept_apart_where_money_is_asked_for() -> None:
    world = World([event(0, spend=1.0), event(0, spend=2.0, currency="EUR")])
    assert world.ask(measures=["spend_micros"])["rows"] == [["EUR", 2_000_000], ["USD", 1_000_000]]
    assert world.ask(measures=["events"])["rows"] == [[2]]


def test_times_are_told_in_the_zone_asked_for() -> None:
    found = World([event(0)]).ask(dimensions=["time"], step="1h", timezone="Asia/Kolkata")
    assert found["rows"] == [["2026-01-01T05:30:00+05:30", 1]]
    assert found["from"].endswith("+05:30") and found["watermark"].endswith("+05:30")


def test_an_org_without_events_has_an_answer_without_rows() -> None:
    found = World([event(0)]).ask(org="nobody", **{"from": "-300d"})
    assert (found["rows"], found["watermark"], found["provisional"]) == ([], None, True)


@pytest.mark.spec("TEN-M05", partial="of queries over panes; other paths have tests of their own")
@given(streams, _dimensions)
@examples(40)
def test_nothing_of_another_org_is_in_an_answer(events: list[Event], dimensions: list[str]) -> None:
    world, alone = World(events), World([e for e in events if e.org == "acme"])
    asked: dict[str, Any] = {"measures": ["events", "spend_micros"], "dimensions": dimensions, "step": "10s"}
    world.now_ms = alone.now_ms
    try:
        found = alone.ask(**asked)
    except Faulty:
        return
    assert world.ask(**asked)["rows"] == found["rows"]


def test_what_is_frozen_stays_as_it_was_while_the_engine_goes_on() -> None:
    world = World([event(n * SECOND, campaign=f"c{n % 3}") for n in range(50)])
    engine = world.owner.engine
    first, last = START // PANE_MS, START // PANE_MS + 100
    frozen = freeze(engine, "acme", first, last, 0)
    assert frozen is not None
    before = grouped(frozen, 1, ["campaign"], {}, [], 1000)
    for number in range(300):
        engine.apply(batch_of([event(number * SECOND, campaign=f"c{number % 7}", clicks=1)], 100 + number), NOW)
    after = grouped(frozen, 1, ["campaign"], {}, [], 1000)
    assert (after.start.tolist(), after.values, after.sums.tolist()) == (
        before.start.tolist(),
        before.values,
        before.sums.tolist(),
    )
    assert before.sums[0].sum() == 50 and world.ask(to=rfc3339(START + HOUR))["rows"] == [[350]]


def test_rows_are_in_the_order_of_time_also_when_events_came_late() -> None:
    world = World([event(0), event(MINUTE), event(20 * SECOND), event(40 * SECOND)], [1])
    found = world.ask(dimensions=["time"], step="10s")
    assert [row[0][-6:-1] for row in found["rows"]] == ["00:00", "00:20", "00:40", "01:00"]


def test_too_many_rows_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MOST_ROWS", 12)
    world = World([event(n * 10 * SECOND, campaign=f"c{n % 5}") for n in range(20)])
    assert len(world.ask(dimensions=["campaign"])["rows"]) == 5
    assert len(world.ask(dimensions=["time"], step="10s", **{"from": "-110s"})["rows"]) == 12
    for dimensions in (["time"], ["time", "campaign"]):
        refused = world.refused(dimensions=dimensions, step="10s")
        assert (refused.code, refused.faults[0].code) == ("too_many_rows", "too_long")


def test_the_org_s_figures_may_be_elsewhere_for_now() -> None:
    world = World([event(0)])
    world.here = False
    with pytest.raises(NotHere):
        world.ask()


async def test_of_a_crowd_those_beyond_its_bound_are_sent_away_at_once_and_the_others_take_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datasets, "MOST_WAITING", 4)
    world, raw = World([event(0)]), {"dataset": "panes", "measures": ["events"], "from": "-15m"}
    for _ in range(2):  # a crowd leaves nothing behind, not even those who give up while they wait
        crowd = [asyncio.ensure_future(world.queries.answer("acme", raw)) for _ in range(9)]
        await asyncio.sleep(0)
        crowd[5].cancel()
        found = await asyncio.gather(*crowd, return_exceptions=True)
        assert [type(one) for one in found] == [bytes] * 5 + [asyncio.CancelledError] + [Crowded] * 3


# --- what cannot be asked ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "pointer", "code"),
    [
        ({"measures": []}, "/measures", "invalid"),
        ({"measures": ["spend"]}, "/measures/0", "invalid"),
        ({"measures": ["events", 3]}, "/measures/1", "wrong_type"),
        ({"measures": ["events", "events"]}, "/measures", "invalid"),
        ({"measures": ["custom."]}, "/measures/0", "invalid"),
        ({"dimensions": ["country"]}, "/dimensions/0", "invalid"),
        ({"dimensions": ["time"]}, "/step", "missing"),
        ({"filters": {"country": ["x"]}}, "/filters/country", "invalid"),
        ({"filters": {"campaign": []}}, "/filters/campaign", "invalid"),
        ({"filters": {"campaign": [1]}}, "/filters/campaign/0", "wrong_type"),
        ({"filters": {"campaign": "x"}}, "/filters/campaign", "wrong_type"),
        ({"filters": {"campaign": {"eq": "a", "in": ["b"]}}}, "/filters/campaign", "invalid"),
        ({"filters": {"campaign": {"gt": "a"}}}, "/filters/campaign/gt", "invalid"),
        ({"filters": {"campaign": {"in": ["x" * 501]}}}, "/filters/campaign/in/0", "too_long"),
        ({"from": "yesterday"}, "/from", "invalid"),
        ({"from": "2026-01-01T00:00:00"}, "/from", "invalid"),
        ({"from": "-1w"}, "/from", "invalid"),
        ({"from": "-999999999d"}, "/from", "out_of_range"),
        ({"from": 3}, "/from", "wrong_type"),
        ({"to": "-2h", "from": "-1h"}, "/to", "invalid"),
        ({"step": "5m"}, "/step", "invalid"),
        ({"timezone": "Europe/Nowhere"}, "/timezone", "invalid"),
        ({"timezone": "../../etc/passwd"}, "/timezone", "invalid"),
        ({"limit": 0}, "/limit", "invalid"),
        ({"limit": 10_001}, "/limit", "invalid"),
        ({"sort": "clicks"}, "/sort", "invalid"),
        ({"sort": "events,-events"}, "/sort", "invalid"),
        ({"most": 3}, "/most", "invalid"),
        ({"dataset": "mentions"}, "/dataset", "invalid"),
        ({"dataset": ["panes"]}, "/dataset", "invalid"),
    ],
)
def test_what_cannot_be_asked_is_named_by_its_place(query: dict[str, Any], pointer: str, code: str) -> None:
    faults = World([event(0)]).refused(**query).faults
    assert (pointer, code) in [(fault.pointer, fault.code) for fault in faults]
    assert all(fault.got and fault.expected for fault in faults)


def test_everything_that_is_wrong_is_named_at_once() -> None:
    faults = World([event(0)]).refused(measures=["x"], dimensions=["y"], step="z").faults
    assert [fault.pointer for fault in faults] == ["/measures/0", "/dimensions/0", "/step"]


@pytest.mark.parametrize("raw", [None, [], "panes", 3])
def test_a_query_is_an_object(raw: Any) -> None:
    with pytest.raises(Faulty) as refused:
        asyncio.run(World([]).queries.answer("acme", raw))
    assert refused.value.faults[0].pointer == ""


def test_a_query_names_its_dataset() -> None:
    with pytest.raises(Faulty) as refused:
        asyncio.run(World([]).queries.answer("acme", {"measures": ["events"], "from": "-1h"}))
    assert (refused.value.faults[0].pointer, refused.value.faults[0].code) == ("/dataset", "missing")
