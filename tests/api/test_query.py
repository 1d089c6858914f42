"""`POST /api/orgs/{org}/query` over HTTP: who may ask, what is answered, what problems look like."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from cmis_stream.api.app import create_app
from cmis_stream.api.ingest import ApiPorts
from cmis_stream.api.query import LARGEST_BODY, query_router
from cmis_stream.query.datasets import Panes, Queries
from tests.api.conftest import World
from tests.core.support import event
from tests.query.test_panes import World as PanesWorld

QUERY = {"dataset": "panes", "measures": ["clicks", "spend_micros"], "dimensions": ["campaign"], "from": "-15m"}


class Asked:
    """An app whose engine has taken one event of acme and one of globex."""

    def __init__(self, world: World) -> None:
        self.panes = PanesWorld([event(0, clicks=3, spend=1.5), event(0, org="globex", campaign="theirs")])
        queries = Queries({"panes": Panes(lambda _: self.panes.owner if self.panes.here else None, lambda: self.panes.now_ms)})
        ports = ApiPorts(world.auth, world.log.publish, world.log.dead_letter, world.now)
        self.app = create_app(ports, [query_router(queries, world.auth.authorize)])
        self.token = world.tokens.create("acme", ["read"])[1]
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False), base_url="http://test"
        )

    async def post(self, body: Any = None, *, org: str = "acme", token: str | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        content = {"content": body} if isinstance(body, bytes) else {"json": QUERY if body is None else body}
        return await self.client.post(f"/api/orgs/{org}/query", headers=headers, **content)


@pytest.fixture
async def asked(world: World) -> AsyncIterator[Asked]:
    made = Asked(world)
    async with made.client:
        yield made


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


async def test_openapi_describes_the_body_with_an_example_that_works(asked: Asked) -> None:
    operation = asked.app.openapi()["paths"]["/api/orgs/{org}/query"]["post"]
    described = operation["requestBody"]["content"]["application/json"]
    assert described["schema"]["required"] == ["dataset", "measures", "from"]
    response = await asked.post({**described["example"], "from": "-5m"})
    assert response.status_code == 200
    answer = operation["responses"]["200"]["content"]["application/json"]
    assert set(answer["schema"]["required"]) == set(response.json()) == set(answer["example"])
