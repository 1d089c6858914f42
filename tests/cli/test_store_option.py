"""`cmis org`, `token` and `session` on the store that --store, CMIS_STORE or the data folder mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import make_url

from cmis_stream.cli import main
from cmis_stream.store.database import Database
from cmis_stream.store.keyring import keyring
from cmis_stream.store.sessions import SessionStore
from cmis_stream.store.signing import gateway_key
from cmis_stream.store.tokens import TokenStore
from tests.servers.postgres import Urls
from tests.store.conftest import Places, places, postgres, postgres_urls

__all__ = ["places", "postgres", "postgres_urls"]


class Beside:
    """A process that has the store open while the commands run."""

    def __init__(self, database: Database) -> None:
        self.tokens = TokenStore(database)
        self.sessions = SessionStore(database, self.tokens)


@pytest.fixture
def beside(places: Places) -> Iterator[Beside]:
    with closing(Database(places.app)) as database:
        made = Beside(database)
        yield made
        made.sessions.close()
        made.tokens.close()


def cmis(*arguments: str, code: int = 0, **environment: str) -> str:
    """What it says."""
    result = CliRunner().invoke(main, arguments, env=environment)
    assert result.exit_code == code and "Traceback" not in result.output, result.output
    return result.output


@pytest.mark.parametrize("told_by", ["option", "environment"])
def test_the_commands_work_on_the_store_that_they_are_told_beside_who_has_it_open(
    places: Places, beside: Beside, tmp_path: Path, told_by: str
) -> None:
    def told(*arguments: str, code: int = 0) -> str:
        if told_by == "environment":
            return cmis(*arguments, code=code, CMIS_STORE=places.app, CMIS_DATA_DIR=str(tmp_path / "unused"))
        return cmis(*arguments, "--store", places.app, "--data-dir", str(tmp_path / "unused"), code=code)

    assert told("org", "create", "acme", "--name", "Acme Outdoor") == "Created acme.\n"
    assert "not taken" in told("org", "create", "acme", code=1)
    assert told("org", "list") == "acme\tAcme Outdoor\n"
    assert "create it with `cmis org create nobody`" in told("token", "create", "nobody", code=1)
    text = told("token", "create", "acme", "--name", "feed").splitlines()[-1]
    token = beside.tokens.verify(text, 0)
    assert (token.org, token.name) == ("acme", "feed") and token.id in told("token", "list", "acme")
    assert told("token", "list", "nobody") == ""
    assert told("token", "revoke", token.id) == f"Revoked {token.id}.\n"
    assert token.id in told("token", "revoke", token.id, code=1) and beside.tokens.list("acme")[0].revoked_at_ms is not None
    session, _ = beside.sessions.exchange(beside.sessions.make_code(["acme"], now_ms=1), 1)
    assert told("session", "list").startswith(f"{session.id}\tacme\towner\tuntil ")
    assert told("session", "revoke", session.id) == f"Revoked {session.id}.\n"
    assert session.id in told("session", "revoke", session.id, code=1)
    assert not (tmp_path / "unused").exists()


def test_new_keys_are_printed_as_an_environment_takes_them_and_never_twice(tmp_path: Path) -> None:
    lines = cmis("new-keys").splitlines()
    keys = dict(line.split("=", 1) for line in lines)
    assert list(keys) == ["CMIS_GATEWAY_KEY", "CMIS_SECRET_KEYS"] and len(set(keys.values())) == 2
    assert len(gateway_key(keys["CMIS_GATEWAY_KEY"], tmp_path / "none")) == 32
    assert keyring(keys["CMIS_SECRET_KEYS"], tmp_path / "none").current
    assert not set(lines) & set(cmis("new-keys").splitlines())


def test_without_a_store_it_is_a_file_in_the_data_folder_that_only_its_owner_reads(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert cmis("org", "list", "--data-dir", str(folder)) == ""
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}
    assert "store.db" in {file.name for file in folder.iterdir()}


def test_a_store_that_is_none_or_away_is_a_sentence(tmp_path: Path) -> None:
    assert "expected sqlite:///PATH or postgresql://" in cmis("org", "list", "--store", "mysql://x/y", code=1)
    away = cmis("org", "list", "--store", "postgresql://cmis_app@127.0.0.1:9/cmis", code=1)
    assert away.startswith("cmis: the database cannot be used: ") and away.count("\n") == 1
    missing = cmis("org", "list", "--store", f"sqlite:///{tmp_path}/nowhere/store.db", code=1)
    assert "unable to open" in missing and not (tmp_path / "nowhere").exists()


@pytest.mark.slow
def test_the_url_of_the_relay_is_not_taken_for_the_stores(postgres_urls: Urls) -> None:
    assert "--store: expected a URL of cmis_app" in cmis("org", "list", "--store", postgres_urls.relay, code=1)


def test_a_database_whose_tables_are_missing_is_told_who_makes_them(places: Places, request: pytest.FixtureRequest) -> None:
    url = make_url(places.app)
    if url.get_backend_name() == "sqlite":
        assert cmis("org", "list", "--store", places.app) == ""  # made when it is opened
        return
    server = request.getfixturevalue("postgres")
    server.execute("create database empty owner cmis_owner", database="postgres")
    said = cmis("org", "list", "--store", url.set(database="empty").render_as_string(False), code=1)
    server.execute("drop database empty", database="postgres")
    assert "run `cmis db upgrade` as its owner" in said
