"""Documents and changes as REST shows them: flat, moments in RFC 3339, fields that are younger than a document with defaults."""

from __future__ import annotations

from typing import Any, Final

import orjson

from ...core.time import rfc3339
from ...store.changes import Change
from ...store.decisions import Document, Result
from ...store.fact_kinds import Fact, FactKind, defaults_of
from ...store.fields import in_rest, times_of
from ...store.kinds import Kind

READ_ONLY: Final = ("id", "version", "created_at", "updated_at", "deleted_at")
"""What an answer has besides the body. A body that is sent back may hold them: they are not looked at."""


class Shape:
    """Of one kind."""

    def __init__(self, kind: Kind | FactKind) -> None:
        self._times = times_of(kind.model)
        self._fields, self._defaults = tuple(kind.model.model_fields), defaults_of(kind.model)

    def document(self, document: Document) -> dict[str, Any]:
        return {
            "id": document.id,
            "version": document.version,
            "created_at": rfc3339(document.created_at),
            "updated_at": rfc3339(document.updated_at),
            "deleted_at": None if document.deleted_at is None else rfc3339(document.deleted_at),
            **self._body(self._whole(document.body)),
        }

    def fact(self, fact: Fact) -> dict[str, Any]:
        own = {"id": fact.id, "version": fact.version, "at": rfc3339(fact.at)}
        return own | self._body(self._whole(fact.body))

    def result(self, result: Result) -> dict[str, Any]:
        """What a command of the kind did."""
        touched = [{"kind": kind, "id": identity, "version": version} for kind, identity, version in result.touched]
        return {"item": None if result.document is None else self.document(result.document), "touched": touched}

    def change(self, change: Change) -> dict[str, Any]:
        return {
            "seq": change.seq,
            "version": change.version,
            "command": change.command,
            "actor": change.actor,
            "at": rfc3339(change.at),
            "before": None if change.before is None else self._body(orjson.loads(change.before)),
            "after": None if change.after is None else self._body(orjson.loads(change.after)),
            "hash": change.hash,
        }

    def _whole(self, body: dict[str, Any]) -> dict[str, Any]:
        """In the order in which the kind declares its fields; kept they are sorted, for hashing."""
        whole = {**self._defaults, **body}
        return {**{name: whole[name] for name in self._fields if name in whole}, **whole}

    def _body(self, body: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = in_rest(body, self._times)
        return made
