"""Who looks on while something fails: the unmodified Centrifugo client, always connected, and what REST answers at the end."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import centrifuge
import httpx

from cmis_stream.core.channels import entity_key
from cmis_stream.core.time import parse_rfc3339, rfc3339
from tests.faults.cluster import until
from tests.faults.load import CLOSING, PANE_MS, PROBE, Cell, Load, Sums, Transition

MOST_PROBES = 40
MEASURES = ["events", "impressions", "clicks", "spend_micros", "conversions_micros", "revenue_micros"]


class _Incidents(centrifuge.SubscriptionEventHandler):
    def __init__(self, org: str) -> None:
        self.org = org
        self.subscribed: list[centrifuge.SubscribedContext] = []
        self.heard: list[Transition] = []

    async def on_subscribed(self, ctx: centrifuge.SubscribedContext) -> None:
        self.subscribed.append(ctx)

    async def on_publication(self, ctx: centrifuge.PublicationContext) -> None:
        for item in ctx.pub.data["items"]:
            self.heard.append((self.org, item["rule"], item["campaign"], item["state"], item["at"]))


class _Probes(centrifuge.SubscriptionEventHandler):
    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.subscribed = 0

    def _take(self, data: Any) -> None:
        self.seen.update(item["entity"].rpartition("/")[2] for item in (data or {}).get("items", ()))

    async def on_subscribed(self, ctx: centrifuge.SubscribedContext) -> None:
        self.subscribed += 1
        self._take(ctx.data)

    async def on_publication(self, ctx: centrifuge.PublicationContext) -> None:
        self._take(ctx.pub.data)


class Audience:
    """A client per org, over the gateways in turn, subscribed to its incidents and to the figures of its probes."""

    def __init__(self, urls: list[str], tokens: dict[str, str]) -> None:
        """tokens: org -> one with the scope `read`."""
        self.incidents = {org: _Incidents(org) for org in tokens}
        self._probes = {org: _Probes() for org in tokens}
        self._clients = {}
        for number, (org, token) in enumerate(tokens.items()):
            self._clients[org] = centrifuge.Client(
                urls[number % len(urls)], token=token, min_reconnect_delay=0.05, max_reconnect_delay=1.0
            )

    async def connect(self) -> None:
        wanted = [entity_key(["USD", "meta", "", f"{PROBE}-{number}"]) for number in range(MOST_PROBES)]
        for org, client in self._clients.items():
            await client.new_subscription(
                f"org:{org}:incidents", self.incidents[org], min_resubscribe_delay=0.1, max_resubscribe_delay=1.0
            ).subscribe()
            await client.new_subscription(
                f"org:{org}:metrics", self._probes[org], data={"filter": {"entities": wanted}}, max_resubscribe_delay=1.0
            ).subscribe()
            await client.connect()
        await until(
            lambda: all(i.subscribed for i in self.incidents.values()) and all(p.subscribed for p in self._probes.values()),
            "the subscriptions",
        )

    async def sees(self, probe: int, patience_s: float = 180) -> None:
        """Returns when every org's client has the figures of this probe."""
        missing = lambda: [org for org, probes in self._probes.items() if f"{PROBE}-{probe}" not in probes.seen]  # noqa: E731
        try:
            await until(lambda: not missing(), "a probe", patience_s)
        except AssertionError:
            raise AssertionError(f"probe {probe} did not come within {patience_s:g} s to {missing()}") from None

    def heard(self, end_ms: int) -> Counter[Transition]:
        """What clients were told, up to this moment of event time."""
        return Counter(t for client in self.incidents.values() for t in client.heard if t[-1] <= end_ms)

    def unrecovered(self) -> int:
        """How often a client that came back was told that what it missed could not be had."""
        return sum(not context.recovered for client in self.incidents.values() for context in client.subscribed[1:])

    def disordered(self) -> list[str]:
        """Orgs whose transitions did not come in the order of event time, in which panes are judged."""
        return [
            org for org, client in self.incidents.items() if [t[-1] for t in client.heard] != sorted(t[-1] for t in client.heard)
        ]

    async def disconnect(self) -> None:
        await asyncio.gather(*(client.disconnect() for client in self._clients.values()))


class Reader:
    """What REST says of all orgs."""

    def __init__(self, url: str, tokens: dict[str, str]) -> None:
        self._client, self._tokens = httpx.AsyncClient(base_url=url, timeout=30, trust_env=False), tokens

    async def cells(self, load: Load) -> dict[Cell, Sums]:
        """Every pane of every campaign, without those that close the load."""
        query = {
            "dataset": "panes", "measures": MEASURES, "dimensions": ["time", "platform", "campaign"], "step": "10s",
            "from": rfc3339(load.start_ms), "to": rfc3339(load.end_ms + 2 * PANE_MS),
        }  # fmt: skip
        found: dict[Cell, Sums] = {}
        for org in self._tokens:
            answer = await self._asked("POST", f"/api/orgs/{org}/query", org, json=query)
            names = [column["name"] for column in answer["columns"]]
            for row in (dict(zip(names, values, strict=True)) for values in answer["rows"]):
                if row["campaign"] != CLOSING:
                    cell = org, row["platform"], row["campaign"], parse_rfc3339(row["time"])
                    found[cell] = tuple(row[name] for name in MEASURES)
        return found

    async def transitions(self, end_ms: int) -> Counter[Transition]:
        """By the incidents in the store, up to this moment of event time."""
        found: Counter[Transition] = Counter()
        for org in self._tokens:
            cursor: dict[str, str] = {}
            while True:
                page = await self._asked("GET", f"/api/orgs/{org}/alerts/history", org, params={"limit": "500", **cursor})
                found.update(t for item in page["items"] for t in _of_incident(org, item) if t[-1] <= end_ms)
                if page["next"] is None:
                    break
                cursor = {"cursor": page["next"]}
        return found

    async def _asked(self, method: str, path: str, org: str, **given: Any) -> Any:
        """The answer; asked again while whoever owns the org's partition is changing, or the API is starting."""
        give_up_at = time.monotonic() + 60
        while True:
            try:
                response = await self._client.request(
                    method, path, headers={"Authorization": f"Bearer {self._tokens[org]}"}, **given
                )
                said = f"{response.status_code} {response.text[:500]}"
            except httpx.TransportError as error:
                response, said = None, repr(error)
            if response is not None and response.status_code == 200:
                return response.json()
            if (response is not None and response.status_code < 500) or time.monotonic() > give_up_at:
                raise AssertionError(f"{method} {path}: {said}")
            await asyncio.sleep(0.2)

    async def close(self) -> None:
        await self._client.aclose()


def _of_incident(org: str, item: dict[str, Any]) -> Iterable[Transition]:
    yield org, item["rule"], item["campaign"], "firing", parse_rfc3339(item["started_at"])
    if item["resolved_at"] is not None:
        yield org, item["rule"], item["campaign"], "resolved", parse_rfc3339(item["resolved_at"])
