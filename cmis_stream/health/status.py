"""Is it healthy, how far behind is it, who is slow: the answers for a person on call, and for whoever asks whether to send
traffic. Reading only; what it names (orgs, clients) is not for the public.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from cmis_stream.core.time import rfc3339
from cmis_stream.health import memory
from cmis_stream.health.busiest import busiest_orgs, slowest_clients, slowest_watermark
from cmis_stream.health.lag import LogView
from cmis_stream.health.loop_lag import LoopLag
from cmis_stream.health.metrics import checkpoint_age_s
from cmis_stream.health.ports import Parts
from cmis_stream.health.store import StoreProbe

READY_LAG_S = 60.0
SLOW_LOOP_S = 1.0
OLD_CHECKPOINT_S = 30.0
NEAR_LIMIT = 0.9


class Trouble(NamedTuple):
    """code: recovering, log_away, store_locked, backplane_away, lagging, failed and those of the role."""

    code: str
    detail: str

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


class Status:
    def __init__(
        self, parts: Parts, view: LogView, lag: LoopLag, store: StoreProbe, version: str, memory_limit: int | None,
        *, ready_lag_s: float = READY_LAG_S, monotonic: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """ready_lag_s: a process that is further behind is not ready."""
        self._parts, self._view, self._lag, self._store = parts, view, lag, store
        self._version, self._memory_limit, self._ready_lag_s = version, memory_limit, ready_lag_s
        self._monotonic = monotonic
        self._began_s, self._began_ms = monotonic(), parts.clock()

    def failed(self) -> list[Trouble]:
        """Why the process is about to end: it is not alive any more."""
        failed = self._parts.failed()
        return [] if failed is None else [Trouble("failed", failed)]

    def not_ready(self) -> list[Trouble]:
        """Why it cannot do its role now; [] when it can."""
        found = self.failed() + [Trouble(*given) for given in self._parts.unready()]
        if self._parts.topics and not self._parts.group_lag and not self._parts.flowing():
            found.append(Trouble("recovering", "partitions are being taken over; records do not flow yet"))
        if self._view.away_since is not None:
            away_s = self._monotonic() - self._view.away_since
            found.append(Trouble("log_away", f"the log has not answered for {away_s:.0f} s: {self._view.away_because}"))
        if self._store.problem is not None:
            found.append(Trouble("store_locked", self._store.problem))
        if self._parts.role == "gateway" and (away := self._backplane_away()) is not None:
            found.append(away)
        if not self._parts.group_lag and (lagging := self._lagging()) is not None:
            found.append(lagging)
        return found

    def _backplane_away(self) -> Trouble | None:
        backplane = self._parts.backplane
        if backplane is None or backplane.connected:
            return None
        return Trouble("backplane_away", f"the backplane ({backplane.kind}) does not answer; live results wait in the log")

    def _lagging(self) -> Trouble | None:
        lags = {place: lag for place, lag in self._view.lags().items() if (lag.seconds or 0) > self._ready_lag_s}
        if not lags:
            return None
        (topic, partition), lag = max(lags.items(), key=lambda item: item[1].seconds or 0)
        others = f" and {len(lags) - 1} more" if len(lags) > 1 else ""
        return Trouble(
            "lagging",
            f"{topic}, partition {partition}{others}: {lag.seconds:,.0f} s behind ({lag.records:,} records wait), "
            f"more than {self._ready_lag_s:.0f} s",
        )

    def problems(self) -> list[Trouble]:
        """What a person should look at, whether or not it keeps the process from its role."""
        found = self.not_ready() + [Trouble(*given) for given in self._parts.troubles()]
        codes = {trouble.code for trouble in found}
        for trouble in (self._backplane_away(), self._lagging()):
            if trouble is not None and trouble.code not in codes:
                found.append(trouble)
        now_s = self._monotonic()
        old = [(age, p) for p in self._parts.partitions() if (age := checkpoint_age_s(p, now_s)) > OLD_CHECKPOINT_S]
        if old:
            age, partition = max(old, key=lambda one: one[0])
            found.append(
                Trouble(
                    "old_checkpoint",
                    f"partition {partition.partition}: the newest safe checkpoint is {age:.0f} s old; "
                    f"{partition.unacked} records would be applied again",
                )
            )
        if self._lag.most_s > SLOW_LOOP_S:
            found.append(
                Trouble("slow_loop", f"the event loop was {self._lag.most_s:.1f} s late within the last minute: it does too much")
            )
        resident = memory.resident_bytes()
        if resident is not None and self._memory_limit is not None and resident > NEAR_LIMIT * self._memory_limit:
            found.append(
                Trouble(
                    "memory",
                    f"{resident / 1e6:,.0f} MB are resident; at {self._memory_limit / 1e6:,.0f} MB the process ends itself",
                )
            )
        return found

    def document(self) -> dict[str, Any]:
        """JSON of `GET /status`."""
        parts, lags = self._parts, self._view.lags()
        problems = self.problems()
        held = sorted(parts.partitions(), key=lambda one: one.partition)
        slowest = max(lags, key=lambda place: (lags[place].seconds or 0, lags[place].records), default=None)
        now_s, now_ms = self._monotonic(), parts.clock()
        return {
            "role": parts.role,
            "version": self._version,
            "started_at": rfc3339(self._began_ms),
            "uptime_s": round(now_s - self._began_s, 1),
            "healthy": not problems,
            "ready": not self.not_ready(),
            "problems": [trouble._asdict() for trouble in problems],
            "log": {"answers": self._view.away_since is None} if parts.log is not None else None,
            "lag": {
                "of": "group" if parts.group_lag else "held",
                "records": sum(lag.records for lag in lags.values()),
                "seconds": max((lag.seconds or 0.0 for lag in lags.values()), default=0.0),
                "slowest": None if slowest is None else self._lag_of(slowest),
                "topics": self._by_topic(),
            },
            "partitions": [self._partition(partition, now_s, now_ms) for partition in held],
            "event_loop": {"max_lag_s": round(self._lag.most_s, 4)},
            "memory": {"resident_bytes": memory.resident_bytes(), "limit_bytes": self._memory_limit},
            "store": None if parts.store is None else {
                "url": parts.store.shown_url, "writable": self._store.problem is None,
            },
            "backplane": None if parts.backplane is None else {
                "kind": parts.backplane.kind, "connected": parts.backplane.connected, "reconnects": parts.backplane.reconnects,
            },
            "gateway": None if parts.gateway is None else {
                "connections": len(parts.gateway.clients),
                "queue_bytes": sum(client.outbox.lossless_bytes for client in parts.gateway.clients),
            },
            "packer": None if parts.waiting_events is None else {"waiting_events": parts.waiting_events()},
            "history": None if parts.history is None else {
                "lag_records": sum(self._view.history_lags().values()), "lost_records": parts.history_lost(),
            },
            "dead_letters": None if parts.dead_letters is None else dict(parts.dead_letters()),
            "busiest_orgs": busiest_orgs(held),
            "slowest_clients": [] if parts.gateway is None else slowest_clients(parts.gateway.clients),
        }  # fmt: skip

    def _lag_of(self, place: tuple[str, int]) -> dict[str, Any]:
        lag = self._view.lags()[place]
        return {"topic": place[0], "partition": place[1], "records": lag.records, "seconds": lag.seconds}

    def _by_topic(self) -> list[dict[str, Any]]:
        lags = self._view.lags()
        found = []
        for topic in dict.fromkeys(topic for topic, _ in lags):
            own = [lag for (name, _), lag in lags.items() if name == topic]
            seconds = max((lag.seconds or 0.0 for lag in own), default=0.0)
            found.append({"topic": topic, "records": sum(lag.records for lag in own), "seconds": seconds})
        return found

    def _partition(self, partition: Any, now_s: float, now_ms: int) -> dict[str, Any]:
        lag = self._view.lags().get((partition.topic, partition.partition))
        mark = slowest_watermark(partition)
        return {
            "partition": partition.partition,
            "position": partition.position,
            "lag_records": None if lag is None else lag.records,
            "lag_seconds": None if lag is None else lag.seconds,
            "unacked": partition.unacked,
            "checkpoint_age_s": round(checkpoint_age_s(partition, now_s), 3),
            "checkpoint_duration_s": round(partition.saving_s, 4),
            "slowest_org": None if mark is None else {"org": mark.org, "watermark_lag_s": round((now_ms - mark.at_ms) / 1000, 3)},
        }
