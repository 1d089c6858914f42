"""What of an OpenAPI document would break a program that was written for an earlier one. Pure; for scripts/openapi.py.

Programs may count on what they can send and on what they get. So a request's schema may only take more than before, and an
answer's only promise more. New members of answers, new values of their vocabularies, new statuses and new optional parts of
requests are additive: programs ignore what they do not know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Schema = Mapping[str, Any]
METHODS = ("get", "put", "post", "delete", "patch", "head", "options", "trace")
_ANY: Schema = {}
_LOWEST = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_HIGHEST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_EVERY_TYPE = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})


def breaking(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each difference that breaks: where, and what."""
    return sorted(set(_Comparison(before, now).documents()))


class _Side(NamedTuple):
    """request: whether the schema is of what programs send."""

    request: bool
    seen: frozenset[tuple[str, str]] = frozenset()
    """Pairs of components that are being compared: schemas may hold themselves."""


class _Comparison:
    def __init__(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        self._before, self._now = before, now

    def documents(self) -> Iterator[str]:
        paths = {_nameless(path): item for path, item in self._now.get("paths", {}).items()}
        for path, item in self._before.get("paths", {}).items():
            there = paths.get(_nameless(path))
            if there is None:
                yield f"{path}: removed"
                continue
            for method in item.keys() & {*METHODS}:
                where = f"{method.upper()} {path}"
                if method not in there:
                    yield f"{where}: removed"
                else:
                    yield from self._operation(item[method], there[method], where)

    def _operation(self, before: Schema, now: Schema, where: str) -> Iterator[str]:
        yield from self._parameters(before, now, where)
        yield from self._bodies(before.get("requestBody"), now.get("requestBody"), f"{where}, body")
        for status, answer in before.get("responses", {}).items():
            there = now.get("responses", {}).get(status)
            if there is None:
                yield f"{where}: status {status} removed"
                continue
            for name in answer.get("headers", {}).keys() - there.get("headers", {}).keys():
                yield f"{where}, {status}: header {name} removed"
            yield from self._media(answer, there, f"{where}, {status}", _Side(request=False))

    def _parameters(self, before: Schema, now: Schema, where: str) -> Iterator[str]:
        old, new = _parameters_of(before), _parameters_of(now)
        for key in old.keys() - new.keys():
            yield f"{where}: {key[0]} parameter {old[key]['name']} removed"
        for key, one in new.items():
            if one.get("required", False) and not old.get(key, {}).get("required", False):
                yield f"{where}: {key[0]} parameter {one['name']} is required now"
            if key in old:
                before_it, now_it = old[key].get("schema", _ANY), one.get("schema", _ANY)
                yield from self._schemas(before_it, now_it, f"{where}, {one['name']}", _Side(request=True))

    def _bodies(self, before: Schema | None, now: Schema | None, where: str) -> Iterator[str]:
        if now is None:
            if before is not None:
                yield f"{where}: not taken any more"
            return
        if now.get("required", False) and not (before or {}).get("required", False):
            yield f"{where}: is required now"
        if before is not None:
            yield from self._media(before, now, where, _Side(request=True))

    def _media(self, before: Schema, now: Schema, where: str, side: _Side) -> Iterator[str]:
        for media, content in before.get("content", {}).items():
            there = now.get("content", {}).get(media)
            if there is None:
                yield f"{where}: {media} removed"
            else:
                yield from self._schemas(content.get("schema", _ANY), there.get("schema", _ANY), where, side)

    # --- schemas ------------------------------------------------------------------------------------------------------

    def _schemas(self, before: Schema, now: Schema, where: str, side: _Side) -> Iterator[str]:
        within = _within(before, now, side)
        if within is None:
            return
        old, new = self._variants(before, self._before), self._variants(now, self._now)
        if len(old) == len(new) == 1:
            yield from self._schema(old[0], new[0], where, within)
            return
        wanted, offered = (old, new) if side.request else (new, old)
        for place, one in enumerate(wanted):
            likely = [*offered[place : place + 1], *offered[:place], *offered[place + 1 :]]
            if any(not self._differences(one, other, where, within) for other in likely):
                continue
            if len(old) == len(new):
                yield from self._differences(one, likely[0], where, within)
            else:
                resolved = _shown(_resolved(one, self._before if side.request else self._now))
                yield f"{where}: {resolved} is not taken any more" if side.request else f"{where}: may be {resolved} now"

    def _differences(self, wanted: Schema, offered: Schema, where: str, side: _Side) -> list[str]:
        before, now = (wanted, offered) if side.request else (offered, wanted)
        within = _within(before, now, side)
        return [] if within is None else list(self._schema(before, now, where, within))

    def _variants(self, schema: Schema, document: Schema) -> list[Schema]:
        """What it can be, one by one; those that are components still by their names."""
        whole = _resolved(schema, document)
        several = whole.get("anyOf") or whole.get("oneOf")
        if not several:
            return [schema]
        rest = {name: value for name, value in whole.items() if name not in ("anyOf", "oneOf")}
        return [one for variant in several for one in self._variants({**rest, **variant}, document)]

    def _schema(self, before: Schema, now: Schema, where: str, side: _Side) -> Iterator[str]:
        before, now = _resolved(before, self._before), _resolved(now, self._now)
        yield from _types(before, now, where, side)
        if side.request:
            yield from _narrower(before, now, where)
        elif before.get("format") not in (None, now.get("format")):
            yield f"{where}: is no {before['format']} any more"
        yield from self._members(before, now, where, side)
        if "items" in before or ("items" in now and side.request):
            yield from self._schemas(before.get("items", _ANY), now.get("items", _ANY), f"{where}[]", side)
        old, new = (_others(one) for one in (before, now))
        if side.request and old is not None and new is None:
            yield f"{where}: takes no other members any more"
        elif old is not None and new is not None and (old or new):
            yield from self._schemas(old, new, f"{where}.*", side)

    def _members(self, before: Schema, now: Schema, where: str, side: _Side) -> Iterator[str]:
        old, new = before.get("properties", {}), now.get("properties", {})
        for name in old.keys() - new.keys():
            yield f"{where}.{name}: removed"
        for name in old.keys() & new.keys():
            yield from self._schemas(old[name], new[name], f"{where}.{name}", side)
        required = [set(one.get("required", ())) for one in (before, now)]
        if side.request:
            for name in required[1] - required[0]:
                yield f"{where}.{name}: is required now"
        else:
            for name in (required[0] - required[1]) & new.keys():
                yield f"{where}.{name}: is not always there any more"


def _others(schema: Schema) -> Schema | None:
    """Of members that have no schema of their own; None: there are none."""
    said = schema.get("additionalProperties", True)
    return None if said is False else _ANY if said is True else said


def _within(before: Schema, now: Schema, side: _Side) -> _Side | None:
    """None: these two components are being compared already."""
    pair = before.get("$ref", ""), now.get("$ref", "")
    if not all(pair):
        return side
    return None if pair in side.seen else side._replace(seen=side.seen | {pair})


def _parameters_of(operation: Schema) -> dict[tuple[str, str], Schema]:
    """Those of a path by their places: what they are called is nobody's matter."""
    given = operation.get("parameters", ())
    in_path = [one for one in given if one["in"] == "path"]
    named = {(one["in"], one["name"]): one for one in given if one["in"] != "path"}
    return named | {("path", str(place)): one for place, one in enumerate(in_path)}


def _types(before: Schema, now: Schema, where: str, side: _Side) -> Iterator[str]:
    old, new = _types_of(before), _types_of(now)
    wanted, offered = (old, new) if side.request else (new, old)
    if wanted - offered:
        yield f"{where}: was {' or '.join(sorted(old))}, is {' or '.join(sorted(new))}"


def _types_of(schema: Schema) -> frozenset[str]:
    """Where nothing is said: all that its values have, or any."""
    given = schema.get("type")
    if given is None:
        values = _values(schema)
        return _EVERY_TYPE if values is None else frozenset(_type_of(value) for value in values)
    types = frozenset([given] if isinstance(given, str) else given)
    return types | {"integer"} if "number" in types else types


def _type_of(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object", type(None): "null"}
    return names[type(value)]


def _values(schema: Schema) -> list[Any] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _narrower(before: Schema, now: Schema, where: str) -> Iterator[str]:
    """What a request's schema takes no longer."""
    old, new = _values(before), _values(now)
    if new is not None:
        gone = ["others"] if old is None else [repr(one) for one in old if not any(_same(one, other) for other in new)]
        if gone:
            yield f"{where}: {', '.join(gone)} not taken any more"
    for name in ("pattern", "format", "multipleOf", "uniqueItems"):
        if name in now and before.get(name) != now[name]:
            yield f"{where}: {name} was {before.get(name)!r}, is {now[name]!r}"
    for names, sign in ((_LOWEST, 1), (_HIGHEST, -1)):
        for name in names:
            if name in now and (name not in before or sign * before[name] < sign * now[name]):
                yield f"{where}: {name} was {before.get(name, 'none')}, is {now[name]}"


def _same(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _resolved(schema: Schema, document: Schema) -> Schema:
    while "$ref" in schema:
        place: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            place = place[part]
        schema = {**place, **{name: value for name, value in schema.items() if name != "$ref"}}
    if "allOf" not in schema:
        return schema
    merged = {name: value for name, value in schema.items() if name != "allOf"}
    for part in schema["allOf"]:
        one = _resolved(part, document)
        both = {"properties": {**merged.get("properties", {}), **one.get("properties", {})}}
        required = {"required": [*merged.get("required", ()), *one.get("required", ())]}
        merged = {**merged, **one, **(both if both["properties"] else {}), **(required if required["required"] else {})}
    return merged


def _shown(schema: Schema) -> str:
    values = _values(schema)
    return repr(values) if values is not None else " or ".join(sorted(_types_of(schema)))


def _nameless(path: str) -> str:
    """Parameters of a path are told apart by their places only."""
    return re.sub(r"\{[^}]*\}", "{}", path)
