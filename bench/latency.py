"""From a request with an event to its alert at a client, while 20,000 other events a second flow in.

python -m bench.latency alert      at a websocket client
python -m bench.latency browser    on the page, in a headless Chromium of the system

`cmis up` (sync=normal) on a folder of its own. Another process sends the load: NDJSON of 500 events, forty requests a second.
This one sends one event at a time to the same org, each of a campaign that makes the rule fire. What is measured lies
between handing the request to the HTTP client and having read the frame, or the first frame that the browser draws after the
alert is in the page; so it holds the client's own share, on a machine that does all of it on two cores. The page draws at most
four times a second, on purpose.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx
from websockets.asyncio.client import connect

from bench.measure import Report, job_arguments
from bench.pipeline import CMIS, Instance, scratch
from bench.workloads import REPOSITORY

LOAD_PER_S, EVENTS_PER_REQUEST, IN_FLIGHT = 20_000, 500, 4
PROBES, WARM_UP = 300, 20
PROBES_ON_THE_PAGE = 60
ALERT_WITHIN_S = 10.0
ORG = "acme"
RULE = {"id": "probe", "org": ORG, "severity": "high", "metric": "spend", "window": "1m", "op": "gt", "threshold": 10}


def token(data_dir: Path, org: str, *scopes: str) -> str:
    command = [*CMIS, "token", "create", org, *(word for scope in scopes for word in ("--scope", scope))]
    ran = subprocess.run(
        [*command, "--data-dir", str(data_dir)],
        cwd=REPOSITORY,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return ran.stdout.strip()


def send_load(url: str, bearer: str, sent: Any) -> None:
    """LOAD_PER_S events a second until it is ended, counted in `sent`: 50 campaigns of 8 ads. Up to IN_FLIGHT requests at once;
    behind its schedule it sends without pause."""

    async def run() -> None:
        numbers, began = itertools.count(0, EVENTS_PER_REQUEST), time.perf_counter()
        headers = {"Authorization": f"Bearer {bearer}", "Content-Type": "application/x-ndjson"}

        async def send(client: httpx.AsyncClient) -> None:
            for number in numbers:
                await asyncio.sleep(max(0.0, began + number / LOAD_PER_S - time.perf_counter()))
                now = time.time_ns() // 1_000_000
                body = "\n".join(
                    f'{{"id":"l{i}","ts":{now},"platform":"meta","campaign":"c{i % 50}","ad_set":"s{i % 50}","ad":"a{i % 400}",'
                    f'"impressions":100,"clicks":3,"spend":1.5,"conversions":0,"revenue":0.0}}'
                    for i in range(number, number + EVENTS_PER_REQUEST)
                )
                (await client.post(f"/api/orgs/{ORG}/events", content=body, headers=headers)).raise_for_status()
                sent.value += EVENTS_PER_REQUEST

        async with httpx.AsyncClient(base_url=url, timeout=30) as client, asyncio.TaskGroup() as senders:
            for _ in range(IN_FLIGHT):
                senders.create_task(send(client))

    asyncio.run(run())


def event(number: int) -> str:
    """One that makes the rule fire, for a campaign of its own."""
    flat = {"id": f"p{number}", "ts": time.time_ns() // 1_000_000, "platform": "x", "campaign": f"probe-{number}-", "spend": 99.0}
    return json.dumps(flat)


async def at_a_websocket(running: Running) -> list[float]:
    """Seconds from each request to its alert."""
    waits = []
    headers = {"Authorization": f"Bearer {running.bearer}", "Content-Type": "application/x-ndjson"}
    async with connect(running.gateway, max_size=None) as socket, httpx.AsyncClient(base_url=running.url, timeout=30) as client:
        await socket.send(json.dumps({"id": 1, "connect": {"token": running.bearer}}))
        await socket.send(json.dumps({"id": 2, "subscribe": {"channel": f"org:{ORG}:incidents"}}))
        while not any(reply.get("id") == 2 and "subscribe" in reply for reply in await replies(socket)):
            pass
        for number in range(WARM_UP + PROBES):
            began = time.perf_counter()
            posted = asyncio.create_task(client.post(f"/api/orgs/{ORG}/events", content=event(number), headers=headers))
            async with asyncio.timeout(ALERT_WITHIN_S):
                while not any(_is_alert_of(reply, f"probe-{number}-") for reply in await replies(socket)):
                    pass
            waits.append(time.perf_counter() - began)
            (await posted).raise_for_status()
            await asyncio.sleep(0.02)
    return waits[WARM_UP:]


async def replies(socket: Any) -> Sequence[dict[str, Any]]:
    frame = await socket.recv()
    replies = [json.loads(line) for line in frame.splitlines() if line]
    if {} in replies:
        await socket.send("{}")  # a ping
    return replies


def _is_alert_of(reply: dict[str, Any], campaign: str) -> bool:
    publication = reply.get("push", {}).get("pub")
    return publication is not None and any(item["campaign"] == campaign for item in publication["data"]["items"])


WATCH = """() => {
  window.drawn = {};
  new MutationObserver(() => {
    const found = document.body.textContent.match(/probe-\\d+-/g) ?? [];
    const fresh = found.filter((name) => !(name in window.drawn));
    for (const name of fresh) window.drawn[name] = 0;
    if (fresh.length) requestAnimationFrame(() => { for (const name of fresh) window.drawn[name] = Date.now(); });
  }).observe(document.body, { subtree: true, childList: true, characterData: true });
}"""


async def on_the_page(running: Running) -> list[float]:
    """Seconds from each request to the frame that shows its alert. Fewer probes: every one stays on the page."""
    from playwright.async_api import async_playwright

    waits = []
    headers = {"Authorization": f"Bearer {running.bearer}", "Content-Type": "application/x-ndjson"}
    async with async_playwright() as playwright, httpx.AsyncClient(base_url=running.url, timeout=30) as client:
        chromium = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = await chromium.new_page()
        await page.goto(running.sign_in_link())
        await page.get_by_role("row").nth(2).wait_for()
        await page.evaluate(WATCH)
        for number in range(5 + PROBES_ON_THE_PAGE):
            began = time.time()
            (await client.post(f"/api/orgs/{ORG}/events", content=event(number), headers=headers)).raise_for_status()
            async with asyncio.timeout(ALERT_WITHIN_S):
                while not (drawn_ms := await page.evaluate(f"window.drawn['probe-{number}-']")):
                    await asyncio.sleep(0.05)
            waits.append(drawn_ms / 1e3 - began)
            await asyncio.sleep(0.1)
        await chromium.close()
    return waits[5:]


@dataclass(frozen=True, slots=True)
class Running:
    """An instance under load. bearer: a token of ORG that may send and read."""

    data_dir: Path
    url: str
    gateway: str
    bearer: str

    def sign_in_link(self) -> str:
        command = [*CMIS, "sign-in", "--data-dir", str(self.data_dir)]
        ran = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True)
        return next(word for word in ran.stdout.split() if "#code=" in word)


def measured(probe: Callable[[Running], Coroutine[Any, Any, list[float]]]) -> Report:
    with scratch() as data_dir:
        rules = data_dir / "rules.json"
        rules.write_text(json.dumps([RULE]))
        subprocess.run(
            [*CMIS, "org", "create", ORG, "--data-dir", str(data_dir)], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL
        )
        instance = Instance(data_dir, rules, "--evaluate", "live", "--gateway-port", "0")
        context = multiprocessing.get_context("spawn")
        sent = context.Value("q", 0)
        load = context.Process(target=send_load, args=(instance.url, token(data_dir, ORG, "ingest"), sent), daemon=True)
        try:
            gateway = json.loads((data_dir / "instance.json").read_text())["gateway"]
            running = Running(data_dir, instance.url, gateway, token(data_dir, ORG, "ingest", "read"))
            load.start()
            while not sent.value and load.is_alive():
                time.sleep(0.05)
            began, cpu, before = time.perf_counter(), instance.cpu_s(), sent.value
            waits = asyncio.run(probe(running))
            wall, used = time.perf_counter() - began, instance.cpu_s() - cpu
            load_per_s = (sent.value - before) / wall
            if not load.is_alive():
                raise RuntimeError("the load ended before the measurement did")
            report = Report(0, wall, used, instance.peak_rss_mb())
        finally:
            if load.pid is not None:
                os.kill(load.pid, signal.SIGKILL)
                load.join()
            instance.end(signal.SIGTERM)
    cuts = quantiles(waits, n=100)
    report.extra = {"p50_ms": cuts[49] * 1e3, "p99_ms": cuts[98] * 1e3, "load_per_s": load_per_s}
    return report


JOBS = {"alert": at_a_websocket, "browser": on_the_page}

if __name__ == "__main__":
    name, _ = job_arguments(JOBS)
    measured(JOBS[name]).print()
