"""From the answer to a rule created over REST to its first incident at a websocket client, while 20,000 events a second flow in.

python -m bench.rules_latency beside0 | beside1000 | beside10000      with so many other rules in force, which never fire

Every 250 ms a rule is created whose condition holds at the next event of its campaign, of which there are 400 a second. Between
lie the transaction's commit, relay, the whole set of the org's rules through the catalog to the owner of the partition, a record
of events, delivery and gateway. `create_p50_ms` is what the answer itself took; `load_per_s` what the load really was.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import time
from statistics import quantiles

import httpx
from websockets.asyncio.client import ClientConnection, connect

from bench.latency import ORG, Running, replies, send_load, token
from bench.measure import Report, job_arguments
from bench.pipeline import CMIS, Instance, scratch
from bench.workloads import REPOSITORY

JOBS = {"beside0": 0, "beside1000": 1_000, "beside10000": 10_000}
EVERY_S, RULES, WARM_UP = 0.25, 120, 10
CAMPAIGNS = 50
FIRED_WITHIN_S, IN_FORCE_WITHIN_S = 60.0, 300.0


def rule(key: str, campaign: int) -> dict[str, object]:
    return {
        "key": key, "name": key, "severity": "high", "scope": {"campaign": f"c{campaign}"},
        "when": {"metric": "spend", "window": "1m", "op": "gt", "value": 0},
    }  # fmt: skip


def others(count: int) -> list[dict[str, object]]:
    """Of all campaigns, with thresholds that nothing reaches."""
    return [
        {"id": f"other-{number}", "org": ORG, "metric": "spend", "window": "5m", "op": "gt", "threshold": 10**9 + number}
        for number in range(count)
    ]


class Probe:
    """Clocks by the key of a rule: when it was asked for, when that was answered, when its incident came."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self.asked, self.answered, self.fired = dict[str, float](), dict[str, float](), dict[str, float]()

    async def run(self) -> None:
        headers = {"Authorization": f"Bearer {self._running.bearer}"}
        async with (
            connect(self._running.gateway, max_size=None) as socket,
            httpx.AsyncClient(base_url=self._running.url, headers=headers, timeout=60) as client,
        ):
            await socket.send(json.dumps({"id": 1, "connect": {"token": self._running.bearer}}))
            await socket.send(json.dumps({"id": 2, "subscribe": {"channel": f"org:{ORG}:incidents"}}))
            while not any(reply.get("id") == 2 and "subscribe" in reply for reply in await replies(socket)):
                pass
            listening = asyncio.create_task(self._listen(socket))
            await self._create(client, "first", 0)  # when it has fired the others are in force, too
            await self._until(IN_FORCE_WITHIN_S)
            began = time.perf_counter()
            async with asyncio.TaskGroup() as creating:
                for number in range(WARM_UP + RULES):
                    await asyncio.sleep(max(0.0, began + number * EVERY_S - time.perf_counter()))
                    creating.create_task(self._create(client, f"probe-{number}", number % CAMPAIGNS))
            await self._until(FIRED_WITHIN_S)
            listening.cancel()

    async def _create(self, client: httpx.AsyncClient, key: str, campaign: int) -> None:
        self.asked[key] = time.perf_counter()
        (await client.post(f"/api/orgs/{ORG}/alerts/rules", json=rule(key, campaign))).raise_for_status()
        self.answered[key] = time.perf_counter()

    async def _listen(self, socket: ClientConnection) -> None:
        while True:
            for reply in await replies(socket):
                for item in reply.get("push", {}).get("pub", {}).get("data", {}).get("items", ()):
                    if item["state"] == "firing":
                        self.fired.setdefault(item["rule"], time.perf_counter())

    async def _until(self, patience_s: float) -> None:
        """Every rule that was answered has fired."""
        async with asyncio.timeout(patience_s):
            while self.answered.keys() - self.fired.keys():
                await asyncio.sleep(0.05)

    def figures(self) -> dict[str, float]:
        keys = [f"probe-{number}" for number in range(WARM_UP, WARM_UP + RULES)]
        waits = sorted(
            max(0.0, self.fired[key] - self.answered[key]) for key in keys
        )  # its incident may be faster than its answer
        cuts, creating = quantiles(waits, n=100), quantiles([self.answered[key] - self.asked[key] for key in keys], n=100)
        return {
            "n": len(waits), "p50_ms": cuts[49] * 1e3, "p99_ms": min(cuts[98], waits[-1]) * 1e3, "max_ms": waits[-1] * 1e3,
            "create_p50_ms": creating[49] * 1e3,
        }  # fmt: skip


def measured(beside: int) -> Report:
    with scratch() as data_dir:
        rules = data_dir / "rules.json"
        rules.write_text(json.dumps(others(beside)))
        create_org = [*CMIS, "org", "create", ORG, "--data-dir", str(data_dir)]
        subprocess.run(create_org, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
        instance = Instance(data_dir, rules, "--evaluate", "live", "--gateway-port", "0")
        context = multiprocessing.get_context("spawn")
        sent = context.Value("q", 0)
        load = context.Process(target=send_load, args=(instance.url, token(data_dir, ORG, "ingest"), sent), daemon=True)
        try:
            gateway = json.loads((data_dir / "instance.json").read_text())["gateway"]
            probe = Probe(Running(data_dir, instance.url, gateway, token(data_dir, ORG, "read", "write")))
            load.start()
            while not sent.value and load.is_alive():
                time.sleep(0.05)
            began, cpu, before = time.perf_counter(), instance.cpu_s(), sent.value
            asyncio.run(probe.run())
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
    report.extra = {**probe.figures(), "load_per_s": load_per_s, "machine_load": os.getloadavg()[0]}
    return report


if __name__ == "__main__":
    name, _ = job_arguments(JOBS)
    measured(JOBS[name]).print()
