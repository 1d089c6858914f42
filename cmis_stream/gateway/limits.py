"""What one client, one org and the whole gateway may use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes, times in seconds.

    commands_per_s: of one client, with bursts of up to commands_burst. working: commands of one client that are answered
    at the same time; its further frames wait. connections, *_per_org: 3504 and 106 beyond them.

    lossless_bytes: what may wait for a client that does not read, 3008 beyond. conflated_items: the same for conflated
    items, of which there is one per key. socket_bytes: the kernel's buffer per connection, which fills first.
    recovered: publications of a conflated topic that a client can get of what it missed; of more a snapshot says what holds
    now. history: publications that one history command can get.
    drain_s: over which closing is spread when the gateway stops; close_s: what a client then has to answer.
    page: publications read at a time for a client that catches up. held: kept for a subscription in the making; when there are
    more it reads them again from the backplane. slice: clients that are written to before the event loop gets its turn.
    """

    message_bytes: int = 64 << 10
    commands_per_s: float = 50.0
    commands_burst: int = 500
    working: int = 32
    channel_chars: int = 2048
    subscriptions: int = 256

    connections: int = 20_000
    connections_per_org: int = 5_000
    subscriptions_per_org: int = 50_000

    connect_s: float = 10.0
    ping_s: float = 25.0
    pong_s: float = 10.0
    expiry_grace_s: float = 25.0
    close_s: float = 1.0
    snapshot_s: float = 2.0
    watch_s: float = 0.5
    drain_s: float = 0.5

    lossless_bytes: int = 1 << 20
    conflated_items: int = 50_000
    socket_bytes: int = 128 << 10
    recovered: int = 1_000
    history: int = 1_000
    page: int = 200
    held: int = 1_000
    slice: int = 250
