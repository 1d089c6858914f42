"""What an org is told about its kinds: complete in itself, true to what REST then does, and by the caller's scopes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import jsonschema_rs
import pytest

from cmis_stream.api.documents.described import described_router
from tests.api.conftest import World
from tests.contracts.support import COLLECTIONS, KINDS, UNKNOWN, Caller, Rest
from tests.contracts.toy.manifest import TOY

PATH = "/api/orgs/{org}/kinds"


@pytest.fixture
async def rest(world: World) -> AsyncIterator[Rest]:
    made = Rest(world, world.database)
    made.app.include_router(described_router(KINDS, world.auth))
    yield made
    await made.close()


async def told(caller: Caller) -> dict[str, dict[str, Any]]:
    response = await caller.ask("GET", PATH)
    assert response.status_code == 200, response.text
    return {kind["name"]: kind for kind in response.json()["items"]}


async def test_every_kind_is_told_with_where_it_is_and_what_it_is_made_of(rest: Rest) -> None:
    kinds = await told(rest.ann)
    assert kinds.keys() == {*KINDS, *KINDS.facts}
    toy = kinds["toy"]
    assert (toy["title"], toy["plural"], toy["module"], toy["module_title"]) == ("Toy", "toys", "toy", "Toys")
    assert (toy["path"], toy["kind"], toy["natural_key"]) == ("toy/toys", "document", "slug")
    assert kinds["loan"]["path"] == "toy-boxes/loans" and kinds["box"]["title"] == "Box"
    assert toy["filters"]["made_at"] == "time" and toy["filters"]["tags"] == "tags" and "weight_ratio" in toy["sorts"]
    assert toy["refs"]["box"] == {"target": "box", "on_delete": "cascade"}
    assert kinds["wish"]["visibility"] == "private" and toy["visibility"] is None
    assert [one["name"] for one in toy["commands"]] == list(TOY.commands)
    play, rename, _, unbox = toy["commands"][:4]
    assert play["title"] == "Play with a toy" and play["schema"] is None and not play["creates"]
    assert rename["schema"]["required"] == ["name"] and unbox["creates"]


async def test_schemas_are_whole_and_hold_for_what_is_sent_and_read(rest: Rest) -> None:
    kinds = await told(rest.adam)
    for place in COLLECTIONS:
        kind = kinds[place.kind.name]
        for schema in (kind["schema"], kind["read_schema"], *(one["schema"] for one in kind["commands"] if one["schema"])):
            jsonschema_rs.meta.validate(schema)
            assert "#/components" not in str(schema)
        given, read = (jsonschema_rs.validator_for(kind[name]) for name in ("schema", "read_schema"))
        for number in range(len(place.kind.examples)):
            body = await rest.body(rest.adam, place.kind, number)
            given.validate(body)
            read.validate(await rest.adam.created(place, body))
        assert not given.is_valid({**place.kind.examples[0], "no_such_field": 1})
        assert not {"id", "version", "owner_id"} & kind["schema"]["properties"].keys()


async def test_facts_are_told_without_what_only_documents_have(rest: Rest) -> None:
    incident = (await told(rest.eve))["incident"]
    assert (incident["kind"], incident["path"], incident["module_title"]) == ("fact", "alerts/history", "Alerts")
    assert incident["schema"] is None and incident["allowed"] == {"read": True} and incident["default_sort"] == "-started_at"
    assert incident["ranks"]["state"] == ["firing", "resolved"] and incident["filters"]["at"] == "time"
    validator = jsonschema_rs.validator_for(incident["read_schema"])
    (example,) = incident["examples"]
    shown = {"started_at": "2026-01-01T00:00:00Z", "resolved_at": None, "reason": None}
    validator.validate({"id": UNKNOWN, "version": 1, "at": "2026-01-01T00:00:00Z", **example, **shown})
    assert not validator.is_valid(example)


async def test_what_is_told_to_be_allowed_is_what_the_caller_may(rest: Rest) -> None:
    eve, ann, adam = await told(rest.eve), await told(rest.ann), await told(rest.adam)
    assert eve["toy"]["allowed"] == {
        "read": True, "create": False, "update": False, "patch": False, "delete": False, "restore": False, "clone": False,
    }  # fmt: skip
    assert ann["box"]["allowed"]["update"] and not ann["box"]["allowed"]["delete"] and adam["box"]["allowed"]["delete"]
    assert [one["allowed"] for one in eve["toy"]["commands"]] == [False] * len(TOY.commands)
    assert [one["allowed"] for one in ann["toy"]["commands"]] == [True] * len(TOY.commands)
    assert TOY.states is not None
    assert ann["toy"]["states"] == {"field": "state", "initial": "new", "transitions": [["new", "used"], ["used", "broken"]]}
    assert ["broken", "used"] in adam["toy"]["states"]["transitions"]


async def test_an_org_that_is_not_the_callers_is_not_there(rest: Rest) -> None:
    foreign, absent = [await rest.ann.ask("GET", PATH, org=org) for org in ("globex", "nowhere")]
    assert foreign.status_code == 404 and foreign.content == absent.content
    assert (await rest.ann.ask("GET", PATH, headers={"Authorization": ""})).status_code == 401


async def test_the_answer_is_as_openapi_says(rest: Rest) -> None:
    response: httpx.Response = await rest.ann.ask("GET", PATH)
    operation = rest.app.openapi()["paths"][PATH]["get"]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema_rs.validator_for(schema).validate(response.json())
    assert operation["operationId"] == "list_kinds"
