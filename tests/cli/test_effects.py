"""`cmis effects` on both databases: what was given up is shown, and tried again when somebody says so."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from cmis_stream.cli import main
from cmis_stream.store import tables
from cmis_stream.store.database import Database
from cmis_stream.store.decisions import Carried, Permanent
from cmis_stream.store.due import Due
from cmis_stream.store.outbox import Outbox
from tests.store.conftest import Places, places, postgres, postgres_urls

__all__ = ["places", "postgres", "postgres_urls"]


def cmis(*arguments: str, code: int = 0) -> str:
    """What it says."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code and "Traceback" not in result.output, result.output
    return result.output


def test_what_was_given_up_is_listed_and_done_when_it_is_tried_again(places: Places, tmp_path: Path) -> None:
    called, works = list[str](), False

    def call(carried: Carried) -> None:
        if not works:
            raise Permanent("the address answers 410")
        called.append(carried.id)

    with closing(Database(places.app)) as database, closing(Database(places.relay)) as overseer:
        outbox = Outbox(database, Due(overseer), {"call": call}, worker="here")
        for org in ("acme", "globex"):
            with database.transaction(org, writes=True) as tx:
                tx.put(tables.outbox, [
                    {"org_id": org, "id": f"{org}-{n}", "effect": "call", "body": "{}", "due_at": 0, "attempts": 0}
                    for n in range(3)
                ])  # fmt: skip
        assert outbox.once() == 6
        store = ["--store", places.app, "--data-dir", str(tmp_path / "unused")]
        lines = [line.split("\t") for line in cmis("effects", "list", "acme", *store).splitlines()]
        assert sorted((line[0], *line[2:]) for line in lines) == [
            (f"acme-{n}", "1", "call", "the address answers 410") for n in range(3)
        ]
        assert outbox.once() == 0 and cmis("effects", "list", "nobody", *store) == ""

        works = True
        assert cmis("effects", "retry", "acme", "acme-1", *store) == "1 will be tried again.\n"
        said = cmis("effects", "retry", "acme", "acme-1", "globex-0", *store, code=1)
        assert "0 will be tried again" in said and "acme has given up no effect acme-1, globex-0" in said
        assert outbox.once() == 1 and called == ["acme-1"]
        assert cmis("effects", "retry", "acme", "--all", *store) == "2 will be tried again.\n"
        assert outbox.once() == 2 and sorted(called) == ["acme-0", "acme-1", "acme-2"]
        assert cmis("effects", "list", "acme", *store) == "" and cmis("effects", "list", "globex", *store).count("\n") == 3


@pytest.mark.parametrize("words", [("retry", "acme"), ("retry", "acme", "e1", "--all")])
def test_which_ones_has_to_be_said(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert "name the effects" in cmis("effects", *words, "--data-dir", str(tmp_path), code=1)
