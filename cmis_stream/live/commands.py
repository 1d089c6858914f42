"""Commands on facts: as records of cmis.commands.v1, and what the agent `commands` does with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

import msgspec
import orjson

from cmis_stream.core.errors import Rejected
from cmis_stream.core.time import LATEST_MS
from cmis_stream.live.positioned import PositionedWriter, Record, behind
from cmis_stream.store.bodies import plain
from cmis_stream.store.decisions import Actor
from cmis_stream.store.fact_commands import FactCommands
from cmis_stream.store.fact_kinds import FactCommand
from cmis_stream.store.facts import Facts, Place

COMMANDS = "cmis.commands.v1"
READER = "commands"
_LONGEST = 255


class _Actor(msgspec.Struct):
    id: str
    roles: list[str] = []


class _Command(msgspec.Struct):
    id: str
    org: str
    kind: str
    fact: str
    command: str
    body: dict[str, Any]
    actor: _Actor
    at: int
    expected_version: int | None = None


def encode(command: FactCommand) -> bytes:
    actor = _Actor(command.actor.id, sorted(command.actor.roles))
    body = dict(command.body)
    return orjson.dumps(msgspec.to_builtins(_Command(
        command.id, command.org, command.kind, command.fact, command.name, body, actor, command.at, command.expected_version
    )))  # fmt: skip


def decode(value: bytes) -> FactCommand:
    """Rejected when it is none of ours: malformed, or what the store could not keep."""
    try:
        one = msgspec.convert(orjson.loads(value), _Command)
    except (ValueError, RecursionError) as error:  # msgspec's and orjson's are ValueErrors
        raise Rejected("malformed", "", value[:40], f"a command ({type(error).__name__}: {error})") from None
    for name in ("id", "org", "kind", "fact", "command"):
        text = getattr(one, name)
        if not 1 <= len(text) <= _LONGEST:
            raise Rejected("invalid", name, text, f"1 to {_LONGEST} characters")
        plain(text, name)
    if not 0 <= one.at <= LATEST_MS:
        raise Rejected("out_of_range", "at", one.at, "epoch milliseconds")
    plain(one.actor.id, "actor")
    plain(one.body, "")
    actor = Actor(one.actor.id, frozenset(one.actor.roles))
    return FactCommand(one.id, one.org, one.kind, one.fact, one.command, one.body, actor, one.at, one.expected_version)


class CommandsOnFacts(PositionedWriter):
    """Carries out what has come meanwhile in one transaction; people wait for it, so nothing waits for more to come."""

    def __init__(
        self, commands: FactCommands, facts: Facts, epoch: str, guard: Callable[[], AbstractContextManager[None]]
    ) -> None:
        super().__init__(facts, COMMANDS, READER, epoch, guard, pause_s=0.0)
        self._commands = commands

    def _what_is_new(self, records: Sequence[Record], known: Mapping[Place, int]) -> tuple[list[FactCommand], dict[Place, int]]:
        values, positions = behind(COMMANDS, records, known)
        found = list[FactCommand]()
        for value in values:
            with suppress(Rejected):  # the agent has made a dead letter of it
                found.append(decode(value))
        return found, positions

    def _written(self, new: Any, positions: Mapping[Place, int], before: Mapping[Place, int]) -> bool:
        return self._commands.carry_out(new, READER, self._epoch, positions, before)
