"""What the store and the modules say to each other: commands, documents, decisions. Pure values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from pydantic import BaseModel

from cmis_stream.core.errors import CmisError

if TYPE_CHECKING:
    from .secrets import Secret

Body = dict[str, Any]
"""A document's JSON object: its kind's fields, `tags`, `metadata`, and where the kind has them `owner_id` and `visibility`."""
Visibility = Literal["private", "org", "link"]
Missed = Literal["skip", "once", "all"]
GRACE_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts: a user, a token or an agent. roles: in the org. sees_private: also what is private to others."""

    id: str
    roles: frozenset[str] = frozenset()
    sees_private: bool = False


@dataclass(frozen=True, slots=True)
class Document:
    """One version of a document. Times in epoch ms; deleted_at is None while it is not deleted."""

    org: str
    kind: str
    id: str
    version: int
    created_at: int
    updated_at: int
    deleted_at: int | None
    body: Body

    @property
    def owner_id(self) -> str | None:
        return self.body.get("owner_id")

    def visible_to(self, actor: Actor) -> bool:
        return self.body.get("visibility") != "private" or self.owner_id == actor.id or actor.sees_private


@dataclass(frozen=True, slots=True)
class Command:
    """name: create, update (all fields), patch (JSON merge patch), delete, restore, or one that the kind declares.

    id: a UUID or the kind's natural key; None for what is about no document yet. A create may bring its own UUID.
    """

    name: str
    kind: str
    id: str | None = None
    body: Mapping[str, Any] = field(default_factory=dict)


class Put(NamedTuple):
    """The document gets this body: a new one, when there is none of this id."""

    kind: str
    id: str
    body: Mapping[str, Any]


class Delete(NamedTuple):
    """With what the references to it say: restrict, cascade, detach."""

    kind: str
    id: str


class Restore(NamedTuple):
    kind: str
    id: str


class Effect(NamedTuple):
    """Something to be done once the decision holds, at least once. due_at: epoch ms, None for at once.

    publish {topic, body}, command {kind, name, id, body, expected_version}, job {kind, body}, and what modules declare.
    """

    name: str
    body: Mapping[str, Any]
    due_at: int | None = None


class StartJob(NamedTuple):
    """In the same transaction: what refuses it refuses the command. at: JSON pointer of where the command has what this is made
    of, so that what is refused is named there."""

    kind: str
    body: Mapping[str, Any] = {}
    due_at: int | None = None
    at: str = ""


@dataclass(frozen=True, slots=True)
class Schedule:
    """id: of what it is made for, so that making it twice makes one. rule, starts: `core.recurrence`; starts None: now.

    missed: what is done about occurrences that are over `grace_ms` late because nobody was there: nothing (skip), the last one
    (once), or the first `most_missed` of them (all). The effect's body gets `schedule`, `occurrence` (epoch ms) and `late`.
    """

    id: str
    zone: str
    rule: str
    effect: str
    body: Mapping[str, Any] = field(default_factory=dict)
    starts: str | None = None
    missed: Missed = "once"
    most_missed: int = 10
    grace_ms: int = GRACE_MS


@dataclass(frozen=True, slots=True)
class SetSchedule(Schedule):
    """In the same transaction. at: as for StartJob."""

    at: str = ""


class RemoveSchedule(NamedTuple):
    """In the same transaction; nothing when there is none."""

    id: str


AnyEffect = Effect | StartJob | SetSchedule | RemoveSchedule


@dataclass(frozen=True, slots=True)
class Decision:
    """What a command comes to, in this order."""

    changes: tuple[Put | Delete | Restore, ...] = ()
    effects: tuple[AnyEffect, ...] = ()


def _no_secrets(name: str) -> Secret | None:
    raise Permanent(f"expected no secret, since no module asks for it, got {name!r}")


@dataclass(frozen=True, slots=True)
class Carried:
    """An effect that is to be carried out now. id: the same each time it is tried. attempt: 1 for the first.

    actor: who decided it, None for nobody (a schedule that is older than what says who made it). reveal: the org's secret of this
    name, of those that the effect's module declares; None when it is not set."""

    org: str
    id: str
    effect: str
    body: dict[str, Any]
    attempt: int
    actor: str | None
    reveal: Callable[[str], Secret | None] = field(default=_no_secrets, repr=False, compare=False)


Handler = Callable[[Carried], None]
"""Carries out an effect; called in a thread, may block. It may come again with the same id, even after it went well. Raises
Permanent, or Rejected, when trying again would come to the same; Temporary, or another CmisError, when it would not."""


class Temporary(CmisError):
    """It did not work now; it is tried again."""


class Permanent(CmisError):
    """It will never work as it is: it stays with its problem until somebody looks at it."""


@dataclass(frozen=True, slots=True)
class Context:
    """What `decide` may look at besides the document: never the clock or chance themselves.

    documents: what the command declared that it reads, by (kind, id); None for one that is not there, or not for this actor.
    """

    org: str
    actor: Actor
    now_ms: int
    new_id: Callable[[], str]
    documents: Mapping[tuple[str, str], Document | None]


Decide = Callable[[Context, Document | None, Command], Decision]
"""decide(context, state, command): pure; raises Rejected. state: the document that the command is about."""


def reads_nothing(state: Document | None, command: Command) -> Iterable[tuple[str, str]]:
    return ()


class Rule(NamedTuple):
    """How a command is decided. reads: (kind, id) of other documents that it looks at. creates: it is about none that is there
    yet. of_deleted: it is about a deleted one. copies: it makes another one of the same kind, which is its result.

    For REST: body, what has to come with it (None: nothing), checked before it is decided; examples of it; title, for people.
    """

    decide: Decide
    reads: Callable[[Document | None, Command], Iterable[tuple[str, str]]] = reads_nothing
    creates: bool = False
    of_deleted: bool = False
    copies: bool = False
    body: type[BaseModel] | None = None
    examples: tuple[Mapping[str, Any], ...] = ()
    title: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What a command did. document: as it is now (deleted_at says whether it is deleted), None when the command was about none.

    seq: the org's last change after it. touched: (kind, id, version) of everything that changed, cascades included.
    repeated: this was answered before, to the same idempotency key; nothing was done now.
    """

    document: Document | None
    created: bool
    seq: int
    touched: tuple[tuple[str, str, int], ...]
    repeated: bool = False
