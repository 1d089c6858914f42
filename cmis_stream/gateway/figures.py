"""What the gateway counts about itself, and its metrics for Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

_PREFIX = "cmis_gateway_"


@dataclass(slots=True)
class Figures:
    """Totals since the start."""

    connections: int = 0
    publications: int = 0
    messages: int = 0
    bytes: int = 0
    commands: int = 0
    conflated_drops: int = 0
    closes: Counter[int] = field(default_factory=Counter)
    errors: Counter[int] = field(default_factory=Counter)


class Measured(NamedTuple):
    """One metric. values: by close or error code; None for the only one."""

    kind: Literal["gauge", "counter"]
    name: str
    text: str
    values: Mapping[int | None, int]


def measured(
    figures: Figures, *, connections: int, subscriptions: int, queue_bytes: int, conflated_items: int
) -> Iterator[Measured]:
    """What is now, then the totals."""
    gauges = {
        "connections": ("Connections now.", connections),
        "subscriptions": ("Subscriptions now.", subscriptions),
        "queue_bytes": ("Bytes waiting in lossless queues.", queue_bytes),
        "conflated_items": ("Items waiting in conflated queues.", conflated_items),
    }
    counters = {
        "connections_total": ("Connections opened.", figures.connections),
        "publications_total": (
            "Publications received from the backplane, for channels with subscriptions.",
            figures.publications,
        ),
        "messages_total": ("Publications written or queued, one for each subscription.", figures.messages),
        "bytes_total": ("Bytes of websocket frames written.", figures.bytes),
        "commands_total": ("Commands received.", figures.commands),
        "conflated_drops_total": ("Items replaced by newer ones before they were sent.", figures.conflated_drops),
    }
    for name, (text, value) in gauges.items():
        yield Measured("gauge", _PREFIX + name, text, {None: value})
    for name, (text, value) in counters.items():
        yield Measured("counter", _PREFIX + name, text, {None: value})
    closes, errors = "Connections closed by the gateway or the client, by close code.", "Error replies, by code."
    yield Measured("counter", f"{_PREFIX}closes_total", closes, dict(sorted(figures.closes.items())))
    yield Measured("counter", f"{_PREFIX}errors_total", errors, dict(sorted(figures.errors.items())))


def prometheus(figures: Figures, *, connections: int, subscriptions: int, queue_bytes: int, conflated_items: int) -> str:
    """The text exposition format."""
    lines: list[str] = []
    for kind, name, text, values in measured(
        figures,
        connections=connections,
        subscriptions=subscriptions,
        queue_bytes=queue_bytes,
        conflated_items=conflated_items,
    ):
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        lines += [f"{name} {value}" if code is None else f'{name}{{code="{code}"}} {value}' for code, value in values.items()]
    return "\n".join(lines) + "\n"
