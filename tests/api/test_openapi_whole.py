"""The whole OpenAPI document of a running instance is true: whatever is asked as it says, or beside it, is answered as it says.

Each operation is asked over HTTP, both ways; besides schemathesis's own checks, no header comes that is not described.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from tests.api.served import FINDINGS, INCIDENTS, Served, served

if os.environ.get("CI"):
    import schemathesis
else:
    schemathesis = pytest.importorskip("schemathesis")
from schemathesis import GenerationMode, checks

__all__ = ["served"]  # a fixture
pytestmark = pytest.mark.slow
EXAMPLES = 40
"""Requests to each operation, in each mode: the tests of each part of the interface send more to it."""
CHECKS = [
    checks.not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
    checks.response_schema_conformance, checks.response_headers_conformance,
]  # fmt: skip
OF_EVERY_ANSWER = {
    "content-type", "content-length", "date", "server", "transfer-encoding", "request-id", "cache-control",
    "content-security-policy", "referrer-policy", "x-content-type-options",
}  # fmt: skip
PARTS = ("events", "query", "datasets", "jobs", "files", "secrets", "schedules", "subjects/erase", "alerts/rules",
         "alerts/history", "kinds", "books/books", "books-shelves", "books/findings", "commands/{id}",
         "gateway-token")  # fmt: skip
OTHERS = ("/api/session", "/api/session/gateway-token", "/api/shelves", "/healthz", "/readyz", "/metrics", "/status",
          "/files/{token}")  # fmt: skip


@pytest.fixture(scope="module")
def described(served: Served) -> Any:
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json", headers={"Authorization": f"Bearer {served.token}"})


class There:
    """What can stand in a path: made anew for each operation, since the one before may have deleted it."""

    def __init__(self, served: Served, client: httpx.Client) -> None:
        self._client, self._numbers = client, itertools.count(1)
        self.rule = dict(served.runtime.stores.kinds["alert_rule"].examples[0])
        self._of: dict[str, Callable[[], list[str]]] = {
            "/api/orgs/{org}/books/books": self._books,
            "/api/orgs/{org}/books-shelves": self._shelves,
            "/api/shelves": self._shelves,
            "/api/orgs/{org}/alerts/rules": self._rules,
            "/api/orgs/{org}/alerts/history": lambda: [one for one, _ in INCIDENTS],
            "/api/orgs/{org}/books/findings": lambda: FINDINGS,
            "/api/orgs/{org}/commands": lambda: [served.commanded()],
            "/api/orgs/{org}/files": lambda: [self._file() for _ in range(3)],
            "/api/orgs/{org}/jobs": lambda: [served.job() for _ in range(2)],
            "/api/orgs/{org}/secrets": lambda: ["books/key", "slack"],
            "/files": self._links,
        }

    def __call__(self, collection: str) -> list[str]:
        return self._of[collection]() if collection in self._of else []

    def _made(self, path: str, body: Mapping[str, Any], *, deleted: bool = False) -> str:
        response = self._client.post(f"/api/orgs/acme/{path}", json=body)
        assert response.status_code == 201, response.text
        identity = str(response.json()["id"])
        if deleted:
            gone = self._client.delete(f"/api/orgs/acme/{path}/{identity}", headers={"If-Match": "*"})
            assert gone.status_code == 204, gone.text
        return identity

    def _shelves(self) -> list[str]:
        full = self._made("books-shelves", {"label": "Full"})
        self._book(shelf=full)
        empty = [self._made("books-shelves", {"label": "Empty"}) for _ in range(2)]
        return [full, *empty, self._made("books-shelves", {"label": "Gone"}, deleted=True)]

    def _books(self) -> list[str]:
        books = [self._book() for _ in range(2)]
        by_key = f"key-{next(self._numbers)}"
        self._book(key=by_key)
        return [*books, by_key, self._book(deleted=True)]

    def _book(self, *, deleted: bool = False, **more: Any) -> str:
        number = next(self._numbers)
        return self._made("books/books", {"title": f"Book {number}", "key": f"b{number}", **more}, deleted=deleted)

    def _rules(self) -> list[str]:
        keys = [f"rule-{next(self._numbers)}" for _ in range(3)]
        made = [self._made("alerts/rules", {**self.rule, "key": key}, deleted=not place) for place, key in enumerate(keys)]
        return [*made, keys[1]]

    def _file(self) -> str:
        response = self._client.post("/api/orgs/acme/files?name=a.csv", content=b"a,b\n" * 100)
        assert response.status_code == 201, response.text
        return str(response.json()["id"])

    def _links(self) -> list[str]:
        url = self._client.post(f"/api/orgs/acme/files/{self._file()}/link").json()["url"]
        return [str(url).removeprefix("/files/")]


@pytest.fixture(scope="module")
def there(served: Served) -> Iterator[There]:
    with served.client() as client:
        yield There(served, client)


@pytest.mark.spec("TEN-M07", partial="requests made from OpenAPI and beside it to every operation, never a 5xx")
def test_every_answer_of_every_operation_is_one_that_is_described(
    served: Served, described: Any, there: There, subtests: pytest.Subtests
) -> None:
    operations = [one.ok() for one in described.get_all_operations()]
    missing = {*(f"/api/orgs/{{org}}/{part}" for part in PARTS), *OTHERS} - {operation.path for operation in operations}
    assert not missing, f"not in OpenAPI: {sorted(missing)}"
    seen = dict[str, set[int]]()
    for operation in operations:
        with subtests.test(operation.label):
            asked = seen.setdefault(operation.label, set())
            _ask(served, operation, GenerationMode.POSITIVE, there, asked)
            try:
                _ask(served, operation, GenerationMode.NEGATIVE, there, asked)
            except Unsatisfiable:  # any text can stand in its path, and it takes nothing else
                assert "requestBody" not in operation.definition.raw
    never = sorted(label for label, statuses in seen.items() if not any(status < 400 for status in statuses))
    assert not never, f"nothing that was asked of these was done: {never}"
    everything = set().union(*seen.values())
    assert {200, 201, 204, 206, 304, 400, 401, 404, 409, 412, 415, 416, 422, 428} <= everything, everything


def _ask(served: Served, operation: Any, mode: Any, there: There, seen: set[int]) -> None:
    numbers = itertools.count()
    of_session, is_file = operation.path.startswith("/api/session"), operation.path.endswith(("/content", "/{token}"))
    session = served.session() if of_session else {}
    collection, parameter = re.fullmatch(r"(.*?)(?:/\{(id|name|token)\}.*)?", operation.path).groups()  # type: ignore[union-attr]
    known = there(collection) if parameter else []

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), derandomize=True
    )
    def asked(case: Any) -> None:
        nonlocal session
        number = next(numbers)
        if "org" in case.path_parameters:
            case.path_parameters["org"] = "acme"
        if known and number % 5:
            case.path_parameters[parameter] = known[number % len(known)]
        if "If-Match" in case.headers and number % 5:
            case.headers["If-Match"] = ("*", '"1"')[number % 2]
        if is_file and number % 5:
            case.headers["Range"] = ("bytes=1-2", "bytes=999-")[number % 2]
            case.headers["If-None-Match"] = ("*", '"x"', '"y"')[number % 3]
        if operation.label == "POST /api/orgs/{org}/files" and number % 2:
            case.query["name"] = "a.csv"
        if operation.label == "PUT /api/orgs/{org}/alerts/rules/{id}" and number % 2:
            case.body = {**there.rule, "key": f"put-{number}"}
        if operation.path.endswith(("books/{id}/clone", "rules/{id}/clone")) and number % 2:
            case.body = {"key": f"clone-{number}"}
        if operation.label == "POST /api/session" and isinstance(case.body, dict) and number % 2:
            case.body["code"] = served.instance.sessions.make_code()
        if operation.label == "DELETE /api/session":
            session = served.session()
        headers = session if of_session else {"Authorization": f"Bearer {served.token}"}
        response = case.call(headers={} if number == EXAMPLES - 1 else headers)
        seen.add(response.status_code)
        case.validate_response(response, checks=CHECKS)
        _only_described(operation.definition.raw, response)

    asked()


def _only_described(operation: dict[str, Any], response: Any) -> None:
    """Also headers."""
    said = {name.lower() for name in operation["responses"][str(response.status_code)].get("headers", {})}
    more = {name.lower() for name in response.headers} - OF_EVERY_ANSWER - said
    assert not more, f"not described: {more} at {response.status_code}"
    assert "request-id" in {name.lower() for name in response.headers}
