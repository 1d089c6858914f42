"""Tokens on PostgreSQL: an org's own, those that a transaction names, and no other; and what the roles may do with access."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import ColumnElement, create_engine, event, exc, insert, select, text, true, update

from cmis_stream.store.access_tables import CREDENTIALS, named, orgs, sessions, tokens
from cmis_stream.store.database import Database, Transaction, driver_url
from cmis_stream.store.rights import Rights
from cmis_stream.store.sessions import SessionStore
from cmis_stream.store.tokens import TokenStore, Unauthorized
from tests.servers.postgres import Urls

pytestmark = pytest.mark.slow
NOW = 1_767_225_600_000


@pytest.fixture
def database(postgres_urls: Urls) -> Iterator[Database]:
    """One connection: each transaction gets the one that the last one left."""
    opened = Database(postgres_urls.app, connections=1)
    yield opened
    opened.close()


class Made:
    """Two tokens of acme, one of the other org."""

    def __init__(self, database: Database) -> None:
        self.store = TokenStore(database)
        self.texts: dict[str, str] = {}
        for org in ("acme", "other"):
            self.store.create_org(org, org)
        (self.ours, self.second), (self.theirs,) = (
            [self._token(org) for _ in range(count)] for org, count in (("acme", 2), ("other", 1))
        )

    def _token(self, org: str) -> str:
        token, text = self.store.create(org, ["read"], now_ms=NOW)
        self.texts[token.id] = text
        return token.id


@pytest.fixture
def made(database: Database) -> Iterator[Made]:
    both = Made(database)
    yield both
    both.store.close()


def seen(tx: Transaction) -> set[str]:
    """By a statement without any condition."""
    return {id_ for (id_,) in tx.rows(select(tokens.c.id))}


@pytest.mark.spec("TEN-M01", partial="of API tokens; every table has a test of its own")
def test_statements_without_a_condition_see_an_orgs_tokens_and_those_that_are_named(made: Made, database: Database) -> None:
    cases: Sequence[tuple[str | None, list[str], set[str]]] = [
        (None, [], set()),
        ("acme", [], {made.ours, made.second}),
        ("other", [], {made.theirs}),
        ("nobody", [], set()),
        (None, [made.theirs], {made.theirs}),
        (None, [made.ours, made.theirs, "nobody"], {made.ours, made.theirs}),
        ("acme", [made.theirs], {made.ours, made.second, made.theirs}),
        (None, [f"{made.ours},{made.theirs}", "%", "", "{}", "\0", "\udcff"], set()),
    ]
    for org, ids, expected in cases:
        with database.transaction(org) as tx:
            named(tx, ids)
            assert seen(tx) == expected, (org, ids)
        with database.transaction(None) as tx:
            assert seen(tx) == set(), "what was named ends with its transaction"
        with database._engine.connect() as connection:
            assert connection.execute(select(tokens.c.id)).all() == []


def test_who_names_a_token_of_another_org_cannot_change_it(made: Made, database: Database) -> None:
    for org in (None, "acme"):
        with database.transaction(org, writes=True) as tx:
            named(tx, [made.theirs])
            theirs = tokens.c.id == made.theirs
            assert tx.run(update(tokens).where(theirs).values(revoked_at=1)).rowcount == 0
            assert tx.run(update(tokens).where(theirs).values(last_used=1)).rowcount == 0
    (token,) = made.store.list("other")
    assert token.revoked_at_ms is None and token.last_used_ms is None


@pytest.mark.parametrize("org", [None, "acme"])
def test_nobody_makes_a_token_of_another_org(made: Made, database: Database, org: str | None) -> None:
    id_ = "a" * 12
    row = {"id": id_, "org_id": "other", "name": "", "scopes": "admin", "secret_sha256": "", "created_at": 1}
    with pytest.raises(exc.ProgrammingError, match="row-level security"), database.transaction(org, writes=True) as tx:
        named(tx, [id_])
        tx.run(insert(tokens), row)


def test_the_store_without_its_conditions_reads_and_changes_nothing_foreign(
    made: Made, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything: ColumnElement[bool] = true()
    monkeypatch.setattr(Transaction, "own", lambda self, table: everything)
    assert {token.id for token in made.store.list("acme")} == {made.ours, made.second}
    assert made.store.revoke(made.theirs) and not made.store.revoke(made.theirs)
    assert [token.revoked_at_ms for token in made.store.list("acme")] == [None, None]
    assert made.store.verify(made.texts[made.ours], NOW).org == "acme"
    with pytest.raises(Unauthorized):
        made.store.verify(made.texts[made.theirs], NOW)


def test_verifying_names_the_one_token_that_is_verified(made: Made, database: Database) -> None:
    said: list[tuple[str, Any]] = []
    event.listen(database._engine, "before_cursor_execute", lambda *of: said.append((str(of[2]), of[3])))
    made.store.verify(made.texts[made.theirs], NOW)
    made.store._noting.submit(lambda: None).result()
    naming = [values for _, values in said if CREDENTIALS in values.values() and made.theirs in values.values()]
    named_at_all = [values for statement, values in said if CREDENTIALS in values.values() and "set_config" in statement]
    assert len(naming) == 1 and named_at_all == naming


def test_what_many_sessions_and_tokens_open_is_asked_in_one_query_that_reads_no_other_token(
    made: Made, database: Database, postgres_urls: Urls
) -> None:
    keys = ", ".join(f"('{number:012x}', 'other', '', 'read', '', 1)" for number in range(20_000))
    postgres_urls.execute(f"insert into tokens (id, org_id, name, scopes, secret_sha256, created_at) values {keys}")
    postgres_urls.execute("analyze tokens")
    store = SessionStore(database, made.store)
    session, _ = store.exchange(store.make_code(["acme"], now_ms=NOW), NOW)
    said: list[tuple[str, Any]] = []
    event.listen(database._engine, "before_cursor_execute", lambda *of: said.append((str(of[2]), of[3])))
    found = Rights(database).readable([made.ours, made.theirs, session.id, "s0"], NOW)
    assert found == {made.ours: {"acme"}, made.theirs: {"other"}, session.id: {"acme"}}
    statements = [(statement, values) for statement, values in said if "set_config" not in statement]
    assert len(statements) == 1
    with database.transaction(None) as tx:
        named(tx, [made.ours])
        plan = "\n".join(line for (line,) in tx.connection.exec_driver_sql(f"explain {statements[0][0]}", statements[0][1]))
    # A join would be planned for a few names and take a second for 10,000.
    assert "using tokens_pkey on tokens" in plan and "Join" not in plan and "Nested Loop" not in plan, plan
    with database.transaction("acme") as tx:
        listing = "explain select id from tokens where org_id = 'acme' order by created_at, id"
        plan = "\n".join(line for (line,) in tx.connection.exec_driver_sql(listing))
    assert "tokens_of_org" in plan, plan
    store.close()


@pytest.mark.parametrize(
    "statement",
    [
        "delete from tokens",
        "update tokens set org_id = 'acme'",
        "update tokens set scopes = 'admin'",
        "update tokens set secret_sha256 = ''",
        "update tokens set expires_at = null",
        "alter table tokens no force row level security",
        "drop policy credential on tokens",
        "create policy mine on tokens using (true)",
        "delete from orgs",
        "update orgs set id = 'x'",
        "update sessions set orgs = null",
        "update sessions set expires_at = 0",
        "update sign_in_codes set orgs = null",
        "truncate sessions",
    ],
)
def test_the_role_of_the_application_may_not(made: Made, database: Database, statement: str) -> None:
    with pytest.raises(exc.ProgrammingError, match=r"permission denied|must be owner"), database.transaction("acme") as tx:
        tx.run(text(statement))


def test_the_role_of_the_relay_sees_nothing_of_access(made: Made, postgres_urls: Urls) -> None:
    relay = Database(postgres_urls.relay)
    for table in (tokens, sessions, orgs):
        with pytest.raises(exc.ProgrammingError, match="permission denied"), relay.transaction("acme") as tx:
            named(tx, [made.ours])
            tx.rows(select(table.c.id))
    relay.close()


def test_row_security_binds_the_owner_of_the_tables_too(made: Made, postgres_urls: Urls) -> None:
    engine = create_engine(driver_url(postgres_urls.owner))
    with engine.begin() as connection:
        connection.execute(text("select set_config('cmis.credentials', :ids, true)"), {"ids": made.ours})
        assert connection.execute(select(tokens.c.id)).all() == [], "naming is for the application's role"
    engine.dispose()
