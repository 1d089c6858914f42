"""JSON schemas of the kinds, made from their models: components of the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel

from ...core.errors import ConfigError, Rejected
from ...store.bodies import BODY_BYTES, LONGEST_TAG, METADATA_BYTES, TAGS, checked
from ...store.decisions import Document
from ...store.fact_kinds import FactKind
from ...store.kinds import Kind
from ...store.listing import COUNTED
from ..problems import TITLES
from .places import Collection
from .shapes import Shape

Schema = dict[str, Any]
EXAMPLE_ID: Final = "019b76da-a800-71d6-a2ec-7216849ac021"
_EXAMPLE_MS = 1_767_225_600_000
TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
TIME, ID = {"type": "string", "format": "date-time"}, {"type": "string", "format": "uuid"}
NULL: Schema = {"type": "null"}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def shared_schemas() -> dict[str, Schema]:
    """What all kinds use."""
    places = {
        "pointer": "JSON pointer into the body.",
        "parameter": "Of the query string or path.",
        "header": "Its name.",
        "code": "Why.",
        "got": "What came.",
        "expected": "What was expected.",
    }
    error = {"type": "object", "properties": {name: {**TEXT, "description": text} for name, text in places.items()}}
    problem = {
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {**TEXT, "description": "/problems/CODE; codes are never renamed.", "examples": ["/problems/not_unique"]},
            **dict.fromkeys(("title", "detail", "request_id"), TEXT),
            "status": {"type": "integer"},
            "errors": {"type": "array", "items": error},
        },
        "description": f"RFC 9457. Codes: {', '.join(sorted(TITLES))}, and those of modules.",
    }
    result = {
        "type": "object",
        "required": ["index", "id", "status"],
        "properties": {
            "index": {**COUNT, "description": "Place of the item in the request, from 0."},
            "id": {"anyOf": [TEXT, NULL]},
            "version": {"type": "integer"},
            "status": {"type": "integer", "description": "As the item alone would have been answered."},
            "problem": ref("Problem"),
        },
    }
    touched = {
        "type": "object",
        "required": ["kind", "id", "version"],
        "properties": {"kind": TEXT, "id": ID, "version": {"type": "integer"}},
    }
    return {
        "Problem": problem,
        "BulkResults": {
            "type": "object", "required": ["results"], "properties": {"results": {"type": "array", "items": result}},
        },
        "Touched": {**touched, "description": "One document that changed, cascades included, and its new version."},
    }  # fmt: skip


def name_of(kind: Kind | FactKind) -> str:
    """
    >>> name_of(Kind("ab_test", BaseModel))
    'AbTest'
    """
    return "".join(part.capitalize() for part in kind.name.split("_"))


def schemas_of(place: Collection) -> dict[str, Schema]:
    """NAME (as it is read), NAMEInput, NAMEPatch, one for each command's body, and what these are made of."""
    kind, name = place.kind, name_of(place.kind)
    made, model = model_schema(kind.model, name)
    own = model["properties"]
    for field, to in kind.refs.items():
        own[field] = {**own[field], "description": _sentences(own[field].get("description", ""), f"Id of a {to.target}.")}
    common = _common(kind)
    read_only: dict[str, Schema] = {
        "id": {**ID, "description": "A new one may bring its own."},
        "version": {"type": "integer", "minimum": 1},
        "created_at": TIME,
        "updated_at": TIME,
        "deleted_at": {"anyOf": [TIME, NULL]},
    }
    shown: Schema = {field: {**schema, "readOnly": True} for field, schema in read_only.items()}
    examples = {"examples": [dict(one) for one in kind.examples]} if kind.examples else {}
    made[f"{name}Input"] = {
        "type": "object",
        "properties": {**own, **common, **shown},
        "required": model.get("required", []),
        "additionalProperties": False,
        "description": _sentences(
            model.get("description", ""),
            f"At most {BODY_BYTES} bytes. Read-only members are not looked at, but for a new one's id.",
        ),
        **examples,
    }
    made[f"{name}Patch"] = {
        "type": "object",
        "properties": {**{field: {"anyOf": [schema, NULL]} for field, schema in {**own, **common}.items()}, **shown},
        "additionalProperties": False,
        "description": "JSON merge patch (RFC 7396): null sets a field to its default, what is left out stays.",
    }
    read = {**shown, **own, **common}
    made[name] = {"type": "object", "properties": read, "required": list(read), "description": model.get("description", "")}
    if (example := example_of(kind)) is not None:
        made[name]["examples"] = [example]
    for command, rule in place.commands():
        if rule.body is not None:
            title = f"{name}{''.join(part.capitalize() for part in command.split('_'))}"
            parts, body = model_schema(rule.body, title)
            made |= parts
            made[title] = {**body, **({"examples": [dict(one) for one in rule.examples]} if rule.examples else {})}
    return made


def _common(kind: Kind) -> dict[str, Schema]:
    tag = {**TEXT, "minLength": 1, "maxLength": LONGEST_TAG}
    made: dict[str, Schema] = {
        "tags": {"type": "array", "items": tag, "maxItems": TAGS, "default": []},
        "metadata": {"type": "object", "default": {}, "description": f"Anything of yours, at most {METADATA_BYTES} bytes."},
    }
    if kind.visibility is not None:
        made["owner_id"] = {**TEXT, "description": "Who made it; stays."}
        made["visibility"] = {**TEXT, "enum": ["private", "org", "link"], "default": kind.visibility}
    return made


def model_schema(model: type[BaseModel], prefix: str) -> tuple[dict[str, Schema], Schema]:
    """(the models within it as components, itself)"""
    schema = model.model_json_schema(ref_template=f"#/components/schemas/{prefix}_{{model}}")
    within = schema.pop("$defs", {})
    schema.pop("title", None)
    schema.setdefault("properties", {})
    return {f"{prefix}_{name}": one for name, one in within.items()}, schema


def example_of(kind: Kind) -> dict[str, Any] | None:
    """The kind's first example as it is read."""
    if not kind.examples:
        return None
    try:
        body = checked(kind, kind.examples[0], None, "3f9a1c2b4d5e")
    except Rejected as error:
        raise ConfigError(f"{kind.name}: its first example is none: {error}") from None
    return Shape(kind).document(Document("acme", kind.name, EXAMPLE_ID, 1, _EXAMPLE_MS, _EXAMPLE_MS, None, body))


def _sentences(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def page_schema(items: Schema, example: Any = None) -> Schema:
    following = {"anyOf": [TEXT, NULL], "description": "Ask again with cursor= this; null at the end."}
    schema: Schema = {
        "type": "object",
        "required": ["items", "next", "total_estimate"],
        "properties": {
            "items": {"type": "array", "items": items},
            "next": following,
            "total_estimate": {**COUNT, "description": f"Exact up to {COUNTED:,}."},
        },
    }
    if example is not None:
        schema["examples"] = [{"items": [example], "next": None, "total_estimate": 1}]
    return schema


def change_schema() -> Schema:
    body = {"anyOf": [{"type": "object"}, NULL]}
    properties = {
        "seq": {"type": "integer", "description": "Counts the changes of the org."},
        "version": {"type": "integer"},
        "command": TEXT,
        "actor": {**TEXT, "description": "Id of the token or session."},
        "at": TIME,
        "before": {**body, "description": "null: it was not there."},
        "after": {**body, "description": "null: it is deleted."},
        "hash": {**TEXT, "description": "Of the org's chain of changes up to this one."},
    }
    return {"type": "object", "required": list(properties), "properties": properties}


def command_schema(kind: Kind) -> Schema:
    return {
        "type": "object",
        "required": ["item", "touched"],
        "properties": {
            "item": {"anyOf": [ref(name_of(kind)), NULL], "description": "The document that it was about or made, as it is now."},
            "touched": {"type": "array", "items": ref("Touched")},
        },
    }
