"""Moments as a query names them: RFC 3339, `now`, or so long before now (`-15m`)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cmis_stream.core.errors import Rejected
from cmis_stream.core.time import DAY_MS, EARLIEST_MS, HOUR_MS, LATEST_MS, MINUTE_MS, SECOND_MS, parse_rfc3339

_AGO = re.compile(r"-(\d{1,9})([smhd])")
_UNITS = {"s": SECOND_MS, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}


def moment(text: str, now_ms: int, field: str) -> int:
    """Epoch ms; Rejected names the field.

    >>> moment("-15m", 1767225600000, "from"), moment("2026-01-01T00:00:00Z", 0, "from")
    (1767224700000, 1767225600000)
    """
    ago = _AGO.fullmatch(text)
    if ago is not None:
        ms = now_ms - int(ago[1]) * _UNITS[ago[2]]
    elif text == "now":
        ms = now_ms
    else:
        try:
            ms = parse_rfc3339(text)
        except ValueError:
            raise Rejected("invalid", field, text, "an RFC 3339 time with its offset, now, or -15m (s, m, h, d)") from None
    if not EARLIEST_MS <= ms <= LATEST_MS:
        raise Rejected("out_of_range", field, text, "a time in the years 2000 to 2200")
    return ms


def zone(name: str, field: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise Rejected("invalid", field, name, "an IANA time zone such as Europe/Berlin") from None


def shown(ms: int, where: ZoneInfo) -> str:
    """RFC 3339 in a zone; with milliseconds when there are some.

    >>> shown(1767225600000, zone("Europe/Berlin", "")), shown(1767225600250, zone("UTC", ""))
    ('2026-01-01T01:00:00+01:00', '2026-01-01T00:00:00.250Z')
    """
    precision = "milliseconds" if ms % 1000 else "seconds"
    text = datetime.fromtimestamp(ms / 1000, UTC).astimezone(where).isoformat(timespec=precision)
    return text.removesuffix("+00:00") + "Z" if text.endswith("+00:00") else text
