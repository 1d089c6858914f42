"""Types of fields that kinds share."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from cmis_stream.core.time import LATEST_MS, parse_rfc3339, rfc3339


class _Moment:
    """Marks a Time in an annotation."""


def _epoch_ms(given: Any) -> Any:
    return parse_rfc3339(given) if isinstance(given, str) else given


Time = Annotated[
    int,
    Field(ge=0, le=LATEST_MS, strict=True),
    BeforeValidator(_epoch_ms),
    WithJsonSchema({"type": "string", "format": "date-time"}),
    _Moment(),
]
"""A moment: epoch ms in the document, from 1970 to 2200; RFC 3339 in REST, where epoch ms are taken, too."""

Times = bool | Mapping[str, Any] | tuple[Any]
"""Where moments are in a value: True for one itself, {name: Times} of an object, (Times,) of each item or value. A model that
has itself within has it here, too."""


def times_of(annotation: Any, known: dict[type, dict[str, Times]] | None = None) -> Times:
    """Where a value of this annotation has moments; False for nowhere. known: models that were looked into already.

    >>> times_of(list[Time] | None)
    (True,)
    """
    known = {} if known is None else known
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _marked(parts[1:]) or times_of(parts[0], known)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation not in known:
            annotation.model_rebuild()  # what it named before that was there
            made = known[annotation] = {}
            for name, info in annotation.model_fields.items():
                where = _marked(info.metadata) or times_of(info.annotation, known)
                if where is not False:
                    made[name] = where
        return known[annotation]
    if origin in (list, tuple, set, frozenset, dict):
        where = times_of(parts[-1] if origin is dict else parts[0], known) if parts else False
        return False if where is False else (where,)
    found: Times = False
    for part in parts:
        where = times_of(part, known)
        if isinstance(found, Mapping) and isinstance(where, Mapping):
            found = {**found, **where}  # one of several models
        elif where is not False:
            found = where
    return found


def _marked(metadata: Iterable[Any]) -> bool:
    return any(isinstance(mark, _Moment) for mark in metadata)


def in_rest(value: Any, where: Times) -> Any:
    """A document's value with its moments in RFC 3339.

    >>> in_rest({"a": 0, "b": [1767225600000]}, {"b": (True,)})
    {'a': 0, 'b': ['2026-01-01T00:00:00.000Z']}
    """
    if where is True:
        return rfc3339(value) if isinstance(value, int) and 0 <= value <= LATEST_MS else value
    if isinstance(where, Mapping) and isinstance(value, Mapping):
        return {name: in_rest(one, where.get(name, False)) for name, one in value.items()}
    if isinstance(where, tuple) and isinstance(value, list):
        return [in_rest(one, where[0]) for one in value]
    if isinstance(where, tuple) and isinstance(value, Mapping):
        return {name: in_rest(one, where[0]) for name, one in value.items()}
    return value
