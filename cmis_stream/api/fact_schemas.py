"""JSON schemas of facts and of commands on them: components of the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final

from ..store.fact_kinds import Fact, FactKind, FactRule
from .documents.components import EXAMPLE_ID, ID, NULL, TEXT, TIME, Schema, model_schema, name_of, ref
from .documents.requests import JSON
from .documents.shapes import Shape


def schemas_of(kind: FactKind) -> dict[str, Schema]:
    """NAME, one for each command's body, and what these are made of."""
    name = name_of(kind)
    made, model = model_schema(kind.model, name)
    own = {"id": ID, "version": {"type": "integer", "minimum": 1}, "at": {**TIME, "description": "Of this version."}}
    properties = {**own, **model["properties"]}
    made[name] = {
        "type": "object", "properties": properties, "required": list(properties), "description": model.get("description", ""),
    }  # fmt: skip
    if (example := example_of(kind)) is not None:
        made[name]["examples"] = [example]
    for command, rule in kind.commands.items():
        if rule.body is not None:
            title = _title(kind, command)
            parts, body = model_schema(rule.body, title)
            made |= {**parts, title: body}
    return made


def _title(kind: FactKind, command: str) -> str:
    return name_of(kind) + "".join(part.capitalize() for part in command.split("_"))


def command_body(kind: FactKind, command: str, rule: FactRule) -> Schema | None:
    if rule.body is None:
        return None
    content: Schema = {"schema": ref(_title(kind, command))}
    if rule.examples:
        content["examples"] = {f"example{number}": {"value": dict(one)} for number, one in enumerate(rule.examples, 1)}
    return {"required": bool(rule.body.model_json_schema().get("required")), "content": {JSON: content}}


def example_of(kind: FactKind) -> dict[str, Any] | None:
    if not kind.examples:
        return None
    return Shape(kind).fact(Fact("acme", kind.name, EXAMPLE_ID, 1, _EXAMPLE_MS, dict(kind.examples[0])))


_EXAMPLE_MS: Final = 1_767_225_600_000
WAITING: Final[Schema] = {
    "type": "object", "required": ["id", "status"], "properties": {"id": ID, "status": {**TEXT, "enum": ["waiting"]}},
}  # fmt: skip
RESULT: Final[Schema] = {
    "type": "object",
    "required": ["id", "kind", "fact", "status", "version", "at"],
    "properties": {
        "id": ID,
        "kind": TEXT,
        "fact": {**TEXT, "description": "Id of what it was about."},
        "status": {**TEXT, "enum": ["applied", "rejected"]},
        "version": {"anyOf": [{"type": "integer"}, NULL], "description": "Of the fact after it; null when it was rejected."},
        "at": {**TIME, "description": "When it was taken."},
        "problem": {**ref("Problem"), "description": "Why it was rejected."},
    },
}


def done_schema(whole: Schema) -> Schema:
    return {
        "type": "object",
        "required": ["item", "touched"],
        "properties": {
            "item": {**whole, "description": "As it is now."},
            "touched": {"type": "array", "items": ref("Touched")},
        },
    }
