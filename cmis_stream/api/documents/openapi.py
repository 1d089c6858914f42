"""The collections' part of the OpenAPI document: parameters, bodies, and every answer there is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from ...store.commands import DEFAULTS
from ...store.decisions import Rule
from ...store.documents import LONGEST_KEY, MOST_ITEMS
from ...store.kinds import Kind
from ...store.listing import LIMIT, MOST, MOST_VALUES, Listed, filter_types
from .components import EXAMPLE_ID, NULL, TEXT, TIME, Schema, name_of, ref
from .places import Collection
from .requests import CHANGES_LIMIT, JSON, MERGE_PATCH

_OPERATORS = {
    "text": "eq ne gt gte lt lte in contains", "number": "eq ne gt gte lt lte in", "time": "eq ne gt gte lt lte in",
    "bool": "eq ne in", "tags": "contains", "rank": "eq ne in",
}  # fmt: skip
_SCHEMAS: Mapping[str, Schema] = {"text": TEXT, "number": {"type": "number"}, "time": TIME, "bool": {"type": "boolean"}}


def path_parameters(path: str) -> list[Schema]:
    said = {"{org}": ("org", "The org's id or slug."), "{id}": ("id", "A UUID, or the kind's natural key where it has one.")}
    given = [said[part] for part in path.split("/") if part in said]
    return [{"in": "path", "name": name, "required": True, "schema": TEXT, "description": text} for name, text in given]


def list_parameters(kind: Listed) -> list[Schema]:
    made = []
    for field, of in sorted(filter_types(kind).items()):
        ops = _OPERATORS[of].split()
        values = f"in: at most {MOST_VALUES}, with commas between them." if "in" in ops else ""
        name = f"filter[{field}]" if ops[0] == "eq" else f"filter[{field}][{ops[0]}]"
        more = f"Or filter[{field}][{'|'.join(ops)}]=… {values}" if len(ops) > 1 else ""
        schema = {**TEXT, "enum": list(kind.ranks[field])} if of == "rank" else _SCHEMAS.get(of, TEXT)
        made.append(_parameter(name, schema, more.strip()))
    sorts = ", ".join((*kind.common_sorts, *kind.sorts))
    deleted = _parameter("deleted", {**TEXT, "enum": ["only", "with"]}, "Left out: without deleted ones.")
    return [
        *made,
        _parameter(
            "sort", {**TEXT, "default": kind.default_sort}, f"Some of {sorts}, with commas between, - for the other way round."
        ),
        _parameter("limit", {"type": "integer", "minimum": 1, "maximum": MOST, "default": LIMIT}),
        _parameter("cursor", TEXT, "`next` of the page before, with the same filters and sort."),
        *([deleted] if kind.deletes else []),
    ]


def deleted_parameter() -> Schema:
    return _parameter("deleted", {**TEXT, "enum": ["with"]}, "Also a deleted one, by its UUID.")


def changes_parameters() -> list[Schema]:
    limit = {"type": "integer", "minimum": 1, "maximum": MOST, "default": CHANGES_LIMIT}
    return [_parameter("limit", limit), _parameter("cursor", TEXT, "`next` of the page before.")]


def write_parameters(*, if_match: bool | None) -> list[Schema]:
    """if_match: required, not required, or None for what is about no version."""
    key = {**TEXT, "minLength": 1, "maxLength": LONGEST_KEY}
    made = [
        _header("Idempotency-Key", key, "The same request with the same key is carried out once; kept 24 h per token and path.")
    ]
    if if_match is not None:
        match = _header("If-Match", TEXT, "The ETag that you have read; * for whichever version is there.", required=if_match)
        made.append({**match, "example": '"1"'})
    return made


def _parameter(name: str, schema: Schema, description: str = "") -> Schema:
    return {"in": "query", "name": name, "required": False, "schema": schema, "description": description}


def _header(name: str, schema: Schema, description: str, *, required: bool = False) -> Schema:
    return {"in": "header", "name": name, "required": required, "schema": schema, "description": description}


def input_body(kind: Kind) -> Schema:
    content: Schema = {"schema": ref(f"{name_of(kind)}Input")}
    return {"required": True, "content": {JSON: {**content, **_examples(kind.examples)}}}


def patch_body(kind: Kind) -> Schema:
    content: Schema = {"schema": ref(f"{name_of(kind)}Patch"), "example": {"tags": ["q3"]}}
    return {"required": True, "content": {MERGE_PATCH: content, JSON: content}}


def clone_body(kind: Kind) -> Schema:
    content: Schema = {"schema": ref(f"{name_of(kind)}Patch"), "example": {"tags": ["copy"]}}
    return {"required": False, "content": {JSON: content}}


def command_body(kind: Kind, command: str, rule: Rule) -> Schema | None:
    if rule.body is None:
        return None
    content: Schema = {"schema": ref(name_of(kind) + "".join(part.capitalize() for part in command.split("_")))}
    needed = bool(rule.body.model_json_schema().get("required"))
    return {"required": needed, "content": {JSON: {**content, **_examples(rule.examples)}}}


def bulk_body(place: Collection) -> Schema:
    ops = [*DEFAULTS, *(name for name, _ in place.commands())]
    properties = {
        "op": {**TEXT, "enum": ops},
        "id": {"anyOf": [TEXT, NULL]},
        "version": {"anyOf": [{"type": "integer"}, NULL], "description": "What If-Match is otherwise."},
        "body": {"anyOf": [{"type": "object"}, NULL]},
    }
    item = {"type": "object", "required": ["op"], "properties": properties, "additionalProperties": False}
    items = {"type": "array", "items": item, "maxItems": MOST_ITEMS}
    example = {
        "items": [
            *({"op": "create", "body": dict(one)} for one in place.kind.examples[:1]),
            {"op": "delete", "id": EXAMPLE_ID, "version": 1},
        ]
    }
    schema = {"type": "object", "required": ["items"], "properties": {"items": items}, "additionalProperties": False}
    return {"required": True, "content": {JSON: {"schema": schema, "example": example}}}


def _examples(examples: Iterable[Mapping[str, Any]]) -> Schema:
    found = [dict(one) for one in examples]
    return {"examples": {f"example{number}": {"value": one} for number, one in enumerate(found, 1)}} if found else {}


# --- answers ----------------------------------------------------------------------------------------------------------

PROBLEMS: Final[Mapping[int, str]] = {
    400: "An unknown parameter or one with a value that it cannot have, a header or a body that cannot be read.",
    401: "No valid token or session.",
    403: "The token or session lacks the scope, or another site's page sent it.",
    404: "No such org or document, or it is not yours.",
    409: "Another one has this value, something still needs it, or its state cannot become this one.",
    412: "Another version is there than the one that If-Match names; ETag says which.",
    413: "The body is too large.",
    415: "Content-Type is not taken.",
    422: "Something in the body is not valid, or the idempotency key was used for another request.",
    428: "If-Match is missing.",
    429: "Too many requests; come back after Retry-After.",
    503: "The store cannot be used now; send the same request again after Retry-After.",
}
READING: Final = (400, 401, 403, 404, 429, 503)
WRITING: Final = (400, 401, 403, 404, 409, 412, 413, 415, 422, 429, 503)


def answers(success: Mapping[int, Schema], problems: Iterable[int]) -> dict[int | str, dict[str, Any]]:
    content = {"application/problem+json": {"schema": ref("Problem")}}
    made: dict[int | str, dict[str, Any]] = dict(success.items())
    return made | {status: {"description": PROBLEMS.get(status, "The module's own."), "content": content} for status in problems}


def found(schema: Schema, description: str, *headers: str) -> Schema:
    made: Schema = {"description": description, "content": {JSON: {"schema": schema}}}
    if headers:
        made["headers"] = {name: _HEADERS[name] for name in headers}
    return made


def gone() -> Schema:
    headers = {name: _HEADERS[name] for name in ("ETag", "Idempotency-Replayed")}
    return {"description": "Deleted; it can be restored.", "headers": headers}


_HEADERS: Final[Mapping[str, Schema]] = {
    "ETag": {"schema": TEXT, "description": "The version, for If-Match."},
    "Location": {"schema": TEXT, "description": "Where it is."},
    "Idempotency-Replayed": {"schema": TEXT, "description": "true: this was answered before, nothing was done now."},
}
