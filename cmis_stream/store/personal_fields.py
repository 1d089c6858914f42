"""Which fields of a model are personal. Pure: modules declare them, `personal.py` seals them.

class Note(BaseModel):
    author_id: str
    author_name: Annotated[str | None, Personal(subject="author_id")] = None
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from cmis_stream.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Personal:
    """Marks a field, a text or null, as personal. subject: the field of the same object that holds whom it is about."""

    subject: str


class Fields:
    """The personal fields of a model and of models within it: as objects, or in lists. ConfigError where they could be missed."""

    def __init__(self, model: type[BaseModel], known: dict[type[BaseModel], Fields] | None = None) -> None:
        whole = known is None
        known = {} if known is None else known
        known[model] = self
        self._doubtful: list[tuple[str, Fields]] = []
        self._own: dict[str, str] = {}
        self._within: dict[str, Fields] = {}
        for name, info in model.model_fields.items():
            where = f"{model.__name__}.{name}"
            marks = [mark for mark in info.metadata if isinstance(mark, Personal)]
            if marks:
                if set(typing.get_args(info.annotation)) != {str, type(None)}:
                    raise ConfigError(f"{where}: expected a personal field to be str | None, since it is null once it is erased")
                if marks[0].subject not in model.model_fields:
                    raise ConfigError(f"{where}: expected a field of {model.__name__} as subject, got {marks[0].subject!r}")
                self._own[name] = marks[0].subject
                continue
            if any(isinstance(part, Personal) for part in _parts_of(info.annotation)):
                raise ConfigError(f"{where}: expected Annotated[str | None, Personal(…)] as a whole, not a part of a type")
            within = [known[found] if found in known else Fields(found, known) for found in _models_in(info.annotation)]
            if len(within) > 1 or not _plainly(info.annotation):
                self._doubtful += [(where, found) for found in within]
            elif within:
                self._within[name] = within[0]
        for where, found in [one for fields in known.values() for one in fields._doubtful] if whole else []:
            if found:
                raise ConfigError(f"{where}: expected what has personal fields alone: as one model, or a list of it")

    def __bool__(self) -> bool:
        reached, new = set[int](), [self]
        while new:
            fields = new.pop()
            if fields._own:
                return True
            reached.add(id(fields))
            new += [within for within in fields._within.values() if id(within) not in reached]
        return False

    @property
    def names(self) -> frozenset[str]:
        """Of the model itself: those that cannot be filters, uniques or references."""
        return frozenset(self._own)

    def walk(self, body: Any, at: str = "") -> Iterator[tuple[dict[str, Any], str, str, str]]:
        """(object, name, path, subject) of each personal field that is not null."""
        if isinstance(body, list):
            for part in body:  # not the index: what moves within a list stays what it is
                yield from self.walk(part, at)
        elif isinstance(body, dict):
            for name, subject in self._own.items():
                if isinstance(body.get(name), str):
                    yield body, name, f"{at}/{name}", body.get(subject) or ""
            for name, within in self._within.items():
                yield from within.walk(body.get(name), f"{at}/{name}")


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    return [part for part in _parts_of(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]


def _parts_of(annotation: Any) -> Iterator[Any]:
    """Everything that a type is made of."""
    yield annotation
    if typing.get_origin(annotation) is not typing.Literal:
        for part in typing.get_args(annotation):
            yield from _parts_of(part)


def _plainly(annotation: Any) -> bool:
    """Whether it is a model, null, or lists of these: what `walk` goes through."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, list):
        return all(_plainly(part) for part in typing.get_args(annotation))
    return annotation is type(None) or (isinstance(annotation, type) and issubclass(annotation, BaseModel))
