"""What happens at times, and a person's data that is erased, over REST."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from cmis_stream.core.time import parse_rfc3339
from cmis_stream.store.database import Database
from cmis_stream.store.decisions import Actor, Command
from cmis_stream.store.documents import Documents
from cmis_stream.store.kinds import Kinds, Manifest
from cmis_stream.store.personal import LONGEST_SUBJECT
from cmis_stream.store.schedules import Schedule
from tests.api.conftest import NOW
from tests.api.primitives import Primitives, database, places, postgres, postgres_urls, primitives, problem
from tests.store.test_personal_documents import EMAIL, KIND

__all__ = ["database", "places", "postgres", "postgres_urls", "primitives"]  # fixtures
ADA = Actor("ada")


@pytest.fixture
async def client(primitives: Primitives) -> AsyncIterator[httpx.AsyncClient]:
    async with primitives.client() as client:
        yield client


async def test_a_subject_s_fields_are_null_once_it_is_erased(
    primitives: Primitives, database: Database, client: httpx.AsyncClient
) -> None:
    documents = Documents(database, Kinds([Manifest("people", (KIND,))]), primitives.world.now, primitives.personal)

    def create(org: str) -> str:
        command = Command("create", "creator", body={"handle_id": "p1", "email": EMAIL})
        made = documents.execute(org, ADA, command).document
        assert made is not None
        return made.id

    def email(org: str, identity: str) -> str | None:
        found = documents.get(org, ADA, "creator", identity)
        assert found is not None
        kept: str | None = found.body["email"]
        return kept

    own, foreign = create("acme"), create("globex")
    assert (await client.post("/subjects/erase", json={"subject": "p1"})).json() == {"erased": True}
    assert email("acme", own) is None and email("globex", foreign) == EMAIL
    assert (await client.post("/subjects/erase", json={"subject": "p1"})).json() == {"erased": False}
    assert (await client.post("/subjects/erase", json={"subject": "nobody"})).json() == {"erased": False}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"subject": 7}', 422), (b"{}", 422), (b"[]", 422), (b"{", 400), (b"", 400), (b'{"subject": ""}', 422),
        (b'{"subject": "p1", "more": 1}', 422), (b'{"subject": "%s"}' % (b"x" * (LONGEST_SUBJECT * 4 + 1)), 422),
    ],
)  # fmt: skip
async def test_what_names_no_subject_is_refused(client: httpx.AsyncClient, body: bytes, status: int) -> None:
    response = await client.post("/subjects/erase", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status and problem(response)["detail"]


async def test_a_text_that_no_database_can_hold_is_nobody(client: httpx.AsyncClient) -> None:
    assert (await client.post("/subjects/erase", json={"subject": "a\0b"})).json() == {"erased": False}


async def test_only_who_has_the_scope_admin_erases(primitives: Primitives) -> None:
    async with primitives.client("acme", "read", "write") as client:
        assert problem(await client.post("/subjects/erase", json={"subject": "p1"}))["scope"] == "admin"


async def test_schedules_are_listed_with_their_next_time(primitives: Primitives, client: httpx.AsyncClient) -> None:
    primitives.schedules.put(
        "acme", Schedule("report/weekly", "Europe/Berlin", "FREQ=HOURLY", "publish", starts="2026-01-01T01:00")
    )
    primitives.schedules.put("acme", Schedule("once", "UTC", "FREQ=DAILY;COUNT=1", "command", starts="2025-01-01T00:00"))
    primitives.schedules.put("globex", Schedule("theirs", "UTC", "FREQ=DAILY", "publish"))
    listed = (await client.get("/schedules")).json()
    assert [(one["id"], one["zone"], one["effect"], one["problem"]) for one in listed["items"]] == [
        ("once", "UTC", "command", None), ("report/weekly", "Europe/Berlin", "publish", None),
    ]  # fmt: skip
    assert (listed["next"], listed["total_estimate"]) == (None, 2)
    assert listed["items"][0]["due_at"] is None and parse_rfc3339(listed["items"][1]["due_at"]) == NOW + 3_600_000
    assert (await client.get("/schedules?limit=1")).status_code == 400
