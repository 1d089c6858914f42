"""The first page of a list of 100,000 documents over REST: plain, by filter, by sort.

python -m bench.lists sqlite | postgresql

The kind is `alert_rule`, which has real filters, sorts and ranks; the app is that of `cmis api` without a log, in a process of
its own; one client asks, one request at a time, for the page of 50. PostgreSQL is asked as the role that row security binds.
`one_p50_ms` is the same for one document by its key: what HTTP, the token and a row cost.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import quantiles

import httpx

from bench.measure import Report, Stopwatch, job_arguments
from bench.pipeline import scratch
from cmis_stream.api.app import create_app
from cmis_stream.api.auth import Auth
from cmis_stream.api.documents import documents_router
from cmis_stream.api.hosts import Hosts
from cmis_stream.api.ingest import ApiPorts
from cmis_stream.serving import HttpServer, listening_socket
from cmis_stream.settings import Role, Settings
from cmis_stream.store.decisions import Actor, Command
from cmis_stream.store.documents import MOST_ITEMS, Item
from cmis_stream.store.migrations import upgrade
from cmis_stream.store.sessions import SessionStore
from cmis_stream.stores import Stores
from scripts.postgres import APP, OWNER, Postgres

JOBS = ("sqlite", "postgresql")
ORG, DOCUMENTS = "acme", 100_000
REQUESTS, WARM_UP = 200, 20
SEVERITIES, LEVELS = ("critical", "high", "medium", "low"), ("org", "platform", "campaign", "ad_set", "ad", None)
PATH = f"/api/orgs/{ORG}/alerts/rules"
ASKED: dict[str, tuple[str, dict[str, str]]] = {
    "one": (f"{PATH}/rule-77777", {}),
    "plain": (PATH, {}),
    "filter_one": (PATH, {"filter[key]": "rule-77777"}),
    "filter_half": (PATH, {"filter[enabled]": "true"}),
    "filter_quarter": (PATH, {"filter[severity]": "high"}),
    "filter_two": (PATH, {"filter[severity]": "high", "filter[level]": "ad"}),
    "filter_tag": (PATH, {"filter[tags][contains]": "t7"}),
    "filter_contains": (PATH, {"filter[name][contains]": "le 777"}),
    "sort_name": (PATH, {"sort": "name"}),
    "sort_newest": (PATH, {"sort": "-updated_at"}),
    "sort_rank": (PATH, {"sort": "severity"}),
    "sort_two": (PATH, {"sort": "severity,name"}),
    "filter_and_sort": (PATH, {"filter[enabled]": "true", "sort": "-name"}),
}


@contextmanager
def settings_of(job: str) -> Iterator[tuple[Settings, Postgres | None]]:
    with scratch() as data_dir:
        if job == "sqlite":
            yield Settings(data_dir=data_dir, role=Role.API), None
            return
        folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # where the server's user may enter
        try:
            with Postgres(folder, settings={"fsync": "off"}) as server:  # it is read that is measured
                upgrade(server.url(OWNER))
                yield Settings(data_dir=data_dir, role=Role.API, store_url=server.url(APP)), server
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def fill(stores: Stores) -> str:
    """A token that may read."""
    chance = random.Random(1)
    stores.tokens.create_org(ORG, "Acme")
    for first in range(0, DOCUMENTS, MOST_ITEMS):
        items = [Item(Command("create", "alert_rule", body=_body(number, chance))) for number in range(first, first + MOST_ITEMS)]
        rejected = [one.rejected for one in stores.documents.bulk(ORG, Actor("ada"), items) if one.rejected is not None]
        if rejected:
            raise RuntimeError(f"a document was refused: {rejected[0]}")
    return stores.tokens.create(ORG, ["read"])[1]


def _body(number: int, chance: random.Random) -> dict[str, object]:
    return {
        "key": f"rule-{number}", "name": f"Rule {chance.randrange(10**6)} of {number}", "severity": chance.choice(SEVERITIES),
        "enabled": chance.random() < 0.5, "level": chance.choice(LEVELS), "tags": [f"t{chance.randrange(20)}"],
        "when": {"metric": "spend", "window": "5m", "op": "gt", "value": number},
    }  # fmt: skip


def serve(settings: Settings, listening: socket.socket, ready: Connection) -> None:
    """Until it is killed."""

    async def run() -> None:
        stores = Stores(settings, _now_ms)
        auth = Auth(stores.tokens, SessionStore(stores.database, stores.tokens), Hosts(), _now_ms)
        router = documents_router(stores.documents, stores.changes, stores.kinds, auth)
        app = create_app(ApiPorts(auth, _no_log, _no_log, _now_ms), [router], schemas=router.schemas)
        await HttpServer(app, listening).start()
        ready.send(True)
        await asyncio.Event().wait()

    asyncio.run(run())


async def _no_log(*_: object) -> None:
    raise RuntimeError("nobody sends events here")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def asked(client: httpx.Client, path: str, parameters: dict[str, str]) -> list[float]:
    """Seconds of each request, the first ones left out."""
    waits = []
    for _ in range(WARM_UP + REQUESTS):
        began = time.perf_counter()
        answer = client.get(path, params=parameters)
        waits.append(time.perf_counter() - began)
        if answer.status_code != 200 or not answer.json().get("items", True):
            raise RuntimeError(f"{parameters}: {answer.status_code}, {answer.text[:300]}")
    return waits[WARM_UP:]


def measured(job: str) -> Report:
    with settings_of(job) as (settings, postgres):
        stores = Stores(settings, _now_ms)
        began = time.perf_counter()
        token = fill(stores)
        filled_s = time.perf_counter() - began
        stores.close()
        if postgres is not None:
            postgres.execute("analyze")  # as the server does by itself, within a minute
        listening = listening_socket("127.0.0.1", 0)
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(settings, listening, there), daemon=True)
        watch = Stopwatch()
        process.start()
        try:
            here.recv()
            url, figures = f"http://127.0.0.1:{listening.getsockname()[1]}", dict[str, float]()
            with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60) as client:
                for name, (path, parameters) in ASKED.items():
                    cuts = quantiles(asked(client, path, parameters), n=100)
                    figures |= {f"{name}_p50_ms": round(cuts[49] * 1e3, 1), f"{name}_p99_ms": round(cuts[98] * 1e3, 1)}
        finally:
            process.kill()
            process.join()
        report = watch.report(0)
    report.extra = {**figures, "filled_s": round(filled_s, 1), "machine_load": os.getloadavg()[0]}
    return report


if __name__ == "__main__":
    name, _ = job_arguments(JOBS)
    measured(name).print()
