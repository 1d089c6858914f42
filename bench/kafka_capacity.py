"""The arithmetic of docs/scale.md: what an installation needs, from costs measured here.

python -m bench.kafka_capacity [--events-s 1e6] [--orgs 10000] [--browsers 1e5] [--request-events 500] [--partitions 64] ...

Cores are those of the machine that the costs were measured on (docs/scale.md); another one's are in proportion.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields

# Measured 2026-11-24, CPU µs. A cost is of one process of its role, all its threads.
API_EVENT, API_REQUEST = 1.2, 560.0
WORKER_EVENT, WORKER_ENVELOPE = 1.0, 500.0
WORKER_ORG_PANE, WORKER_AD_PANE = 100.0, 0.2
"""A pane of 10 s that closes: for its org, and for each of its ads."""
WORKER_PUBLICATION, REDIS_PUBLICATION, GATEWAY_MESSAGE = 28.0, 16.0, 4.1
BROKER_BYTE = 0.005
JSON_BYTES, LOG_BYTES, OTHER_LOG_BYTES = 230, 90, 60  # of an event: sent, in its envelope, and what it causes in other topics
REDIS_HELD_BYTES, REDIS_HELD = 3_200, 1_000  # of a publication, publications of a channel
AD_BYTES, PROCESS_BYTES = 18_600, 150e6  # an ad active in every pane of all windows; a process without state
RECOVERY_S, RECOVERY_BYTE_S = 0.5, 3.3e-9  # of a worker's resident bytes
# Estimates.
GATEWAY_PUBLICATION = 20.0
"""µs for a publication that comes from Redis: to read it, and to make its JSON once."""
USED = 0.6
"""Share of a core that is planned with: the rest is for bursts, catching up and a neighbour's partitions."""
GATEWAY_CONNECTIONS = 20_000  # gateway/limits.py


@dataclass(frozen=True, slots=True)
class Load:
    """hottest: share of all events that the largest org sends. rollups_s: a browser's messages. own_gateways: over how many
    gateways an org's browsers are spread; 0: all."""

    events_s: float = 1e6
    orgs: float = 10_000
    hottest: float = 0.05
    ads_per_org: float = 100
    browsers: float = 100_000
    request_events: float = 500
    partitions: float = 64
    rollups_s: float = 4
    message_bytes: float = 2_200
    replicas: float = 3
    days: float = 7
    own_gateways: float = 0


def figures(load: Load) -> dict[str, float]:
    """What the load needs; cores without reserve unless it says so."""
    requests_s = load.events_s / load.request_events
    publications_s = load.orgs * load.rollups_s
    panes_s = load.orgs / 10
    api = (load.events_s * API_EVENT + requests_s * API_REQUEST) / 1e6
    applying = load.events_s * WORKER_EVENT + requests_s * WORKER_ENVELOPE  # an envelope per request, when lanes are many
    closing = panes_s * (WORKER_ORG_PANE + load.ads_per_org * WORKER_AD_PANE)
    worker = (applying + closing + publications_s * WORKER_PUBLICATION) / 1e6
    hottest = load.hottest * applying / 1e6
    fullest = hottest + (worker - hottest) / load.partitions
    workers = min(load.partitions, -(-worker // USED))
    log_s = load.events_s * (LOG_BYTES + OTHER_LOG_BYTES)
    messages_s = load.browsers * load.rollups_s
    gateways = max(-(-load.browsers // GATEWAY_CONNECTIONS), 1)
    for _ in range(20):  # more gateways hear more in all
        spread = min(load.own_gateways or gateways, gateways)
        per_org = min(load.browsers / load.orgs, spread)
        fan_out = messages_s * GATEWAY_MESSAGE / 1e6
        heard = publications_s * per_org * GATEWAY_PUBLICATION / 1e6
        gateways = max(gateways, -(-(fan_out + heard) // USED))
    state = load.orgs * load.ads_per_org * AD_BYTES
    return {
        "api cores": api,
        "worker cores": worker,
        "of them the fullest partition (at most 0.6)": fullest,
        f"workers, {USED:.0%} of a core each": workers,
        "memory of a worker, GB": (state / workers + PROCESS_BYTES) / 1e9,
        "recovery of a worker, s": RECOVERY_S + RECOVERY_BYTE_S * (state / workers + PROCESS_BYTES),
        "into the api, Gbit/s without gzip": load.events_s * JSON_BYTES * 8 / 1e9,
        "into Kafka, MB/s, one copy": log_s / 1e6,
        "broker cores, all copies": log_s * load.replicas * BROKER_BYTE / 1e6,
        f"log of {load.days:g} days, TB, all copies": log_s * load.days * 86_400 * load.replicas / 1e12,
        "Redis cores (of one thread)": publications_s * REDIS_PUBLICATION / 1e6,
        "Redis memory, GB": load.orgs * REDIS_HELD * REDIS_HELD_BYTES / 1e9,
        "from Redis, Gbit/s": publications_s * per_org * load.message_bytes * 8 / 1e9,
        "gateway cores": fan_out + heard,
        "gateways": gateways,
        "to browsers, Gbit/s": messages_s * load.message_bytes * 8 / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.kafka_capacity", description=(__doc__ or "").splitlines()[0])
    for field in fields(Load):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=float, default=field.default, help=f"default: {field.default:g}"
        )
    for name, value in figures(Load(**vars(parser.parse_args()))).items():
        print(f"{name:48} {value:10,.2f}")


if __name__ == "__main__":
    main()
