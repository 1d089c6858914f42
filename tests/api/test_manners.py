"""The manners of the REST interface, shown on a whole instance, on every path of its OpenAPI document where they apply."""

from __future__ import annotations

import json
import re
from typing import Any
from uuid import uuid4

import httpx
import pytest

from cmis_stream.core.ids import fact_id
from cmis_stream.store.facts import Change
from tests.api.manners import CODES, KINDS, RULE, Kind, at, client, filled, made, paths, problem
from tests.api.served import FINDINGS, NOW, Served, served
from tests.store.fact_support import incident

__all__ = ["client", "paths", "served"]  # fixtures
WITHOUT_VERSIONS = ("/secrets/", "/files/", "/api/session")
"""What has no versions: a secret is never read, a file never changes."""
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.path)


# --- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/api/orgs/{org}/alerts/rules", 200),
    ("POST", "/api/orgs/{org}/alerts/rules", 201),
    ("GET", "/api/session", 401),
])  # fmt: skip
def test_the_paths_of_delivered_modules_are_as_written(client: httpx.Client, method: str, path: str, status: int) -> None:
    body = {"json": {**RULE, "key": f"k{uuid4().hex[:20]}"}} if method == "POST" else {}
    response = client.request(method, filled(path), **body)
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/")


def test_words_come_before_ids(client: httpx.Client) -> None:
    """`bulk` is no id: what it does is done, also where a document has it as its key."""
    book = made(client, KINDS[1], key="bulk")
    assert client.post(f"{KINDS[1].path}/bulk", json={"items": []}).json() == {"results": []}
    assert client.get(f"{KINDS[1].path}/bulk").json()["id"] == book["id"]


# --- parameters and lists --------------------------------------------------------------------------------------------


def test_a_parameter_that_is_not_known_is_refused_by_name(client: httpx.Client, paths: dict[str, dict[str, Any]]) -> None:
    asked = 0
    for path, operations in paths.items():
        if not path.startswith("/api/") or path.startswith("/api/session") or path.endswith(("/events", "/gateway-token")):
            continue
        for method, operation in operations.items():
            body = {"json": {}} if "requestBody" in operation else {}
            response = client.request(method, filled(path), params={"nonsense": "1"}, headers=at("*"), **body)
            assert problem(response, 400, "invalid")["parameter"] == "nonsense"
            asked += 1
    assert asked > 50


def test_every_list_is_a_page_and_takes_what_pages_take(client: httpx.Client, paths: dict[str, dict[str, Any]]) -> None:
    for kind in KINDS:
        for _ in range(3):
            made(client, kind)
    limited = 0
    for path, operations in paths.items():
        if not path.startswith("/api/") or path.startswith("/api/session") or "get" not in operations or "{id}" in path:
            continue
        response = client.get(filled(path))
        assert response.status_code == 200 and response.json().keys() == {"items", "next", "total_estimate"}, path
        if any(one["name"] == "limit" for one in operations["get"]["parameters"]):
            limited += 1
            for wrong in ("0", "501", "-1", "x", "1.5", ""):
                assert problem(client.get(filled(path), params={"limit": wrong}), 400)["parameter"] == "limit"
            first = client.get(filled(path), params={"limit": "1"}).json()
            if first["next"] is not None:
                second = client.get(filled(path), params={"limit": "1", "cursor": first["next"]}).json()
                assert second["items"][0]["id"] != first["items"][0]["id"]
            assert problem(client.get(filled(path), params={"cursor": "x!"}), 400)["parameter"] == "cursor"
    assert limited >= 8


def test_lists_are_filtered_sorted_and_show_deleted_ones_when_asked(client: httpx.Client) -> None:
    books, shelf = KINDS[1], made(client, KINDS[2])["id"]
    of_one = {"filter[tags][contains]": shelf}
    ids = [made(client, books, title=title, pages=pages, tags=[shelf])["id"] for title, pages in (("b", 1), ("a", 3), ("c", 2))]

    def listed(**parameters: str) -> list[int]:
        response = client.get(books.path, params={**of_one, **parameters})
        assert response.status_code == 200, response.text
        return [ids.index(one["id"]) for one in response.json()["items"]]

    assert listed(sort="-pages,id") == [1, 2, 0] and listed(sort="title") == [1, 0, 2]
    for op, value, expected in (
        ("eq", "2", [2]), ("ne", "2", [0, 1]), ("gt", "1", [2, 1]), ("gte", "2", [2, 1]), ("lt", "2", [0]), ("lte", "2", [0, 2]),
        ("in", "1,3", [0, 1]),
    ):  # fmt: skip
        assert sorted(listed(**{f"filter[pages][{op}]": value})) == sorted(expected), op
    assert listed(**{"filter[title][contains]": "a"}) == [1]
    assert client.delete(f"{books.path}/{ids[0]}", headers=at("*")).status_code == 204
    assert listed(sort="title") == [1, 2] and listed(deleted="only") == [0] and len(listed(deleted="with")) == 3
    assert problem(client.get(books.path, params={"deleted": "yes"}), 400)["parameter"] == "deleted"
    assert problem(client.get(books.path, params={"sort": "nonsense"}), 400)["parameter"] == "sort"


# --- versions --------------------------------------------------------------------------------------------------------


@every_kind
def test_what_changes_a_document_says_which_version_it_is_about(client: httpx.Client, kind: Kind) -> None:
    document = made(client, kind)
    where = f"{kind.path}/{document['id']}"
    asks: list[tuple[str, dict[str, Any]]] = [
        ("PUT", {"json": kind.body()}),
        ("PATCH", {"json": {"tags": ["a"]}}),
        ("DELETE", {}),
    ]
    for method, body in asks:
        problem(client.request(method, where, **body), 428, "precondition_required")
        stale = client.request(method, where, headers=at(99), **body)
        problem(stale, 412, "stale")
        assert stale.headers["etag"] == '"1"'
        problem(client.request(method, where, headers=at("nonsense"), **body), 400, "malformed")
    assert client.get(where).json() == document
    for version, (method, body) in enumerate(asks, 1):
        response = client.request(method, where, headers=at(version), **body)
        assert response.status_code in (200, 204) and response.headers["etag"] == f'"{version + 1}"', response.text


def test_no_path_changes_something_that_has_versions_without_asking_for_one(
    client: httpx.Client, paths: dict[str, dict[str, Any]]
) -> None:
    asked = set()
    for path, operations in paths.items():
        for method in operations.keys() & {"put", "patch", "delete"}:
            if not any(part in path for part in WITHOUT_VERSIONS):
                body = {} if method == "delete" else {"json": {}}
                problem(client.request(method, filled(path), **body), 428, "precondition_required")
                asked.add(path)
    assert asked == {re.sub("acme", "{org}", f"{kind.path}/{{id}}") for kind in KINDS}


def test_a_patch_is_a_json_merge_patch(client: httpx.Client) -> None:
    book = made(client, KINDS[1], pages=5, tags=["a", "b"], metadata={"x": {"y": 1, "z": 2}, "w": 3})
    where, media = f"{KINDS[1].path}/{book['id']}", {"Content-Type": "application/merge-patch+json"}
    patch = {"pages": None, "tags": ["c"], "metadata": {"x": {"y": None, "v": 4}, "w": None}}
    response = client.patch(where, content=json.dumps(patch), headers={**at(1), **media})
    assert response.status_code == 200, response.text
    told = response.json()
    assert (told["pages"], told["tags"], told["metadata"]) == (1, ["c"], {"x": {"z": 2, "v": 4}})
    assert told["title"] == book["title"]
    problem(client.patch(where, content="pages=1", headers={**at(2), "Content-Type": "text/plain"}), 415, "unsupported_media")


# --- the same again --------------------------------------------------------------------------------------------------


def test_the_same_with_the_same_key_is_done_once_and_another_body_is_refused(
    client: httpx.Client, paths: dict[str, dict[str, Any]]
) -> None:
    """On every operation that takes a key."""
    asked = set()
    for path, operations in paths.items():
        for method, operation in operations.items():
            if any(one["name"] == "Idempotency-Key" for one in operation.get("parameters", ())):
                _again(client, path, method)
                asked.add((path, method))
    assert len(asked) > 25 and {method for _, method in asked} == {"post", "put", "patch", "delete"}


def _again(client: httpx.Client, path: str, method: str) -> None:
    collection, _, command = path.partition("/{id}")
    kind = next((one for one in KINDS if filled(collection).startswith(one.path)), None)
    identity = FINDINGS[0]
    if kind is not None:
        identity = made(client, kind)["id"]
        if command == "/restore":
            assert client.delete(f"{kind.path}/{identity}", headers=at("*")).status_code == 204
        body, other = _bodies(kind, method, path)
    else:
        body, other = ({"note": "a"}, {"note": "b"}) if command == "/add" else (None, None)
    headers = {"Idempotency-Key": uuid4().hex, **(at("*") if method in ("put", "patch", "delete") else {})}
    where = filled(path, id=identity)
    ask = {"headers": headers, **({} if body is None else {"json": body})}
    first, again = client.request(method, where, **ask), client.request(method, where, **ask)
    assert first.status_code < 300 and again.status_code < 300, f"{method} {where}: {first.text} {again.text}"
    assert "idempotency-replayed" not in first.headers
    if first.status_code != 202:  # an agent that was slow may be asked again
        assert first.status_code == again.status_code and again.headers["idempotency-replayed"] == "true", where
    if kind is not None and method != "delete":
        assert first.content == again.content
    if other is not None:
        different = client.request(method, where, headers=headers, json=other)
        assert different.status_code == 202 or problem(different, 422, "key_reused"), where


def _bodies(kind: Kind, method: str, path: str) -> tuple[Any, Any]:
    """Two bodies that could both be taken; (None, None) where there is none."""
    if method == "delete" or path.endswith(("/restore", "/read-it")):
        return None, None
    if method == "patch":
        return {"tags": ["a"]}, {"tags": ["b"]}
    if path.endswith("/bulk"):
        return tuple({"items": [{"op": "create", "body": kind.body()}]} for _ in range(2))
    if path.endswith(("/retitle", "/order")):
        return {"title": "a"}, {"title": "b"}
    return kind.body(), kind.body()


# --- other orgs ------------------------------------------------------------------------------------------------------


def test_another_orgs_path_is_not_there_whoever_asks(
    served: Served, client: httpx.Client, paths: dict[str, dict[str, Any]]
) -> None:
    """Nor does it differ from one of an org that does not exist; also for those who would lack the scope."""
    asked = 0
    with served.client(served.reader) as reader:
        for path, operations in paths.items():
            for method, operation in operations.items():
                if "{org}" in path:
                    ask: dict[str, Any] = {"headers": {**at("*"), "Request-Id": "same"}}
                    ask |= {"json": {}} if "requestBody" in operation else {}
                    for one in (client, reader):
                        foreign, absent = (one.request(method, filled(path, org, id="x"), **ask) for org in ("globex", "nowhere"))
                        problem(foreign, 404, "not_found")
                        assert foreign.content == absent.content, path
                    asked += 1
    assert asked > 50


def test_another_orgs_things_are_not_there_under_ones_own_org(
    served: Served, client: httpx.Client, paths: dict[str, dict[str, Any]]
) -> None:
    theirs = _theirs(served)
    left = {"/api/orgs/{org}/commands/{id}"}  # ids of commands are drawn, and never told to others: see tests/api/test_facts.py
    asked = 0
    for path, operations in paths.items():
        collection, found, command = path.partition("/{id}")
        if not found or path in left:
            continue
        identity = theirs[collection.replace("/api/shelves", "/api/orgs/{org}/books-shelves")]
        for method, operation in operations.items():
            ask: dict[str, Any] = {"headers": at("*")}
            if "requestBody" in operation:
                ask["json"] = _fitting(collection, method, command)
            problem(client.request(method, filled(path, id=identity), **ask), 404, "not_found")
            asked += 1
    assert asked > 35


def _theirs(served: Served) -> dict[str, str]:
    """Collection -> the id of one of globex, of each kind of thing."""
    found, of = dict[str, str](), "/api/orgs/{org}"
    with served.client(served.foreign) as client:
        for kind in KINDS[:3]:
            path = kind.path.replace("acme", "globex")
            response = client.post(path, json=kind.body())
            assert response.status_code == 201, response.text
            found[kind.path.replace("acme", "{org}")] = response.json()["id"]
        file = client.post("/api/orgs/globex/files?name=a.csv", content=b"a").json()
        found[f"{of}/files"] = file["id"]
    served.runtime.stores.jobs.enqueue("globex", "theirs", "count_books", {}, "gus", due_at=4 * NOW)
    found[f"{of}/jobs"] = "theirs"
    one, body = incident(100)
    finding = fact_id(NOW, "theirs")
    changes = [Change("globex", "incident", one, NOW, lambda _: body), Change("globex", "finding", finding, NOW, _finding)]
    assert served.runtime.facts.write(changes, "theirs", "e", {("t", 0): 0}, {})
    return found | {f"{of}/alerts/history": one, f"{of}/books/findings": finding}


def _finding(_: object) -> dict[str, Any]:
    return {"name": "theirs"}


def _fitting(collection: str, method: str, command: str) -> Any:
    if command in ("/add", "/retitle"):
        return {"note": "a"} if command == "/add" else {"title": "a"}
    kind = next(one for one in KINDS if one.path == filled(collection))
    return kind.body() if method == "put" else {"tags": ["a"]}


# --- many at once ----------------------------------------------------------------------------------------------------


@every_kind
def test_a_bulk_tells_what_became_of_each_and_takes_a_thousand(client: httpx.Client, kind: Kind) -> None:
    gone, id_ = str(uuid4()), str(uuid4())
    items: list[Any] = [
        {"op": "create", "body": {**kind.body(), "id": id_}},
        {"op": "delete", "id": gone, "version": 1},
        {"op": "patch", "id": id_, "body": {"tags": ["a"]}},
        {"op": "nonsense"},
        {"op": "patch", "id": id_, "version": 1, "body": {"tags": ["b"]}},
    ]
    response = client.post(f"{kind.path}/bulk", json={"items": items})
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    assert [one["index"] for one in results] == list(range(5))
    assert [one["status"] for one in results] == [201, 404, 428, 422, 200]
    for one in results:
        assert ("problem" in one) == (one["status"] >= 400)
        if "problem" in one:
            of = CODES[one["problem"]["type"].removeprefix("/problems/")]
            assert one["problem"]["status"] == one["status"] and one["status"] in of.statuses
    assert client.get(f"{kind.path}/{id_}").json()["tags"] == ["b"]
    full = client.post(f"{kind.path}/bulk", json={"items": [{"op": "delete", "id": gone, "version": 1}] * 1000})
    assert full.status_code == 200 and len(full.json()["results"]) == 1000
    told = problem(client.post(f"{kind.path}/bulk", json={"items": [{"op": "delete"}] * 1001}), 422, "too_long")
    assert told["errors"][0]["pointer"] == "/items" and told["errors"][0].keys() >= {"got", "expected"}
