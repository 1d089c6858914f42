"""Schedules: each occurrence once, whatever is killed; late ones as they say; on both databases."""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
import time
import zoneinfo
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cmis_stream.core.errors import Rejected
from cmis_stream.core.recurrence import Wall, moment_of, zone_of
from cmis_stream.store.database import Database
from cmis_stream.store.due import Due
from cmis_stream.store.schedules import Missed, Schedule, Scheduler, Schedules
from tests.store.conftest import Places
from tests.store.primitives import outbox, process

DAY, HOUR, MINUTE = 86_400_000, 3_600_000, 60_000
ZIC = Path("/usr/sbin/zic")
NINE = moment_of(zone_of("Europe/Berlin"), Wall("2026-07-01T09:00:00", 0))


class SetClock:
    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def at() -> SetClock:
    return SetClock(NINE - HOUR)


@pytest.fixture
def schedules(database: Database, at: SetClock) -> Schedules:
    return Schedules(database, at)


@pytest.fixture
def due(places: Places) -> Iterator[Due]:
    opened = Database(places.relay)
    yield Due(opened)
    opened.close()


def daily(missed: Missed = "once", **more: object) -> Schedule:
    return Schedule("report", "Europe/Berlin", "0 9 * * *", "job", {"kind": "report"}, missed=missed, **more)  # type: ignore[arg-type]


def occurrences(database: Database, org: str = "acme") -> list[int]:
    return [json.loads(body)["occurrence"] for _, body in outbox(database, org)]


def test_an_effect_is_put_into_the_outbox_when_it_is_time(database: Database, schedules: Schedules, at: SetClock) -> None:
    assert schedules.put("acme", daily()).due_at == NINE
    assert schedules.fire("acme") == 0
    at.now_ms = NINE + 10
    assert (schedules.fire("acme"), schedules.fire("acme")) == (1, 0)
    assert outbox(database) == [
        ("job", json.dumps({"kind": "report", "late": False, "occurrence": NINE, "schedule": "report"}, separators=(",", ":")))
    ]
    found = schedules.get("acme", "report")
    assert found is not None and found.due_at == NINE + DAY and [one.schedule.id for one in schedules.list("acme")] == ["report"]
    assert schedules.get("other", "report") is None and not schedules.remove("other", "report")
    assert schedules.remove("acme", "report") and schedules.list("acme") == []


@pytest.mark.parametrize(
    ("missed", "days_late", "expected"),
    [
        ("skip", [3, 4], [4]), ("once", [3, 4], [3, 4]), ("all", [3, 4], [0, 1, 4]),
        ("skip", [0, 1], [1]), ("once", [0, 1], [0, 1]), ("all", [0, 1], [0, 1]),
    ],
)  # fmt: skip
def test_what_was_missed_is_skipped_done_once_or_up_to_so_many_times(
    database: Database, schedules: Schedules, at: SetClock, missed: Missed, days_late: list[int], expected: list[int]
) -> None:
    """Nobody was there until five hours after the first of `days_late`; at the second one somebody is."""
    schedules.put("acme", daily(missed, most_missed=2))
    at.now_ms = NINE + days_late[0] * DAY + 5 * HOUR
    schedules.fire("acme")
    at.now_ms = NINE + days_late[1] * DAY
    schedules.fire("acme")
    assert occurrences(database) == [NINE + day * DAY for day in expected]
    late = [json.loads(body)["late"] for _, body in outbox(database)]
    assert late == [True] * (len(expected) - 1) + [False]


def test_years_of_missed_minutes_are_one(database: Database, schedules: Schedules, at: SetClock) -> None:
    schedules.put("acme", Schedule("poll", "UTC", "* * * * *", "poll"))
    at.now_ms = NINE + 1_000 * DAY + 90_500
    assert schedules.fire("acme") == 2
    assert occurrences(database) == [NINE + 1_000 * DAY, NINE + 1_000 * DAY + MINUTE]


def test_putting_the_same_again_changes_nothing_and_putting_another_moves_it(schedules: Schedules, at: SetClock) -> None:
    schedules.put("acme", daily())
    at.now_ms = NINE + 10  # due, and made again before it was fired
    assert schedules.put("acme", daily()) == schedules.get("acme", "report")
    found = schedules.get("acme", "report")
    assert found is not None and (found.due_at, found.version) == (NINE, 1)
    moved = schedules.put("acme", Schedule("report", "Asia/Tokyo", "0 9 * * *", "job"))
    assert (moved.due_at, moved.version) == (NINE + DAY - 7 * HOUR, 2)


def test_a_schedule_ends_with_its_rule(database: Database, schedules: Schedules, at: SetClock) -> None:
    rule = Schedule("twice", "Europe/Berlin", "FREQ=DAILY;COUNT=2", "job", starts="2026-07-01T09:00:00", missed="all")
    schedules.put("acme", rule)
    at.now_ms = NINE + 10 * DAY
    assert schedules.fire("acme") == 2 and occurrences(database) == [NINE, NINE + DAY]
    found = schedules.get("acme", "twice")
    assert found is not None and found.due_at is None and found.problem is None


@pytest.mark.parametrize(
    ("field", "schedule"),
    [
        ("/zone", Schedule("a", "Mars/Base", "0 9 * * *", "job")),
        ("/rule", Schedule("a", "UTC", "sometimes", "job")),
        ("/missed", Schedule("a", "UTC", "0 9 * * *", "job", missed="never")),  # type: ignore[arg-type]
        ("/most_missed", Schedule("a", "UTC", "0 9 * * *", "job", most_missed=101)),
        ("/grace_ms", Schedule("a", "UTC", "0 9 * * *", "job", grace_ms=-1)),
        ("/body/x", Schedule("a", "UTC", "0 9 * * *", "job", {"x": float("nan")})),
        ("/id", Schedule("", "UTC", "0 9 * * *", "job")),
    ],
)
def test_what_cannot_be_scheduled_is_refused_by_field(schedules: Schedules, field: str, schedule: Schedule) -> None:
    with pytest.raises(Rejected) as caught:
        schedules.put("acme", schedule)
    assert caught.value.field == field and schedules.list("acme") == []


# --- zones whose rules change -------------------------------------------------------------------------------------------------


@pytest.fixture
def zones(tmp_path: Path) -> Iterator[Path]:
    """A folder of zones of our own, made by zic."""
    folder, path = tmp_path / "zones", zoneinfo.TZPATH
    zoneinfo.reset_tzpath([str(folder), *path])
    yield folder
    zoneinfo.reset_tzpath(path)
    zoneinfo.ZoneInfo.clear_cache()


def offset(folder: Path, hours: int) -> None:
    source = folder.with_suffix(".src")
    source.write_text(f"Zone Test/Zone {hours}:00 - X\n")
    subprocess.run([str(ZIC), "-d", str(folder), str(source)], check=True)
    zoneinfo.ZoneInfo.clear_cache()


@pytest.mark.skipif(not ZIC.exists() and not os.environ.get("CI"), reason="zic (Debian: libc-bin) makes the zones of this test")
@pytest.mark.parametrize(("hours", "expected"), [(2, 8), (4, 6)])
def test_a_zone_whose_rules_changed_moves_what_comes_and_repeats_nothing(
    database: Database, schedules: Schedules, at: SetClock, due: Due, zones: Path, hours: int, expected: int
) -> None:
    offset(zones, 3)
    midnight = NINE - 7 * HOUR  # UTC
    at.now_ms = midnight
    schedules.put("acme", Schedule("report", "Test/Zone", "0 10 * * *", "job"))
    at.now_ms = midnight + 7 * HOUR
    assert schedules.fire("acme") == 1  # at 10:00, which is 07:00 UTC
    offset(zones, hours)
    at.now_ms += MINUTE
    before, stop = schedules.get("acme", "report"), threading.Event()
    thread = threading.Thread(target=Scheduler(schedules, due, at).run, args=(stop,))  # it looks when it starts
    thread.start()
    give_up_at = time.monotonic() + 30
    while schedules.get("acme", "report") == before and time.monotonic() < give_up_at:
        time.sleep(0.01)
    stop.set()
    thread.join()
    found = schedules.get("acme", "report")
    assert found is not None and found.due_at == midnight + DAY + expected * HOUR
    assert occurrences(database) == [midnight + 7 * HOUR]


def test_a_zone_that_is_gone_stops_its_schedule_and_no_other(
    database: Database, schedules: Schedules, at: SetClock, zones: Path
) -> None:
    if not ZIC.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("zic (Debian: libc-bin) makes the zone of this test")
    offset(zones, 2)
    schedules.put("acme", Schedule("a", "Test/Zone", "0 9 * * *", "job"))
    schedules.put("acme", Schedule("b", "Europe/Berlin", "0 9 * * *", "job"))
    (zones / "Test" / "Zone").unlink()
    zoneinfo.ZoneInfo.clear_cache()
    at.now_ms = NINE + 1
    assert schedules.fire("acme") == 1 and schedules.fire("acme") == 0
    found = schedules.get("acme", "a")
    assert found is not None and found.due_at is None and "Test/Zone" in str(found.problem)


# --- several at once, and kills ---------------------------------------------------------------------------------------------


def test_of_several_that_fire_at_the_same_time_one_does(database: Database, schedules: Schedules, at: SetClock) -> None:
    at.now_ms = NINE
    for number in range(20):
        schedules.put("acme", Schedule(f"s{number}", "UTC", "* * * * *", "job", {"n": number}))
    at.now_ms = NINE + MINUTE
    together, fired = threading.Barrier(4), Counter[int]()

    def fire(name: int) -> None:
        for _ in range(5):
            together.wait()
            fired[name] += schedules.fire("acme")

    threads = [threading.Thread(target=fire, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = Counter((json.loads(body)["schedule"], json.loads(body)["occurrence"]) for _, body in outbox(database))
    assert sum(fired.values()) == len(found) == 20 and set(found.values()) == {1}


def test_two_schedulers_killed_at_any_moment_fire_each_occurrence_once(
    places: Places, database: Database, schedules: Schedules, at: SetClock, tmp_path: Path
) -> None:
    """Their clock is a file that runs a minute every few milliseconds; every minute has to be in the outbox once."""
    clock, minutes = tmp_path / "clock", 50
    clock.write_text(str(NINE))
    at.now_ms = NINE
    for org in ("acme", "other"):
        for number in range(2):
            schedules.put(org, Schedule(f"s{number}", "UTC", "* * * * *", "job", missed="all", most_missed=100))

    def until_fired(count: int) -> None:
        give_up_at = time.monotonic() + 60
        while len(outbox(database)) + len(outbox(database, "other")) < count:
            assert time.monotonic() < give_up_at
            time.sleep(0.01)

    chance = random.Random(5)
    with ExitStack() as stack:

        def started() -> subprocess.Popen[str]:
            return stack.enter_context(process("schedule", places.app, places.relay, str(clock)))

        both = [started(), started()]
        for minute in range(1, minutes + 1):
            scratch = clock.with_suffix(".new")
            scratch.write_text(str(NINE + minute * MINUTE))
            scratch.rename(clock)
            until_fired(4 * (minute - 5))  # so that kills fall while there is something to fire
            if chance.random() < 0.1:
                one = chance.randrange(2)
                both[one].kill()
                both[one].wait()
                both[one] = started()
        until_fired(4 * minutes)
    for org in ("acme", "other"):
        found = [(json.loads(body)["schedule"], json.loads(body)["occurrence"]) for _, body in outbox(database, org)]
        assert sorted(found) == [
            (f"s{number}", NINE + minute * MINUTE) for number in range(2) for minute in range(1, minutes + 1)
        ]


def test_the_schedules_of_one_org_are_nothing_to_another(
    database: Database, schedules: Schedules, at: SetClock, due: Due
) -> None:
    schedules.put("acme", daily())
    schedules.put("other", daily())
    at.now_ms = NINE
    assert due.schedules(NINE) == ["acme", "other"] and due.schedules(NINE - 1) == []
    assert schedules.fire("acme") == 1
    assert due.schedules(NINE) == ["other"] and outbox(database, "other") == []
