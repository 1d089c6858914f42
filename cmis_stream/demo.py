"""The live sample feeds of `cmis up --demo`: they enter as any feed does, over HTTP with a token."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import orjson

from cmis_stream.core.time import DAY_MS, HOUR_MS, SECOND_MS
from cmis_stream.feeds.simulator import Simulator
from cmis_stream.instance import Instance
from cmis_stream.modules.alerts.rule_file import apply_rules, rule_documents
from cmis_stream.store.decisions import Actor

DEMO = "demo"
"""What made the sample documents (`metadata.applied_from`)."""
ORGS = {"acme": "Acme Outdoor", "globex": "Globex Home"}
STEP_S = 0.25
PAST = ((2 * DAY_MS, 6 * HOUR_MS, 1), (6 * HOUR_MS, 0, 4))
"""(from, until, events a second): how long ago, and how finely, samples of the time before the start are made."""
EVENTS_PER_REQUEST = 5_000
log = logging.getLogger("cmis.demo")


async def prepare(instance: Instance) -> dict[str, str]:
    """Makes the demo orgs; returns a token for each."""
    runtime = instance.runtime
    tokens = {}
    for org, name in ORGS.items():
        if runtime.tokens.org(org) is None:
            runtime.tokens.create_org(org, name)
        tokens[org] = runtime.tokens.create(org, ["ingest"], runtime.clock() + DAY_MS, "demo feed")[1]
    return tokens


async def feed(instance: Instance, tokens: dict[str, str], *, rate: int = 100, past: bool = True) -> None:
    """Sends samples of the last two days, as far as the windows do not hold them yet, then puts the demo rules in force and sends
    what has happened since the last step, four times a second, until cancelled. What fails is sent again."""
    runtime = instance.runtime
    start = runtime.clock()
    simulator = Simulator(tuple(ORGS), start_ms=start, rate=rate)
    async with httpx.AsyncClient(base_url=instance.url, timeout=30) as client:
        sender = _Sender(client, tokens, f"demo:{start}")
        if past:
            await _send_past(instance, sender, start)
        if instance.settings.rules_file is None:
            await _put_rules(instance, simulator)
        sent_until = dict.fromkeys(ORGS, start)
        while True:
            now = runtime.clock()
            for org, since in sent_until.items():
                events = [event for event in simulator.events_between(since, now) if event["org"] == org]
                if await sender.send(org, events):
                    sent_until[org] = now
            await asyncio.sleep(STEP_S)


async def _send_past(instance: Instance, sender: _Sender, start_ms: int) -> None:
    """From where an org's windows end, at most two days ago, in order of time: a page opened now has something to show."""
    known = {org: _newest_ms(instance, org) for org in ORGS}
    waiting: dict[str, list[dict[str, Any]]] = {org: [] for org in ORGS}
    for earliest, latest, rate in PAST:
        simulator = Simulator(tuple(ORGS), start_ms=start_ms - earliest, rate=rate)
        for at in range(start_ms - earliest, start_ms - latest, 600 * SECOND_MS):
            until = min(at + 600 * SECOND_MS, start_ms - latest)
            for event in await asyncio.to_thread(simulator.events_between, at, until):
                if event["ts"] > known[event["org"]]:
                    waiting[event["org"]].append(event)
            for org, events in waiting.items():
                if len(events) >= EVENTS_PER_REQUEST:
                    await sender.send_surely(org, events)
                    events.clear()
    for org, events in waiting.items():
        await sender.send_surely(org, events)


def _newest_ms(instance: Instance, org: str) -> int:
    """The largest event time that the org's windows have seen; 0 without any."""
    owner = instance.runtime.owner_of(org)
    number = owner.engine.entities.org_number.get(org) if owner is not None else None
    return max(int(owner.engine.windows.newest[number]), 0) if owner is not None and number is not None else 0


async def _put_rules(instance: Instance, simulator: Simulator) -> None:
    documents, read = instance.runtime.stores.documents, rule_documents(simulator.demo_rules())
    for org in ORGS:
        await asyncio.to_thread(apply_rules, documents, org, read.wanted.get(org, ()), DEMO, Actor(DEMO, sees_private=True))


class _Sender:
    """Enters as any feed does: over HTTP with a token."""

    def __init__(self, client: httpx.AsyncClient, tokens: dict[str, str], source: str) -> None:
        self._client, self._tokens, self._source = client, tokens, source

    async def send(self, org: str, events: list[dict[str, Any]]) -> bool:
        """False when they have to be sent again; their ids see to it that none counts twice."""
        if not events:
            return True
        headers = {
            "Authorization": f"Bearer {self._tokens[org]}",
            "Content-Type": "application/x-ndjson",
            "Cmis-Source": self._source,
        }
        body = b"\n".join(orjson.dumps(event) for event in events)
        try:
            response = await self._client.post(f"/api/orgs/{org}/events", content=body, headers=headers)
        except httpx.TransportError as error:
            log.warning("demo feed of %s: %s", org, error)
            return False
        if response.status_code != 200:
            log.warning("demo feed of %s: %s %s", org, response.status_code, response.text[:200])
            return False
        return True

    async def send_surely(self, org: str, events: list[dict[str, Any]]) -> None:
        while not await self.send(org, events):
            await asyncio.sleep(STEP_S)
