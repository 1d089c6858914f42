"""The live sample feeds of `cmis up --demo`: they enter as any feed does, over HTTP with a token."""

from __future__ import annotations

import asyncio
import logging

import httpx
import orjson

from cmis_stream.core.time import DAY_MS
from cmis_stream.feeds.simulator import Simulator
from cmis_stream.instance import Instance

ORGS = {"acme": "Acme Outdoor", "globex": "Globex Home"}
STEP_S = 0.25
log = logging.getLogger("cmis.demo")


async def prepare(instance: Instance) -> dict[str, str]:
    """Makes the demo orgs with their rules; returns a token for each."""
    runtime = instance.runtime
    tokens = {}
    for org, name in ORGS.items():
        if runtime.tokens.org(org) is None:
            runtime.tokens.create_org(org, name)
        expires = runtime.clock() + DAY_MS
        tokens[org] = runtime.tokens.create(org, ["ingest"], expires, "demo feed")[1]
        if instance.settings.rules_file is None:
            own = [rule for rule in Simulator(tuple(ORGS)).demo_rules() if rule["org"] == org]
            stored = runtime.rule_sets.current().get(org)
            if stored is None or stored.rules != own:
                await runtime.put_rules(org, own)
    return tokens


async def feed(instance: Instance, tokens: dict[str, str], *, rate: int = 100) -> None:
    """Sends what has happened since the last step, four times a second, until cancelled. What fails is sent again."""
    runtime = instance.runtime
    start = runtime.clock()
    simulator = Simulator(tuple(ORGS), start_ms=start, rate=rate)
    sent_until = dict.fromkeys(ORGS, start)
    async with httpx.AsyncClient(base_url=instance.url, timeout=5) as client:
        while True:
            await asyncio.sleep(STEP_S)
            now = runtime.clock()
            for org, since in sent_until.items():
                events = [event for event in simulator.events_between(since, now) if event["org"] == org]
                body = b"\n".join(orjson.dumps(event) for event in events)
                try:
                    response = await client.post(
                        f"/api/orgs/{org}/events",
                        content=body,
                        headers={
                            "Authorization": f"Bearer {tokens[org]}",
                            "Content-Type": "application/x-ndjson",
                            "Cmis-Source": f"demo:{start}",
                        },
                    )
                except httpx.TransportError as error:
                    log.warning("demo feed of %s: %s", org, error)
                    continue
                if events and response.status_code != 200:
                    log.warning("demo feed of %s: %s %s", org, response.status_code, response.text[:200])
                    continue
                sent_until[org] = now
