"""Commands on facts, each carried out once: what it decides, its effects, its result and its reader's position, together."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, NamedTuple

import orjson
from sqlalchemy import delete, insert, select

from cmis_stream.core.errors import Rejected
from cmis_stream.core.ids import fact_id

from . import tables
from .bodies import NotValid, plain, validated, written
from .database import Database, Transaction
from .effects import carry_out, put_into_outbox
from .fact_kinds import Fact, FactCommand, FactContext, FactKind, FactRule, defaults_of
from .fact_tables import fact_commands
from .facts import Facts, MovedByOthers, Place, load, move
from .jobs import Jobs
from .kinds import Kinds
from .listing import storable
from .writing import Stale

RESULTS_LAST_MS: Final = 7 * 24 * 3_600_000
"""As long as the log keeps commands."""


class CommandResult(NamedTuple):
    """version: of the fact after it, None when it was rejected. rejected: why (`Rejected.as_dict`, all mistakes in `errors`).

    asked: `asked_for` of the command. at: epoch ms, when it was taken.
    """

    id: str
    kind: str
    fact: str
    asked: str
    status: Literal["applied", "rejected"]
    version: int | None
    rejected: dict[str, Any] | None
    at: int


def asked_for(command: FactCommand) -> str:
    """A digest of what it asks for: the same for a repeat, another one when an id is used for something else."""
    what = [command.kind, command.fact, command.name, dict(command.body), command.expected_version]
    return hashlib.sha256(orjson.dumps(what, option=orjson.OPT_SORT_KEYS)).hexdigest()


class FactCommands:
    """Of all kinds of facts. Everything blocks."""

    def __init__(self, database: Database, kinds: Kinds, facts: Facts, jobs: Jobs | None = None) -> None:
        self._database, self._kinds, self._facts, self._jobs = database, kinds.facts, facts, jobs

    def carry_out(
        self,
        commands: Sequence[FactCommand],
        reader: str,
        epoch: str,
        positions: Mapping[Place, int],
        before: Mapping[Place, int],
    ) -> bool:
        """All of them in their order, each applied or rejected; those whose result is there already, not again. Positions and the
        answer are as in `Facts.write`. Unavailable: none of them was."""
        by_org = defaultdict[str, list[FactCommand]](list)
        for command in commands:
            by_org[command.org].append(command)
        try:
            with self._database.transaction(None, writes=True) as tx:
                move(tx, reader, epoch, positions, before)
                for org in sorted(by_org):
                    tx.enter(org)
                    tx.lock_org(tables.org_heads)
                    self._in_org(tx, by_org[org])
        except MovedByOthers:
            return False
        return True

    def result(self, org: str, identity: str) -> CommandResult | None:
        """None: it has not been carried out yet, was too long ago, or there is no such command."""
        if not storable(identity):
            return None
        with self._database.transaction(org) as tx:
            rows = tx.rows(select(fact_commands).where(tx.own(fact_commands), fact_commands.c.id == identity))
        if not rows:
            return None
        (row,) = rows
        rejected = None if row.rejected is None else orjson.loads(row.rejected)
        return CommandResult(row.id, row.kind, row.fact_id, row.command_hash, row.status, row.version, rejected, row.at)

    # --- one org ------------------------------------------------------------------------------------------------------

    def _in_org(self, tx: Transaction, commands: Sequence[FactCommand]) -> None:
        latest = max(command.at for command in commands)
        tx.run(delete(fact_commands).where(tx.own(fact_commands), fact_commands.c.at < latest - RESULTS_LAST_MS))
        seen = {
            identity
            for start in range(0, len(commands), 500)
            for (identity,) in tx.rows(
                select(fact_commands.c.id).where(
                    tx.own(fact_commands), fact_commands.c.id.in_([one.id for one in commands[start : start + 500]])
                )
            )
        }
        results, outbox = list[dict[str, Any]](), list[dict[str, Any]]()
        for command in commands:
            if command.id in seen:
                continue
            seen.add(command.id)
            version, rejected, after = None, None, len(tx.after_commit)
            try:
                with tx.connection.begin_nested():
                    version, effects = self._apply(tx, command)
                outbox += effects
            except Rejected as error:
                del tx.after_commit[after:]
                rejected = written(_told(error))
            results.append({
                "org_id": tx.org, "id": command.id, "kind": command.kind, "fact_id": command.fact, "actor": command.actor.id,
                "command_hash": asked_for(command), "status": "applied" if rejected is None else "rejected",
                "version": version, "rejected": rejected, "at": command.at,
            })  # fmt: skip
        if results:
            tx.run(insert(fact_commands), results)
        put_into_outbox(tx, outbox)

    def _apply(self, tx: Transaction, command: FactCommand) -> tuple[int, list[dict[str, Any]]]:
        """(the fact's version afterwards, rows of the outbox)"""
        kind, rule = self._rule(command)
        fact = load(tx, command.kind, command.fact)
        if fact is None:
            raise Rejected("not_found", "id", command.fact, f"the id of a {kind.name} of this org")
        if command.expected_version is not None and command.expected_version != fact.version:
            raise Stale(command.expected_version, fact.version)
        given = replace(command, body=body_of(rule, command.name, command.body))
        fact = replace(fact, body=defaults_of(kind.model) | fact.body)
        decision = rule.decide(FactContext(tx.org, command.actor, command.at), fact, given)
        if dict(decision.body) != fact.body:
            body = validated(kind.model, decision.body)
            plain(body, "")
            fact = Fact(fact.org, fact.kind, fact.id, fact.version + 1, command.at, body)
            self._facts.put(tx, fact)
        rows = []
        for number, effect in enumerate(decision.effects):

            def new_id(name: str = f"{tx.org}/{command.id}/{number}") -> str:
                return fact_id(command.at, name)

            row = carry_out(tx, self._jobs, effect, command.actor.id, command.at, new_id)
            rows += [] if row is None else [row]
        return fact.version, rows

    def _rule(self, command: FactCommand) -> tuple[FactKind, FactRule]:
        kind = self._kinds.get(command.kind)
        if kind is None:
            raise Rejected("not_found", "kind", command.kind, ", ".join(sorted(self._kinds)))
        if (rule := kind.commands.get(command.name)) is None:
            raise Rejected("not_found", "command", command.name, ", ".join(sorted(kind.commands)))
        return kind, rule


def body_of(rule: FactRule, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the command takes, defaults filled in. Rejected when it is not what is given, or nothing that can be kept."""
    plain(given, "")
    if rule.body is not None:
        return validated(rule.body, given)
    for field, value in given.items():
        raise Rejected("invalid", f"/{field}", value, f"no such field: {name} takes no body")
    return {}


def _told(error: Rejected) -> dict[str, Any]:
    told: dict[str, Any] = error.as_dict()
    if isinstance(error, Stale):
        told["version"] = error.version
    if isinstance(error, NotValid) and len(error.errors) > 1:
        told["errors"] = [one.as_dict() for one in error.errors]
    return told
