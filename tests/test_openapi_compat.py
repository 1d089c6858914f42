"""Which changes of an OpenAPI document break programs; and that docs/openapi.json is what the app says."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.compatibility import breaking

Document = dict[str, Any]
PAGE = Path(__file__).resolve().parents[1] / "docs" / "openapi.json"
TEXT, NULL = {"type": "string"}, {"type": "null"}
WIDGET: Document = {
    "openapi": "3.1.0",
    "paths": {
        "/widgets/{id}": {
            "get": {
                "parameters": [
                    {"in": "path", "name": "id", "required": True, "schema": TEXT},
                    {"in": "query", "name": "limit", "schema": {"type": "integer", "minimum": 1, "maximum": 500}},
                ],
                "responses": {
                    "200": {
                        "headers": {"ETag": {"schema": TEXT}},
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Widget"}}},
                    },
                    "404": {"description": "No."},
                },
            },
            "put": {
                "requestBody": {
                    "required": False,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/WidgetInput"}}},
                },
                "responses": {"204": {"description": "Done."}},
            },
        },
        "/widgets": {"get": {"responses": {"200": {"description": "All."}}}},
    },
    "components": {
        "schemas": {
            "Widget": {
                "type": "object",
                "required": ["id", "parts"],
                "properties": {
                    "id": TEXT,
                    "size": {"type": "integer"},
                    "made_at": {"type": "string", "format": "date-time"},
                    "parts": {"type": "array", "items": {"anyOf": [{"$ref": "#/components/schemas/Widget"}, NULL]}},
                },
            },
            "WidgetInput": {
                "type": "object",
                "required": ["name"],
                "additionalProperties": False,
                "properties": {
                    "name": {"type": "string", "minLength": 1, "maxLength": 50},
                    "kind": {"type": "string", "enum": ["big", "small"]},
                    "size": {"anyOf": [{"type": "number"}, NULL]},
                    "within": {"anyOf": [{"$ref": "#/components/schemas/WidgetInput"}, NULL]},
                },
            },
        }
    },
}


def changed(*path: str, to: Callable[[Any], Any]) -> Document:
    """WIDGET with `to` of what stands at the path; None: it is not there."""
    made = copy.deepcopy(WIDGET)
    place: Any = made
    for name in path[:-1]:
        place = place[name]
    value = to(place.get(path[-1]))
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return made


OPERATION, PUT = ("paths", "/widgets/{id}", "get"), ("paths", "/widgets/{id}", "put")
READ, SENT = ("components", "schemas", "Widget"), ("components", "schemas", "WidgetInput")
LIMIT: Document = {"in": "query", "name": "limit", "schema": {"type": "integer", "minimum": 1, "maximum": 500}}


def gone(_: Any) -> None:
    return None


def always(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


@pytest.mark.parametrize(("now", "line"), [
    (changed("paths", "/widgets", to=gone), "/widgets: removed"),
    (changed(*PUT, to=gone), "PUT /widgets/{id}: removed"),
    (changed(*OPERATION, "parameters", to=lambda had: had[:1]), "GET /widgets/{id}: query parameter limit removed"),
    (changed(*OPERATION, "parameters", to=lambda had: [had[0], {**LIMIT, "required": True}]),
     "GET /widgets/{id}: query parameter limit is required now"),
    (changed(*OPERATION, "parameters", to=lambda had: [*had, {"in": "header", "name": "If-Match", "required": True}]),
     "GET /widgets/{id}: header parameter If-Match is required now"),
    (changed(*OPERATION, "parameters", to=lambda had: [had[0], {**LIMIT, "schema": {**LIMIT["schema"], "maximum": 50}}]),
     "GET /widgets/{id}, limit: maximum was 500, is 50"),
    (changed(*OPERATION, "responses", "404", to=gone), "GET /widgets/{id}: status 404 removed"),
    (changed(*OPERATION, "responses", "200", "headers", to=always({})), "GET /widgets/{id}, 200: header ETag removed"),
    (changed(*OPERATION, "responses", "200", "content", to=always({"text/csv": {}})),
     "GET /widgets/{id}, 200: application/json removed"),
    (changed(*PUT, "requestBody", to=gone), "PUT /widgets/{id}, body: not taken any more"),
    (changed(*PUT, "requestBody", "required", to=always(True)), "PUT /widgets/{id}, body: is required now"),
    (changed(*READ, "properties", "size", to=gone), "GET /widgets/{id}, 200.size: removed"),
    (changed(*READ, "required", to=always(["id"])), "GET /widgets/{id}, 200.parts: is not always there any more"),
    (changed(*READ, "properties", "size", "type", to=always("number")),
     "GET /widgets/{id}, 200.size: was integer, is integer or number"),
    (changed(*READ, "properties", "id", to=always({"anyOf": [TEXT, NULL]})), "GET /widgets/{id}, 200.id: may be null now"),
    (changed(*READ, "properties", "made_at", to=always(TEXT)), "GET /widgets/{id}, 200.made_at: is no date-time any more"),
    (changed(*READ, "properties", "parts", "items", "anyOf", to=lambda had: [*had, TEXT]),
     "GET /widgets/{id}, 200.parts[]: may be string now"),
    (changed(*SENT, "required", to=always(["name", "kind"])), "PUT /widgets/{id}, body.kind: is required now"),
    (changed(*SENT, "properties", "kind", to=gone), "PUT /widgets/{id}, body.kind: removed"),
    (changed(*SENT, "properties", "kind", "enum", to=always(["big"])),
     "PUT /widgets/{id}, body.kind: 'small' not taken any more"),
    (changed(*SENT, "properties", "name", "enum", to=always(["a"])), "PUT /widgets/{id}, body.name: others not taken any more"),
    (changed(*SENT, "properties", "name", "pattern", to=always("^a")), "PUT /widgets/{id}, body.name: pattern was None, is '^a'"),
    (changed(*SENT, "properties", "name", "minLength", to=always(2)), "PUT /widgets/{id}, body.name: minLength was 1, is 2"),
    (changed(*SENT, "properties", "size", to=always({"type": "number"})),
     "PUT /widgets/{id}, body.size: null is not taken any more"),
    (changed(*SENT, "properties", "size", "anyOf", to=always([{"type": "integer"}, NULL])),
     "PUT /widgets/{id}, body.size: was integer or number, is integer"),
    (changed(*SENT, "properties", "within", to=always(NULL)), "PUT /widgets/{id}, body.within: object is not taken any more"),
])  # fmt: skip
def test_what_breaks_is_told_with_where_it_is(now: Document, line: str) -> None:
    assert line in breaking(WIDGET, now)


@pytest.mark.parametrize("now", [
    WIDGET,
    changed("paths", "/gadgets", to=always({"get": {"responses": {}}})),
    changed("paths", "/widgets", "post", to=always({"responses": {}})),
    changed(*OPERATION, "parameters", to=lambda had: [*had, {"in": "query", "name": "sort", "schema": TEXT}]),
    changed(*OPERATION, "parameters", to=lambda had: [{**had[0], "name": "key"}, had[1]]),
    changed(*OPERATION, "parameters", to=lambda had: [had[1], had[0]]),
    changed(*OPERATION, "responses", "429", to=always({"description": "Later."})),
    changed(*READ, "properties", "colour", to=always(TEXT)),
    changed(*READ, "required", to=always(["id", "parts", "size"])),
    changed(*SENT, "properties", "colour", to=always(TEXT)),
    changed(*SENT, "required", to=always([])),
    changed(*SENT, "properties", "kind", "enum", to=always(["big", "small", "tiny"])),
    changed(*SENT, "properties", "name", "maxLength", to=always(100)),
    changed(*SENT, "properties", "name", to=always({"anyOf": [{"type": "string", "minLength": 1}, NULL]})),
    changed(*SENT, "properties", "size", to=always({"type": ["number", "null"]})),
    changed(*SENT, "description", to=always("What it is.")),
])  # fmt: skip
def test_what_only_adds_breaks_nothing(now: Document) -> None:
    assert breaking(WIDGET, now) == []


# --- by chance --------------------------------------------------------------------------------------------------------

VALUES: list[Any] = [None, True, False, 0, 1, 5, 1.5, "", "a", "abc", [], ["a"], [1, None], {}]
scalars = st.one_of(
    st.sampled_from([NULL, {"type": "boolean"}, {"type": "number"}, {"type": ["string", "null"]}, {}]),
    st.builds(lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more}, st.integers(0, 3), st.integers(0, 3)),
    st.builds(lambda low: {"type": "string", "minLength": low, "maxLength": 2 * low}, st.integers(0, 3)),
    st.lists(st.sampled_from(["", "a", 1, True, None]), min_size=1, max_size=4, unique_by=repr).map(lambda of: {"enum": of}),
)  # fmt: skip


def closed(properties: dict[str, Any], required: set[str]) -> Document:
    names = sorted(required & properties.keys())
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def deeper(within: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.builds(lambda items: {"type": "array", "items": items}, within),
        st.builds(closed, st.dictionaries(st.sampled_from("xyz"), within, max_size=3), st.sets(st.sampled_from("xyz"))),
        st.builds(lambda several: {"anyOf": several}, st.lists(within, min_size=1, max_size=3)),
    )


schemas = st.recursive(scalars, deeper, max_leaves=6)


def altered(schema: Any) -> st.SearchStrategy[Any]:
    """Schemas that differ from it in one place: they take more, or less, or others."""
    ways: list[st.SearchStrategy[Any]] = []
    for name in schema.keys() & {"minimum", "maximum", "minLength", "maxLength"}:
        ways.append(st.sampled_from([-1, 1]).map(lambda by, name=name: {**schema, name: max(0, schema[name] + by)}))
    if "enum" in schema:
        ways.append(st.sampled_from([{"enum": schema["enum"][1:] or ["x"]}, {"enum": [*schema["enum"], "x"]}]))
    if "items" in schema:
        ways.append(altered(schema["items"]).map(lambda items: {**schema, "items": items}))
    for name, of in schema.get("properties", {}).items():
        rest = {other: one for other, one in schema["properties"].items() if other != name}
        ways += [
            altered(of).map(lambda one, name=name: {**schema, "properties": {**schema["properties"], name: one}}),
            st.just(closed(rest, set(schema["required"]))),
            st.just(closed(schema["properties"], set(schema["required"]) ^ {name})),
        ]
    if "properties" in schema:
        ways.append(st.sampled_from([True, TEXT]).map(lambda others: {**schema, "additionalProperties": others}))
    for place, of in enumerate(schema.get("anyOf", ())):
        rest = [one for other, one in enumerate(schema["anyOf"]) if other != place]
        ways.append(altered(of).map(lambda one, rest=rest: {"anyOf": [one, *rest]}))
        ways += [st.just({"anyOf": rest})] if rest else []
    return st.one_of(*ways, scalars) if ways else scalars


def taken(schema: Any) -> st.SearchStrategy[Any]:
    """Values that it takes."""
    if "anyOf" in schema:
        return st.one_of([taken(one) for one in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "properties" in schema:
        members = {name: taken(one) for name, one in schema["properties"].items()}
        if schema["additionalProperties"] is not False:
            members["w"] = taken(TEXT)
        needed = {name: one for name, one in members.items() if name in schema["required"]}
        return st.fixed_dictionaries(needed, optional={name: one for name, one in members.items() if name not in needed})
    if "items" in schema:
        return st.lists(taken(schema["items"]), max_size=3)
    return st.sampled_from(VALUES + list(range(8))).filter(jsonschema_rs.validator_for(schema).is_valid)


def with_schema(schema: Any, *, request: bool) -> Document:
    content = {"content": {"application/json": {"schema": schema}}}
    operation = {"requestBody": content, "responses": {}} if request else {"responses": {"200": content}}
    return {"paths": {"/x": {"post": operation}}}


@given(data=st.data(), schema=schemas)
@settings(max_examples=500, deadline=None)
def test_what_was_taken_is_taken_as_long_as_nothing_is_said(data: st.DataObject, schema: Any) -> None:
    before, now = data.draw(st.permutations([schema, data.draw(altered(schema))]))
    if not breaking(with_schema(before, request=True), with_schema(now, request=True)):
        takes = jsonschema_rs.validator_for(now).is_valid
        assert not [value for value in data.draw(st.lists(taken(before), min_size=8, max_size=8)) if not takes(value)]


@given(data=st.data(), schema=schemas)
@settings(max_examples=500, deadline=None)
def test_an_answer_is_one_of_before_as_long_as_nothing_is_said(data: st.DataObject, schema: Any) -> None:
    """But for members and values that are new."""
    before, now = data.draw(st.permutations([schema, data.draw(altered(schema))]))
    if not breaking(with_schema(before, request=False), with_schema(now, request=False)):
        was = jsonschema_rs.validator_for(_open(before)).is_valid
        assert not [value for value in data.draw(st.lists(taken(now), min_size=8, max_size=8)) if not was(value)]


def _open(schema: Any) -> Any:
    """As programs have to read an answer's schema: further members, further values of the same types, no bounds."""
    if isinstance(schema, list):
        return [_open(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "enum" in schema:
        types = {type(one): one for one in schema["enum"]}
        names = {str: "string", int: "integer", bool: "boolean", type(None): "null"}
        return {"type": [names[one] for one in types]}
    dropped = ("additionalProperties", "minimum", "maximum", "minLength", "maxLength")
    return {name: _open(one) if name != "required" else one for name, one in schema.items() if name not in dropped}


@given(schema=schemas, more=schemas, request=st.booleans())
def test_a_schema_breaks_nothing_for_itself_nor_when_it_takes_more_or_answers_less(schema: Any, more: Any, request: bool) -> None:
    either = {"anyOf": [schema, more]}
    before, now = (schema, either) if request else (either, schema)
    assert not breaking(with_schema(schema, request=request), with_schema(copy.deepcopy(schema), request=request))
    assert not breaking(with_schema(before, request=request), with_schema(now, request=request))


# --- the document itself ----------------------------------------------------------------------------------------------


def test_the_document_that_is_kept_breaks_nothing_for_itself_and_each_part_of_it_counts() -> None:
    kept = json.loads(PAGE.read_text())
    assert breaking(kept, kept) == []
    for path, item in kept["paths"].items():
        less = {**kept, "paths": {other: one for other, one in kept["paths"].items() if other != path}}
        assert breaking(kept, less) == [f"{path}: removed"]
        for method in item:
            assert breaking({"paths": {path: item}, **_parts(kept)}, {"paths": {path: {**item, method: {}}}, **_parts(kept)})


def _parts(document: Document) -> Document:
    return {"components": document["components"]}
