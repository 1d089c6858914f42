"""What the gateway counts about itself, and its text for Prometheus."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

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


def prometheus(figures: Figures, *, connections: int, subscriptions: int, queue_bytes: int, conflated_items: int) -> str:
    """The text exposition format: what is now, then the totals."""
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
    lines: list[str] = []
    for kind, rows in (("gauge", gauges), ("counter", counters)):
        for name, (text, value) in rows.items():
            lines += [f"# HELP {_PREFIX}{name} {text}", f"# TYPE {_PREFIX}{name} {kind}", f"{_PREFIX}{name} {value}"]
    for name, text, codes in (
        ("closes_total", "Connections closed by the gateway or the client, by close code.", figures.closes),
        ("errors_total", "Error replies, by code.", figures.errors),
    ):
        lines += [f"# HELP {_PREFIX}{name} {text}", f"# TYPE {_PREFIX}{name} counter"]
        lines += [f'{_PREFIX}{name}{{code="{code}"}} {count}' for code, count in sorted(codes.items())]
    return "\n".join(lines) + "\n"
