"""Facts for the tests of their store: incidents, and findings, which people may act on."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cmis_stream.core.errors import Rejected
from cmis_stream.core.ids import fact_id
from cmis_stream.modules.alerts.incidents import INCIDENT
from cmis_stream.store.database import Database
from cmis_stream.store.decisions import Effect
from cmis_stream.store.fact_kinds import Fact, FactCommand, FactContext, FactDecision, FactKind, FactRule
from cmis_stream.store.facts import Change, Facts, Place
from cmis_stream.store.fields import Time
from cmis_stream.store.kinds import Kinds, Manifest, ProblemCode
from tests.store.conftest import Places

NOW = 1_767_225_600_000
Body = dict[str, Any]


class Finding(BaseModel):
    """Something that an agent found and people count."""

    model_config = ConfigDict(extra="forbid")
    name: str
    count: int = 0
    notes: list[str] = []
    closed_at: Time | None = None
    size: Literal["large", "small"] = "small"


class Add(BaseModel):
    model_config = ConfigDict(extra="forbid")
    note: str = Field(min_length=1, max_length=20)


def _add(context: FactContext, fact: Fact, command: FactCommand) -> FactDecision:
    if fact.body["closed_at"] is not None:
        raise Rejected("finding_closed", "", fact.id, "a finding that is not closed")
    notes = [*fact.body["notes"], command.body["note"]]
    body = {**fact.body, "count": fact.body["count"] + 1, "notes": notes}
    return FactDecision(body, (Effect("noted", {"finding": fact.id, "by": context.actor.id}),))


def _close(context: FactContext, fact: Fact, command: FactCommand) -> FactDecision:
    return FactDecision({**fact.body, "closed_at": fact.body["closed_at"] or context.now_ms})


def _break(context: FactContext, fact: Fact, command: FactCommand) -> FactDecision:
    return FactDecision({**fact.body, "count": "many"})


FINDING = FactKind(
    "finding",
    Finding,
    filters={"name": "text", "count": "number", "closed_at": "time", "size": "text"},
    sorts=("name", "count", "size"),
    ranks={"size": ("large", "small")},
    commands={
        "add": FactRule(_add, body=Add, examples=({"note": "seen"},)),
        "close": FactRule(_close),
        "break_it": FactRule(_break),
    },
    examples=({"name": "a"},),
    scopes={"close": "admin"},
)
TRIAL = Manifest("trial", (), facts=(FINDING,), problems={"finding_closed": ProblemCode(409, "The finding is closed")})
MANIFESTS = [Manifest("alerts", (), facts=(INCIDENT,)), TRIAL]


def fact_kinds() -> Kinds:
    return Kinds(MANIFESTS)


@contextmanager
def opened(places: Places) -> Iterator[Facts]:
    """As one process has them."""
    database, overseer = Database(places.app), Database(places.relay)
    try:
        yield Facts(database, fact_kinds(), overseer)
    finally:
        database.close()
        overseer.close()


def incident(number: int, **more: Any) -> tuple[str, Body]:
    """(id, body)"""
    made = {
        "key": "k", "entity": "USD", "rule": "r", "severity": "medium", "level": "campaign", "currency": "USD",
        "platform": "meta", "account": "", "campaign": "c", "ad_set": "", "ad": "", "state": "firing", "started_at": NOW + number,
        "resolved_at": None, "value": None, "window": "5m", "sums": [1, 2, 3, 4, 5, 6], "events": [],
    }  # fmt: skip
    return fact_id(NOW + number, f"i{number}"), {**made, **more}


class Writer:
    """Writes as a reader of the log "e" does, one record after the other. Safe for threads."""

    def __init__(self, facts: Facts, reader: str = "w") -> None:
        self.facts, self.reader = facts, reader
        self.at: dict[Place, int] = {}
        self._lock = threading.Lock()

    def __call__(self, *changes: Change) -> None:
        with self._lock:
            to = {("t", 0): self.at.get(("t", 0), -1) + 1}
            assert self.facts.write(changes, self.reader, "e", to, self.at)
            self.at = to

    def put(self, *facts: tuple[str, Mapping[str, Any]], org: str = "acme", kind: str = "incident") -> None:
        self(*(Change(org, kind, identity, NOW, partial(instead, body)) for identity, body in facts))


def instead(body: Body, _: Body | None) -> Body:
    return body


def numbers(facts: list[Fact]) -> list[int]:
    return [fact.body["started_at"] - NOW for fact in facts]
