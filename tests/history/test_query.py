"""What history answers: the same as the engine's panes, as a plain list of events, at every age and however files were cut."""

from __future__ import annotations

import asyncio
import json
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmis_stream.core.errors import Rejected
from cmis_stream.core.time import parse_rfc3339, rfc3339
from cmis_stream.history.layout import ROLLUPS, org_folder
from cmis_stream.history.merging import connected
from cmis_stream.query.calendar import borders
from cmis_stream.query.datasets import Panes
from cmis_stream.query.history import HistoryFigures, Limits
from cmis_stream.query.model import MEASURES, Faulty
from tests.core.reference import Event
from tests.core.support import DAY, HOUR, LEAVES, MINUTE, NOW, ORGS, SECOND, START, cut, cuts, event, examples, streams
from tests.history.support import Told, ask, merge_all, write
from tests.query.reference import SIZES, answer, taken

PARTS = ("currency", "platform", "account", "campaign")
_measures = st.lists(st.sampled_from([*MEASURES, "custom.views"]), min_size=1, max_size=5, unique=True)
_dimensions = st.lists(st.sampled_from(["time", *PARTS]), max_size=4, unique=True)
_filters = st.dictionaries(
    st.sampled_from(PARTS),
    st.sets(st.sampled_from(sorted({part for leaf in LEAVES for part in leaf[:4]})), min_size=1, max_size=4),
    max_size=2,
)
_works = st.lists(st.sampled_from(["tell", "write", "merge", "again", ""]), min_size=1, max_size=12)


def plain(found: dict[str, Any]) -> list[tuple[Any, ...]]:
    names = [column["name"] for column in found["columns"]]
    return [
        tuple(parse_rfc3339(value) if name == "time" else value for name, value in zip(names, row, strict=True))
        for row in found["rows"]
    ]


def same(rows: list[tuple[Any, ...]], want: list[tuple[Any, ...]]) -> bool:
    return len(rows) == len(want) and all(
        value == pytest.approx(other, rel=1e-12) if isinstance(other, float) else value == other
        for row, expected in zip(rows, want, strict=True)
        for value, other in zip(row, expected, strict=True)
    )


@given(streams, cuts, _works, _measures, _dimensions, _filters)
@examples(30)
def test_hours_and_days_are_what_all_events_add_up_to_however_late_they_came(
    events: list[Event],
    sizes: list[int],
    works: list[str],
    measures: list[str],
    dimensions: list[str],
    filters: dict[str, set[str]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, told = Path(folder), Told()
        grown(root, told, events, sizes, works)
        for org in ORGS:
            first = min((e.ts for e in events), default=START) // DAY * DAY
            end = max((e.ts for e in events), default=START) // DAY * DAY + DAY
            query = {"measures": measures, "dimensions": dimensions, "filters": {k: sorted(v) for k, v in filters.items()}}
            for step, size in (("1h", "1h"), ("1d", "1d")):
                found = ask(root, org, **query, **{"from": rfc3339(first), "to": rfc3339(end), "step": step})
                want = reference(events, org, measures, dimensions, filters, first, end, size)
                assert same(plain(found), want)
                assert found["coarsest"] is None


def reference(
    events: list[Event], org: str, measures: list[str], dimensions: list[str], filters: dict[str, set[str]], start: int,
    end: int, step: str,
) -> list[tuple[Any, ...]]:  # fmt: skip
    SIZES.setdefault("1d", DAY)
    return answer(taken(events), org, measures, dimensions, filters, start, end, step)


@given(streams, cuts, _works, _measures, _dimensions, _filters, st.sampled_from(["1m", "15m", "1h"]))
@examples(30)
def test_panes_and_history_say_the_same_where_both_know(
    events: list[Event],
    sizes: list[int],
    works: list[str],
    measures: list[str],
    dimensions: list[str],
    filters: dict[str, set[str]],
    step: str,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, told = Path(folder), Told()
        grown(root, told, events, sizes, works)
        now_ms = max(e.ts for e in events) + 1
        panes = Panes(lambda _: told.owner, lambda: now_ms)
        told.owner.begun = len(told.metrics) - 1
        for org in {e.org for e in events}:
            number = told.engine.entities.org_number[org]
            head = int(told.engine.windows.closed.head[number])
            kept = {"1m": 360, "15m": 96, "1h": 168}[step]
            first = (head // (SIZES[step] // 10_000) - kept + 1) * SIZES[step]
            query = {
                "measures": measures, "dimensions": dimensions, "filters": {k: sorted(v) for k, v in filters.items()},
                "from": rfc3339(first), "to": rfc3339(max(now_ms, first + HOUR)), "step": step,
            }  # fmt: skip
            found = ask(root, org, now_ms, **query)
            other = json.loads(asyncio.run(panes.answer(org, {"dataset": "panes", **query})))
            assert found["coarsest"] is None
            assert found["position"]["offset"] == other["position"]["offset"]
            for name in ("columns", "rows", "from", "to", "step"):
                assert found[name] == other[name], name
            assert found["provisional"] or not other["provisional"]  # panes know of the watermark itself


def grown(root: Path, told: Told, events: list[Event], sizes: list[int], works: list[str]) -> None:
    """History of events, told and written and merged in between as `works` says."""
    for number, part in enumerate(cut(events, sizes)):
        told.take(part, tell=False)
        work = works[number % len(works)]
        if work:
            told.tell()
        if work == "again":
            told.again(1 + len(told.told) // 2)
        if work in ("write", "merge", "again"):
            write(root, ROLLUPS, told.told)
        if work == "merge":
            merge_all(root)
    told.tell()
    for back in (2, 4, 6):
        told.again(back)
    write(root, ROLLUPS, told.told)


# --- calendars --------------------------------------------------------------------------------------------------------


def hourly(first: str, hours: int) -> list[Event]:
    start = parse_rfc3339(first)
    return [event(start + n * HOUR + 30 * MINUTE, clicks=1) for n in range(hours)]


def by_step(tmp_path: Path, events: list[Event], **query: Any) -> list[tuple[str, int]]:
    told = Told()
    for first in range(0, len(events), 24):
        told.take(events[first : first + 24], stamp_ms=events[-1].ts)
    write(tmp_path, ROLLUPS, told.told)
    merge_all(tmp_path)
    return [tuple(row) for row in ask(tmp_path, now_ms=events[-1].ts, dimensions=["time"], **query)["rows"]]


def test_a_day_has_as_many_hours_as_the_clocks_of_its_zone_give_it(tmp_path: Path) -> None:
    events = hourly("2026-03-27T23:00:00Z", 72)
    found = by_step(
        tmp_path, events, step="1d", timezone="Europe/Berlin", **{"from": "2026-03-27T23:00:00Z", "to": "2026-03-30T12:00:00Z"}
    )
    assert found == [
        ("2026-03-28T00:00:00+01:00", 24), ("2026-03-29T00:00:00+01:00", 23), ("2026-03-30T00:00:00+02:00", 24),
    ]  # fmt: skip
    autumn = borders(
        "1d", parse_rfc3339("2026-10-24T22:00:00Z"), parse_rfc3339("2026-10-25T12:00:00Z"), ZoneInfo("Europe/Berlin")
    )
    assert (autumn[1] - autumn[0]) // HOUR == 25


def test_days_of_half_hour_zones_begin_at_their_midnight(tmp_path: Path) -> None:
    events = [event(START + n * 15 * MINUTE, clicks=1) for n in range(4 * 48)]
    found = by_step(
        tmp_path, events, step="1d", timezone="Asia/Kolkata", **{"from": "2026-01-01T00:00:00Z", "to": "2026-01-03T00:00:00Z"}
    )
    assert found == [
        ("2026-01-01T00:00:00+05:30", 74), ("2026-01-02T00:00:00+05:30", 96), ("2026-01-03T00:00:00+05:30", 22),
    ]  # fmt: skip


def test_weeks_begin_on_monday_and_months_on_their_first(tmp_path: Path) -> None:
    events = hourly("2026-01-30T00:00:00Z", 24 * 6)
    span = {"from": "2026-01-30T00:00:00Z", "to": "2026-02-04T00:00:00Z"}
    assert by_step(tmp_path, events, step="1w", **span) == [("2026-01-26T00:00:00Z", 72), ("2026-02-02T00:00:00Z", 72)]
    found = ask(tmp_path, now_ms=events[-1].ts, dimensions=["time"], step="1mo", timezone="America/New_York", **span)
    assert found["rows"] == [["2026-01-01T00:00:00-05:00", 53], ["2026-02-01T00:00:00-05:00", 91]]


@given(st.sampled_from(sorted(available_timezones())), st.integers(2000, 2060), st.sampled_from(["1d", "1w", "1mo"]))
@examples(300)
def test_steps_follow_each_other_in_every_zone(name: str, year: int, step: str) -> None:
    start, end = parse_rfc3339(f"{year}-02-10T12:00:00Z"), parse_rfc3339(f"{year + 1}-03-02T03:00:00Z")
    zone = ZoneInfo(name)
    found = borders(step, start, end, zone)
    assert found[0] <= start < found[1] and found[-2] < end <= found[-1]
    longest = {"1d": 26 * HOUR, "1w": 7 * DAY + 2 * HOUR, "1mo": 31 * DAY + 2 * HOUR}[step]
    assert (found[1:] > found[:-1]).all() and (found[1:] - found[:-1]).max() <= longest + (24 * HOUR if name in SKIPPED else 0)
    local = [datetime.fromtimestamp(ms / 1000, zone) for ms in found.tolist()]
    assert all((moment - timedelta(seconds=1)).date() != moment.date() or moment.hour for moment in local)


SKIPPED = {
    "Pacific/Apia",
    "Pacific/Fakaofo",
    "Pacific/Kiritimati",
    "Pacific/Enderbury",
    "Pacific/Kanton",
    "Pacific/Kwajalein",
    "Kwajalein",
}
"""Some day is missing in their calendars."""


# --- what an answer says, and to whom -----------------------------------------------------------------------------------


def test_an_answer_says_up_to_where_it_is_final_and_of_which_position(tmp_path: Path) -> None:
    told = Told()
    told.take([event(0, clicks=1), event(90 * SECOND, clicks=1)])
    write(tmp_path, ROLLUPS, told.told)
    found = ask(tmp_path, step="1m", **{"from": rfc3339(START), "to": rfc3339(START + MINUTE)})
    assert found["watermark"] == "2026-01-01T00:00:10Z" and found["provisional"] is True
    told.take([event(150 * SECOND, clicks=1)])
    write(tmp_path, ROLLUPS, told.told)
    found = ask(tmp_path, step="1m", **{"from": rfc3339(START), "to": rfc3339(START + MINUTE)})
    assert found["watermark"] == "2026-01-01T00:01:40Z" and found["provisional"] is False
    assert found["position"] == {"topic": "cmis.metrics.v1", "partition": 0, "offset": 1}


def test_what_came_too_late_for_the_step_is_there_and_said_to_be_coarse(tmp_path: Path) -> None:
    told = Told()
    told.take([event(0, clicks=1), event(7 * MINUTE, clicks=1), event(9 * HOUR, clicks=1)])
    told.take([event(8 * MINUTE, clicks=1)])
    write(tmp_path, ROLLUPS, told.told)
    for _ in range(2):
        span = {"from": rfc3339(START), "to": rfc3339(START + HOUR)}
        found = ask(tmp_path, dimensions=["time"], step="1m", **span)
        assert found["rows"] == [["2026-01-01T00:00:00Z", 2], ["2026-01-01T00:07:00Z", 1]] and found["coarsest"] == "15m"
        found = ask(tmp_path, dimensions=["time"], step="15m", **span)
        assert found["rows"] == [["2026-01-01T00:00:00Z", 3]] and found["coarsest"] is None
        merge_all(tmp_path)


def test_nothing_of_another_org_is_in_an_answer(tmp_path: Path) -> None:
    told = Told()
    told.take([event(0, clicks=1), event(0, org="beta", clicks=5), event(0, org="acme-2", clicks=9)])
    write(tmp_path, ROLLUPS, told.told)
    for _ in range(2):
        assert ask(tmp_path, measures=["clicks"])["rows"] == [[1]]
        assert ask(tmp_path, "beta", measures=["clicks"])["rows"] == [[5]]
        assert ask(tmp_path, "nobody", measures=["clicks"])["rows"] == []
        merge_all(tmp_path)
    for org in ("../org=beta", "acme' OR 1=1 --", "*", "ACME", "acme/day=2026-01-01"):
        with pytest.raises(Rejected):
            ask(tmp_path, org)


def test_the_database_of_an_org_opens_no_file_of_another(tmp_path: Path) -> None:
    told = Told()
    told.take([event(0, clicks=1), event(0, org="beta", clicks=5)])
    write(tmp_path, ROLLUPS, told.told)
    (foreign,) = org_folder(tmp_path, ROLLUPS, "beta").rglob("*.parquet")
    with connected(org_folder(tmp_path, ROLLUPS, "acme")) as con:
        for path in (foreign, org_folder(tmp_path, ROLLUPS, "acme") / ".." / "org=beta" / foreign.parent.name / foreign.name):
            with pytest.raises(duckdb.PermissionException):
                con.execute("SELECT * FROM read_parquet($files)", {"files": [str(path)]})
        with pytest.raises(duckdb.Error):
            con.execute("SET enable_external_access = true")


def test_names_are_values_never_sql(tmp_path: Path) -> None:
    told, evil = Told(), "x'); DROP TABLE sums; --"
    told.take([event(0, campaign=evil, clicks=1, custom={"a'b": 2}), event(0, campaign="y", clicks=2)])
    write(tmp_path, ROLLUPS, told.told)
    for _ in range(2):
        assert ask(tmp_path, measures=["clicks"], filters={"campaign": [evil]})["rows"] == [[1]]
        assert ask(tmp_path, measures=["clicks"], dimensions=["campaign"])["rows"] == [[evil, 1], ["y", 2]]
        merge_all(tmp_path)


@pytest.mark.parametrize(
    ("query", "pointer", "code"),
    [
        ({"dimensions": ["ad"]}, "/dimensions/0", "invalid"),
        ({"dimensions": ["time"]}, "/step", "missing"),
        ({"step": "10s"}, "/step", "invalid"),
        ({"timezone": "Mars/Olympus"}, "/timezone", "invalid"),
        ({"from": "2030-01-01T00:00:00Z", "to": "2029-01-01T00:00:00Z"}, "/to", "invalid"),
        ({"from": "2000-01-01T00:00:00Z", "step": "1m"}, "/step", "too_long"),
        ({"orgs": "beta"}, "/orgs", "invalid"),
        ({"measures": ["custom.a'b"]}, "/measures/0", "invalid"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(tmp_path: Path, query: dict[str, Any], pointer: str, code: str) -> None:
    with pytest.raises(Faulty) as refused:
        ask(tmp_path, **query)
    assert (refused.value.faults[0].pointer, refused.value.faults[0].code) == (pointer, code)


def test_answers_are_limited_in_rows_time_and_memory(tmp_path: Path) -> None:
    told = Told()
    for first in range(0, 3000, 500):
        told.take([event(n * SECOND, clicks=1, campaign=f"c{n % 500}") for n in range(first, first + 500)])
    write(tmp_path, ROLLUPS, told.told)

    def ask_within(**limits: Any) -> str:
        asked = HistoryFigures(tmp_path, 1, "first/log", lambda: NOW, limits=Limits(**limits))
        raw = {"dataset": "history", "measures": ["clicks"], "dimensions": ["campaign"], "from": "2025-01-01T00:00:00Z"}
        with pytest.raises(Faulty) as refused:
            asyncio.run(asked.answer("acme", raw))
        return refused.value.code

    assert ask_within(rows=499) == "too_many_rows"
    assert ask_within(memory="1MB") == "too_expensive"
    assert ask_within(seconds=0.0) == "too_expensive"


def test_beyond_what_is_kept_a_query_is_refused(tmp_path: Path) -> None:
    asked = HistoryFigures(tmp_path, 1, "first/log", lambda: NOW, keep_days=30)
    raw = {"dataset": "history", "measures": ["clicks"], "from": "-31d"}
    with pytest.raises(Faulty) as refused:
        asyncio.run(asked.answer("acme", raw))
    assert refused.value.code == "not_kept"
