"""The OpenAPI description is true: whatever is asked as it says, or nearly so, is answered as it says, and never with a 5xx."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from cmis_stream.api.app import create_app
from cmis_stream.api.documents import documents_router
from cmis_stream.api.documents.places import dashed
from cmis_stream.api.ingest import ApiPorts
from cmis_stream.store.changes import Changes
from cmis_stream.store.database import Database
from cmis_stream.store.decisions import Actor, Command
from cmis_stream.store.documents import Documents
from tests.api.conftest import World
from tests.contracts.support import KINDS, personal_data

if os.environ.get("CI"):
    import schemathesis
else:
    schemathesis = pytest.importorskip("schemathesis")
from schemathesis import GenerationMode, checks

pytestmark = pytest.mark.slow
ADA = Actor("ada")
EXAMPLES = 25
"""Requests to each operation, in each mode."""
CHECKS = [
    checks.not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
    checks.response_schema_conformance, checks.response_headers_conformance,
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("openapi"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def documents(world: World) -> Iterator[Documents]:
    """With some to be found: toys that can be asked for by slug, a deleted one, one of each other kind."""
    database = Database(f"sqlite:///{world.folder / 'store.db'}")
    yield Documents(database, KINDS, personal=personal_data(database))
    database.close()


@pytest.fixture(scope="module")
def names(documents: Documents) -> dict[str, list[str]]:
    """operation's kind -> ids and natural keys"""
    found: dict[str, list[str]] = {}
    for kind in KINDS.values():
        if kind.refs.keys() & kind.examples[0].keys():
            continue
        for example in kind.examples:
            made = documents.execute("acme", ADA, Command("create", kind.name, body=example)).document
            assert made is not None
            found.setdefault(kind.name, []).append(made.id)
            if kind.natural_key:
                found[kind.name].append(example[kind.natural_key])
    return found


@pytest.fixture(scope="module")
def described(world: World, documents: Documents, names: dict[str, list[str]]) -> Any:
    changes = Changes(documents._database)
    router = documents_router(documents, changes, KINDS, world.auth)
    ports = ApiPorts(world.auth, world.log.publish, world.log.dead_letter, world.now)
    app = create_app(ports, [router], schemas=router.schemas)
    return schemathesis.openapi.from_asgi("/openapi.json", app).exclude(path_regex="/events$")


@pytest.fixture(scope="module")
def text(world: World) -> str:
    return world.tokens.create("acme", ["read", "write", "admin"])[1]


@pytest.mark.spec("TEN-M07", partial="documents: requests made from OpenAPI and beside it, never a 5xx")
def test_every_answer_is_one_that_is_described(
    described: Any, text: str, names: dict[str, list[str]], subtests: pytest.Subtests
) -> None:
    operations = [one.ok() for one in described.get_all_operations()]
    assert len(operations) > 50
    seen = set[int]()
    for operation in operations:
        with subtests.test(operation.label):
            for mode in GenerationMode:  # requests as they are described, and others
                _ask(operation, mode, text, names, seen)
    assert {200, 201, 204, 400, 404, 409, 412, 422, 428} <= seen  # else much of it was not asked for


def _ask(operation: Any, mode: Any, text: str, names: dict[str, list[str]], seen: set[int]) -> None:
    collection = operation.path.partition("/{id}")[0]
    known = [name for kind, of in names.items() if collection.endswith(dashed(KINDS[kind].plural or f"{kind}s")) for name in of]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), derandomize=True
    )
    def asked(case: Any) -> None:
        if "org" in case.path_parameters:
            case.path_parameters["org"] = "acme"
        number = zlib.crc32(repr((case.body, dict(case.query), dict(case.headers))).encode("utf-8", "replace"))
        if known and "id" in case.path_parameters and number % 4:
            case.path_parameters["id"] = known[number % len(known)]
        if "If-Match" in case.headers and number % 5:
            case.headers["If-Match"] = ("*", '"1"')[number % 2]
        response = case.call(headers={"Authorization": f"Bearer {text}"})
        seen.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    asked()
