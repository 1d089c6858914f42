"""`GET /api/orgs/{org}/alerts/history` over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from cmis_stream.api.app import create_app
from cmis_stream.api.facts import FactPorts, facts_router
from cmis_stream.api.ingest import ApiPorts
from cmis_stream.modules.alerts.incidents import INCIDENT, incident_after
from cmis_stream.store.database import Database
from cmis_stream.store.fact_commands import FactCommands
from cmis_stream.store.facts import Change, Facts
from cmis_stream.store.kinds import Kinds, Manifest
from tests.api.conftest import World
from tests.live.support import line


async def nowhere(org: str, value: bytes) -> None:
    raise AssertionError("nothing is sent")


KINDS = Kinds([Manifest("alerts", (), facts=(INCIDENT,))])


class History:
    """An app over a store with five incidents of acme, of which 1 and 3 are resolved, and one of globex."""

    def __init__(self, world: World, database: Database) -> None:
        severities = ["low", "critical", "medium", "high", "critical"]
        lines = [{**line(n, campaign=f"c{n % 2}"), "severity": severity} for n, severity in enumerate(severities)]
        ends = [{**line(9, campaign="c1", state="resolved", opened=lines[n]["id"]), "severity": severities[n]} for n in (1, 3)]
        self.ids = [one["incident"] for one in lines]
        self.theirs = line(7, org="globex")["incident"]
        store = Facts(database, KINDS)
        assert store.write(
            [
                Change(one["org"], "incident", one["incident"], one["at"], partial(incident_after, line=one))
                for one in (*lines, *ends, line(7, org="globex"))
            ],
            "r", "e", {}, {},
        )  # fmt: skip
        ports = ApiPorts(world.auth, world.log.publish, world.log.dead_letter, world.now)
        router = facts_router(FactPorts(store, FactCommands(database, KINDS, store), KINDS, world.auth, nowhere, world.now))
        self.app = create_app(ports, [router], schemas=router.schemas)
        self.headers = {"Authorization": f"Bearer {world.tokens.create('acme', ['read'])[1]}"}
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False), base_url="http://test"
        )

    async def get(self, path: str = "", org: str = "acme") -> httpx.Response:
        return await self.client.get(f"/api/orgs/{org}/alerts/history{path}", headers=self.headers)

    async def numbers(self, path: str = "") -> list[int]:
        response = await self.get(path)
        assert response.status_code == 200, response.text
        return [self.ids.index(item["id"]) for item in response.json()["items"]]


@pytest.fixture
async def history(world: World, tmp_path: Path) -> AsyncIterator[History]:
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    made = History(world, database)
    async with made.client:
        yield made
    database.close()


async def test_incidents_are_listed_the_newest_first(history: History) -> None:
    body = (await history.get()).json()
    assert [history.ids.index(item["id"]) for item in body["items"]] == [4, 3, 2, 1, 0]
    assert (body["next"], body["total_estimate"]) == (None, 5)


async def test_an_incident_is_told_with_its_times_as_rfc_3339_and_its_evidence(history: History) -> None:
    (item,) = [item for item in (await history.get()).json()["items"] if item["id"] == history.ids[1]]
    assert (item["started_at"], item["resolved_at"]) == ("2026-01-01T00:00:01.000Z", "2026-01-01T00:00:09.000Z")
    assert (item["state"], item["severity"], item["value"], item["window"]) == ("resolved", "critical", 2.5, "5m")
    assert item["sums"] == [1, 2, 3, 4, 5, 6] and item["events"] == ["e1"] and item["entity"] == "USD/meta//c1"
    assert (await history.get(f"/{history.ids[1]}")).json() == item
    assert (await history.get(f"/{history.ids[0]}")).json()["resolved_at"] is None


@pytest.mark.spec("ALR-M07", partial="in lists; notifications do not exist yet")
@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("?filter[state]=firing", [4, 2, 0]),
        ("?filter[state]=resolved", [3, 1]),
        ("?filter[state][eq]=resolved&filter[severity]=high", [3]),
        ("?filter[severity][in]=critical,low", [4, 1, 0]),
        ("?filter[campaign]=c0", [4, 2, 0]),
        ("?filter[rule]=r", [4, 3, 2, 1, 0]),
        ("?filter[rule]=other", []),
        ("?sort=started_at", [0, 1, 2, 3, 4]),
        ("?sort=severity", [4, 1, 3, 2, 0]),
        ("?sort=-severity", [0, 2, 3, 4, 1]),
        ("?limit=2", [4, 3]),
        ("?filter[severity][ne]=critical", [3, 2, 0]),
        ("?filter[started_at][gte]=2026-01-01T00:00:02Z", [4, 3, 2]),
        ("?filter[campaign][contains]=C1", [3, 1]),
        ("?filter[rule]=r&filter[rule][in]=r,s&sort=id", [0, 1, 2, 3, 4]),
    ],
)
async def test_a_list_is_filtered_and_sorted_as_asked(history: History, query: str, found: list[int]) -> None:
    assert await history.numbers(query) == found


async def test_a_list_is_read_page_by_page(history: History) -> None:
    found, cursor = [], ""
    while cursor is not None:
        body = (await history.get(f"?limit=2&sort=severity&cursor={cursor}" if cursor else "?limit=2&sort=severity")).json()
        found += [history.ids.index(item["id"]) for item in body["items"]]
        assert body["total_estimate"] == 5
        cursor = body["next"]
    assert found == [4, 1, 3, 2, 0]


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("?state=firing", "state"),
        ("?filter[nothing]=x", "filter[nothing]"),
        ("?filter[state][gt]=x", "filter[state][gt]"),
        ("?filter[state]=open", "filter[state]"),
        ("?filter[severity][in]=high,none", "filter[severity][in]"),
        ("?deleted=with", "deleted"),
        ("?sort=rule", "sort"),
        ("?sort=severity&sort=severity", "sort"),
        ("?limit=0", "limit"),
        ("?limit=501", "limit"),
        ("?limit=ten", "limit"),
        ("?cursor=abc", "cursor"),
        ("?filter[rule]=" + "x" * 501, "filter[rule]"),
    ],
)
async def test_a_parameter_that_is_not_known_or_cannot_be_so_is_a_problem_that_names_it(
    history: History, query: str, parameter: str
) -> None:
    response = await history.get(query)
    problem = response.json()
    assert response.status_code == 400 and response.headers["content-type"] == "application/problem+json"
    assert problem["parameter"] == parameter and problem["got"] and problem["expected"]


async def test_the_incidents_of_another_org_do_not_exist(history: History) -> None:
    assert (await history.get(f"/{history.theirs}")).status_code == 404
    assert (await history.get(org="globex")).status_code == 404
    assert (await history.get(f"/{history.theirs}", org="globex")).status_code == 404
    assert (await history.get("/no-such-id")).status_code == 404


async def test_who_is_not_known_or_may_not_read_sees_nothing(history: History, world: World) -> None:
    for text, status in (("cmis_x_y", 401), (world.text, 403)):
        history.headers = {"Authorization": f"Bearer {text}"}
        assert (await history.get()).status_code == status
        assert (await history.get(f"/{history.ids[0]}")).status_code == status


async def test_openapi_describes_the_list(history: History) -> None:
    operation = history.app.openapi()["paths"]["/api/orgs/{org}/alerts/history"]["get"]
    names = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"}
    assert {"filter[state]", "filter[severity]", "filter[rule]", "filter[campaign]", "sort", "limit", "cursor"} <= names
    page = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert page["properties"]["items"]["items"] == {"$ref": "#/components/schemas/Incident"}
    described = history.app.openapi()["components"]["schemas"]["Incident"]
    (item, *_) = (await history.get()).json()["items"]
    assert set(item) == set(described["properties"]) == set(described["required"])
