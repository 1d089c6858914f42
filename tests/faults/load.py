"""What is sent while something fails: a workload with its exact answer, paced, over HTTP with retries; and probes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import httpx
import orjson

from cmis_stream.core.engine import end_of_panes
from cmis_stream.core.time import LATENESS_MS, PANE_SIZES_MS, SECOND_MS
from cmis_stream.feeds.client import Progress, Summary, send_file
from tests.e2e.support import Workload, make_workload

PANE_MS = PANE_SIZES_MS[0]
RETRY_FOR_S = 180.0
PROBE, CLOSING = "probe", "closing"
"""Campaigns beside those of the workload; no rule ever holds for them, since they spend nothing and are never clicked."""
Cell = tuple[str, str, str, int]
"""(org, platform, campaign, start of a pane of 10 s in epoch ms)."""
Sums = tuple[int, ...]
"""events, impressions, clicks, spend_micros, conversions, revenue_micros."""


def present_workload(folder: Path, *, events: int, orgs: int = 8, span_s: int = 420, seed: int = 1) -> Workload:
    """A workload whose last event is of about now, as those of a live feed are."""
    made = make_workload(folder, events=events, rules=100, span_s=span_s, orgs=orgs, seed=seed)
    lines = [orjson.loads(line) for line in made.events.read_bytes().splitlines()]
    by_ms = (int(time.time() * SECOND_MS) - max(line["ts"] for line in lines)) // PANE_MS * PANE_MS
    for line in lines:
        line["ts"] += by_ms
    made.events.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return dataclasses.replace(made, answer=[{**transition, "at": transition["at"] + by_ms} for transition in made.answer])


class Paced:
    """A file that comes bit by bit over `seconds`, as a pipe would. `send_file` reads it in a thread."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._data, self._seconds, self._read = path.read_bytes(), seconds, 0
        self._began = time.monotonic()

    def read(self, size: int) -> bytes:
        while self._read < len(self._data):
            share = min((time.monotonic() - self._began) / self._seconds, 1.0)
            end = min(int(share * len(self._data)), self._read + size)
            if part := self._data[self._read : end]:
                self._read = end
                return part
            time.sleep(0.02)
        return b""


class Load:
    """The workload on its way into an installation. `sent` counts events that the installation has acknowledged."""

    def __init__(self, workload: Workload, url: str, token_for: Callable[[str], str], seconds: float, state: Path) -> None:
        self.workload = workload
        lines = [orjson.loads(line) for line in workload.events.read_bytes().splitlines()]
        self.orgs = sorted({line["org"] for line in lines})
        self.end_ms = end_of_panes(max(line["ts"] for line in lines))
        self.start_ms = min(line["ts"] for line in lines) // PANE_MS * PANE_MS
        self.expected: dict[Cell, Sums] = _cells(lines)
        self.sent = 0
        self.refused = 0
        """Answers, or missing ones, that made the sender wait."""
        self.probes = 0
        self._tokens = {org: token_for(org) for org in self.orgs}
        self._url, self._seconds, self._state = url, seconds, state
        self._client = httpx.AsyncClient(base_url=url, timeout=10, trust_env=False)
        self._task: asyncio.Task[Summary] | None = None

    def begin(self) -> None:
        paced = cast(BinaryIO, Paced(self.workload.events, self._seconds))
        sending = send_file(
            paced, url=self._url, token_for=self._tokens.__getitem__, state_dir=self._state, progress=self._told,
            batch_events=250, retry_for_s=RETRY_FOR_S,
        )  # fmt: skip
        self._task = asyncio.create_task(sending)

    def _told(self, progress: Progress) -> None:
        self.sent = progress.accepted
        self.refused += progress.waiting is not None

    @property
    def done(self) -> bool:
        return self._task is not None and self._task.done()

    async def comes_to(self, share: float) -> None:
        """Returns when this share of the events is acknowledged. AssertionError when all are: then nothing is under way."""
        assert self._task is not None
        while self.sent < share * self.workload.count:
            if self._task.done():
                self._task.result()
                raise AssertionError("the load was done before the fault")
            await asyncio.sleep(0.02)

    async def all_sent(self) -> Summary:
        assert self._task is not None
        summary = await self._task
        if summary.rejected or summary.accepted != self.workload.count:
            raise AssertionError(f"{summary}")
        return summary

    async def probe(self) -> int:
        """Sends one event to each org, until it is acknowledged; the probe's number. It tells when results are back."""
        number, self.probes = self.probes, self.probes + 1
        # Within the first pane that is not judged any more, or that is amended without effect: nobody judges a probe.
        await asyncio.gather(*(self._post(org, f"{PROBE}-{number}", self.start_ms) for org in self.orgs))
        for org in self.orgs:
            self.expected[org, "meta", f"{PROBE}-{number}", self.start_ms] = (1, 0, 0, 0, 0, 0)
        return number

    async def close_panes(self) -> None:
        """An event behind the last pane for each org: now every pane of the workload is final. May be repeated."""
        await asyncio.gather(*(self._post(org, CLOSING, self.end_ms + LATENESS_MS) for org in self.orgs))

    async def _post(self, org: str, campaign: str, ts: int) -> None:
        event = {"id": f"{campaign}-{time.time_ns()}", "ts": ts, "platform": "meta", "campaign": campaign}
        headers = {"Authorization": f"Bearer {self._tokens[org]}"}
        give_up_at = time.monotonic() + RETRY_FOR_S
        while time.monotonic() < give_up_at:
            try:
                response = await self._client.post(f"/api/orgs/{org}/events", json=event, headers=headers)
            except httpx.TransportError:
                pass
            else:
                if response.status_code == 200:
                    return
                if response.status_code < 500 and response.status_code != 429:
                    raise AssertionError(f"{response.status_code} {response.text}")
            await asyncio.sleep(0.1)
        raise AssertionError(f"an event was not taken for {RETRY_FOR_S:g} s")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        await self._client.aclose()


def _cells(lines: list[dict[str, Any]]) -> dict[Cell, Sums]:
    """What panes must hold, added up from the file."""
    found: dict[Cell, list[int]] = {}
    for line in lines:
        cell = found.setdefault((line["org"], line["platform"], line["campaign"], line["ts"] // PANE_MS * PANE_MS), [0] * 6)
        values = (
            1, line["impressions"], line["clicks"], round(line["spend"] * 1e6), round(line["conversions"] * 1e6),
            round(line["revenue"] * 1e6),
        )  # fmt: skip
        cell[:] = [a + b for a, b in zip(cell, values, strict=True)]
    return {cell: tuple(sums) for cell, sums in found.items()}


Transition = tuple[str, str, str, str, int]
"""(org, rule, campaign, state, at)."""


def expected_transitions(workload: Workload) -> Counter[Transition]:
    org_of = {rule["id"]: rule["org"] for rule in json.loads(workload.rules.read_text())}
    return Counter((org_of[t["rule"]], t["rule"], t["campaign"], t["state"], t["at"]) for t in workload.answer)
