"""Files of history: whole or absent, true whoever writes them, merged without a moment in which something is missing."""

from __future__ import annotations

import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cmis_stream.core.errors import ConfigError, Rejected
from cmis_stream.core.time import parse_rfc3339, rfc3339
from cmis_stream.history import layout, merging
from cmis_stream.history.events import read_events
from cmis_stream.history.layout import EVENTS, ROLLUPS, Place, day_folder, days_of, org_folder, parse_part, part_name
from cmis_stream.history.merging import Day
from cmis_stream.history.recorder import History, Line
from cmis_stream.store.turns import file_lock
from tests.core.reference import Event
from tests.core.support import DAY, HOUR, MINUTE, NOW, SECOND, START, event
from tests.history.support import PLACE, Told, ask, merge_all, write


def stream(count: int, *, every: int = 30 * SECOND) -> list[Event]:
    return [event(n * every, clicks=1 + n % 3, spend=0.5, campaign=f"c{n % 4}") for n in range(count)]


def told_of(events: list[Event], size: int = 10) -> Told:
    told = Told()
    for first in range(0, len(events), size):
        told.take(events[first : first + size])
    return told


def clicks(root: Path, **query: object) -> int:
    rows = ask(root, measures=["clicks"], **query)["rows"]
    return sum(row[-1] for row in rows)


def total(events: list[Event]) -> int:
    return sum(e.values[1] for e in events)


def names(root: Path, dataset: str = ROLLUPS) -> list[str]:
    return sorted(path.name for path in (root / dataset).rglob("*.parquet"))


@pytest.mark.parametrize("org", ["..", "a/b", "", "A", "acme/../beta", "x" * 64, "a\x00"])
def test_what_is_no_org_has_no_folder(tmp_path: Path, org: str) -> None:
    with pytest.raises(Rejected):
        org_folder(tmp_path, ROLLUPS, org)


def test_a_name_says_what_a_file_holds_whatever_characters_the_epoch_has(tmp_path: Path) -> None:
    part = parse_part(tmp_path, part_name(Place("a/b.c-é", 7), 3, 12, "hours"))
    assert part is not None and part[:5] == ("a/b.c-é", 7, 3, 12, "hours")


def test_a_file_that_cannot_be_written_whole_is_not_there(tmp_path: Path) -> None:
    def half(file: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        layout.write_durably(tmp_path / "a", "x.parquet", half)
    assert list((tmp_path / "a").iterdir()) == []


def test_files_above_what_is_reached_are_not_seen(tmp_path: Path) -> None:
    events = stream(100)
    told = told_of(events)
    write(tmp_path, ROLLUPS, told.told[:5])
    line = Line(tmp_path, ROLLUPS, PLACE)
    line.add(told.told[5:])
    for org, day, table in line.segment.tables():  # as if it were killed just before it says how far it is
        name = part_name(PLACE, line.reached.end, line.position, ROLLUPS)
        layout.write_durably(day_folder(tmp_path, ROLLUPS, org, day), name, lambda file, t=table: merging.write_table(t, file))
    assert clicks(tmp_path) == total(events[:50])
    write(tmp_path, ROLLUPS, told.told[:8])
    assert clicks(tmp_path) == total(events[:80])
    write(tmp_path, ROLLUPS, told.told)
    assert clicks(tmp_path) == total(events)


def test_a_zombie_adds_only_what_is_true(tmp_path: Path) -> None:
    events = stream(200)
    told = told_of(events)
    for dataset, records in ((EVENTS, told.metrics), (ROLLUPS, told.told)):
        write(tmp_path, dataset, records[:4])
        zombie = Line(tmp_path, dataset, PLACE)
        zombie.add(records[4:9])
        write(tmp_path, dataset, records[:7])
        write(tmp_path, dataset, records[:15])
        merge_all(tmp_path)
        zombie.write()
        assert layout.read_reached(tmp_path, dataset, PLACE).end == 15
        write(tmp_path, dataset, records)
        merge_all(tmp_path)
    assert clicks(tmp_path) == total(events)
    tables = list(read_events(tmp_path, "acme", 0, NOW, NOW + 1))
    assert sum(sum(table["clicks"].to_pylist()) for table in tables) == total(events)
    places = [place for table in tables for place in zip(table["offset"].to_pylist(), table["row"].to_pylist(), strict=True)]
    assert len(places) == len(set(places)) == len(events)


def test_a_merge_that_was_begun_before_another_one_changes_nothing(tmp_path: Path) -> None:
    events = stream(300)
    told = told_of(events)
    for end in range(2, 22, 2):
        write(tmp_path, ROLLUPS, told.told[:end])
    old = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    merge_all(tmp_path)
    merged = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    write(tmp_path, ROLLUPS, told.told)
    for path, body in old.items():  # the other process had listed them; its own file comes back with some of its parts
        path.write_bytes(body)
    merge_all(tmp_path)
    for path, body in merged.items():
        path.write_bytes(body)
    assert clicks(tmp_path) == clicks(tmp_path, step="1d", dimensions=["time"]) == total(events)
    merge_all(tmp_path)
    assert clicks(tmp_path) == total(events)
    (day,) = days_of(tmp_path, ROLLUPS, "acme")
    assert len(list(day_folder(tmp_path, ROLLUPS, "acme", day).iterdir())) == 3


def test_a_merge_that_is_told_to_stop_leaves_everything_as_it_was(tmp_path: Path) -> None:
    told, stop = told_of(stream(300)), threading.Event()
    for end in (10, 20, len(told.told)):
        write(tmp_path, ROLLUPS, told.told[:end])
    query = {"dimensions": ["time", "campaign"], "step": "1m", "from": rfc3339(START), "to": rfc3339(START + DAY)}
    before, files = ask(tmp_path, **query), sorted(tmp_path.rglob("day=*/*"))
    stop.set()
    (day,) = days_of(tmp_path, ROLLUPS, "acme")
    with pytest.raises(merging.Stopped):
        merging.merge(tmp_path, Day(ROLLUPS, "acme", 0, day), quiet=True, stop=stop)
    assert sorted(tmp_path.rglob("day=*/*")) == files
    assert merging.merge(tmp_path, Day(ROLLUPS, "acme", 0, day), quiet=True)
    assert ask(tmp_path, **query) == before and len(before["rows"]) > 100


def test_one_process_merges_an_orgs_files_at_a_time(tmp_path: Path) -> None:
    told = told_of(stream(300))
    for end in (10, 20, len(told.told)):
        write(tmp_path, ROLLUPS, told.told[:end])
    (day,) = days_of(tmp_path, ROLLUPS, "acme")
    files = names(tmp_path)
    with file_lock(org_folder(tmp_path, ROLLUPS, "acme") / merging.LOCK) as alone:
        assert alone
        with pytest.raises(BlockingIOError):
            merging.merge(tmp_path, Day(ROLLUPS, "acme", 0, day), quiet=True)
    assert names(tmp_path) == files
    assert merging.merge(tmp_path, Day(ROLLUPS, "acme", 0, day), quiet=True) and names(tmp_path) != files


def test_derived_files_without_their_base_do_not_count(tmp_path: Path) -> None:
    events = stream(300)
    told = told_of(events)
    write(tmp_path, ROLLUPS, told.told[:20])
    merge_all(tmp_path)
    (old_base,) = [path for path in tmp_path.rglob("*.rollups.parquet")]
    body, old = old_base.read_bytes(), {p: p.read_bytes() for p in tmp_path.rglob("*.parquet")}
    write(tmp_path, ROLLUPS, told.told)
    parts = {p: p.read_bytes() for p in tmp_path.rglob("*.rollups.parquet")}
    merge_all(tmp_path)
    (new_base,) = [path for path in tmp_path.rglob("*.rollups.parquet")]
    new_base.unlink()  # killed before the base was in place
    for path, content in (old | parts).items():
        path.write_bytes(content)
    assert old_base.read_bytes() == body
    assert clicks(tmp_path, step="1h", dimensions=["time"]) == total(events)


def test_late_events_change_what_is_merged_and_what_is_derived(tmp_path: Path) -> None:
    events = stream(6 * 120)  # six hours
    told = told_of(events, 60)
    write(tmp_path, ROLLUPS, told.told)
    merge_all(tmp_path)
    for late in (20 * SECOND, 10 * MINUTE, HOUR, 5 * HOUR):
        events.append(event(6 * HOUR - late, clicks=7, campaign="late"))
        told.take(events[-1:])
        write(tmp_path, ROLLUPS, told.told)
        for step in ("1m", "15m", "1h", "1d"):
            assert clicks(
                tmp_path, step=step, dimensions=["time"], **{"from": rfc3339(START), "to": rfc3339(START + DAY)}
            ) == total(events)
        merge_all(tmp_path)
        assert clicks(tmp_path) == total(events)


def test_fine_panes_become_minutes_once_they_are_not_told_any_more(tmp_path: Path) -> None:
    events = stream(240, every=10 * SECOND)
    told = told_of(events)
    write(tmp_path, ROLLUPS, told.told)
    by_minute = ask(tmp_path, dimensions=["time"], step="1m", **{"from": rfc3339(START), "to": rfc3339(START + HOUR)})["rows"]
    merge_all(tmp_path)
    (base,) = tmp_path.rglob("*.rollups.parquet")
    rows = pq.read_table(base, partitioning=None).to_pylist()
    fine = [row["start_ms"] - START for row in rows if row["pane_ms"] == 10_000]
    assert fine and min(fine) >= 22 * MINUTE and {row["pane_ms"] for row in rows} == {10_000, 60_000}
    again = ask(tmp_path, dimensions=["time"], step="1m", **{"from": rfc3339(START), "to": rfc3339(START + HOUR)})["rows"]
    assert again == by_minute and len(again) == 40


def test_two_logs_are_added_up_and_the_newer_ones_position_is_told(tmp_path: Path) -> None:
    first, second = told_of(stream(50)), told_of(stream(70))
    write(tmp_path, ROLLUPS, first.told)
    merge_all(tmp_path)
    write(tmp_path, ROLLUPS, second.told, Place("second", 0))
    for _ in range(2):
        found = ask(tmp_path, epoch="second", measures=["clicks"])
        assert found["rows"] == [[total(stream(50)) + total(stream(70))]]
        assert found["position"] == {"topic": "cmis.metrics.v1", "partition": 0, "offset": 6}
        merge_all(tmp_path)


def test_events_are_kept_as_they_were_sent(tmp_path: Path) -> None:
    told = Told()
    told.take([event(0, clicks=2, spend=1.5, ad="a1", custom={"views": 3}), event(5, org="beta", revenue=2)])
    write(tmp_path, EVENTS, told.metrics)
    (table,) = read_events(tmp_path, "acme", 0, NOW, NOW + 1)
    rows = table.to_pylist()
    assert [(r["custom"], r["clicks"], r["spend_micros"], r["ad"], r["ts_ms"], r["row"]) for r in rows] == [
        ("", 2, 1_500_000, "a1", START, 0), ("views", 0, 3_000_000, "a1", START, 1),
    ]  # fmt: skip
    (table,) = read_events(tmp_path, "beta", 0, NOW, NOW + 1)
    assert [(r["id"], r["source"], r["revenue_micros"]) for r in table.to_pylist()] == [("e1", "feed", 2_000_000)]
    assert list(read_events(tmp_path, "beta", 0, NOW - 10 * DAY, NOW - 9 * DAY)) == []


def test_many_segments_become_one_file_and_none_is_merged_too_early(tmp_path: Path) -> None:
    told = told_of(stream(400))
    for end in range(4, 41, 4):
        write(tmp_path, EVENTS, told.metrics[:end])
        write(tmp_path, ROLLUPS, told.told[:end])
    assert len(names(tmp_path, EVENTS)) == 10
    merge_all(tmp_path, quiet=False)
    assert len(names(tmp_path, EVENTS)) == 1
    assert sorted(name.split(".")[3] for name in names(tmp_path)) == ["hours", "quarters", "rollups"]
    write(tmp_path, ROLLUPS, told.told)
    merging.merge(tmp_path, Day(ROLLUPS, "acme", 0, "2026-01-01"))
    assert clicks(tmp_path) == total(stream(400))


async def test_history_is_kept_as_long_as_late_events_may_come(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="history_days: got 3, expected 9 or more"):
        History(None, tmp_path, 8, lambda: NOW, keep_days=3)  # type: ignore[arg-type]


def test_what_the_log_dropped_before_it_was_read_is_told(tmp_path: Path) -> None:
    told = told_of(stream(100))
    write(tmp_path, ROLLUPS, told.told[:3])
    line = Line(tmp_path, ROLLUPS, PLACE)
    line.lost(6)
    line.add(told.told[6:])
    line.write()
    assert layout.read_reached(tmp_path, ROLLUPS, PLACE).lost == ((3, 6),)


def test_what_an_agent_tells_again_after_a_crash_changes_nothing(tmp_path: Path) -> None:
    events = stream(100, every=3 * SECOND)
    told = told_of(events, 5)
    write(tmp_path, ROLLUPS, told.told)
    for back in (20, 15, 12, 5):
        told.again(back)  # older sums at higher offsets
        write(tmp_path, ROLLUPS, told.told)
        assert clicks(tmp_path) == total(events)
        merge_all(tmp_path)
        assert clicks(tmp_path) == total(events)


def test_rollups_are_what_the_raw_events_add_up_to(tmp_path: Path) -> None:
    """Nothing is sent twice here, and nothing is too late: so every event counts."""
    events = [
        event(
            n * 47 * SECOND - (n % 7) * 9 * MINUTE, clicks=n % 5, campaign=f"c{n % 3}", ad=f"a{n % 11}", custom={"views": n % 2}
        )
        for n in range(500)
    ]
    told = told_of(events, 20)
    for end in range(1, 26, 3):
        write(tmp_path, EVENTS, told.metrics[:end])
        write(tmp_path, ROLLUPS, told.told[:end])
        if end % 2:
            merge_all(tmp_path)
    by_hour: dict[tuple[int, str], int] = {}
    for table in read_events(tmp_path, "acme", 0, NOW, NOW + 1):
        for row in table.to_pylist():
            if not row["custom"]:
                cell = (row["ts_ms"] // HOUR * HOUR, row["campaign"])
                by_hour[cell] = by_hour.get(cell, 0) + row["clicks"]
    found = ask(tmp_path, measures=["clicks"], dimensions=["time", "campaign"], step="1h")
    assert {(parse_rfc3339(at), campaign): n for at, campaign, n in found["rows"]} == by_hour
