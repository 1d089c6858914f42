"""`cmis apply`: an org's documents become what a file says, over REST, and what does not is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cmis_stream.cli import main
from cmis_stream.store.decisions import Actor, Command
from tests.api.conftest import World, world
from tests.contracts.support import Rest
from tests.e2e.support import Processes, Up
from tests.servers.postgres import postgres, postgres_urls

__all__ = ["postgres", "postgres_urls", "world"]

A = "01890000-0000-7000-8000-00000000000a"
TOYS = f"""
toys:
  - {{name: Train, slug: train, box: {A}}}
  - {{name: Duck, slug: duck, tags: [rubber], inside: train}}
boxes:
  - {{id: {A}, label: Attic}}
"""
RULES = """
alert_rules:
  - key: overspend
    name: Overspend
    when: {metric: spend, window: 5m, op: gt, value: %d}
"""


class Losing:
    """Carries out what it is asked for, but answers the next `lost` bulks as a proxy does that lost the connection."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.lost = app, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.lost or not scope["path"].endswith("/bulk"):
            return await self.app(scope, receive, send)
        self.lost -= 1

        async def nowhere(message: Message) -> None:
            pass

        await self.app(scope, receive, nowhere)
        await Response("", 502)(scope, receive, send)


class Served:
    """The toy's REST behind a port, a data folder for it, and `cmis apply` on a file."""

    def __init__(self, rest: Rest, url: str, folder: Path, way: Losing) -> None:
        self.rest, self.url, self.folder, self.way = rest, url, folder, way
        self.file = folder / "file.yaml"

    async def apply(self, text: str, *arguments: str, org: str = "acme", local: bool = True) -> Result:
        self.file.write_text(text)
        data = ("--data-dir", str(self.folder)) if local else ()
        given = ("apply", str(self.file), "--url", self.url, "--org", org, *data, *arguments)
        return await asyncio.to_thread(CliRunner().invoke, main, given)

    def there(self, kind: str, org: str = "acme") -> dict[str, dict[str, Any]]:
        page = self.rest.documents.list(org, Actor("x", sees_private=True), kind, [("limit", "500")])
        return {one.body.get("slug") or one.body.get("key") or one.id: one.body for one in page.items}


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CMIS_TOKEN", "CMIS_DATA_DIR", "CMIS_STORE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def served(world: World, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    """The toy is a module of another package, installed beside ours."""
    package = world.folder / "site" / "toys-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[cmis_stream.modules]\ntoy = tests.contracts.toy.manifest:MANIFEST\n")
    monkeypatch.syspath_prepend(package.parent)
    rest = Rest(world, world.database)
    way = Losing(rest.app)
    world.app = way  # type: ignore[assignment]
    async with world.served() as url:
        yield Served(rest, url, world.folder, way)
    await rest.close()


# --- plan, apply, prune ---------------------------------------------------------------------------------------------------


async def test_a_plan_says_what_apply_does_and_the_second_time_nothing_is_left(served: Served) -> None:
    planned = await served.apply(TOYS, "--plan")
    assert planned.exit_code == 2, planned.output
    assert planned.stdout.splitlines() == [
        f"+ box {A}", "+ toy train", "+ toy duck", "= 0 unchanged",
        "acme, set file: 3 to create, 0 to change, 0 to delete.",
    ]  # fmt: skip
    assert served.there("toy") == {}, "a plan changes nothing"
    applied = await served.apply(TOYS, "--yes")
    assert applied.exit_code == 0 and applied.stdout.endswith("3 created, 0 changed, 0 deleted.\n"), applied.output
    toys = served.there("toy")
    assert toys["train"]["box"] == A and toys["duck"]["metadata"] == {"applied_from": "file"}
    again = await served.apply(TOYS, "--plan", "--prune")
    assert (again.exit_code, again.stdout.splitlines()[0]) == (0, "= 3 unchanged")
    assert (await served.apply(TOYS)).exit_code == 0, "nothing to do, so nothing is asked"


async def test_changes_show_fields_and_prune_deletes_what_the_file_has_no_more(served: Served) -> None:
    assert (await served.apply(TOYS, "--yes")).exit_code == 0
    less = f"boxes:\n- {{id: {A}, label: Cellar}}\ntoys:\n- {{name: Train, slug: train, made_at: 2026-01-01T00:00:00Z}}\n"
    applied = await served.apply(less, "--yes", "--set", "file", "--prune")
    assert applied.exit_code == 0, applied.output
    assert applied.stdout.splitlines() == [
        f"~ box {A}", '    label: "Attic" → "Cellar"',
        "~ toy train", '    made_at: null → "2026-01-01T00:00:00.000Z"', f'    box: "{A}" → null',
        "- toy duck", "= 0 unchanged", "acme, set file: 0 to create, 2 to change, 1 to delete.",
        "0 created, 2 changed, 1 deleted.",
    ]  # fmt: skip
    assert set(served.there("toy")) == {"train"}


async def test_what_goes_with_a_deleted_document_is_said(served: Served) -> None:
    assert (await served.apply(TOYS, "--yes")).exit_code == 0
    planned = await served.apply("boxes: []", "--set", "file", "--prune", "--plan")
    assert planned.exit_code == 2 and "With a box goes what points at it: toy.box." in planned.stdout
    assert [line for line in planned.stdout.splitlines() if line[0] == "-"] == ["- toy duck", "- toy train", f"- box {A}"]
    assert (await served.apply("boxes: []", "--set", "file", "--prune", "--yes")).exit_code == 0
    assert served.there("box") == {} == served.there("toy")
    back = await served.apply(TOYS, "--yes")
    assert back.exit_code == 0 and f"~ box {A} (was deleted, comes back)" in back.stdout, back.output
    assert served.there("box")[A]["label"] == "Attic"


async def test_more_documents_than_a_page_and_a_bulk_hold(served: Served) -> None:
    many = "toys:\n" + "".join(f"- {{name: T{number}, slug: t{number}}}\n" for number in range(1_100))
    assert "1,100 created" in (await served.apply(many, "--yes")).stdout
    assert (await served.apply(many, "--plan")).stdout.splitlines()[0] == "= 1,100 unchanged"


# --- what cannot be ---------------------------------------------------------------------------------------------------------


async def test_what_fails_is_named_and_the_rest_is_done_but_nothing_deleted(served: Served) -> None:
    assert (await served.apply("toys:\n- {name: Old, slug: old}\n", "--yes")).exit_code == 0
    twice = "toys:\n- {name: Bear, slug: bear, price_micros: 1}\n- {name: Bear, slug: panda, price_micros: 1}\n"
    used = "- {name: Ball, slug: ball, state: used}\n- {name: Kite, slug: kite}\n"
    applied = await served.apply(twice + used, "--yes", "--prune")
    assert applied.exit_code == 1 and "Traceback" not in applied.output
    assert applied.stdout.endswith("2 created, 0 changed, 0 deleted, 3 failed.\n"), applied.output
    said = applied.stderr.splitlines()
    assert said[0].startswith("toy panda (toys[1]): ") and said[1].startswith("toy ball (toys[2]): state: expected new")
    assert said[2] == "toy old: not deleted, since not everything else could be done"
    assert set(served.there("toy")) == {"old", "bear", "kite"}


async def test_nothing_is_changed_when_the_file_is_wrong_or_in_conflict(served: Served) -> None:
    wrong = await served.apply(TOYS + "children:\n- {name: Ada}\n", "--yes")
    assert (
        wrong.exit_code == 1
        and wrong.stderr == "cmis: file.yaml: children[0].id: expected a UUID: a child has no other name, got None\n"
    )
    lost = await served.apply("toys:\n- {name: Duck, slug: duck}\n- {name: Train, slug: train, inside: dukc}\n", "--yes")
    assert (
        lost.exit_code == 1
        and "! toy train: toys[1].inside: expected a toy: the slug of one in the file or in the org" in lost.stderr
    )
    assert served.there("toy") == {}
    assert (await served.apply(TOYS, "--yes", "--set", "others")).exit_code == 0
    conflict = await served.apply(TOYS, "--yes")
    assert conflict.exit_code == 1 and "expected a document of no other set than file, got 'others'" in conflict.stderr
    assert conflict.stderr.endswith("cmis: nothing was changed: the file cannot be applied as it is\n")


async def test_without_a_terminal_it_asks_for_yes(served: Served) -> None:
    refused = await served.apply(TOYS)
    assert refused.exit_code == 1 and "say --yes" in refused.stderr and served.there("toy") == {}


async def test_whose_documents_is_said_once(served: Served) -> None:
    served.file.write_text(TOYS)
    common = ["apply", str(served.file), "--url", served.url, "--data-dir", str(served.folder)]
    nobody = await asyncio.to_thread(CliRunner().invoke, main, [*common, "--yes"])
    assert nobody.exit_code == 1 and "expected an org" in nobody.stderr
    other = await served.apply("org: globex\n" + TOYS, "--yes")
    assert other.exit_code == 1 and "org: expected 'acme', as --org says, got 'globex'" in other.stderr
    unknown = await served.apply(TOYS, "--yes", org="nobody")
    assert unknown.exit_code == 1 and "cmis org create nobody" in unknown.stderr


async def test_a_wrong_option_is_no_plan_with_changes(served: Served) -> None:
    assert (await served.apply(TOYS, "--plann")).exit_code == 1
    assert (await served.apply(TOYS, "--plan", "--set", "")).exit_code == 2, "no name is the file's"
    assert (await served.apply(TOYS, "--plan", "--set", "a\tb")).exit_code == 1


async def test_a_bulk_whose_answer_was_lost_is_sent_again_and_done_once(served: Served) -> None:
    served.way.lost = 2
    applied = await served.apply(TOYS, "--yes")
    assert applied.exit_code == 0 and applied.stdout.endswith("3 created, 0 changed, 0 deleted.\n"), applied.output
    assert served.way.lost == 0 and set(served.there("toy")) == {"train", "duck"}
    served.way.lost = 100
    never = await served.apply(TOYS + "  - {id: 01890000-0000-7000-8000-00000000000b, label: Cellar}", "--yes")
    assert never.exit_code == 1 and never.stderr.splitlines() == [
        "Stopped: 0 created, 0 changed, 0 deleted; what was sent last may be done, too. Apply it again to go on.",
        "cmis: POST /api/orgs/acme/toy-boxes/bulk: HTTP 502",
    ]


# --- tokens ----------------------------------------------------------------------------------------------------------------


async def test_a_token_of_the_installation_is_made_and_revoked(served: Served) -> None:
    before = {one.id for one in served.rest.world.tokens.list("acme")}
    assert (await served.apply(TOYS, "--yes")).exit_code == 0
    (made,) = (one for one in served.rest.world.tokens.list("acme") if one.id not in before)
    assert made.name == "cmis apply" and made.revoked_at_ms is not None


async def test_a_token_that_may_not_is_a_sentence(served: Served, tmp_path: Path) -> None:
    def token(*scopes: str, org: str = "acme") -> tuple[str, str]:
        return "--token", served.rest.world.tokens.create(org, scopes)[1]

    elsewhere = await served.apply(TOYS, "--yes", "--data-dir", str(tmp_path / "nowhere"), local=False)
    assert elsewhere.exit_code == 1 and "give a token with --token" in elsewhere.stderr
    for refused in (token("ingest"), token("read", "write", org="globex"), ("--token", "cmis_x_y")):
        said = await served.apply(TOYS, "--yes", *refused)
        assert said.exit_code == 1 and said.stderr.startswith("cmis: GET /api/orgs/acme/"), said.output
        assert "Traceback" not in said.output
    reading = await served.apply(TOYS, "--yes", *token("read"))
    assert reading.exit_code == 1 and served.there("toy") == {}
    assert (await served.apply(TOYS, "--yes", *token("read", "write"))).exit_code == 0
    deleting = await served.apply("toys: []", "--yes", "--prune", *token("read", "write"))
    assert deleting.exit_code == 1 and f"box {A}: The token or session lacks the scope 'admin'" in deleting.stderr
    assert set(served.there("box")) == {A} and served.there("toy") == {}


async def test_what_others_wrote_moves_no_cursor(served: Served) -> None:
    await served.apply("toys:\n- {name: Train, slug: train}\n", "--yes")
    (toy,) = served.rest.documents.list("acme", Actor("x"), "toy").items
    body = {**toy.body, "name": "\x1b[2J\x07", "metadata": {"applied_from": "file", "a\x1bb": 1}}
    served.rest.documents.execute("acme", Actor("x"), Command("update", "toy", toy.id, body))
    planned = await served.apply("toys:\n- {name: Train, slug: train}\n", "--plan")
    assert planned.exit_code == 2 and "\x1b" not in planned.output and "\x07" not in planned.output


def test_an_instance_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(RULES % 1)
    common = ["apply", str(tmp_path / "rules.yaml"), "--org", "acme"]
    missing = CliRunner().invoke(main, [*common[:1], str(tmp_path / "no.yaml"), "--org", "acme"])
    assert missing.exit_code == 1 and "there is no such file" in missing.stderr
    nothing = CliRunner().invoke(main, [*common, "--data-dir", str(tmp_path)])
    assert nothing.exit_code == 1 and "no instance is running" in nothing.stderr and "cmis up" in nothing.stderr
    closed = CliRunner().invoke(main, [*common, "--url", "http://127.0.0.1:9", "--token", "t"])
    assert closed.exit_code == 1 and "http://127.0.0.1:9 does not answer" in closed.stderr


# --- a real instance ----------------------------------------------------------------------------------------------------------


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends: what types, and what a process reads."""
    master, slave = os.openpty()
    try:
        yield master, slave
    finally:
        os.close(master)
        os.close(slave)


def cmis(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def test_rules_of_a_running_instance_from_a_file(processes: Processes, tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "rules.yaml"
    assert cmis("org", "create", "acme", "--data-dir", data).exit_code == 0
    Up(processes, data).ready()
    file.write_text("org: acme\n" + RULES % 1)
    common = ("apply", file, "--data-dir", data)
    assert cmis(*common, "--plan").exit_code == 2
    applied = cmis(*common, "--yes")
    assert applied.exit_code == 0 and "1 created, 0 changed, 0 deleted." in applied.output, applied.output
    assert cmis(*common, "--plan", "--prune").exit_code == 0
    file.write_text("org: acme\n" + RULES % 2)
    with terminal() as (typing, reading):
        asked = processes.cmis(*common, stdin=reading)
        assert "when.value: 1.0 → 2.0" in asked.says("Apply this?")
        # Somebody else is faster: they have changed it when the answer comes.
        file.write_text("org: acme\n" + RULES % 3)
        assert cmis(*common, "--yes").exit_code == 0
        os.write(typing, b"y\n")
        assert asked.ended() == 1
        assert "alert_rule overspend (alert_rules[0]): changed by somebody else meanwhile" in asked.text
    assert cmis(*common, "--plan").exit_code == 0, "what they wrote stands"
    file.write_text("org: acme\nalert_rules: []\n")
    with terminal() as (typing, reading):
        declined = processes.cmis(*common, "--prune", stdin=reading)
        declined.says("Apply this?")
        os.write(typing, b"n\n")
        assert declined.ended() == 1 and "nothing was changed" in declined.text
    pruned = cmis(*common, "--prune", "--yes")
    assert "0 created, 0 changed, 1 deleted." in pruned.output, pruned.output
