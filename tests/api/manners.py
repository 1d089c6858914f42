"""What the tests of REST's manners share: collections of documents, paths with something in them, problems."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
import pytest

from cmis_stream.api.codes import codes
from tests.api.served import MANIFEST, Served

ORG = "/api/orgs/acme"
CODES = codes([MANIFEST])


class Kind(NamedTuple):
    """A collection of documents. field: a text of theirs."""

    path: str
    field: str
    example: Mapping[str, Any]

    def body(self) -> dict[str, Any]:
        new = uuid4().hex[:20]
        return {**self.example, **({"key": f"k{new}"} if "key" in self.example else {}), self.field: new}


RULE = {
    "key": "overspend", "name": "Overspend", "severity": "high",
    "when": {"metric": "spend", "window": "5m", "op": "gt", "value": 100},
}  # fmt: skip
KINDS = [
    Kind(f"{ORG}/alerts/rules", "name", RULE),
    Kind(f"{ORG}/books/books", "title", {"title": "Persuasion", "key": "persuasion"}),
    Kind(f"{ORG}/books-shelves", "label", {"label": "Top"}),
    Kind("/api/shelves", "label", {"label": "Top"}),
]


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


@pytest.fixture(scope="module")
def paths(client: httpx.Client) -> dict[str, dict[str, Any]]:
    """Path -> method -> operation."""
    found: dict[str, dict[str, Any]] = client.get("/openapi.json").json()["paths"]
    return found


def filled(path: str, org: str = "acme", **more: str) -> str:
    values = {"org": org, "id": str(uuid4()), "name": "none", "token": "none", **more}
    return re.sub(r"\{(\w+)\}", lambda found: values[found[1]], path)


def problem(response: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """The answer's document: as all of them are, with a code that is published for this status."""
    assert response.status_code == status, f"{response.request.method} {response.request.url}: {response.text}"
    assert response.headers["content-type"] == "application/problem+json"
    told: dict[str, Any] = response.json()
    assert told.keys() >= {"type", "title", "status", "detail", "request_id"}
    assert told["request_id"] == response.headers["request-id"] and told["status"] == status
    of = CODES[told["type"].removeprefix("/problems/")]
    assert told["type"] == of.type and told["title"] == of.title and status in of.statuses, told
    assert code is None or of.code == code, told
    return told


def made(client: httpx.Client, kind: Kind, **more: Any) -> dict[str, Any]:
    response = client.post(kind.path, json={**kind.body(), **more})
    assert response.status_code == 201, response.text
    document: dict[str, Any] = response.json()
    return document


def at(version: int | str) -> dict[str, str]:
    return {"If-Match": version if isinstance(version, str) else f'"{version}"'}
