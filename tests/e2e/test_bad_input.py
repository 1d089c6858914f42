"""Whatever is sent: a clear answer, a dead letter where it belongs, and the stream goes on."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from cmis_stream.core.time import DAY_MS
from cmis_stream.instance import Instance
from cmis_stream.log.topics import partition_for
from cmis_stream.runtime import RAW
from cmis_stream.settings import Settings
from cmis_stream.store.database import Database
from cmis_stream.store.tokens import TokenStore
from tests.e2e.support import Processes, Up, dead_letters, logged_ids, until


def event(event_id: str, **changes: Any) -> dict[str, Any]:
    good = {
        "id": event_id, "ts": int(time.time() * 1000), "org": "acme", "type": "metric", "platform": "meta", "campaign": "c1",
        "impressions": 10, "clicks": 1, "spend": 0.5, "conversions": 0, "revenue": 0,
    }  # fmt: skip
    return good | changes


class Served:
    """A real instance with two orgs, and good events sent around whatever else is."""

    def __init__(self, processes: Processes, data_dir: Path) -> None:
        self.data_dir = data_dir
        data_dir.mkdir(parents=True, exist_ok=True)
        self.database = Database(f"sqlite:///{data_dir / 'store.db'}")
        self.tokens = TokenStore(self.database)
        for org in ("acme", "globex"):
            self.tokens.create_org(org, org.title())
        self.token = self.tokens.create("acme", ["ingest"])[1]
        self.up = Up(processes, data_dir).ready()
        self.client = httpx.Client(base_url=self.up.url, timeout=60)
        self.good = 0

    def post(self, body: bytes, org: str = "acme", token: str | None = None, **headers: str) -> httpx.Response:
        given = {"Authorization": f"Bearer {token or self.token}", "Content-Type": "application/x-ndjson"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(f"/api/orgs/{org}/events", content=body, headers=given)

    def good_one(self) -> bytes:
        self.good += 1
        return orjson.dumps(event(f"good-{self.good}"))

    def send_good(self) -> None:
        response = self.post(self.good_one())
        assert response.status_code == 200 and response.json()["accepted"] == 1, response.text

    def good_ones_arrived(self) -> None:
        assert self.up.process.running, self.up.process.text
        ids = [i for i in logged_ids(self.data_dir) if i.startswith("good-")]
        assert sorted(ids) == sorted(f"good-{n + 1}" for n in range(self.good))

    def reasons(self) -> list[dict[str, Any]]:
        return [reason for letter in dead_letters(self.data_dir) for reason in letter["reasons"]]

    def close(self) -> None:
        self.client.close()
        self.tokens.close()
        self.database.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("bad-input")
    processes = Processes(folder / "processes")
    (folder / "data").mkdir()
    try:
        one = Served(processes, folder / "data")
        yield one
        one.close()
    finally:
        processes.end()


@pytest.fixture(autouse=True)
def good_events_before_and_after(request: pytest.FixtureRequest) -> Iterator[None]:
    if "served" not in request.fixturenames:
        yield
        return
    served: Served = request.getfixturevalue("served")
    served.send_good()
    yield
    served.send_good()
    served.good_ones_arrived()


BAD = {
    "broken JSON": (b'{"id": "bad-json", "ts": ', "malformed", ""),
    "no object": (b"[1, 2]", "malformed", ""),
    "a text as a number": (orjson.dumps(event("bad-type", clicks="many")), "wrong_type", "clicks"),
    "a number as an id": (orjson.dumps(event("x", id=7)), "wrong_type", "id"),
    "negative counts": (orjson.dumps(event("bad-negative", impressions=-1)), "out_of_range", "impressions"),
    "NaN": (json.dumps(event("bad-nan", spend=float("nan"))).encode(), "out_of_range", "spend"),
    "infinity": (json.dumps(event("bad-infinity", spend=float("inf"))).encode(), "out_of_range", "spend"),
    "the year 9999": (orjson.dumps(event("bad-9999", ts=253_370_764_800_000)), "out_of_range", "ts"),
    "the year 1970": (orjson.dumps(event("bad-1970", ts=0)), "out_of_range", "ts"),
    "tomorrow": (orjson.dumps(event("bad-tomorrow", ts=int(time.time() * 1000) + DAY_MS)), "in_future", "ts"),
    "an unknown platform": (orjson.dumps(event("bad-platform", platform="myspace")), "invalid", "platform"),
    "another org's event": (orjson.dumps(event("bad-org", org="globex")), "wrong_org", "org"),
    "no id": (orjson.dumps({k: v for k, v in event("x").items() if k != "id"}), "missing", "id"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_line_is_named_and_a_dead_letter_and_its_neighbours_are_taken(served: Served, what: str) -> None:
    line, code, field = BAD[what]
    before = len(served.reasons())
    response = served.post(b"\n".join([served.good_one(), line, served.good_one()]))
    assert response.status_code == 200, response.text
    answer = response.json()
    assert (answer["accepted"], answer["rejected"]) == (2, 1)
    (error,) = answer["errors"]
    assert (error["code"], error["field"].removeprefix("data."), error["index"], error["line"]) == (code, field, 1, 2), error
    assert error["expected"] and error["detail"]
    (reason,) = served.reasons()[before:]
    assert reason["code"] == code and reason["raw"]


def test_only_bad_events_are_a_422_problem(served: Served) -> None:
    response = served.post(BAD["negative counts"][0])
    assert response.status_code == 422
    assert response.headers["content-type"].startswith("application/problem+json")
    assert "impressions" in response.json()["detail"]


def test_an_event_older_than_what_windows_keep_is_a_dead_letter_with_its_id(served: Served) -> None:
    """The org's newest event decides, so it is accepted over HTTP and refused by the owner of the partition."""
    old = int(time.time() * 1000) - 7 * DAY_MS - 3_600_000
    response = served.post(b"\n".join([served.good_one(), orjson.dumps(event("much-too-late", ts=old)), served.good_one()]))
    assert response.status_code == 200, response.text
    found = until(lambda: [r for r in served.reasons() if r["code"] == "too_late"], "the dead letter")
    assert [(r["id"], r["org"], r["ts"]) for r in found] == [("much-too-late", "acme", old)]


@pytest.mark.spec("TEN-M02", partial="scope ingest, expiry, orgs; other scopes have no endpoints yet")
def test_a_token_opens_its_own_org_only_and_until_it_expires(served: Served) -> None:
    tokens = served.tokens
    line = orjson.dumps(event("must-not-arrive"))
    expired = tokens.create("acme", ["ingest"], int(time.time() * 1000) - 1)[1]
    reading = tokens.create("acme", ["read"])[1]
    stranger = tokens.create("globex", ["ingest"])[1]
    revoked, revoked_text = tokens.create("acme", ["ingest"])
    tokens.revoke(revoked.id)
    answers = {
        "nonsense": served.post(line, token="nonsense").status_code,
        "expired": served.post(line, token=expired).status_code,
        "revoked": served.post(line, token=revoked_text).status_code,
        "without scope": served.post(line, token=reading).status_code,
    }
    assert answers == {"nonsense": 401, "expired": 401, "revoked": 401, "without scope": 403}
    foreign, unknown = served.post(line, token=stranger), served.post(line, org="nobody")
    assert foreign.status_code == unknown.status_code and foreign.status_code in (403, 404)
    assert foreign.json()["detail"].replace("acme", "X") == unknown.json()["detail"].replace("nobody", "X"), "tells who exists"
    assert "must-not-arrive" not in logged_ids(served.data_dir)
    assert not any("must-not-arrive" in str(letter) for letter in dead_letters(served.data_dir))


@pytest.mark.spec("TEN-E06")
def test_a_line_of_50_mb_is_refused_by_name_and_its_neighbours_are_taken(served: Served) -> None:
    long = b'{"id": "' + b"x" * (50 << 20) + b'"}'
    response = served.post(b"\n".join([served.good_one(), long, served.good_one()]))
    assert response.status_code == 200, response.text[:300]
    answer = response.json()
    assert answer["accepted"] == 2 and [(e["code"], e["line"]) for e in answer["errors"]] == [("too_long", 2)]
    assert len(response.content) < 20_000
    letter = [reason for reason in served.reasons() if reason["code"] == "too_long"][-1]
    assert len(str(letter)) < 10_000, "a dead letter holds the beginning only"


@pytest.mark.spec("TEN-E06")
def test_a_body_beyond_the_limit_is_413(served: Served) -> None:
    response = served.post(b"\n" * ((64 << 20) + 1))
    assert response.status_code == 413 and "bytes" in response.json()["detail"]


@pytest.mark.spec("TEN-E07")
@pytest.mark.parametrize("size", [60 << 20, 1 << 30])
def test_a_gzip_bomb_is_413(served: Served, size: int) -> None:
    block, packed = b" " * (1 << 20), gzip.compress(b" " * (1 << 20))
    bomb = packed * (size // len(block))
    response = served.post(bomb, Content_Encoding="gzip")
    assert response.status_code == 413, response.text
    assert "decompress" in response.json()["detail"].lower()


def test_gzip_that_is_damaged_is_400(served: Served) -> None:
    packed = gzip.compress(orjson.dumps(event("never")))
    for body in (b"no gzip at all", packed[:-4]):
        response = served.post(body, Content_Encoding="gzip")
        assert response.status_code == 400 and "gzip" in response.json()["detail"]


async def counted(instance: Instance) -> tuple[int, int]:
    """(events, duplicates) over all partitions, once everything is applied."""
    await instance.drained()
    engines = [owner.engine for owner in instance.owners]
    return sum(e.events for e in engines), sum(e.duplicates for e in engines)


async def test_events_repeated_by_id_are_counted_once_also_after_a_restart(tmp_path: Path) -> None:
    body = b"\n".join(orjson.dumps(event(f"e{n}")) for n in range(50))
    token = ""
    for run in range(2):
        async with Instance(Settings(data_dir=tmp_path, port=0)) as instance:
            if not run:
                instance.runtime.tokens.create_org("acme", "Acme")
                token = instance.runtime.tokens.create("acme", ["ingest"])[1]
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/x-ndjson"}
            async with httpx.AsyncClient(base_url=instance.url) as client:
                for _ in range(2):
                    response = await client.post("/api/orgs/acme/events", content=body, headers=headers)
                    assert response.status_code == 200
            assert await counted(instance) == (50, 50 + 100 * run)


def cloud_event(event_id: str, org: str = "acme", **data: Any) -> bytes:
    return orjson.dumps({
        "specversion": "1.0", "id": event_id, "source": "/crm", "type": "cmis.ads.metrics.v1", "orgid": org,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "data": {"platform": "meta", "campaign_id": "c1", "impressions": 10, "clicks": 1, "spend": 0.5} | data,
    })  # fmt: skip


async def test_cloudevents_of_foreign_producers_are_counted_once_and_bad_ones_are_dead_letters(tmp_path: Path) -> None:
    orgs = [f"org{n}" for n in range(5)]
    good = [cloud_event(f"g{n}", orgs[n % 5]) for n in range(100)]
    bad = [b"not json", b"{}", cloud_event("negative", clicks=-1), b"[]", cloud_event("typed", spend="much"), b"\xff\xfe"]
    async with Instance(Settings(data_dir=tmp_path, port=0)) as instance:
        runtime = instance.runtime

        async def write(values: list[bytes]) -> None:
            """As a producer that does not know our partitions: anywhere."""
            await asyncio.gather(*[await runtime.send(RAW, n % runtime.partitions, value) for n, value in enumerate(values)])

        async def packed() -> None:
            """All of the raw topic is acked, that is in envelopes."""
            async with asyncio.timeout(60):
                while await runtime.log.committed("cmis", RAW) != {
                    p: end for p, end in (await runtime.log.ends(RAW)).items() if end
                }:
                    await asyncio.sleep(0.02)

        await write(good[:60] + bad + good[:30])
        await packed()
        assert await counted(instance) == (60, 30)
    async with Instance(Settings(data_dir=tmp_path, port=0)) as instance:
        runtime = instance.runtime
        await write(good)
        await packed()
        assert await counted(instance) == (100, 90)
        engines = {owner.partition: owner.engine for owner in instance.owners}
        for org in orgs:
            assert org in engines[partition_for(org.encode(), runtime.partitions)].entities.org_number
    letters = dead_letters(tmp_path)
    assert len(letters) == len(bad)
    assert {letter["source"][0] for letter in letters} == {RAW}
    codes = sorted(reason["code"] for letter in letters for reason in letter["reasons"])
    assert len(codes) == len(bad) and "out_of_range" in codes and "wrong_type" in codes and "malformed" in codes, codes
