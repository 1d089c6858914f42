"""What the agent finds: that somebody played with a toy. People praise it."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from cmis_stream.core.errors import Rejected
from cmis_stream.core.ids import fact_id
from cmis_stream.store.decisions import Body, Effect
from cmis_stream.store.fact_kinds import Fact, FactCommand, FactContext, FactDecision, FactKind, FactRule
from cmis_stream.store.facts import Change
from cmis_stream.store.fields import Time

KIND: Final = "playdate"
READER: Final = "toy"
PLAYED: Final = "toy.played.v1"
"""Of topics.yaml: written by the effect of `play`, read by the agent."""


class Playdate(BaseModel):
    model_config = ConfigDict(extra="forbid")
    toy: str
    name: str = Field(description="The toy's, at that moment.")
    played_at: Time
    praises: int = 0
    words: str | None = Field(None, description="Of the last praise.")


class Praise(BaseModel):
    model_config = ConfigDict(extra="forbid")
    words: str = Field(min_length=1, max_length=200)


def _praise(context: FactContext, fact: Fact, command: FactCommand) -> FactDecision:
    """A toy that is praised rings, too: a command on a document that follows from one on a fact."""
    if fact.body["words"] == command.body["words"]:
        raise Rejected("no_transition", "/words", command.body["words"], "other words than those before")
    body = {**fact.body, "praises": fact.body["praises"] + 1, "words": command.body["words"]}
    return FactDecision(body, (Effect("command", {"kind": "toy", "name": "ring", "id": fact.body["toy"]}),))


PLAYDATE = FactKind(
    KIND,
    Playdate,
    title="Playdate",
    filters={"toy": "text", "name": "text", "played_at": "time", "praises": "number"},
    sorts=("played_at", "praises"),
    default_sort="-played_at",
    reader=READER,
    topic=PLAYED,
    commands={"praise": FactRule(_praise, body=Praise, examples=({"words": "Well played"},), title="Praise")},
    examples=({"toy": "019b76da-a800-71d6-a2ec-7216849ac021", "name": "Train", "played_at": 1_767_225_600_000},),
)


class _Play(msgspec.Struct):
    toy: str
    name: str
    at: int


class _Published(msgspec.Struct):
    """What the effect `publish` writes."""

    id: str
    org: str
    data: _Play


def changes_of(value: bytes) -> list[Change]:
    """Of a record of the topic. The effect's id makes the fact's: what is published again is the same playdate."""
    try:
        one = msgspec.json.decode(value, type=_Published)
    except msgspec.DecodeError as error:
        raise Rejected("malformed", "", value[:40], f"what a toy's `play` publishes ({error})") from None
    found: dict[str, Any] = {"toy": one.data.toy, "name": one.data.name, "played_at": one.data.at, "praises": 0, "words": None}

    def make(before: Body | None) -> Body | None:
        return found if before is None else None

    return [Change(one.org, KIND, fact_id(one.data.at, one.id), one.data.at, make)]
