"""What OpenAPI says of the primitives is true: whatever is asked as it says, or nearly so, is answered as it says."""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.api.primitives import Primitives, database, places, postgres, postgres_urls, primitives

if os.environ.get("CI"):
    import schemathesis
else:
    schemathesis = pytest.importorskip("schemathesis")
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

__all__ = ["database", "places", "postgres", "postgres_urls", "primitives"]  # fixtures
pytestmark = pytest.mark.slow
EXAMPLES = 40
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    response_headers_conformance,
]  # fmt: skip


def there(primitives: Primitives) -> dict[str, list[str]]:
    """Part of a path -> what can stand there."""
    for name in ("runs", "waits", "ends"):
        primitives.jobs.enqueue("acme", name, "count", {}, "ada")
        primitives.world.log.now_ms += 1
    primitives.jobs.claim("acme", "w")
    with primitives.files.create("acme", "a.csv", "text/csv", "ada") as upload:
        upload.write(b"a,b\n" * 100)
        file = upload.finish()
    primitives.secrets.set("acme", "slack", "x", "ada")
    return {
        "jobs": ["runs", "waits"], "files": [file.id], "secrets": ["slack"],
        "{token}": [primitives.links.issue(file, primitives.world.now())], "etag": [file.etag],
    }  # fmt: skip


def test_every_answer_is_one_that_is_described(primitives: Primitives, subtests: pytest.Subtests) -> None:
    token, seen = primitives.token(), set[int]()
    schema = schemathesis.openapi.from_asgi("/openapi.json", primitives.app).exclude(path_regex="/events$")
    operations = [one.ok() for one in schema.get_all_operations()]
    assert len(operations) == 15
    for operation in operations:
        # A link is any text: there are no requests beside its description.
        modes = [GenerationMode.POSITIVE] if operation.path == "/files/{token}" else list(GenerationMode)
        with subtests.test(operation.label):
            for mode in modes:
                _ask(operation, mode, token, there(primitives), seen)
    assert {200, 201, 202, 204, 206, 304, 400, 404, 416, 422} <= seen  # else much of it was not asked for


def _ask(operation: Any, mode: Any, token: str, known: dict[str, list[str]], seen: set[int]) -> None:
    numbers = itertools.count()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), derandomize=True
    )
    def asked(case: Any) -> None:
        number = next(numbers)
        if "org" in case.path_parameters:
            case.path_parameters["org"] = "acme"
        for name in case.path_parameters.keys() & {"id", "name", "token"}:
            at = operation.path.split("/").index(f"{{{name}}}")
            of = known[operation.path.split("/")[at - (name != "token")]]
            if number % 4:
                case.path_parameters[name] = of[number % len(of)]
        if "/files/{" in operation.path and number % 3:
            case.headers["Range"] = ("bytes=1-2", "bytes=999-", "bytes=-9")[number // 4 % 3]
            case.headers["If-None-Match"] = known["etag"][0] if number % 5 == 0 else '"x"'
        response = case.call(headers={"Authorization": f"Bearer {token}"})
        seen.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    asked()
