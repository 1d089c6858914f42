"""What a fault did: sent, arrived, lost, doubled, and how long until results came again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Self, TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Tally:
    """Of one kind of thing. lost: missing of what was expected; doubled: there more than once, or not expected at all."""

    sent: int
    arrived: int
    lost: int
    doubled: int

    @classmethod
    def of(cls, expected: Counter[Key], found: Counter[Key]) -> Self:
        lost, doubled = (expected - found).total(), (found - expected).total()
        return cls(expected.total(), found.total(), lost, doubled)

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.sent + other.sent, self.arrived + other.arrived, self.lost + other.lost, self.doubled + other.doubled)

    @classmethod
    def of_sums(cls, expected: Mapping[Key, tuple[int, ...]], found: Mapping[Key, tuple[int, ...]]) -> Self:
        """Of events, by the sums that they lead to; the first of a cell's sums is their number.

        A cell with the right number of events and another wrong sum counts as one lost and one doubled.
        """
        nothing = (0,)
        lost = doubled = 0
        for cell in expected.keys() | found.keys():
            wanted, got = expected.get(cell, nothing), found.get(cell, nothing)
            wrong = int(wanted[0] == got[0] and wanted != got)
            lost += max(wanted[0] - got[0], wrong)
            doubled += max(got[0] - wanted[0], wrong)
        return cls(sum(s[0] for s in expected.values()), sum(s[0] for s in found.values()), lost, doubled)


@dataclass
class Outcome:
    """alerts: transitions in the store. told: transitions at the clients that were connected throughout.

    recovery_s: from the end of the disturbance (of a kill: from the kill) until an event that was sent then is in every org's
    figures at the clients; the longest when there were several. None: nothing had to recover.
    """

    name: str
    events: Tally
    alerts: Tally
    told: Tally
    recovery_s: float | None
    took_s: float
    remarks: list[str] = field(default_factory=list)

    @property
    def lost(self) -> int:
        return self.events.lost + self.alerts.lost + self.told.lost

    @property
    def doubled(self) -> int:
        return self.events.doubled + self.alerts.doubled + self.told.doubled

    @property
    def line(self) -> str:
        recovery = "–" if self.recovery_s is None else f"{self.recovery_s:.1f} s"
        kinds = {"events": self.events, "alerts": self.alerts, "told": self.told}
        figures = ", ".join(
            f"{kind} {t.arrived:,} of {t.sent:,}" + (f" (lost {t.lost:,}, doubled {t.doubled:,})" if t.lost or t.doubled else "")
            for kind, t in kinds.items()
        )  # fmt: skip
        remarks = f"; {'; '.join(self.remarks)}" if self.remarks else ""
        return f"{self.name}: lost {self.lost:,}, doubled {self.doubled:,}; {figures}; recovery {recovery}{remarks}"

    @property
    def row(self) -> str:
        """Of the table in docs/reliability.md."""
        recovery = "–" if self.recovery_s is None else f"{self.recovery_s:.1f}"
        pairs = " | ".join(f"{t.sent:,} | {t.arrived:,}" for t in (self.events, self.alerts, self.told))
        return f"| {self.name} | {pairs} | {self.lost:,} | {self.doubled:,} | {recovery} |"


HEAD = (
    "| fault | events sent | arrived | alerts due | in the store | due at clients | arrived | lost | doubled | recovery, s |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)
