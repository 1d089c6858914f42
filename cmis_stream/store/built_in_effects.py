"""The effects that the store itself carries out, for every module:

publish     {topic, body}                                   a record of the org with the effect's id
command     {kind, name, id, body, expected_version}        on a document; once, with the rights of whoever decided it and more
job         {kind, body}                                    its id is the effect's, so that there is one
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import orjson

from cmis_stream.core.errors import shown

from .database import Transaction
from .decisions import Actor, Carried, Command, Handler, Permanent
from .documents import Documents, Idempotency
from .jobs import Jobs
from .kinds import ANYONE, Kinds
from .outbox import InTransaction

NOBODY: Final = "outbox"
"""Acts where nobody decided: effects of schedules that are older than what says who made them."""
PATH: Final = "outbox"
"""Of the idempotency keys."""
_OF_A_SCHEDULE: Final = ("schedule", "occurrence", "late")

Publish = Callable[[str, str, str, bytes], None]
"""publish(org, topic, id, body): returns when it is durable in the log; a CmisError when that is not known."""


def publishing(publish: Publish) -> Handler:
    def carry_out(carried: Carried) -> None:
        publish(carried.org, _text(carried, "topic"), carried.id, orjson.dumps(carried.body.get("body")))

    return carry_out


def commanding(documents: Documents, kinds: Kinds) -> Handler:
    """Commands of modules to each other: what the module decided is not asked again whether its user may."""
    roles = frozenset(
        role for kind in kinds.values() if kind.states for who in kind.states.transitions.values() for role in who - ANYONE
    )

    def carry_out(carried: Carried) -> None:
        identity, version = (carried.body.get(name) for name in ("id", "expected_version"))
        if not isinstance(identity, str | None) or not isinstance(version, int | None):
            raise Permanent(f"expected a text as id and a number as expected_version, got {shown(identity)} and {shown(version)}")
        command = Command(_text(carried, "name"), _text(carried, "kind"), identity, _object(carried, "body"))
        actor = Actor(carried.actor or NOBODY, roles, sees_private=True)
        key = Idempotency(PATH, carried.id)
        documents.execute(carried.org, actor, command, expected_version=version, idempotency=key)

    return carry_out


def starting(jobs: Jobs, clock: Callable[[], int]) -> InTransaction:
    """What a schedule says of its occurrence goes into the job's body."""

    def carry_out(tx: Transaction, carried: Carried) -> None:
        said: dict[str, Any] = {name: carried.body[name] for name in _OF_A_SCHEDULE if name in carried.body}
        body: dict[str, Any] = {**_object(carried, "body"), **said}
        jobs.start(tx, carried.id, _text(carried, "kind"), body, carried.actor or NOBODY, clock())

    return carry_out


def _text(carried: Carried, name: str) -> str:
    found = carried.body.get(name)
    if not isinstance(found, str):
        raise Permanent(f"{name}: expected a text in the body of an effect {carried.effect!r}, got {shown(found)}")
    return found


def _object(carried: Carried, name: str) -> dict[str, Any]:
    found = carried.body.get(name, {})
    if not isinstance(found, dict):
        raise Permanent(f"{name}: expected an object in the body of an effect {carried.effect!r}, got {shown(found)}")
    return found
