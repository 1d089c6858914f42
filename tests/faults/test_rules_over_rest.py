"""Alert rules created over REST while events flow, and kill -9 around it: what was answered is there, once, and fires."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cmis_stream.store.changes import Changes
from cmis_stream.store.database import Database
from tests.e2e.support import Process, Processes, Up, until
from tests.servers.postgres import Urls, postgres, postgres_urls

__all__ = ["postgres", "postgres_urls"]
ORG = "acme"
RULES = 24


class Store:
    """url: for the app's role. options: of `cmis` commands; of those that run agents, too."""

    def __init__(self, url: str, options: list[str], relay: list[str]) -> None:
        self.url, self.options, self.relay = url, options, relay


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "sqlite":
        return Store(f"sqlite:///{tmp_path / 'data' / 'store.db'}", [], [])
    urls: Urls = request.getfixturevalue("postgres_urls")
    return Store(urls.app, ["--store", urls.app], ["--store-relay", urls.relay])


def said(process: Process) -> str:
    assert process.ended() == 0, process.text
    return process.text


def token_of(processes: Processes, data_dir: Path, store: Store) -> str:
    said(processes.cmis("org", "create", ORG, "--data-dir", data_dir, *store.options))
    scopes = [word for scope in ("ingest", "read", "write") for word in ("--scope", scope)]
    told = said(processes.cmis("token", "create", ORG, *scopes, "--data-dir", data_dir, *store.options))
    return next(word for word in told.split() if word.startswith("cmis_"))


@contextmanager
def feeding(client: httpx.Client) -> Iterator[None]:
    """Events of one campaign, some every few milliseconds, sent again when they are not answered."""
    stop = threading.Event()

    def feed() -> None:
        number = 0
        while not stop.is_set():
            event = {"platform": "meta", "campaign": "c1", "currency": "EUR", "spend": 1.5, "ts": time.time_ns() // 1_000_000}
            try:
                answer = client.post(f"/api/orgs/{ORG}/events", json=[{**event, "id": f"e{number}"}])
                number += answer.status_code == 200
            except httpx.TransportError:
                time.sleep(0.05)
            time.sleep(0.005)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def rule(number: int) -> dict[str, Any]:
    return {
        "key": f"rule-{number}", "name": f"Rule {number}", "severity": "high",
        "when": {"metric": "spend", "window": "5m", "op": "gt", "value": 0},
    }  # fmt: skip


def created(client: httpx.Client, number: int) -> bool:
    """Whether it was answered that the rule is there."""
    try:
        answer = client.post(f"/api/orgs/{ORG}/alerts/rules", json=rule(number), headers={"Idempotency-Key": f"k{number}"})
    except httpx.TransportError:
        return False
    assert answer.status_code in (201, 503), answer.text
    return answer.status_code == 201


def everything(client: httpx.Client, path: str) -> list[dict[str, Any]]:
    items, cursor = list[dict[str, Any]](), {}
    while True:
        page = client.get(f"/api/orgs/{ORG}/{path}", params={"limit": 500, **cursor}).raise_for_status().json()
        items += page["items"]
        if page["next"] is None:
            return items
        cursor = {"cursor": page["next"]}


def test_a_rule_that_was_answered_is_there_once_and_fires_whatever_is_killed(
    processes: Processes, tmp_path: Path, store: Store
) -> None:
    dice, data_dir = random.Random(5), tmp_path / "data"
    token = token_of(processes, data_dir, store)
    up = Up(processes, data_dir, *store.options, *store.relay).ready()
    answered, repeated = set[int](), set[int]()
    with httpx.Client(base_url=up.url, headers={"Authorization": f"Bearer {token}"}, timeout=30) as client, feeding(client):
        for number in range(RULES):
            kill = threading.Timer(dice.uniform(0, 0.03), up.kill) if number % 3 == 0 else None
            if kill is not None:
                kill.start()
            if created(client, number):
                answered.add(number)
            if kill is not None:
                kill.join()
                up.ready()
            if number not in answered and number % 2:  # the same key finds out whether it was done, and does it if not
                assert created(client, number)
                repeated.add(number)
        there = Counter(item["key"] for item in everything(client, "alerts/rules"))
        assert {f"rule-{number}" for number in answered | repeated} <= there.keys() <= {f"rule-{n}" for n in range(RULES)}
        assert set(there.values()) == {1}

        def fired() -> set[str]:
            return {incident["rule"] for incident in everything(client, "alerts/history")}

        until(lambda: fired() == there.keys(), "an incident of each rule")
        assert Counter(incident["rule"] for incident in everything(client, "alerts/history")) == there  # each fires once

        gone = min(there)
        assert client.delete(f"/api/orgs/{ORG}/alerts/rules/{gone}", headers={"If-Match": "*"}).status_code == 204
        firing = {"filter[state]": "firing", "filter[rule]": gone}
        until(
            lambda: client.get(f"/api/orgs/{ORG}/alerts/history", params=firing).json()["items"] == [], "the end of its incident"
        )
    up.stop()
    assert up.kills >= RULES // 3
    database = Database(store.url)
    try:
        verified = Changes(database).verify(ORG)
        assert verified.broken is None and verified.seq == len(there) + 1
    finally:
        database.close()
