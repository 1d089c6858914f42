"""When something recurs in a time zone: RRULE (RFC 5545) or cron. Moments in epoch ms, always on whole seconds.

A local time that a change of the clocks skips is not lost, one that it repeats comes once; rules below a day follow elapsed
time. RRULE reads a skipped time with the offset before the gap (02:30 becomes 03:30), cron takes the moment behind the gap.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from dateutil.rrule import rrule, rrulestr  # type: ignore[import-untyped]

from cmis_stream.core.errors import Rejected

LONGEST_RULE: Final = 500
MOST_COUNT: Final = 10_000
MOST_INTERVAL: Final = 10_000
_LATER: Final = 7_600
"""Years. dateutil looks for the next occurrence until the year 9999, which takes long when there is none; the calendar repeats
every 400 years, so the same rule is asked 19 times 400 years later."""
_SUB_DAILY: Final = {"HOURLY": timedelta(hours=1), "MINUTELY": timedelta(minutes=1)}
_IN_SUB_DAILY: Final = {"FREQ", "INTERVAL", "BYDAY", "BYHOUR", "BYMINUTE", "WKST"}
_WEEKDAYS: Final = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
_FREQUENCIES: Final = ("YEARLY", "MONTHLY", "WEEKLY", "DAILY", *_SUB_DAILY)
_PART = re.compile(r"(FREQ|INTERVAL|COUNT|UNTIL|WKST|BY(?:MINUTE|HOUR|DAY|MONTHDAY|YEARDAY|WEEKNO|MONTH|SETPOS))=([A-Z0-9,+-]+)")


class Wall(NamedTuple):
    """A local time and, where it exists twice, which of both (0, 1)."""

    local: str
    fold: int


class Recurrence(Protocol):
    def next(self, after_ms: int) -> int | None:
        """The first occurrence later than this; None when there is none any more."""
        ...


def zone_of(name: str) -> ZoneInfo:
    """Rejected when this machine knows no such zone."""
    try:
        if not re.fullmatch(r"[A-Za-z0-9_+/-]{1,64}", name):
            raise ValueError(name)
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):  # KeyError: ZoneInfoNotFoundError
        raise Rejected("invalid", "/zone", name, "a time zone of IANA's database, such as Europe/Berlin") from None


def wall_of(zone: ZoneInfo, at_ms: int) -> Wall:
    """
    >>> wall_of(ZoneInfo("Europe/Berlin"), 1792887600000), wall_of(ZoneInfo("Europe/Berlin"), 1792891200000)
    (Wall(local='2026-10-25T02:20:00', fold=0), Wall(local='2026-10-25T02:20:00', fold=1))
    """
    local = datetime.fromtimestamp(at_ms // 1000, zone)
    return Wall(local.replace(tzinfo=None).isoformat(), local.fold)


def moment_of(zone: ZoneInfo, wall: Wall) -> int:
    """As the zone's rules are now. A time in a gap is read with the offset before it."""
    return _ms(datetime.fromisoformat(wall.local).replace(tzinfo=zone, fold=wall.fold))


def recurrence(rule: str, zone: ZoneInfo, starts: str) -> Recurrence:
    """rule: `FREQ=…` (RRULE without its name; not below minutes) or a cron expression of five fields. starts: the local time
    that an RRULE counts from, for its time of day and COUNT. Rejected says what cannot be read."""
    if len(rule) > LONGEST_RULE:
        raise Rejected("too_long", "/rule", rule, f"at most {LONGEST_RULE} characters")
    try:
        begin = datetime.fromisoformat(starts)
        if begin.tzinfo is not None or begin.microsecond or not 2000 <= begin.year < 2200:
            raise ValueError(starts)
    except ValueError:
        raise Rejected("invalid", "/starts", starts, "a local time such as 2026-01-31T09:00:00, from 2000 to 2199") from None
    return _RRule(rule, zone, begin) if "=" in rule else _Cron(rule, zone)


class _Cron:
    def __init__(self, rule: str, zone: ZoneInfo) -> None:
        self._rule, self._zone = rule, zone
        try:
            if len(rule.split()) != 5:
                raise CronSimError("wrong number of fields")
            CronSim(rule, datetime(2026, 1, 1, tzinfo=zone))
        except CronSimError as error:
            expected = "FREQ=… or five fields of cron (minute hour day-of-month month day-of-week)"
            raise Rejected("invalid", "/rule", rule, f"{expected}: {str(error)[:1].lower()}{str(error)[1:]}") from None

    def next(self, after_ms: int) -> int | None:
        # In the second of two equal hours the library goes on from the first one: look until it is later.
        for found in CronSim(self._rule, datetime.fromtimestamp(after_ms // 1000, self._zone)):
            if (at_ms := _ms(found)) > after_ms:
                return at_ms
        return None


class _RRule:
    def __init__(self, rule: str, zone: ZoneInfo, starts: datetime) -> None:
        self._zone, self._starts = zone, starts
        parts = dict[str, str]()
        for part in rule.upper().removeprefix("RRULE:").split(";"):
            match = _PART.fullmatch(part)
            if match is None or match[1] in parts:
                raise Rejected("invalid", "/rule", part, "parts of an RRULE (RFC 5545), each once, none below minutes")
            parts[match[1]] = match[2]
        frequency = parts.get("FREQ", "")
        if frequency not in _FREQUENCIES:
            raise Rejected("invalid", "/rule", frequency, f"FREQ, one of {', '.join(_FREQUENCIES)}")
        for name, most in (("COUNT", MOST_COUNT), ("INTERVAL", MOST_INTERVAL)):
            if name in parts and not (parts[name].isdigit() and 1 <= int(parts[name]) <= most):
                raise Rejected("out_of_range", "/rule", f"{name}={parts[name]}", f"1 to {most}")
        if "COUNT" in parts and "UNTIL" in parts:
            raise Rejected("invalid", "/rule", rule, "COUNT or UNTIL, not both")
        try:
            self._last = self._end(parts.pop("UNTIL", None))
            self._rule = ";".join(f"{name}={value}" for name, value in parts.items())
            self._steps = _Steps(frequency, parts, starts) if frequency in _SUB_DAILY else None
            if self._steps is None:
                self._days()
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise Rejected("invalid", "/rule", rule, f"an RRULE (RFC 5545): {error}") from None

    def next(self, after_ms: int) -> int | None:
        after = datetime.fromtimestamp(after_ms // 1000, self._zone).replace(tzinfo=None)
        earliest = after - timedelta(days=1)  # clocks are not set back further
        found: int | None = None
        if self._steps is None:
            moments = (self._moment(local) for local in self._days().xafter(_moved(earliest, _LATER), inc=True))
            found = next((at_ms for at_ms in moments if at_ms > after_ms), None)
        else:
            found_at = datetime.max - timedelta(days=1)
            for local in self._steps.since(earliest):
                if local > found_at + timedelta(days=1):
                    break
                later = [at_ms for at_ms in self._moments(local) if at_ms > after_ms]
                if later and (found is None or min(later) < found):
                    found, found_at = min(later), min(found_at, local)
        return found if found is None or self._last is None or found <= self._last else None

    def _moment(self, local: datetime) -> int:
        return _ms(_moved(local, -_LATER).replace(tzinfo=self._zone))

    def _moments(self, local: datetime) -> list[int]:
        """By elapsed time: two of a local time that exists twice, none of one that is skipped."""
        first, second = (_ms(local.replace(tzinfo=self._zone, fold=fold)) for fold in (0, 1))
        if second < first:
            return []
        return [first] if second == first else [first, second]

    def _days(self) -> Any:
        made = rrulestr(self._rule, dtstart=_moved(self._starts, _LATER))
        if not isinstance(made, rrule):
            raise ValueError("expected one rule")
        return made

    def _end(self, until: str | None) -> int | None:
        if until is None:
            return None
        text = until if "T" in until else until + "T235959"
        if text.endswith("Z"):
            return _ms(datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC))
        return _ms(datetime.strptime(text, "%Y%m%dT%H%M%S").replace(tzinfo=self._zone))


class _Steps:
    """The local times of a rule below a day. (dateutil takes minutes for those that rarely come.)"""

    def __init__(self, frequency: str, parts: Mapping[str, str], starts: datetime) -> None:
        if unknown := parts.keys() - _IN_SUB_DAILY:
            raise ValueError(f"a rule below a day takes no {', '.join(sorted(unknown))}")
        self._step = _SUB_DAILY[frequency] * int(parts.get("INTERVAL", "1"))
        self._in_a_week = timedelta(days=7) // _SUB_DAILY[frequency]  # after so many steps they repeat
        days = parts.get("BYDAY", ",".join(_WEEKDAYS)).split(",")
        if not set(days) <= set(_WEEKDAYS):
            raise ValueError(f"a rule below a day takes weekdays ({', '.join(_WEEKDAYS)}) without numbers")
        self._weekdays = [_WEEKDAYS.index(day) for day in days]
        self._hours = _numbers(parts.get("BYHOUR"), 24)
        minutes = _numbers(parts.get("BYMINUTE"), 60)
        self._hourly = frequency == "HOURLY"
        self._minutes = minutes if minutes is not None or not self._hourly else [starts.minute]
        self._starts = starts

    def since(self, earliest: datetime) -> Iterator[datetime]:
        """In order, from a little before `earliest` on; ends when there are none any more."""
        base = self._starts.replace(minute=0) if self._hourly else self._starts
        base += max(0, (earliest - base) // self._step) * self._step
        empty = 0
        while empty <= self._in_a_week:
            empty += 1
            if base.weekday() in self._weekdays and (self._hours is None or base.hour in self._hours):
                for minute in self._minutes if self._hourly and self._minutes is not None else [base.minute]:
                    local = base.replace(minute=minute)
                    if local >= self._starts and (self._minutes is None or minute in self._minutes):
                        empty = 0
                        yield local
            base += self._step


def _numbers(text: str | None, end: int) -> list[int] | None:
    if text is None:
        return None
    found = sorted({int(part) for part in text.split(",")})
    if not 0 <= found[0] <= found[-1] < end:
        raise ValueError(f"{text}: expected numbers from 0 to {end - 1}")
    return found


def _moved(local: datetime, years: int) -> datetime:
    return local.replace(year=local.year + years)


def _ms(moment: datetime) -> int:
    return int(moment.timestamp()) * 1000
