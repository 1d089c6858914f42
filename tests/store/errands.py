"""A module whose commands ask for effects, for the tests of the outbox and of housekeeping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from cmis_stream.store.decisions import (
    Command,
    Context,
    Decision,
    Document,
    Effect,
    Handler,
    Put,
    RemoveSchedule,
    Rule,
    SetSchedule,
    StartJob,
)
from cmis_stream.store.documents import Documents
from cmis_stream.store.kinds import Kind, Kinds, Manifest
from tests.store.primitives import JOB_KINDS
from tests.store.support import ADA


class Errand(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str


def _run(context: Context, state: Document | None, command: Command) -> Decision:
    """body: {effects: [[name, body, due_at], …]}."""
    return Decision(effects=tuple(Effect(*given) for given in command.body["effects"]))


def _start(context: Context, state: Document | None, command: Command) -> Decision:
    """A document, a job about it, and a schedule when the body has one."""
    made = Put("errand", context.new_id(), {"name": command.body["job"]["kind"]})
    when = (SetSchedule(**command.body["when"], at="/when"),) if "when" in command.body else ()
    return Decision((made,), (StartJob(**command.body["job"], at="/job"), *when))


def _plan(context: Context, state: Document | None, command: Command) -> Decision:
    made = Put("errand", context.new_id(), {"name": "planned"})
    return Decision((made,), (SetSchedule(**command.body["when"], at="/when"),))


def _unplan(context: Context, state: Document | None, command: Command) -> Decision:
    return Decision(effects=(RemoveSchedule(command.body["id"]),))


ERRAND = Kind(
    "errand",
    Errand,
    commands={name: Rule(decide, creates=True) for name, decide in
              (("run", _run), ("start", _start), ("plan", _plan), ("unplan", _unplan))},
)  # fmt: skip


def errand_manifest(effects: Mapping[str, Handler] | None = None) -> Manifest:
    return Manifest("errands", (ERRAND,), jobs=tuple(JOB_KINDS.values()), effects=effects or {})


def errand_kinds(effects: Mapping[str, Handler] | None = None) -> Kinds:
    return Kinds([errand_manifest(effects)])


def ask(documents: Documents, *effects: tuple[Any, ...], org: str = "acme") -> None:
    """(name, body, due_at) each."""
    documents.execute(org, ADA, Command("run", "errand", body={"effects": [list(effect) for effect in effects]}))
