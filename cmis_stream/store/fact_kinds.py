"""What a module declares about its kinds of facts: what agents find, and what people may do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple

import orjson
from pydantic import BaseModel

from .decisions import Actor, AnyEffect, Body
from .declarations import filter_mistakes, path_mistakes
from .kinds import FilterType, family_of
from .personal_fields import Fields
from .tokens import SCOPES

RESERVED: Final = frozenset({"org", "kind", "id", "version", "at"})
"""What every fact has, so that no kind's field can be called so."""
COMMON_SORTS: Final = ("id", "at")


@dataclass(frozen=True, slots=True)
class Fact:
    """One version of a fact. at: epoch ms, of what led to this version. body: of its kind's model."""

    org: str
    kind: str
    id: str
    version: int
    at: int
    body: Body


@lru_cache(maxsize=256)
def defaults_of(model: type[BaseModel]) -> Body:
    """What a body has of fields that are younger than it is, or that its agent left out. Not to be altered."""
    fields = {name: info for name, info in model.model_fields.items() if not info.is_required()}
    defaults = {name: info.get_default(call_default_factory=True) for name, info in fields.items()}
    made: Body = orjson.loads(orjson.dumps(model.model_construct(**defaults).model_dump(mode="json", warnings=False)))
    return made


@dataclass(frozen=True, slots=True)
class FactCommand:
    """id: of the command itself, which is carried out once. at: epoch ms, when it was taken. expected_version None: any.

    `fact` is the id of what it is about.
    """

    id: str
    org: str
    kind: str
    fact: str
    name: str
    body: Mapping[str, Any]
    actor: Actor
    at: int
    expected_version: int | None = None


class FactDecision(NamedTuple):
    """What a command comes to. body: the fact's from now on; the same as before: it stays at its version."""

    body: Mapping[str, Any]
    effects: tuple[AnyEffect, ...] = ()


class FactContext(NamedTuple):
    """What `decide` may look at besides the fact. now_ms: when the command was taken, the same however often it is decided."""

    org: str
    actor: Actor
    now_ms: int


class FactRule(NamedTuple):
    """decide(context, fact, command): pure; raises Rejected. body: what has to come with the command, None for nothing.

    For REST: examples of the body; title, for people.
    """

    decide: Callable[[FactContext, Fact, FactCommand], FactDecision]
    body: type[BaseModel] | None = None
    examples: tuple[Mapping[str, Any], ...] = ()
    title: str = ""


@dataclass(frozen=True, slots=True)
class FactKind:
    """name: singular, unique over all kinds of facts and documents. model: of the body, forbids extra fields.

    filters, sorts, ranks: as for kinds of documents; besides, every list can be filtered and sorted by id and at. default_sort:
    of lists that do not say. plural, path, examples, scopes: as for kinds of documents. commands: what people may do.

    reader, topic: the agent that finds them, under the name that its positions have, and what it reads: with both a query can say
    up to where they are in the store.
    """

    name: str
    model: type[BaseModel]
    filters: Mapping[str, FilterType] = field(default_factory=dict)
    sorts: tuple[str, ...] = ()
    ranks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    default_sort: str = "-id"
    commands: Mapping[str, FactRule] = field(default_factory=dict)
    title: str = ""
    plural: str = ""
    path: str = ""
    examples: tuple[Mapping[str, Any], ...] = ()
    scopes: Mapping[str, str] = field(default_factory=dict)
    reader: str = ""
    topic: str = ""

    @property
    def common_filters(self) -> dict[str, str]:
        return {"id": "text", "at": "time"}

    @property
    def common_sorts(self) -> tuple[str, ...]:
        return COMMON_SORTS

    @property
    def deletes(self) -> bool:
        """Facts are not deleted: `deleted` is no parameter of their lists."""
        return False

    def scope(self, command: str) -> str:
        """What a caller needs for a command, or for "read"."""
        return self.scopes.get(command, "read" if command == "read" else "write")

    def family(self, name: str) -> Literal["text", "whole", "real"]:
        """Which columns hold the values of a filter field."""
        return family_of(self, name)

    def mistakes(self) -> Iterator[str]:
        """What does not hold. Each begins with where it is: .FIELD, or a colon for the kind itself."""
        fields = self.model.model_fields
        yield from path_mistakes(self)
        if self.model.model_config.get("extra") != "forbid":
            yield f': expected {self.model.__name__} with extra="forbid"'
        yield from (f".{name}: every fact has this, a kind cannot declare it" for name in fields if name in RESERVED)
        if unknown := [name for name in self.filters if name not in fields]:
            yield from (f".{name}: expected one of {', '.join(fields)}" for name in unknown)
            return
        if Fields(self.model).names:
            yield ": facts have no personal fields"
        yield from filter_mistakes(self)
        if self.default_sort.removeprefix("-") not in (*COMMON_SORTS, *self.sorts):
            yield f": expected a default_sort among its sorts, got {self.default_sort!r}"
        for command, scope in self.scopes.items():
            if command != "read" and command not in self.commands:
                yield f": expected scopes of its commands or read, got {command!r}"
            if scope not in SCOPES:
                yield f": expected one of the scopes {', '.join(SCOPES)} for {command}, got {scope!r}"
