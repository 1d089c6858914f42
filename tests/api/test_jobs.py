"""Jobs over REST: seen, found, cancelled."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from cmis_stream.core.time import parse_rfc3339
from cmis_stream.store.jobs import LISTED_RESULT
from tests.api.conftest import NOW
from tests.api.primitives import Primitives, database, places, postgres, postgres_urls, primitives, problem

__all__ = ["database", "places", "postgres", "postgres_urls", "primitives"]  # fixtures


@pytest.fixture
async def client(primitives: Primitives) -> AsyncIterator[httpx.AsyncClient]:
    async with primitives.client() as client:
        yield client


def queued(primitives: Primitives, *names: str, org: str = "acme", kind: str = "count") -> None:
    for name in names:
        primitives.jobs.enqueue(org, name, kind, {"to": 3}, "ada")
        primitives.world.log.now_ms += 1


async def test_a_job_says_how_it_gets_on_and_what_it_made(primitives: Primitives, client: httpx.AsyncClient) -> None:
    queued(primitives, "j1")
    claim = primitives.jobs.claim("acme", "w")
    assert claim is not None
    primitives.world.log.now_ms += 1_000
    primitives.jobs.progress(claim, 0.25, "a quarter")
    response = await client.get("/jobs/j1")
    job = response.json()
    assert response.headers["etag"] == f'"{job["version"]}"'
    assert (job["state"], job["kind"], job["progress_ratio"], job["said"]) == ("running", "count", 0.25, "a quarter")
    assert (job["attempts"], job["actor"], job["result"], job["problem"], job["ended_at"]) == (1, "ada", None, None, None)
    assert parse_rfc3339(job["created_at"]) == NOW and parse_rfc3339(job["eta_at"]) == primitives.world.now() + 3_000
    assert "body" not in job, "what it was started with may hold what is not for everybody"
    primitives.jobs.complete(claim, {"rows": 3})
    job = (await client.get("/jobs/j1")).json()
    assert (job["state"], job["result"], job["progress_ratio"], job["eta_at"]) == ("done", {"rows": 3}, 1.0, None)
    assert parse_rfc3339(job["ended_at"]) == primitives.world.now()


async def test_jobs_are_listed_the_newest_first_page_by_page(primitives: Primitives, client: httpx.AsyncClient) -> None:
    queued(primitives, *(f"j{number}" for number in range(7)))
    queued(primitives, "foreign", org="globex")
    found, cursor, pages = list[str](), None, 0
    while pages == 0 or cursor is not None:
        page = (await client.get("/jobs", params={"limit": 3, **({"cursor": cursor} if cursor else {})})).json()
        found, cursor, pages = found + [job["id"] for job in page["items"]], page["next"], pages + 1
        assert page["total_estimate"] == 7
    assert found == [f"j{number}" for number in reversed(range(7))] and pages == 3


async def test_jobs_of_one_moment_are_on_one_page_each(primitives: Primitives, client: httpx.AsyncClient) -> None:
    for name in ("b", "a", "c"):
        primitives.jobs.enqueue("acme", name, "count", {}, "ada")
    first = (await client.get("/jobs", params={"limit": 2})).json()
    second = (await client.get("/jobs", params={"limit": 2, "cursor": first["next"]})).json()
    assert [job["id"] for job in (*first["items"], *second["items"])] == ["c", "b", "a"] and second["next"] is None


async def test_jobs_are_found_by_state_and_kind(primitives: Primitives, client: httpx.AsyncClient) -> None:
    queued(primitives, "waits", "counts")
    queued(primitives, "other", kind="wait")
    primitives.jobs.cancel("acme", "counts")

    async def ids(query: str) -> list[str]:
        page = (await client.get(f"/jobs?{query}")).json()
        assert page["total_estimate"] == len(page["items"])
        return [job["id"] for job in page["items"]]

    assert await ids("filter[state]=queued") == ["other", "waits"]
    assert await ids("filter[state][in]=queued,cancelled") == ["other", "counts", "waits"]
    assert await ids("filter[state]=queued&filter[kind]=wait") == ["other"]
    assert await ids("filter[kind]=nothing") == []


async def test_a_long_result_is_left_out_of_lists_which_say_so(primitives: Primitives, client: httpx.AsyncClient) -> None:
    for name, length in (("short", 10), ("long", LISTED_RESULT)):
        queued(primitives, name)
        claim = primitives.jobs.claim("acme", "w")
        assert claim is not None
        primitives.jobs.complete(claim, "x" * length)
    items = {job["id"]: job for job in (await client.get("/jobs")).json()["items"]}
    assert (items["short"]["result"], items["short"]["result_length"]) == ("x" * 10, 12)
    assert (items["long"]["result"], items["long"]["result_length"]) == (None, LISTED_RESULT + 2)
    assert (await client.get("/jobs/long")).json()["result"] == "x" * LISTED_RESULT


async def test_cancelling_ends_what_waits_asks_what_runs_and_leaves_what_has_ended(
    primitives: Primitives, client: httpx.AsyncClient
) -> None:
    queued(primitives, "runs", "waits")
    claim = primitives.jobs.claim("acme", "w")
    assert claim is not None and claim.job.id == "runs"
    asked = await client.post("/jobs/runs/cancel")
    assert (asked.status_code, asked.json()["state"]) == (202, "running")
    assert parse_rfc3339(asked.json()["cancel_asked_at"]) == primitives.world.now()
    again = await client.post("/jobs/runs/cancel")
    assert (again.status_code, again.json()) == (202, asked.json()), "asking twice changes nothing"
    waited = await client.post("/jobs/waits/cancel")
    assert (waited.status_code, waited.json()["state"]) == (200, "cancelled")
    primitives.jobs.complete(claim, None)  # it was done before it heard
    ended = await client.post("/jobs/runs/cancel")
    assert (ended.status_code, ended.json()["state"]) == (200, "done")


async def test_jobs_of_another_org_are_not_there(primitives: Primitives, client: httpx.AsyncClient) -> None:
    queued(primitives, "theirs", org="globex")
    assert problem(await client.get("/jobs/theirs"))["type"] == "/problems/not_found"
    assert (await client.post("/jobs/theirs/cancel")).status_code == 404
    assert (await client.get("/jobs")).json() == {"items": [], "next": None, "total_estimate": 0}
    async with primitives.client("globex") as theirs:
        assert (await theirs.get("/jobs/theirs")).json()["state"] == "queued"
        assert (await theirs.get("/api/orgs/acme/jobs")).status_code == 404


async def test_who_may_only_read_cancels_nothing(primitives: Primitives) -> None:
    queued(primitives, "j")
    async with primitives.client("acme", "read") as reader, primitives.client("acme", "ingest") as feed:
        assert (await reader.get("/jobs/j")).status_code == 200
        assert problem(await reader.post("/jobs/j/cancel"))["scope"] == "write"
        assert (await feed.get("/jobs")).status_code == 403
    job = primitives.jobs.get("acme", "j")
    assert job is not None and job.state == "queued"


@pytest.mark.parametrize(
    "query",
    ["unknown=1", "filter[said]=x", "filter[state]=late", "filter[kind]=%00", "sort=kind", "limit=0", "limit=501", "limit=x",
     "cursor=", "cursor=x", "cursor=WzEsMl0", "cursor=é", "limit=1&limit=2", "filter[state][gt]=done"],
)  # fmt: skip
async def test_a_parameter_that_means_nothing_is_named(client: httpx.AsyncClient, query: str) -> None:
    response = await client.get(f"/jobs?{query}")
    assert response.status_code == 400 and problem(response)["parameter"] == query.partition("=")[0]


@pytest.mark.parametrize("name", ["x", "%00", "x" * 300, "%ED%A0%80"])
async def test_what_is_no_id_of_a_job_is_not_found(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.get(f"/jobs/{name}")).status_code == 404
    assert (await client.post(f"/jobs/{name}/cancel")).status_code == 404
    assert (await client.get(f"/jobs/{name}?deleted=with")).status_code == 400
