"""An effect of a module gets to the secrets that the module declares, of its own org."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from cmis_stream.housekeeping import Housekeeping
from cmis_stream.settings import Settings
from cmis_stream.store.decisions import Actor, Carried, Command, Context, Decision, Document, Effect, Rule
from cmis_stream.store.kinds import Kind, Kinds, Manifest
from cmis_stream.stores import Stores

ADA = Actor("ada")
used: list[tuple[str, str | None]] = []


class Use(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str


def _use(context: Context, state: Document | None, command: Command) -> Decision:
    return Decision((), (Effect("use_secret", dict(command.body)),))


def _used(carried: Carried) -> None:
    secret = carried.reveal(carried.body["name"])
    used.append((carried.org, None if secret is None else secret.text()))


KINDS = Kinds([
    Manifest(
        "ours", (Kind("key", Use, commands={"use": Rule(_use, creates=True, body=Use)}),),
        effects={"use_secret": _used}, secrets={"our_key": "Ours"},
    ),
    Manifest("theirs", (), secrets={"their_key": "Theirs"}),
])  # fmt: skip


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stores]:
    monkeypatch.setattr("cmis_stream.stores.all_kinds", lambda: KINDS)
    made = Stores(Settings(data_dir=tmp_path), lambda: time.time_ns() // 1_000_000)
    used.clear()
    yield made
    made.close()


def test_it_gets_the_ones_that_its_module_declares_of_its_org_and_no_others(stores: Stores) -> None:
    housekeeping = Housekeeping(
        stores, send=lambda org, changes: None, epoch="e", publish=lambda *_: None, worker="here", job_settings={},
        failed=lambda error: None,
    )  # fmt: skip
    for name in ("our_key", "their_key"):
        stores.secrets.set("acme", name, f"acme's {name}", "ada")
    for org, name in (("acme", "our_key"), ("globex", "our_key"), ("acme", "their_key")):
        stores.documents.execute(org, ADA, Command("use", "key", body={"name": name}))
    housekeeping.outbox.once()
    assert sorted(used, key=str) == [("acme", "acme's our_key"), ("globex", None)]
    (failed,) = housekeeping.outbox.failed("acme")
    assert failed.problem == "expected a secret that the effect's module declares (our_key), got 'their_key'"
    assert "acme's" not in str(failed) and housekeeping.outbox.failed("globex") == []
