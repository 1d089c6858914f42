"""A module's kinds such as the tests need them, and short ways to act on them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cmis_stream.core.errors import Rejected
from cmis_stream.store.decisions import Actor, Command, Context, Decision, Delete, Document, Effect, Put, Result, Rule
from cmis_stream.store.documents import Documents
from cmis_stream.store.kinds import ANYONE, Kind, Kinds, Manifest, Ref, States

NOW = 1_767_225_600_000
ADA, BOB = Actor("ada"), Actor("bob")
ADMIN = Actor("adam", roles=frozenset({"admin"}))


class Clock:
    """Each look is a millisecond later."""

    def __init__(self, now_ms: int = NOW) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        self.now_ms += 1
        return self.now_ms


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Campaign(_Model):
    name: str = Field(min_length=1, max_length=400)
    slug: str | None = None
    state: Literal["draft", "running", "ended"] = "draft"
    spend_micros: int | None = None
    ctr_ratio: float | None = None
    active: bool | None = None
    starts_at: int | None = None
    parent: str | None = None


class Note(_Model):
    """Goes with its campaign."""

    text: str = ""
    campaign: str


class Budget(_Model):
    """Holds its campaign."""

    campaign: str
    note: str | None = None


class Board(_Model):
    """Outlives what it shows."""

    title: str
    campaigns: list[str] = []
    main: str | None = None


def _copy(context: Context, state: Document | None, command: Command) -> Decision:
    assert state is not None
    made = Put("campaign", context.new_id(), {**state.body, "name": command.body["name"], "slug": None, "state": "draft"})
    return Decision((made,), (Effect("copied", {"from": state.id, "to": made.id}),))


def _trade(context: Context, state: Document | None, command: Command) -> Decision:
    """Two campaigns change their slugs."""
    assert state is not None
    other = context.documents["campaign", command.body["with"]]
    if other is None:
        raise Rejected("unknown_ref", "/with", command.body["with"], "a campaign")
    return Decision(
        (
            Put("campaign", state.id, {**state.body, "slug": other.body["slug"]}),
            Put("campaign", other.id, {**other.body, "slug": state.body["slug"]}),
        )
    )


def _open_with_note(context: Context, state: Document | None, command: Command) -> Decision:
    """The note first, although it points at the campaign."""
    campaign = context.new_id()
    return Decision(
        (Put("note", context.new_id(), {"campaign": campaign, "text": "hello"}), Put("campaign", campaign, {**command.body}))
    )


def _delete_both(context: Context, state: Document | None, command: Command) -> Decision:
    assert state is not None
    return Decision((Delete("campaign", state.id), Delete("campaign", command.body["with"])))


CAMPAIGN = Kind(
    "campaign",
    Campaign,
    filters={
        "name": "text", "state": "text", "spend_micros": "number", "ctr_ratio": "number", "active": "bool", "starts_at": "time",
        "parent": "text",
    },
    sorts=("name", "state", "spend_micros", "ctr_ratio", "active", "starts_at"),
    unique=(("slug",), ("name", "starts_at")),
    refs={"parent": Ref("campaign", "cascade", acyclic=True)},
    states=States("state", "draft", {("draft", "running"): ANYONE, ("running", "ended"): frozenset({"admin"})}),
    natural_key="slug",
    commands={
        "copy": Rule(_copy),
        "trade": Rule(_trade, reads=lambda state, command: [("campaign", command.body["with"])]),
        "open_with_note": Rule(_open_with_note, creates=True),
        "delete_both": Rule(_delete_both),
    },
)  # fmt: skip
NOTE = Kind("note", Note, filters={"campaign": "text"}, refs={"campaign": Ref("campaign", "cascade")})
BUDGET = Kind("budget", Budget, refs={"campaign": Ref("campaign", "restrict"), "note": Ref("note", "cascade")})
BOARD = Kind(
    "board",
    Board,
    filters={"title": "text"},
    refs={"campaigns": Ref("campaign", "detach"), "main": Ref("campaign", "detach")},
    visibility="private",
)


def kinds(*more: Kind) -> Kinds:
    return Kinds([Manifest("trial", (CAMPAIGN, NOTE, BUDGET, BOARD, *more))])


def create(documents: Documents, kind: str, /, org: str = "acme", actor: Actor = ADA, **body: Any) -> Document:
    return made(documents.execute(org, actor, Command("create", kind, body=body)))


def act(
    documents: Documents, name: str, of: Document, actor: Actor = ADA, /, *, expected_version: int | None = None, **body: Any
) -> Document:
    return made(documents.execute(of.org, actor, Command(name, of.kind, of.id, body), expected_version=expected_version))


def made(result: Result) -> Document:
    assert result.document is not None
    return result.document
