"""What all answers of the REST interface have in common: problems, methods, the request's id, times. On a whole instance."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import httpx
import pytest
from fastapi import APIRouter

from cmis_stream.api import seen
from cmis_stream.api.app import plain_app
from cmis_stream.api.codes import codes
from cmis_stream.logs import formatter
from cmis_stream.store.database import Unavailable
from tests.api.manners import CODES, KINDS, ORG, RULE, at, client, filled, made, paths, problem
from tests.api.served import FINDINGS, INCIDENTS, Served, served

__all__ = ["client", "paths", "served"]  # fixtures
METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")


# --- problems --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path", "ask", "status", "code"), [
    ("GET", "/api/nowhere", {}, 404, "not_found"),
    ("GET", f"{ORG}/nowhere", {}, 404, "not_found"),
    ("PUT", f"{ORG}/alerts/rules", {}, 405, "method_not_allowed"),
    ("GET", f"{ORG}/alerts/rules", {"headers": {"Authorization": "Bearer cmis_x_y"}}, 401, "unauthorized"),
    ("GET", f"{ORG}/alerts/rules", {"headers": {"Authorization": "Basic eA=="}}, 401, "unauthorized"),
    ("GET", f"{ORG}/alerts/rules?limit=0", {}, 400, None),
    ("POST", f"{ORG}/alerts/rules", {"content": "{", "headers": {"Content-Type": "application/json"}}, 400, "malformed"),
    ("POST", f"{ORG}/alerts/rules", {"json": []}, 422, "wrong_type"),
    ("POST", f"{ORG}/alerts/rules", {"json": {**RULE, "name": 7, "when": {}, "more": 1}}, 422, None),
    ("POST", f"{ORG}/alerts/rules", {"content": "x", "headers": {"Content-Type": "text/plain"}}, 415, "unsupported_media"),
    ("POST", f"{ORG}/alerts/rules", {"content": b" " * (3 << 20)}, 413, "too_large"),
    ("POST", f"{ORG}/events", {"content": "x", "headers": {"Content-Type": "text/plain"}}, 415, "unsupported_media"),
    ("POST", f"{ORG}/events", {"content": "{}\n", "headers": {"Content-Type": "application/x-ndjson"}}, 422, "all_rejected"),
    ("POST", f"{ORG}/query", {"json": {"dataset": "nonsense"}}, 422, None),
    ("GET", f"{ORG}/files/none/content", {}, 404, "not_found"),
    ("GET", "/files/none", {}, 404, "not_found"),
    ("GET", "/problems/none", {}, 404, "not_found"),
    ("POST", "/api/session", {"json": {"code": "none"}}, 401, "code_not_valid"),
    ("GET", "/", {"headers": {"Host": "elsewhere.example"}}, 400, "invalid"),
])  # fmt: skip
def test_every_error_is_a_problem_with_a_published_code(
    client: httpx.Client, method: str, path: str, ask: dict[str, Any], status: int, code: str | None
) -> None:
    told = problem(client.request(method, path, **ask), status, code)
    for error in told.get("errors", ()):
        assert error.keys() & {"pointer", "parameter", "header"} and error["code"] in CODES


def test_a_caller_without_the_scope_is_told_which(served: Served, paths: dict[str, dict[str, Any]]) -> None:
    asked = 0
    with served.client(served.reader) as reader:
        for path, operations in paths.items():
            for method, operation in operations.items():
                if "{org}" in path and method != "get" and not path.endswith(("/query", "/gateway-token", "/link")):
                    body = {"json": {}} if "requestBody" in operation else {}
                    told = problem(reader.request(method, filled(path), headers=at("*"), **body), 403, "forbidden")
                    assert told["scope"] in ("write", "admin", "ingest")
                    asked += 1
    assert asked > 25


def test_the_type_of_a_problem_leads_to_what_it_means(client: httpx.Client) -> None:
    page = httpx.get(f"{client.base_url}/problems", trust_env=False)  # anybody may ask
    assert page.status_code == 200 and page.json()["next"] is None
    items = {one["code"]: one for one in page.json()["items"]}
    assert items.keys() >= codes().keys() and page.json()["total_estimate"] == len(items)
    for code, one in items.items():
        assert client.get(one["type"]).json() == one and one["type"] == f"/problems/{code}"
        assert one["title"] and one["description"].endswith(".") and all(400 <= status < 600 for status in one["statuses"])
    assert items["invalid"]["statuses"] == [400, 422] and items["busy"]["statuses"] == [429, 503]


def test_codes_of_modules_are_published_with_ours() -> None:
    assert CODES["book_read"] == ("book_read", "/problems/book_read", (409,), "It was read", "It was read.")


# --- methods ---------------------------------------------------------------------------------------------------------


def test_every_path_says_which_methods_it_takes(client: httpx.Client, paths: dict[str, dict[str, Any]]) -> None:
    anybody = httpx.Client(base_url=client.base_url, trust_env=False)
    with anybody:
        for path, operations in paths.items():
            where = filled(path)
            asked, refused = anybody.request("OPTIONS", where), anybody.request("TRACE", where)
            assert asked.status_code == 204 and not asked.content
            problem(refused, 405, "method_not_allowed")
            allowed = asked.headers["allow"].split(", ")
            assert allowed == sorted(allowed) and refused.headers["allow"] == asked.headers["allow"]
            assert {one.upper() for one in operations} <= set(allowed)
            assert ("HEAD" in allowed) == ("GET" in allowed)
            for method in set(METHODS) - set(allowed):
                problem(anybody.request(method, where), 405, "method_not_allowed")
    problem(client.request("OPTIONS", "/api/nowhere"), 404, "not_found")
    assert client.request("OPTIONS", "/").headers["allow"] == "GET, HEAD"  # the page's


def test_head_is_get_without_the_body(client: httpx.Client, paths: dict[str, dict[str, Any]]) -> None:
    file = client.post(f"{ORG}/files", params={"name": "a.csv"}, content=b"a,b\n" * 1_000_000).json()
    book = made(client, KINDS[1])
    asked = [filled(path, id="none") for path, operations in paths.items() if "get" in operations]
    for path in [*asked, file["url"], f"{KINDS[1].path}/{book['id']}"]:
        got, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b"") and got.content, path
        varying = {"date", "request-id", "content-length"} if path in ("/metrics", "/status") else {"date", "request-id"}
        first, second = ({name: one.headers[name] for name in one.headers.keys() - varying} for one in (got, head))
        if "problem" not in got.headers["content-type"]:  # which names the request
            assert first == second, path
    assert int(client.head(file["url"]).headers["content-length"]) == 4_000_000


# --- requests in the log ---------------------------------------------------------------------------------------------


def test_every_answer_names_the_request(client: httpx.Client) -> None:
    for method, path in (
        ("GET", f"{ORG}/alerts/rules"), ("GET", f"{ORG}/nowhere"), ("POST", f"{ORG}/events"), ("PUT", f"{ORG}/jobs"),
        ("GET", "/healthz"), ("OPTIONS", f"{ORG}/jobs"), ("HEAD", f"{ORG}/jobs"), ("GET", "/api/session"), ("GET", "/"),
        ("GET", "/files/none"), ("GET", "/openapi.json"),
    ):  # fmt: skip
        assert client.request(method, path, headers={"Request-Id": "mine.1"}).headers["request-id"] == "mine.1", path
        for none_of_ours in ({}, {"Request-Id": "a b"}, {"Request-Id": "x" * 65}):
            assert re.fullmatch("[0-9a-f]{32}", client.request(method, path, headers=none_of_ours).headers["request-id"]), path


def faulty() -> httpx.AsyncClient:
    router = APIRouter()

    @router.get("/api/orgs/{org}/things/{id}")
    async def things(org: str, id: str) -> dict[str, str]:
        if id == "away":
            raise Unavailable("the store cannot be reached")
        if id == "bug":
            raise RuntimeError("s3cr3t")
        return {"id": id}

    transport = httpx.ASGITransport(plain_app([router]), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test", headers={"Request-Id": "mine"})


async def test_what_goes_wrong_on_our_side_leaves_one_line_under_the_requests_id(caplog: pytest.LogCaptureFixture) -> None:
    async with faulty() as client:
        for id_, status in (("fine", 200), ("bug", 500), ("away", 503)):
            caplog.clear()
            response = await client.get(f"/api/orgs/acme/things/{id_}?token=hidden")
            assert response.status_code == status and response.headers["request-id"] == "mine"
            lines = [record for record in caplog.records if record.name == seen.__name__]
            if status == 200:
                assert not lines
                continue
            problem(response, status)
            assert "s3cr3t" not in response.text
            (line,) = lines
            told = json.loads(formatter("json").format(line))
            assert {name: told[name] for name in ("request_id", "method", "path", "status", "org")} == {
                "request_id": "mine", "method": "GET", "path": "/api/orgs/{org}/things/{id}", "status": status, "org": "acme",
            }  # fmt: skip
            assert told["ms"] >= 0 and ("error" in told) == (status == 500)
            text = formatter("text").format(line)
            assert "hidden" not in text and "mine" in text and "/api/orgs/{org}/things/{id}" in text
            assert line.levelno == (logging.ERROR if status == 500 else logging.WARNING)


async def test_a_request_that_takes_long_leaves_a_line(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "SLOW_MS", -1)
    async with faulty() as client:
        assert (await client.head("/api/orgs/ac%0Ame/things/fine")).status_code == 200
        assert (await client.get("/nowhere")).status_code == 404
    first, second = (record for record in caplog.records if record.name == seen.__name__)
    assert "HEAD /api/orgs/{org}/things/{id} answered 200" in first.getMessage() and "\n" not in first.getMessage()
    assert "GET None answered 404" in second.getMessage()


# --- times -----------------------------------------------------------------------------------------------------------


def test_every_time_has_a_zone(client: httpx.Client, paths: dict[str, dict[str, Any]]) -> None:
    kind = KINDS[1]
    book = made(client, kind, read_at="2026-01-01T01:00:00+01:00")
    assert book["read_at"] == "2026-01-01T00:00:00.000Z"
    file = client.post(f"{ORG}/files", params={"name": "a", "expires_in_s": "60"}, content=b"a").json()
    client.put(f"{ORG}/secrets/slack", json={"value": "x"})
    ids = {"books/books": book["id"], "files": file["id"], "history": INCIDENTS[0][0], "findings": FINDINGS[0]}
    times = list[str]()
    for path, operations in paths.items():
        if "get" in operations and path.startswith(("/api/", "/status")):
            end = path.partition("/{id}")[0]
            of = next((one for part, one in ids.items() if end.endswith(part)), "none")
            response = client.get(filled(path, id=of))
            if response.headers["content-type"] == "application/json":
                times += re.findall(r'"(\d{4}-\d\d-\d\d[T ][^"]*)"', response.text)
    times += re.findall(r'"(\d{4}-\d\d-\d\d[T ][^"]*)"', client.post(f"{ORG}/gateway-token").text)
    times += re.findall(
        r'"(\d{4}-\d\d-\d\d[T ][^"]*)"',
        client.post(f"{ORG}/query", json={"dataset": "panes", "measures": ["spend_micros"], "from": "-5m"}).text,
    )
    assert len(times) > 20
    assert not [time for time in times if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", time)]
    wrong = client.post(kind.path, json={**kind.body(), "read_at": "2026-01-01T00:00:00"})
    assert problem(wrong, 422)["errors"][0]["pointer"] == "/read_at"
