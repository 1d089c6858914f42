"""`POST /api/orgs/{org}/query` over HTTP: who may ask, what is answered, what problems look like."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cmis_stream.api.app import create_app
from cmis_stream.api.ingest import ApiPorts
from cmis_stream.api.query import LARGEST_BODY, query_router
from cmis_stream.query.datasets import Panes, Queries
from cmis_stream.query.history import HistoryFigures
from cmis_stream.query.stored import datasets_of
from cmis_stream.store.database import Database
from cmis_stream.store.decisions import Actor, Command
from cmis_stream.store.documents import Documents
from cmis_stream.store.facts import Facts
from cmis_stream.store.kinds import Kind, Kinds, Manifest
from tests.api.conftest import World
from tests.contracts.support import personal_data
from tests.contracts.toy.manifest import CHILD, MANIFEST
from tests.core.support import event
from tests.query.test_panes import World as PanesWorld

QUERY = {"dataset": "panes", "measures": ["clicks", "spend_micros"], "dimensions": ["campaign"], "from": "-15m"}


SECRET = Kind("secret_toy", CHILD.model, filters={"name": "text"}, scopes={"read": "admin"})
KINDS = Kinds([MANIFEST, Manifest("secrets", (SECRET,))])


class Asked:
    """An app whose engine has taken one event of acme and one of globex, over a store with toys, and files of history."""

    def __init__(self, world: World, database: Database, history: Path) -> None:
        self.panes = PanesWorld([event(0, clicks=3, spend=1.5), event(0, org="globex", campaign="theirs")])
        self.documents = Documents(database, KINDS, lambda: self.panes.now_ms - 1000, personal_data(database))
        figures = {
            "panes": Panes(lambda _: self.panes.owner if self.panes.here else None, lambda: self.panes.now_ms),
            "history": HistoryFigures(history, 8, "epoch", lambda: self.panes.now_ms),
        }
        stored = datasets_of(self.documents, Facts(database, KINDS), KINDS, lambda *_: {}, lambda: self.panes.now_ms)
        queries = Queries(figures, stored)
        ports = ApiPorts(world.auth, world.log.publish, world.log.dead_letter, world.now)
        self.app = create_app(ports, [query_router(queries, world.auth.admitted)])
        self.token = world.tokens.create("acme", ["read"])[1]
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False), base_url="http://test"
        )

    async def post(self, body: Any = None, *, org: str = "acme", token: str | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        content = {"content": body} if isinstance(body, bytes) else {"json": QUERY if body is None else body}
        return await self.client.post(f"/api/orgs/{org}/query", headers=headers, **content)

    async def get(self, *, org: str = "acme", token: str | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token or self.token}"}
        return await self.client.get(f"/api/orgs/{org}/datasets", headers=headers)

    async def datasets(self, token: str | None = None) -> list[dict[str, Any]]:
        response = await self.get(token=token)
        assert response.status_code == 200 and response.json()["next"] is None
        items: list[dict[str, Any]] = response.json()["items"]
        return items


@pytest.fixture
async def asked(world: World, tmp_path: Path) -> AsyncIterator[Asked]:
    database = Database(f"sqlite:///{tmp_path / 'documents.db'}")
    made = Asked(world, database, tmp_path / "history")
    async with made.client:
        yield made
    database.close()


async def test_a_query_is_answered_with_the_org_s_own_figures(asked: Asked) -> None:
    response = await asked.post()
    assert response.status_code == 200 and response.headers["content-type"] == "application/json"
    answer = response.json()
    assert answer["rows"] == [["c1", "USD", 3, 1_500_000]]
    assert set(answer) == {"columns", "rows", "watermark", "provisional", "position", "from", "to", "step"}


@pytest.mark.spec("TEN-M01", partial="of queries; every path has a test of its own")
async def test_who_is_not_known_or_may_not_read_is_refused(asked: Asked, world: World) -> None:
    assert (await asked.post(token="cmis_x_y")).status_code == 401
    assert (await asked.post(token=world.text)).status_code == 403, "a token that may only send events"
    problem = await asked.post(org="globex")
    assert problem.status_code == 404 and "theirs" not in problem.text
    assert (await asked.post(org="no-such-org")).json()["detail"] == problem.json()["detail"]


async def test_a_faulty_query_is_a_problem_that_names_each_place(asked: Asked) -> None:
    response = await asked.post({**QUERY, "measures": ["spend"], "step": "5m"})
    problem = response.json()
    assert response.status_code == 422 and response.headers["content-type"] == "application/problem+json"
    assert problem["type"] == "/problems/invalid" and problem["title"] and problem["request_id"]
    assert [(error["pointer"], error["code"], error["got"]) for error in problem["errors"]] == [
        ("/measures/0", "invalid", "'spend'"), ("/step", "invalid", "'5m'")
    ]  # fmt: skip
    assert "custom.NAME" in problem["errors"][0]["expected"]


async def test_what_is_not_kept_so_long_says_what_is(asked: Asked) -> None:
    problem = (await asked.post({**QUERY, "from": "-1h", "step": "10s"})).json()
    assert problem["type"] == "/problems/not_kept" and problem["errors"][0]["pointer"] == "/from"
    assert "1h from" in problem["errors"][0]["expected"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"dataset": NaN}'])
async def test_a_body_that_is_not_json_is_malformed(asked: Asked, body: bytes) -> None:
    response = await asked.post(body)
    assert (response.status_code, response.json()["type"]) == (400, "/problems/malformed")


async def test_a_body_beyond_its_limit_is_too_large(asked: Asked) -> None:
    assert (await asked.post(b" " * (LARGEST_BODY + 1))).status_code == 413


async def test_figures_that_are_not_here_yet_are_to_be_asked_for_again(asked: Asked) -> None:
    asked.panes.here = False
    response = await asked.post()
    assert response.status_code == 503 and response.headers["retry-after"] == "1"


async def test_documents_are_counted_as_who_asks_may_see_them(asked: Asked, world: World) -> None:
    tokens = {
        name: world.tokens.create("acme", ["read", *more]) for name, more in (("ann", []), ("ben", []), ("adam", ["admin"]))
    }
    for name, visibility in (("ann", "private"), ("ann", "org"), ("ben", "private")):
        asked.documents.execute(
            "acme", Actor(tokens[name][0].id), Command("create", "wish", body={"text": name, "visibility": visibility})
        )
    for name, seen in (("ann", 2), ("ben", 2), ("adam", 3)):
        response = await asked.post({"dataset": "wishes", "measures": ["count"]}, token=tokens[name][1])
        assert response.json()["rows"] == [[seen]], name
    theirs = world.tokens.create("globex", ["read", "admin"])[1]
    response = await asked.post({"dataset": "wishes", "measures": ["count"]}, org="globex", token=theirs)
    assert response.json()["rows"] == [[0]]


async def test_what_a_kind_asks_of_its_readers_is_asked_of_who_queries_it(asked: Asked, world: World) -> None:
    body = {"dataset": "secret_toys", "measures": ["count"]}
    problem = await asked.post(body)
    assert (problem.status_code, problem.json()["scope"]) == (403, "admin")
    admin = world.tokens.create("acme", ["read", "admin"])[1]
    assert (await asked.post(body, token=admin)).status_code == 200
    assert "secret_toys" not in [one["name"] for one in await asked.datasets()]
    assert "secret_toys" in [one["name"] for one in await asked.datasets(admin)]


async def test_the_datasets_are_listed_with_what_can_be_asked_of_them(asked: Asked) -> None:
    found = {one["name"]: one for one in await asked.datasets()}
    assert list(found) == ["panes", "history", "toys", "boxes", "children", "loans", "wishes", "playdates"]
    assert {"name": "ctr", "type": "number", "unit": "ratio"} in found["panes"]["measures"]
    assert found["history"]["steps"] == ["1m", "15m", "1h", "1d", "1w", "1mo"] and found["history"]["measure_prefix"] == "custom."
    toys = found["toys"]
    assert {"name": "sum(price_micros)", "type": "integer", "unit": "micros"} in toys["measures"]
    assert {"name": "loud", "type": "boolean", "unit": None} in toys["dimensions"]
    assert {"name": "loud", "type": "boolean", "unit": None, "operators": ["eq", "ne", "in"]} in toys["filters"]
    for one in found.values():  # history has no files here, and answers all the same
        query = {"dataset": one["name"], "measures": [one["measures"][0]["name"]], "dimensions": [one["dimensions"][1]["name"]]}
        assert (await asked.post({**query, "from": "-5m"})).status_code == 200


async def test_who_may_not_read_is_told_of_no_datasets(asked: Asked, world: World) -> None:
    assert (await asked.get(token=world.text)).status_code == 403
    assert (await asked.get(org="globex")).status_code == 404
    assert (await asked.get(token="cmis_x_y")).status_code == 401


async def test_openapi_describes_each_dataset_s_body_with_an_example_that_works(asked: Asked) -> None:
    operation = asked.app.openapi()["paths"]["/api/orgs/{org}/query"]["post"]
    described = operation["requestBody"]["content"]["application/json"]
    bodies = {one["properties"]["dataset"]["const"]: one for one in described["schema"]["oneOf"]}
    assert set(bodies) == set(described["examples"]) >= {"panes", "history", "toys", "wishes"}
    assert bodies["panes"]["required"] == ["dataset", "measures", "from"] and bodies["toys"]["required"] == [
        "dataset",
        "measures",
    ]
    answer = operation["responses"]["200"]["content"]["application/json"]
    for name, example in described["examples"].items():
        if name != "secret_toys":
            response = await asked.post({**example["value"], "from": "-5m"})
            assert response.status_code == 200, response.text
            assert set(answer["schema"]["required"]) == set(response.json()) - {"coarsest"}
    assert set(answer["schema"]["required"]) == set(answer["example"])
