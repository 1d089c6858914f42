"""`GET /api/orgs/{org}/kinds`: what there is to see in an org and what the caller may do with it, for pages made of schemas."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ...store.commands import DEFAULTS
from ...store.decisions import Rule
from ...store.fact_kinds import FactKind
from ...store.kinds import ANYONE, Kind, Kinds
from ...store.listing import filter_types
from .. import fact_schemas
from ..auth import Auth, Caller
from ..facts import path_of
from .components import COUNT, NULL, TEXT, Schema, name_of, schemas_of
from .openapi import READING, answers, found, path_parameters
from .operations import actor_of, answer
from .places import Collection, collections
from .requests import parameters

_BELOW: Final = "/api/orgs/{org}/"
_COMPONENT: Final = "#/components/schemas/"
_NOT_GIVEN: Final = frozenset({"id", "version", "created_at", "updated_at", "deleted_at", "owner_id"})
"""Members of a body that is sent which it does not set, or not in a form."""


def described_router(kinds: Kinds, auth: Auth) -> APIRouter:
    """One route. What it says of kinds follows from their declarations, so it is made once."""
    titles = {manifest.name: manifest.title or manifest.name.replace("_", " ").capitalize() for manifest in kinds.manifests}
    described = [_of(place, titles[place.module]) for place in collections(kinds) if not place.by_token]
    described += [_of_fact(kind, kinds.module_of[name], titles[kinds.module_of[name]]) for name, kind in kinds.facts.items()]
    router = APIRouter(tags=["kinds"])

    @router.get(
        "/api/orgs/{org}/kinds", summary="What there is, and what the caller may do with it", operation_id="list_kinds",
        response_class=Response,
        responses=answers({200: found(_ANSWER, "Kinds of documents by their paths, then those of facts.")}, READING),
        openapi_extra={"security": [{"token": []}, {"session": []}], "parameters": path_parameters("/api/orgs/{org}/kinds")},
    )  # fmt: skip
    async def list_kinds(request: Request) -> Response:
        """Fields, filters, commands and schemas: enough to list, show and edit kinds that a page has never heard of."""
        caller = await auth.admitted(request, request.path_params["org"], "read")
        parameters(request)
        return answer({"items": [to(caller) for to in described], "next": None, "total_estimate": len(described)})

    return router


def _of(place: Collection, module_title: str) -> Callable[[Caller], dict[str, Any]]:
    """What is said of a kind, but for what depends on who asks; that is asked for with the caller."""
    kind = place.kind
    schemas, name = schemas_of(place), name_of(kind)
    given, read = schemas[f"{name}Input"], schemas[name]
    properties = {field: schema for field, schema in given["properties"].items() if field not in _NOT_GIVEN}
    said: dict[str, Any] = {
        "name": kind.name,
        "title": place.title[:1].upper() + place.title[1:],
        "plural": place.plural,
        "module": place.module,
        "module_title": module_title,
        "path": place.path.removeprefix(_BELOW),
        "kind": "document",
        "description": kind.model.__doc__ or "",
        "natural_key": kind.natural_key,
        "filters": filter_types(kind),
        "sorts": [*kind.common_sorts, *kind.sorts],
        "default_sort": kind.default_sort,
        "ranks": {field: list(values) for field, values in kind.ranks.items()},
        "schema": _whole({**given, "properties": properties, "description": ""}, schemas),
        "read_schema": _whole(read, schemas),
        "refs": {field: {"target": ref.target, "on_delete": ref.on_delete} for field, ref in kind.refs.items()},
        "visibility": kind.visibility,
        "unique": [list(fields) for fields in kind.unique],
        "examples": [dict(one) for one in kind.examples],
        "templates": [{**one._asdict(), "body": dict(one.body)} for one in kind.templates],
    }
    bodies = {command: schemas[_title(name, command)] for command, rule in place.commands() if rule.body is not None}
    commands = [
        _command(command, rule.title, None if command not in bodies else _whole(bodies[command], schemas), rule)
        for command, rule in place.commands()
    ]
    return lambda caller: {**said, "states": _states(kind, caller), **_allowed(kind, commands, ("read", *DEFAULTS), caller)}


def _of_fact(kind: FactKind, module: str, module_title: str) -> Callable[[Caller], dict[str, Any]]:
    title, schemas, name = kind.title or kind.name.replace("_", " "), fact_schemas.schemas_of(kind), name_of(kind)
    said: dict[str, Any] = {
        "name": kind.name,
        "title": title[:1].upper() + title[1:],
        "plural": kind.plural or f"{kind.name}s",
        "module": module,
        "module_title": module_title,
        "path": path_of(kind, module).removeprefix(_BELOW),
        "kind": "fact",
        "description": kind.model.__doc__ or "",
        "natural_key": None,
        "filters": {**kind.common_filters, **kind.filters},
        "sorts": [*kind.common_sorts, *kind.sorts],
        "default_sort": kind.default_sort,
        "ranks": {field: list(values) for field, values in kind.ranks.items()},
        "schema": None,
        "read_schema": _whole(schemas[name], schemas),
        "refs": {},
        "visibility": None,
        "unique": [],
        "examples": [dict(one) for one in kind.examples],
        "templates": [],
        "states": None,
    }
    commands = [
        _command(command, rule.title, None if rule.body is None else _whole(schemas[_title(name, command)], schemas))
        for command, rule in kind.commands.items()
    ]
    return lambda caller: {**said, **_allowed(kind, commands, ("read",), caller)}


def _command(name: str, title: str, schema: Schema | None, rule: Rule | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "title": title or name.replace("_", " ").capitalize(),
        "creates": rule is not None and rule.creates,
        "of_deleted": rule is not None and rule.of_deleted,
        "schema": schema,
    }


def _allowed(kind: Kind | FactKind, commands: list[dict[str, Any]], usual: tuple[str, ...], caller: Caller) -> dict[str, Any]:
    scoped = [{**one, "scope": kind.scope(one["name"])} for one in commands]
    return {
        "commands": [{**one, "allowed": one["scope"] in caller.scopes} for one in scoped],
        "allowed": {name: kind.scope(name) in caller.scopes for name in usual},
    }


def _title(name: str, command: str) -> str:
    return name + "".join(part.capitalize() for part in command.split("_"))


def _states(kind: Kind, caller: Caller) -> dict[str, Any] | None:
    """transitions: those that the caller may, of a document that it may see."""
    if kind.states is None:
        return None
    roles = actor_of(caller).roles
    ways = [[start, end] for (start, end), who in kind.states.transitions.items() if who == ANYONE or who & roles]
    return {"field": kind.states.field, "initial": kind.states.initial, "transitions": ways}


def _whole(schema: Schema, components: Mapping[str, Schema]) -> Schema:
    """The schema with what it refers to in `$defs` of its own."""
    wanted, found = list(_referred(schema)), dict[str, Schema]()
    while wanted:
        if (name := wanted.pop()) not in found:
            found[name] = components[name]
            wanted += _referred(components[name])
    made: Schema = _local(schema)
    return {**made, "$defs": {name: _local(one) for name, one in sorted(found.items())}} if found else made


def _referred(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, one in value.items():
            if key == "$ref" and isinstance(one, str) and one.startswith(_COMPONENT):
                yield one.removeprefix(_COMPONENT)
            else:
                yield from _referred(one)
    elif isinstance(value, list):
        for one in value:
            yield from _referred(one)


def _local(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _local(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_local(one) for one in value]
    return value.replace(_COMPONENT, "#/$defs/") if isinstance(value, str) and value.startswith(_COMPONENT) else value


# --- OpenAPI ----------------------------------------------------------------------------------------------------------

_BOOL: Final[Schema] = {"type": "boolean"}
_TEXTS: Final[Schema] = {"type": "array", "items": TEXT}
_TEMPLATE: Final[Schema] = {
    "type": "object", "required": ["name", "title", "body", "description"], "description": "What a new one can begin with.",
    "properties": {**dict.fromkeys(("name", "title", "description"), TEXT), "body": {"type": "object"}},
}  # fmt: skip
_SCHEMA: Final[Schema] = {"type": "object", "additionalProperties": True, "description": "JSON schema, complete in itself."}


def _object(properties: dict[str, Schema], description: str = "") -> Schema:
    made: Schema = {"type": "object", "required": list(properties), "properties": properties}
    return {**made, "description": description} if description else made


def _map(values: Schema, description: str) -> Schema:
    return {"type": "object", "additionalProperties": values, "description": description}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, NULL]}


_FILTER: Final[Schema] = {**TEXT, "enum": ["text", "number", "time", "bool", "tags", "rank"]}
_REF: Final = _object({"target": TEXT, "on_delete": {**TEXT, "enum": ["restrict", "cascade", "detach"]}})
_COMMAND: Final = _object({
    "name": TEXT, "title": TEXT, "creates": {**_BOOL, "description": "About none that is there; on the collection."},
    "of_deleted": _BOOL, "scope": TEXT, "allowed": _BOOL, "schema": _or_null(_SCHEMA),
})  # fmt: skip
_KIND: Final = _object({
    "name": TEXT, "title": {**TEXT, "description": "In the singular."}, "plural": TEXT, "module": TEXT, "module_title": TEXT,
    "path": {**TEXT, "description": "Below /api/orgs/{org}/."}, "kind": {**TEXT, "enum": ["document", "fact"]},
    "description": TEXT, "natural_key": _or_null(TEXT), "filters": _map(_FILTER, "Field -> type."), "sorts": _TEXTS,
    "default_sort": TEXT, "ranks": _map(_TEXTS, "Field -> its values in the order of sorted lists, the first one first."),
    "schema": {**_or_null(_SCHEMA), "description": "Of what is sent; null: nobody sends it."},
    "read_schema": {**_SCHEMA, "description": "Of what is read."},
    "refs": _map(_REF, "Field -> what its ids are of."), "visibility": _or_null(TEXT),
    "unique": {"type": "array", "items": _TEXTS}, "examples": {"type": "array", "items": {"type": "object"}},
    "templates": {"type": "array", "items": _TEMPLATE},
    "states": _or_null(_object({
        "field": TEXT, "initial": TEXT,
        "transitions": {"type": "array", "items": {**_TEXTS, "minItems": 2, "maxItems": 2}},
    }, "transitions: [from, to], those that the caller may.")),
    "commands": {"type": "array", "items": _COMMAND}, "allowed": _map(_BOOL, "Command or read -> whether the caller may."),
})  # fmt: skip
_ANSWER: Final = _object({"items": {"type": "array", "items": _KIND}, "next": NULL, "total_estimate": COUNT})
