"""The commands that every kind has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .decisions import Command, Context, Decision, Delete, Document, Put, Restore, Rule

APPLIED_FROM: Final = "applied_from"
"""In a document's metadata: the set of documents that it belongs to, which a file manages (`modules/applying.py`)."""


def create(context: Context, state: Document | None, command: Command) -> Decision:
    return Decision((Put(command.kind, command.id or context.new_id(), command.body),))


def update(context: Context, state: Document | None, command: Command) -> Decision:
    """All fields anew: those that are left out get their defaults."""
    return Decision((Put(command.kind, _there(state).id, command.body),))


def patch(context: Context, state: Document | None, command: Command) -> Decision:
    document = _there(state)
    return Decision((Put(command.kind, document.id, merged(document.body, command.body)),))


def delete(context: Context, state: Document | None, command: Command) -> Decision:
    return Decision((Delete(command.kind, _there(state).id),))


def restore(context: Context, state: Document | None, command: Command) -> Decision:
    return Decision((Restore(command.kind, _there(state).id),))


def clone(context: Context, state: Document | None, command: Command) -> Decision:
    """A copy with these fields changed, as by a merge patch: whoever makes it owns it, and no file manages it."""
    source = {name: value for name, value in _there(state).body.items() if name not in ("owner_id", "visibility")}
    metadata = {name: value for name, value in source["metadata"].items() if name != APPLIED_FROM}
    return Decision((Put(command.kind, context.new_id(), merged({**source, "metadata": metadata}, command.body)),))


DEFAULTS: Final[Mapping[str, Rule]] = {
    "create": Rule(create, creates=True),
    "update": Rule(update),
    "patch": Rule(patch),
    "delete": Rule(delete),
    "restore": Rule(restore, of_deleted=True),
    "clone": Rule(clone, copies=True),
}


def merged(target: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7396).

    >>> merged({"a": 1, "b": {"c": 2, "d": 3}}, {"a": None, "b": {"c": 4}})
    {'b': {'c': 4, 'd': 3}}
    """
    if not isinstance(patch, Mapping):
        return patch
    made = dict(target) if isinstance(target, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            made.pop(name, None)
        else:
            made[name] = merged(made.get(name), value)
    return made


def _there(state: Document | None) -> Document:
    if state is None:
        raise ValueError("the store decides this only on a document that is there")
    return state
