from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import event, update
from sqlalchemy import text as sql

from cmis_stream.core.errors import Rejected
from cmis_stream.store.access_tables import tokens
from cmis_stream.store.database import Database, Unavailable
from cmis_stream.store.tokens import TokenStore, Unauthorized
from tests.store.access import unwritable
from tests.store.conftest import Places

NOW = 1_767_225_600_000
ELSEWHERE = (
    "import sys; from cmis_stream.store.database import Database; from cmis_stream.store.tokens import TokenStore;"
    "s = TokenStore(Database(sys.argv[1]));"
)
"""What a process of its own begins with; it has the store as `s`."""


@pytest.fixture
def store(database: Database) -> Iterator[TokenStore]:
    store = TokenStore(database)
    store.create_org("acme", "Acme")
    yield store
    store.close()


def reason(store: TokenStore, text: str, now_ms: int = NOW) -> str:
    with pytest.raises(Unauthorized) as error:
        store.verify(text, now_ms)
    assert str(error.value) == "the token is not valid"
    return error.value.reason


def test_a_token_opens_what_it_was_made_for(store: TokenStore) -> None:
    token, text = store.create("acme", ["ingest", "read"], name="feed", now_ms=NOW)
    verified = store.verify(text, NOW)
    assert verified == token and verified.org == "acme" and verified.scopes == {"ingest", "read"} and verified.name == "feed"
    assert text.startswith(f"cmis_{token.id}_") and store.verify(text, NOW) == token


@pytest.mark.parametrize("places", ["sqlite"], indirect=True)
def test_the_secret_is_stored_nowhere_and_only_the_owner_reads_the_files(store: TokenStore, tmp_path: Path) -> None:
    token, text = store.create("acme", ["ingest"])
    secret = text.split("_", 2)[2]
    files = list(tmp_path.iterdir())
    assert {file.name for file in files} >= {"store.db", "store.db-wal"}
    for file in files:
        assert file.stat().st_mode & 0o777 == 0o600, file
        assert secret.encode() not in file.read_bytes()
    assert any(token.id.encode() in file.read_bytes() for file in files)


def test_reasons_are_told_apart_for_the_log(store: TokenStore) -> None:
    token, text = store.create("acme", ["ingest"], expires_at_ms=NOW + 10)
    assert reason(store, "") == reason(store, "cmis_abc") == reason(store, "Bearer") == "malformed"
    for nobody in ("000000000000", f"{token.id},{token.id}", "a\0", "\udcff", "ä", "'", "%"):
        assert reason(store, f"cmis_{nobody}_" + "x" * 43) == "unknown", nobody
    assert reason(store, text + "x") == reason(store, f"cmis_{token.id}_\udcff") == "wrong_secret"
    assert store.verify(text, NOW + 9).id == token.id
    assert reason(store, text, NOW + 10) == "expired"
    assert store.revoke(token.id) and not store.revoke(token.id) and not store.revoke("nobody")
    assert reason(store, text) == "revoked"


def test_revocation_in_another_process_holds_within_a_second(store: TokenStore, places: Places) -> None:
    token, text = store.create("acme", ["ingest"])
    store.verify(text, NOW)
    code = ELSEWHERE + "assert s.revoke(sys.argv[2]); s.close()"
    subprocess.run([sys.executable, "-c", code, places.app, token.id], check=True, cwd=Path(__file__).parents[2])
    revoked_at = time.monotonic()
    while time.monotonic() - revoked_at < 1.05:
        try:
            store.verify(text, NOW)
        except Unauthorized:
            return
        time.sleep(0.01)
    assert reason(store, text) == "revoked"


def test_a_verified_token_costs_microseconds(store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmis_stream.store.tokens.STALE_S", 3600)
    _, text = store.create("acme", ["ingest"])
    store.verify(text, NOW)
    store._noting.submit(lambda: None).result()
    best = 1.0
    for _ in range(5):
        start = time.process_time()
        for _ in range(1_000):
            store.verify(text, NOW)
        best = min(best, (time.process_time() - start) / 1_000)
    assert best < 20e-6


def test_a_verified_token_is_not_looked_up_again_within_a_second(
    store: TokenStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 1_000.0
    monkeypatch.setattr("cmis_stream.store.tokens.time.monotonic", lambda: clock)
    _, text = store.create("acme", ["ingest"], now_ms=NOW)
    said: list[str] = []
    event.listen(database._engine, "before_cursor_execute", lambda *of: said.append(str(of[2])))
    looks = []
    for clock in (1_000.0, 1_001.0, 1_001.1, 1_002.0):  # noqa: B007  # what the time is then
        store.verify(text, NOW + 1)
        looks.append(sum("secret_sha256" in one for one in said))
    assert looks == [1, 1, 2, 2]


def test_a_note_that_waits_for_another_writer_holds_up_nobody_who_looks(store: TokenStore, database: Database) -> None:
    made = [store.create("acme", ["ingest"]) for _ in range(3)]
    with database.transaction("acme", writes=True) as tx:
        tx.run(update(tokens).where(tx.own(tokens)).values(revoked_at=None))
        for token, text in made:
            assert store.verify(text, NOW).id == token.id  # a note of each waits now
        assert [token.last_used_ms for token in store.list("acme")] == [None] * 3 and store.org("acme") is not None
    store._noting.submit(lambda: None).result()
    assert [token.last_used_ms for token in store.list("acme")] == [NOW] * 3


def test_use_is_noted_at_most_once_a_minute(store: TokenStore, places: Places) -> None:
    token, text = store.create("acme", ["ingest"])
    for later in (0, 30_000, 59_999):
        store.verify(text, NOW + later)
    elsewhere = Database(places.app)
    other = TokenStore(elsewhere)
    deadline = time.monotonic() + 60
    while other.list("acme")[0].last_used_ms is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert other.list("acme")[0].last_used_ms == NOW
    store.verify(text, NOW + 60_000)
    store._noting.submit(lambda: None).result()
    assert other.list("acme")[0].last_used_ms == NOW + 60_000 and other.list("acme")[0].id == token.id
    other.close()
    elsewhere.close()


def test_orgs_are_listed_and_found(store: TokenStore) -> None:
    store.create_org("globex", "Globex")
    assert [org.id for org in store.orgs()] == ["acme", "globex"]
    found = store.org("globex")
    assert found is not None and found.name == "Globex" and store.org("nobody") is None
    assert [store.org(odd) for odd in ("", "\0", "\udcff", "Acme")] == [None] * 4


@pytest.mark.parametrize("slug", ["", "Acme", "-a", "_a", "a" * 64, "a/b", "ä", "acme\n"])
def test_a_slug_is_lower_case_letters_digits_and_dashes(store: TokenStore, slug: str) -> None:
    with pytest.raises(Rejected):
        store.create_org(slug, "x")


def test_what_cannot_be_created_is_refused(store: TokenStore) -> None:
    with pytest.raises(Rejected, match="not taken"):
        store.create_org("acme", "again")
    for org, scopes in (("nobody", ["read"]), ("acme", ["root"]), ("acme", [])):
        with pytest.raises(Rejected):
            store.create(org, scopes)


def test_an_orgs_tokens_are_listed_without_secrets(store: TokenStore) -> None:
    store.create_org("globex", "Globex")
    first, _ = store.create("acme", ["read"], now_ms=1)
    second, _ = store.create("acme", ["admin"], now_ms=2)
    store.create("globex", ["read"], now_ms=3)
    store.revoke(first.id, now_ms=9)
    assert [(t.id, t.revoked_at_ms) for t in store.list("acme")] == [(first.id, 9), (second.id, None)]


def test_several_processes_write_at_once(places: Places, store: TokenStore) -> None:
    code = ELSEWHERE + "[s.create('acme', ['read']) for _ in range(50)]; s.close()"
    root = Path(__file__).parents[2]
    processes = [subprocess.Popen([sys.executable, "-c", code, places.app], cwd=root) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert len(store.list("acme")) == 150


def test_a_full_disk_is_said_and_no_token_is_half_made(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'store.db'}", connections=1)
    store = TokenStore(database)
    store.create_org("acme", "Acme")

    def limit(pages: int) -> None:
        with database.transaction(None) as tx:
            tx.run(sql(f"pragma max_page_count = {pages}"))

    with database.transaction(None) as tx:
        ((pages,),) = tx.rows(sql("pragma page_count"))
    limit(pages)
    made = []
    with pytest.raises(Unavailable, match="full"):
        for _ in range(1_000):
            made.append(store.create("acme", ["read"], name="x" * 1_000)[0])
    limit(1_000_000)
    assert {token.id for token in store.list("acme")} == {token.id for token in made}
    assert store.create("acme", ["read"])[0].org == "acme"
    store.close()
    database.close()


def test_a_store_that_cannot_be_written_says_so_and_can_be_read(
    store: TokenStore, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, text = store.create("acme", ["read"])
    with unwritable(places, monkeypatch) as database:
        closed = TokenStore(database)
        for write in (
            lambda: closed.create_org("globex", "Globex"),
            lambda: closed.create("acme", ["read"]),
            lambda: closed.revoke(token.id),
        ):
            with pytest.raises(Unavailable):
                write()
        for later_ms in (0, 60_000):  # the first note fails; the thread is well
            assert closed.verify(text, NOW + later_ms) == token
        closed.close()
    assert [org.id for org in store.orgs()] == ["acme"] and store.list("acme") == [token]
    assert store.revoke(token.id)
