"""`cmis audit verify`: a change that somebody has changed is named."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner

from cmis_stream.cli import main
from cmis_stream.modules.discovery import all_kinds
from cmis_stream.store.database import Database
from cmis_stream.store.decisions import Actor, Command
from cmis_stream.store.documents import Documents


def asked(data_dir: Path, *words: str) -> tuple[int, list[str]]:
    result = CliRunner().invoke(main, ["audit", "verify", *words, "--data-dir", str(data_dir)])
    return result.exit_code, result.output.splitlines()


@pytest.mark.spec("TEN-E04")
def test_the_chain_of_each_org_is_walked_and_where_it_breaks_is_said(tmp_path: Path) -> None:
    for org in ("acme", "other"):
        assert CliRunner().invoke(main, ["org", "create", org, "--data-dir", str(tmp_path)]).exit_code == 0
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    documents = Documents(database, all_kinds())
    for number in range(3):
        when = {"metric": "spend", "window": "5m", "op": "gt", "value": number}
        documents.execute(
            "acme", Actor("ada"), Command("create", "alert_rule", None, {"key": f"r{number}", "name": "R", "when": when})
        )
    database.close()

    code, lines = asked(tmp_path)
    assert code == 0 and [line.split("\t")[0] for line in lines] == ["acme", "other"]
    assert "3 changes" in lines[0] and "0 changes" in lines[1]
    assert asked(tmp_path, "other") == (0, lines[1:])
    assert asked(tmp_path, "nobody")[0] == 1

    with sqlite3.connect(tmp_path / "store.db") as store:
        store.execute("update changes set actor = 'eve' where seq = 2")
    store.close()
    code, lines = asked(tmp_path, "acme")
    assert code == 1 and "BROKEN behind change 1" in lines[0]
