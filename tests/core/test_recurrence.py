"""When something recurs, with the clocks going forward and back in both hemispheres."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from dateutil.rrule import rrulestr  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from cmis_stream.core.errors import Rejected
from cmis_stream.core.recurrence import Wall, moment_of, recurrence, wall_of, zone_of

BERLIN, SYDNEY, LORD_HOWE = "Europe/Berlin", "Australia/Sydney", "Australia/Lord_Howe"


def found(rule: str, zone: str, after: str, count: int, starts: str = "2026-01-01T02:30:00") -> list[str]:
    place = zone_of(zone)
    at_ms, made = moment_of(place, Wall(after, 0)), list[str]()
    rule_read = recurrence(rule, place, starts)
    while len(made) < count and (following := rule_read.next(at_ms)) is not None:
        assert following > at_ms
        at_ms = following
        made.append(datetime.fromtimestamp(at_ms / 1000, place).strftime("%d %H:%M%z")[:-2])
    return made


@pytest.mark.parametrize(
    ("rule", "zone", "after", "expected"),
    [
        ("FREQ=DAILY", BERLIN, "2026-03-28T12:00:00", ["29 03:30+02", "30 02:30+02"]),
        ("30 2 * * *", BERLIN, "2026-03-28T12:00:00", ["29 03:00+02", "30 02:30+02"]),
        ("FREQ=DAILY", BERLIN, "2026-10-24T12:00:00", ["25 02:30+02", "26 02:30+01"]),
        ("30 2 * * *", BERLIN, "2026-10-24T12:00:00", ["25 02:30+02", "26 02:30+01"]),
        ("FREQ=HOURLY", BERLIN, "2026-03-29T00:40:00", ["29 01:30+01", "29 03:30+02", "29 04:30+02"]),
        ("30 * * * *", BERLIN, "2026-03-29T00:40:00", ["29 01:30+01", "29 03:30+02", "29 04:30+02"]),
        ("FREQ=HOURLY", BERLIN, "2026-10-25T01:40:00", ["25 02:30+02", "25 02:30+01", "25 03:30+01"]),
        ("30 * * * *", BERLIN, "2026-10-25T01:40:00", ["25 02:30+02", "25 02:30+01", "25 03:30+01"]),
        ("FREQ=MINUTELY;INTERVAL=30", BERLIN, "2026-10-25T02:10:00", ["25 02:30+02", "25 02:00+01", "25 02:30+01"]),
        ("FREQ=DAILY", SYDNEY, "2026-10-03T12:00:00", ["04 03:30+11", "05 02:30+11"]),
        ("30 2 * * *", SYDNEY, "2026-10-03T12:00:00", ["04 03:00+11", "05 02:30+11"]),
        ("FREQ=DAILY", SYDNEY, "2026-04-04T12:00:00", ["05 02:30+11", "06 02:30+10"]),
        ("30 2 * * *", SYDNEY, "2026-04-04T12:00:00", ["05 02:30+11", "06 02:30+10"]),
        ("FREQ=DAILY;BYHOUR=2;BYMINUTE=15", LORD_HOWE, "2026-10-03T12:00:00", ["04 02:45+11", "05 02:15+11"]),  # by 30 minutes
        ("FREQ=DAILY;BYHOUR=1;BYMINUTE=45", LORD_HOWE, "2026-04-04T12:00:00", ["05 01:45+11", "06 01:45+10"]),
    ],
)  # fmt: skip
def test_skipped_times_are_not_lost_and_repeated_ones_come_once(rule: str, zone: str, after: str, expected: list[str]) -> None:
    assert found(rule, zone, after, len(expected)) == expected


def test_what_began_in_the_second_of_two_equal_hours_does_not_go_back() -> None:
    place = ZoneInfo(BERLIN)
    second = moment_of(place, Wall("2026-10-25T02:15:00", 1))
    for rule in ("30 2 * * *", "FREQ=DAILY"):
        following = recurrence(rule, place, "2026-01-01T02:30:00").next(second)
        assert following is not None and wall_of(place, following) == Wall("2026-10-26T02:30:00", 0)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("FREQ=MONTHLY;BYDAY=-1FR;COUNT=2", ["30 02:30+01"]),
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29", ["29 02:30+01", "29 02:30+01"]),
        ("FREQ=DAILY;UNTIL=20261025", ["24 02:30+02", "25 02:30+02"]),
        ("FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30", []),
        ("FREQ=MINUTELY;INTERVAL=2;BYMINUTE=31", []),
        ("FREQ=MINUTELY;INTERVAL=7;BYDAY=MO;BYHOUR=9;BYMINUTE=0", []),
        ("0 9 L * *", ["31 09:00+01", "30 09:00+01"]),
    ],
)
def test_rules_end_when_they_say_so_or_when_nothing_fits(rule: str, expected: list[str]) -> None:
    starts = "2026-09-01T02:30:00" if "COUNT" in rule else "2024-01-01T02:30:00"
    assert found(rule, BERLIN, "2026-10-23T12:00:00", 2, starts) == expected


@given(
    frequency=st.sampled_from(["HOURLY", "MINUTELY"]),
    interval=st.integers(1, 200),
    days=st.lists(st.sampled_from(["MO", "TU", "WE", "SU"]), unique=True),
    hours=st.lists(st.integers(0, 23), unique=True, max_size=12),
    minutes=st.lists(st.integers(0, 59), unique=True, max_size=3),
    minute=st.integers(0, 59),
)
@settings(max_examples=100, deadline=None)
def test_rules_below_a_day_are_those_of_dateutil(
    frequency: str, interval: int, days: list[str], hours: list[int], minutes: list[int], minute: int
) -> None:
    parts = [f"FREQ={frequency}", f"INTERVAL={interval}", *([f"BYDAY={','.join(days)}"] if days else [])]
    parts += [f"{name}={','.join(map(str, of))}" for name, of in (("BYHOUR", hours), ("BYMINUTE", minutes)) if of]
    begin = datetime(2026, 2, 3, 4, minute)
    end = begin + timedelta(days=20)
    made = recurrence(";".join(parts), ZoneInfo("UTC"), begin.isoformat())
    ours, at_ms = list[int](), int(begin.replace(tzinfo=UTC).timestamp()) * 1000 - 1
    while (
        len(ours) < 40 and (following := made.next(at_ms)) is not None and following < end.replace(tzinfo=UTC).timestamp() * 1000
    ):
        at_ms = following
        ours.append(at_ms)
    try:
        everything = rrulestr(";".join(parts) + f";UNTIL={end:%Y%m%dT%H%M%S}", dtstart=begin)
    except ValueError:  # it knows that nothing fits
        assert ours == []
        return
    wanted = list[int]()
    if ours:  # where nothing fits, it looks until the year 9999
        for local in everything:
            wanted.append(int(local.replace(tzinfo=UTC).timestamp()) * 1000)
            if len(wanted) == len(ours):
                break
    assert ours == wanted


@pytest.mark.parametrize(
    "rule",
    [
        "", "x", "* * * *", "* * * * * *", "99 * * * *", "0 0 30 2 *", "FREQ=SECONDLY", "FREQ=DAILY;FREQ=DAILY", "INTERVAL=2",
        "FREQ=DAILY;BYHOUR=99", "FREQ=DAILY;INTERVAL=0", "FREQ=DAILY;COUNT=99999", "FREQ=DAILY;COUNT=1;UNTIL=20260101",
        "FREQ=HOURLY;COUNT=3", "FREQ=HOURLY;BYMONTH=1", "FREQ=HOURLY;BYDAY=1MO", "FREQ=MINUTELY;BYMINUTE=60",
        "FREQ=DAILY;UNTIL=2026",
        "FREQ=DAILY;BYSECOND=3", "FREQ=DAILY\nRDATE=20260101", "FREQ=DAILY;BYDAY=XX", "FREQ=WEEKLY;BYDAY=", "0 " * 300,
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_name(rule: str) -> None:
    with pytest.raises(Rejected) as caught:
        recurrence(rule, ZoneInfo(BERLIN), "2026-01-01T00:00:00")
    assert caught.value.field == "/rule"


@pytest.mark.parametrize("name", ["", "Berlin", "../../etc/passwd", "/etc/localtime", "Europe/Berlin\0", "a" * 100, "Europe"])
def test_a_zone_has_to_be_one(name: str) -> None:
    with pytest.raises(Rejected, match="a time zone"):
        zone_of(name)


@pytest.mark.parametrize(
    "starts", ["", "09:00", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00.5", "1999-01-01T00:00:00", "2200-01-01"]
)
def test_a_rule_counts_from_a_local_time(starts: str) -> None:
    with pytest.raises(Rejected, match="local time"):
        recurrence("FREQ=DAILY", ZoneInfo(BERLIN), starts)
