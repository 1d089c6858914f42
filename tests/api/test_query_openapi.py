"""The OpenAPI description of queries is true: what is asked as it says, or nearly so, is answered so, and never with a 5xx."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from cmis_stream.store.database import Database
from tests.api.conftest import World
from tests.api.test_query import Asked

if os.environ.get("CI"):
    import schemathesis
else:
    schemathesis = pytest.importorskip("schemathesis")
from schemathesis import GenerationMode, checks

CHECKS = [
    checks.not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
    checks.response_schema_conformance,
]  # fmt: skip


@pytest.mark.slow
def test_every_answer_is_one_that_is_described(world: World, tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'documents.db'}")
    asked = Asked(world, database, tmp_path / "history")
    seen: dict[str, set[int]] = {}
    described = schemathesis.openapi.from_asgi("/openapi.json", asked.app).include(path_regex="/(query|datasets)$")
    for operation in (one.ok() for one in described.get_all_operations()):
        for mode in GenerationMode:
            _ask(operation, mode, asked.token, seen.setdefault(operation.path, set()))
    assert seen["/api/orgs/{org}/datasets"] >= {200}
    assert seen["/api/orgs/{org}/query"] >= {200, 422}  # else much of it was not asked for
    database.close()


def _ask(operation: Any, mode: Any, token: str, seen: set[int]) -> None:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=150, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), derandomize=True)
    def asking(case: Any) -> None:
        case.path_parameters["org"] = "acme"
        if isinstance(case.body, dict) and len(case.body) % 2:
            case.body = {**case.body, "from": "-3m"}  # few texts are a time
        response = case.call(headers={"Authorization": f"Bearer {token}"})
        seen.add(response.status_code)
        case.validate_response(response, checks=CHECKS)

    asking()
