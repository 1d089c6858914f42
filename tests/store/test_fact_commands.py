"""Commands on facts in the store, on both databases: each once, with its effects, result and position."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from sqlalchemy import ColumnElement, Table, select, true

from cmis_stream.store import tables
from cmis_stream.store.database import Transaction
from cmis_stream.store.decisions import Actor
from cmis_stream.store.fact_commands import RESULTS_LAST_MS, CommandResult, FactCommands
from cmis_stream.store.fact_kinds import Fact, FactCommand
from cmis_stream.store.facts import Change, Facts
from tests.store.conftest import Places
from tests.store.fact_support import NOW, Writer, fact_kinds, opened

ADA = Actor("ada")


class Desk:
    """The facts, what carries out commands on them, and one finding of acme called f."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.commands = FactCommands(facts._database, fact_kinds(), facts)
        self.at: dict[tuple[str, int], int] = {}

    def add_finding(self, identity: str = "f", org: str = "acme", **more: Any) -> None:
        body = {"name": "a", **more}
        change = Change(org, "finding", identity, NOW, lambda _: body)
        assert self.facts.write([change], "w", f"{org}/{identity}", {("t", 0): 0}, {})

    def carry_out(self, *commands: FactCommand) -> None:
        to = {("c", 0): self.at.get(("c", 0), -1) + 1}
        assert self.commands.carry_out(commands, "commands", "e", to, self.at)
        self.at = to

    def finding(self, identity: str = "f", org: str = "acme") -> Fact:
        found = self.facts.get(org, "finding", identity)
        assert found is not None
        return found

    def result(self, identity: str, org: str = "acme") -> CommandResult:
        found = self.commands.result(org, identity)
        assert found is not None
        return found

    def outbox(self, org: str = "acme") -> list[tuple[str, Any, str | None]]:
        with self.facts._database.transaction(org) as tx:
            rows = tx.rows(select(tables.outbox).where(tx.own(tables.outbox)).order_by(tables.outbox.c.id))
        return [(row.effect, orjson.loads(row.body), row.actor) for row in rows]


@pytest.fixture
def desk(places: Places) -> Iterator[Desk]:
    with opened(places) as facts:
        made = Desk(facts)
        made.add_finding()
        yield made


def command(
    identity: str, name: str = "add", *, org: str = "acme", fact: str = "f", at: int = NOW + 5, **more: Any
) -> FactCommand:
    body = more.pop("body", {"note": identity} if name == "add" else {})
    return FactCommand(identity, org, more.pop("kind", "finding"), fact, name, body, ADA, at, more.pop("expected_version", None))


def test_a_command_makes_the_next_version_its_effects_and_a_result(desk: Desk) -> None:
    desk.carry_out(command("c1"))
    assert desk.finding() == Fact(
        "acme", "finding", "f", 2, NOW + 5, {"name": "a", "count": 1, "notes": ["c1"], "closed_at": None, "size": "small"}
    ), "what the agent left out has its default"
    result = desk.result("c1")
    assert (result.status, result.version, result.rejected, result.fact) == ("applied", 2, None, "f")
    assert desk.outbox() == [("noted", {"finding": "f", "by": "ada"}, "ada")]


def test_a_command_that_comes_again_is_not_carried_out_again(desk: Desk) -> None:
    desk.carry_out(command("c1"), command("c2"), command("c1"))
    desk.carry_out(command("c2"), command("c3"))
    assert desk.finding().body["notes"] == ["c1", "c2", "c3"] and desk.finding().version == 4
    assert len(desk.outbox()) == 3
    # Nor as something else: the one that asked for it sees by `asked` that it was not this.
    first = desk.result("c1")
    desk.carry_out(command("c1", "close"))
    assert desk.finding().body["closed_at"] is None and desk.result("c1") == first


def test_what_cannot_be_is_rejected_and_the_others_are_carried_out(desk: Desk) -> None:
    desk.carry_out(
        command("c1"),
        command("no fact", fact="g"), command("no kind", kind="nothing"), command("no command", "jump"),
        command("no body", body={}), command("odd body", body={"note": "", "more": 1}), command("extra", "close", body={"x": 1}),
        command("bad decision", "break_it"), command("stale", expected_version=1),
        command("c2", expected_version=2), command("close", "close"), command("closed"), command("c4", "close"),
    )  # fmt: skip
    codes = {
        name: (found := desk.result(name)).rejected and (found.rejected["code"], found.rejected["field"])
        for name in ("no fact", "no kind", "no command", "no body", "odd body", "extra", "bad decision", "stale", "closed")
    }
    assert codes == {
        "no fact": ("not_found", "id"), "no kind": ("not_found", "kind"), "no command": ("not_found", "command"),
        "no body": ("missing", "/note"), "odd body": ("invalid", "/note"), "extra": ("invalid", "/x"),
        "bad decision": ("invalid", "/count"), "stale": ("stale", "version"), "closed": ("finding_closed", ""),
    }  # fmt: skip
    assert desk.result("stale").version is None and len((desk.result("odd body").rejected or {})["errors"]) == 2
    assert desk.finding().body == {"name": "a", "count": 2, "notes": ["c1", "c2"], "closed_at": NOW + 5, "size": "small"}
    assert [desk.result(name).version for name in ("c1", "c2", "close", "c4")] == [2, 3, 4, 4], "nothing changed: no new version"
    assert len(desk.outbox()) == 2


def test_commands_results_and_positions_are_written_together_or_not_at_all(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr("cmis_stream.store.fact_commands.put_into_outbox", fails)
        with pytest.raises(ZeroDivisionError):
            desk.carry_out(command("c1"))
    assert desk.finding().version == 1 and desk.commands.result("acme", "c1") is None
    assert desk.facts.positions("commands", "e") == {}
    desk.carry_out(command("c1"))
    assert desk.finding().version == 2 and desk.facts.positions("commands", "e") == {("c", 0): 0}


def test_nothing_is_carried_out_on_positions_that_others_have_moved(desk: Desk) -> None:
    desk.carry_out(command("c1"))
    assert not desk.commands.carry_out([command("c2")], "commands", "e", {("c", 0): 1}, {})
    assert desk.finding().body["notes"] == ["c1"] and desk.commands.result("acme", "c2") is None


def test_the_agent_and_people_who_change_a_fact_at_once_lose_nothing(desk: Desk, places: Places) -> None:
    """Two readers with positions of their own, on connections of their own."""

    def found(before: dict[str, Any] | None) -> dict[str, Any]:
        assert before is not None
        return {**before, "name": before["name"] + "a"}

    def agent() -> None:
        with opened(places) as facts:
            writer = Writer(facts)
            for _ in range(25):
                writer(Change("acme", "finding", "f", NOW, found))

    thread = threading.Thread(target=agent)
    thread.start()
    for number in range(25):
        desk.carry_out(command(f"c{number}"))
    thread.join()
    finding = desk.finding()
    assert (finding.body["name"], finding.body["count"], finding.version) == ("a" * 26, 25, 51)


def test_results_are_kept_for_seven_days(desk: Desk) -> None:
    desk.carry_out(command("old", at=NOW), command("young", at=NOW + 1))
    desk.carry_out(command("later", "close", at=NOW + RESULTS_LAST_MS + 1))
    assert desk.commands.result("acme", "old") is None and desk.result("young").status == "applied"


def test_another_org_s_facts_and_results_are_out_of_reach(desk: Desk) -> None:
    desk.add_finding("g", "beta")
    desk.carry_out(command("c1"), command("mine", fact="g"), command("theirs", org="beta", fact="g"))
    assert (desk.result("mine").rejected or {})["code"] == "not_found"
    assert desk.finding("g", "beta").body["notes"] == ["theirs"]
    assert desk.commands.result("beta", "c1") is None and desk.commands.result("acme", "theirs") is None
    # The same id in two orgs is two commands.
    desk.carry_out(command("c1", org="beta", fact="g"))
    assert desk.finding("g", "beta").body["notes"] == ["theirs", "c1"] and desk.finding().body["notes"] == ["c1"]


@pytest.mark.slow
def test_row_security_binds_results_too(postgres_urls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(Places(postgres_urls.app, postgres_urls.relay)) as facts:
        desk = Desk(facts)
        desk.add_finding("g", "beta")
        desk.carry_out(command("theirs", org="beta", fact="g"))

        def forgotten(_: Transaction, table: Table) -> ColumnElement[bool]:
            return true()

        monkeypatch.setattr(Transaction, "own", forgotten)
        assert desk.commands.result("acme", "theirs") is None
        desk.carry_out(command("mine", fact="g"))
        assert (desk.result("mine").rejected or {})["code"] == "not_found"
        assert desk.finding("g", "beta").version == 2
