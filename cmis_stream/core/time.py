"""Time: epoch milliseconds (UTC) inside, RFC 3339 at the edges; windows and the panes they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

SECOND_MS, MINUTE_MS, HOUR_MS, DAY_MS = 1_000, 60_000, 3_600_000, 86_400_000

# Event times outside these years are mistakes of a unit (seconds, microseconds) or of a parser.
EARLIEST_MS = 946_684_800_000  # 2000-01-01
LATEST_MS = 7_258_118_400_000  # 2200-01-01

LATENESS_MS = 5 * SECOND_MS  # how far an event may lag behind the newest one and still be on time
IDLE_MS = 60 * SECOND_MS  # after this long without events an org's watermark follows the clock
FUTURE_MS = 60 * SECOND_MS  # how far ahead of its arrival an event may claim to be
RETENTION_MS = 7 * DAY_MS  # as long as the largest window


@dataclass(frozen=True, slots=True)
class Window:
    """A rolling window (t - size, t] whose ends lie on multiples of its pane's size."""

    name: str
    size_ms: int
    pane_ms: int

    @property
    def panes(self) -> int:
        return self.size_ms // self.pane_ms


PANE_SIZES_MS = (10 * SECOND_MS, MINUTE_MS, 15 * MINUTE_MS, HOUR_MS)
"""Each is a multiple of the one before it: coarser panes fill from finer ones as they close."""

WINDOWS = {
    window.name: window
    for window in (
        Window("1m", MINUTE_MS, 10 * SECOND_MS),
        Window("5m", 5 * MINUTE_MS, 10 * SECOND_MS),
        Window("15m", 15 * MINUTE_MS, 10 * SECOND_MS),
        Window("1h", HOUR_MS, MINUTE_MS),
        Window("6h", 6 * HOUR_MS, MINUTE_MS),
        Window("24h", DAY_MS, 15 * MINUTE_MS),
        Window("7d", 7 * DAY_MS, HOUR_MS),
    )
}


def parse_rfc3339(text: str) -> int:
    """Epoch milliseconds of an RFC 3339 timestamp; ValueError when it is none or has no offset.

    >>> parse_rfc3339("2026-01-01T00:00:00Z"), parse_rfc3339("2026-01-01T01:00:00.250+01:00")
    (1767225600000, 1767225600250)
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a timestamp needs an offset: Z or +hh:mm")
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000 + delta.microseconds // 1_000


def rfc3339(ms: int) -> str:
    """
    >>> rfc3339(1767225600250)
    '2026-01-01T00:00:00.250Z'
    """
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
