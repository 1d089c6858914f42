"""What a list is asked for by its parameters: filter[field]=…, filter[field][in]=a,b, sort, limit, cursor."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from starlette.requests import Request

from ..core.errors import Rejected, shown
from .problems import Problem

LIMIT, MOST = 50, 500
MOST_VALUES, LONGEST_VALUE = 100, 500
_FILTER = re.compile(r"filter\[([a-z_]+)\](?:\[([a-z]+)\])?")


class Asked(NamedTuple):
    filters: dict[str, list[str]]
    sort: str
    limit: int
    cursor: str | None


def asked(request: Request, filters: Collection[str], sort: str, vocabularies: Mapping[str, Collection[str]]) -> Asked:
    """filters: fields that can be filtered by. sort: when none is given. vocabularies: the values that a field can have.

    Problem 400 names the parameter: an unknown one, one given twice, a value out of its vocabulary.
    """
    found: dict[str, list[str]] = {}
    plain: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        match = _FILTER.fullmatch(name)
        if match is not None and match[1] in filters and match[2] in (None, "eq", "in"):
            values = value.split(",") if match[2] == "in" else [value]
            if match[1] in found:
                raise refused(Rejected("invalid", name, value, f"one filter on {match[1]}"))
            found[match[1]] = _checked(name, values, vocabularies.get(match[1]))
        elif name in ("sort", "limit", "cursor") and name not in plain:
            plain[name] = value
        else:
            known = ", ".join([*(f"filter[{field}]" for field in sorted(filters)), "sort", "limit", "cursor"])
            raise refused(Rejected("invalid", name, value, f"only {known}, each once; a filter with [eq] or [in]"))
    return Asked(found, plain.get("sort", sort), _limit(plain.get("limit", str(LIMIT))), plain.get("cursor"))


def _checked(name: str, values: list[str], vocabulary: Collection[str] | None) -> list[str]:
    if len(values) > MOST_VALUES or any(len(value) > LONGEST_VALUE for value in values):
        raise refused(Rejected("too_long", name, values, f"at most {MOST_VALUES} values of {LONGEST_VALUE} characters"))
    for value in values:
        if vocabulary is not None and value not in vocabulary:
            raise refused(Rejected("invalid", name, value, f"one of {', '.join(vocabulary)}"))
    return values


def _limit(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= MOST:
        raise refused(Rejected("invalid", "limit", text, f"a number from 1 to {MOST}"))
    return int(text)


def refused(error: Rejected) -> Problem:
    detail = {"parameter": error.field, "got": shown(error.got), "expected": error.expected}
    return Problem(400, error.code, f"{error}.", extra=detail)
