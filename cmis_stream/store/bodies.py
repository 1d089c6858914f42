"""A document's JSON: checked against its kind, and written in one way only, so that it can be compared and hashed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import orjson
from pydantic import BaseModel, ValidationError

from cmis_stream.core.errors import Rejected

from .decisions import Body
from .kinds import Kind
from .listing import TAG_SEPARATOR, storable

METADATA_BYTES: Final = 16 * 1024
BODY_BYTES: Final = 1024 * 1024
TAGS, LONGEST_TAG = 50, 64
_WHOLE = 2**63
_DEEPEST = 50
_VISIBILITIES = ("private", "org", "link")
_CODES = {"missing": "missing", "extra_forbidden": "invalid", "too_long": "too_long", "string_too_long": "too_long"}
_RANGES = ("greater_than", "less_than", "finite_number", "int_parsing_size", "greater_than_equal", "less_than_equal")


class NotValid(Rejected):
    """A body with several mistakes: the first one, and all of them in `errors`."""

    def __init__(self, errors: list[Rejected]) -> None:
        first = errors[0]
        super().__init__(first.code, first.field, first.got, first.expected)
        self.errors = errors

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "errors": [one.as_dict() for one in self.errors]}


def written(body: Mapping[str, Any]) -> str:
    """Canonical JSON: sorted keys, no spaces."""
    return orjson.dumps(body, option=orjson.OPT_SORT_KEYS).decode()


def checked(kind: Kind, given: Mapping[str, Any], before: Body | None, owner: str) -> Body:
    """The body as it is kept, defaults filled in; before: the one that it takes the place of. owner: of a new document.

    Rejected names the field as a JSON pointer. What is owned stays its owner's; its visibility stays if it is not given.
    """
    plain(given, "")
    body = dict(given)
    common: Body = {"tags": _tags(body.pop("tags", [])), "metadata": _metadata(body.pop("metadata", {}))}
    if kind.visibility is not None:
        common["owner_id"] = owner if before is None else before["owner_id"]
        if body.pop("owner_id", common["owner_id"]) != common["owner_id"]:
            raise Rejected("invalid", "/owner_id", given["owner_id"], f"its owner, {common['owner_id']!r}")
        common["visibility"] = body.pop("visibility", kind.visibility if before is None else before["visibility"])
        if common["visibility"] not in _VISIBILITIES:
            raise Rejected("invalid", "/visibility", common["visibility"], f"one of {', '.join(_VISIBILITIES)}")
    made = validated(kind.model, body) | common
    plain(made, "")
    if kind.check is not None:
        kind.check(made)
    if len(text := written(made)) > BODY_BYTES:
        raise Rejected("too_long", "", f"{len(text)} characters", f"a document of at most {BODY_BYTES} bytes")
    return made


def validated(model: type[BaseModel], given: Mapping[str, Any]) -> Body:
    """Plain JSON as the model has it, defaults filled in. NotValid names each mistake."""
    try:
        return model.model_validate_json(orjson.dumps(given)).model_dump(mode="json")
    except ValidationError as error:
        raise NotValid([_rejected(one, given) for one in error.errors(include_url=False, include_context=False)]) from None


def tags_column(body: Body) -> str:
    return TAG_SEPARATOR.join(["", *body["tags"], ""]) if body["tags"] else ""


def plain(value: Any, at: str, depth: int = 0) -> None:
    """Rejected unless it is JSON that both databases keep as it is: finite, whole numbers of 64 bits, no NUL."""
    if isinstance(value, str):
        if not storable(value):
            raise Rejected("invalid", at, value, "a text without NUL and half surrogates")
    elif isinstance(value, bool) or value is None:
        pass
    elif isinstance(value, int):
        if not -_WHOLE <= value < _WHOLE:
            raise Rejected("out_of_range", at, value, "a whole number of 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise Rejected("out_of_range", at, value, "a finite number")
    elif depth >= _DEEPEST:
        raise Rejected("too_long", at, "…", f"at most {_DEEPEST} levels")
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise Rejected("wrong_type", at, name, "a text as name")
            plain(name, at)
            plain(item, pointer(at, name), depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            plain(item, f"{at}/{index}", depth + 1)
    else:
        raise Rejected("wrong_type", at, value, "JSON")


def pointer(at: str, name: object) -> str:
    """JSON pointer (RFC 6901).

    >>> pointer("/metadata", "a/b")
    '/metadata/a~1b'
    """
    return f"{at}/{str(name).replace('~', '~0').replace('/', '~1')}"


def _tags(value: Any) -> list[str]:
    """Each once, in the order in which they were given."""
    if not isinstance(value, list | tuple):
        raise Rejected("wrong_type", "/tags", value, "a list of texts")
    if len(value) > TAGS:
        raise Rejected("too_long", "/tags", f"{len(value)} tags", f"at most {TAGS}")
    for index, tag in enumerate(value):
        if not isinstance(tag, str) or not tag.isprintable() or not 1 <= len(tag) <= LONGEST_TAG:
            raise Rejected("invalid", f"/tags/{index}", tag, f"a text of 1 to {LONGEST_TAG} printable characters")
    return list(dict.fromkeys(value))


def _metadata(value: Any) -> Body:
    if not isinstance(value, Mapping):
        raise Rejected("wrong_type", "/metadata", value, "an object")
    text = orjson.dumps(value)
    if len(text) > METADATA_BYTES:
        raise Rejected("too_long", "/metadata", f"{len(text)} bytes", f"at most {METADATA_BYTES} bytes of JSON")
    return dict(orjson.loads(text))


def _rejected(error: Any, given: Any) -> Rejected:
    at, value, of, got, said = "", given, error["type"], error["input"], error["msg"].removeprefix("Value error, ")
    for part in error["loc"]:  # not all of them are steps into the body: some say which way of a union was taken
        if isinstance(value, Mapping) and (part in value or (of == "missing" and part == error["loc"][-1])):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            continue
        at = pointer(at, part)
    if of == "missing":
        return Rejected("missing", at, None, "a value")
    if of == "extra_forbidden":
        return Rejected("invalid", at, got, "no such field")
    code = _CODES.get(of) or ("out_of_range" if of in _RANGES else "wrong_type" if of.endswith("_type") else "invalid")
    return Rejected(code, at, got, said[:1].lower() + said[1:])
