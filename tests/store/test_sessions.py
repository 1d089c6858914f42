from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cmis_stream.core.errors import Rejected
from cmis_stream.core.time import DAY_MS, MINUTE_MS
from cmis_stream.store.database import Database, Unavailable
from cmis_stream.store.sessions import Session, SessionStore
from cmis_stream.store.tokens import TokenStore, Unauthorized
from tests.store.access import unwritable
from tests.store.conftest import Places

NOW = 1_767_225_600_000
ROOT = Path(__file__).parents[2]


@pytest.fixture
def tokens(database: Database) -> Iterator[TokenStore]:
    tokens = TokenStore(database)
    for org in ("acme", "globex"):
        tokens.create_org(org, org.title())
    yield tokens
    tokens.close()


@pytest.fixture
def store(database: Database, tokens: TokenStore) -> Iterator[SessionStore]:
    store = SessionStore(database, tokens)
    yield store
    store.close()


def signed_in(store: SessionStore, *orgs: str, now_ms: int = NOW) -> tuple[Session, str]:
    return store.exchange(store.make_code(orgs or None, now_ms=now_ms), now_ms)


def refused(store: SessionStore, code: str, now_ms: int = NOW) -> str:
    with pytest.raises(Unauthorized) as error:
        store.exchange(code, now_ms)
    return error.value.reason


def ended(store: SessionStore, text: str, now_ms: int = NOW) -> str:
    with pytest.raises(Unauthorized) as error:
        store.verify(text, now_ms)
    return error.value.reason


def elsewhere(places: Places, code: str, *arguments: str) -> str:
    """What a process of its own prints; it has the store as `s`."""
    head = (
        "import sys; from cmis_stream.store.database import Database; from cmis_stream.store.tokens import TokenStore;"
        "from cmis_stream.store.sessions import SessionStore; d = Database(sys.argv[1]); s = SessionStore(d, TokenStore(d));"
    )
    command = [sys.executable, "-c", head + code, places.app, *arguments]
    return subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def test_a_code_opens_a_session_of_the_orgs_it_names(store: SessionStore) -> None:
    session, text = signed_in(store, "acme")
    assert store.verify(text, NOW) == session
    assert session.orgs == {"acme"} and session.opens("acme") and not session.opens("globex") and session.role == "owner"
    assert (session.created_at_ms, session.expires_at_ms) == (NOW, NOW + 14 * DAY_MS)


@pytest.mark.spec("TEN-M04", partial="sessions open several orgs; people with accounts come later")
def test_a_session_may_open_several_orgs_or_all_with_those_that_come_later(store: SessionStore, tokens: TokenStore) -> None:
    both, _ = signed_in(store, "acme", "globex")
    everything, _ = signed_in(store)
    tokens.create_org("initech", "Initech")
    assert both.orgs == {"acme", "globex"} and not both.opens("initech")
    assert everything.orgs is None and everything.opens("initech")


def test_codes_for_no_org_or_one_that_does_not_exist_are_not_made(store: SessionStore) -> None:
    with pytest.raises(Rejected, match="an org that exists, got 'nobody'"):
        store.make_code(["acme", "nobody"])
    with pytest.raises(Rejected, match="at least one org"):
        store.make_code([])


def test_a_code_works_once_and_for_15_minutes(store: SessionStore) -> None:
    code = store.make_code(now_ms=NOW)
    assert refused(store, code + "x") == refused(store, "") == refused(store, "\udcff") == "unknown"
    assert refused(store, code, NOW + 15 * MINUTE_MS) == "expired"
    store.exchange(code, NOW + 15 * MINUTE_MS - 1)
    assert refused(store, code) == "used"


def test_of_many_who_send_a_code_at_once_one_gets_a_session(store: SessionStore, places: Places) -> None:
    code = store.make_code(now_ms=NOW)
    theirs = Database(places.app)
    others = TokenStore(theirs)
    another = SessionStore(theirs, others)

    def exchange(number: int) -> str:
        try:
            return (store, another)[number % 2].exchange(code, NOW)[1]
        except Unauthorized as error:
            return error.reason

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(exchange, range(16)))
    assert answers.count("used") == 15 and len(store.list()) == 1
    another.close()
    others.close()
    theirs.close()


@pytest.mark.parametrize("places", ["sqlite"], indirect=True)
def test_neither_code_nor_session_is_stored_as_it_is(store: SessionStore, tmp_path: Path) -> None:
    code = store.make_code(now_ms=NOW)
    _, text = store.exchange(code, NOW)
    assert len(code) == len(text) == 43  # 256 bits
    for file in tmp_path.iterdir():
        assert code.encode() not in file.read_bytes() and text.encode() not in file.read_bytes()
        assert file.stat().st_mode & 0o777 == 0o600


def test_a_session_ends_after_14_days_or_when_it_is_revoked(store: SessionStore) -> None:
    session, text = signed_in(store)
    assert ended(store, "x") == ended(store, "") == "unknown"
    assert store.verify(text, NOW + 14 * DAY_MS - 1).id == session.id
    assert ended(store, text, NOW + 14 * DAY_MS) == "expired"
    assert store.revoke(session.id, NOW + 5) and not store.revoke(session.id) and not store.revoke("nobody")
    assert ended(store, text) == "revoked" and store.list()[0].revoked_at_ms == NOW + 5


def test_what_another_process_does_holds_at_once(store: SessionStore, places: Places) -> None:
    session, text = signed_in(store)
    code = elsewhere(places, "print(s.make_code(['acme'], now_ms=int(sys.argv[2])))", str(NOW))
    assert store.exchange(code, NOW)[0].orgs == {"acme"}
    elsewhere(places, "assert s.revoke(sys.argv[2])", session.id)
    assert ended(store, text) == "revoked"


def test_when_a_session_was_last_seen_is_exact_to_a_minute(store: SessionStore) -> None:
    _, text = signed_in(store)
    for later_ms, seen_ms in ((59_999, NOW), (60_000, NOW + 60_000), (119_999, NOW + 60_000)):
        store.verify(text, NOW + later_ms)
        store._noting.submit(lambda: None).result()
        assert store.list()[0].last_seen_ms == seen_ms


def test_what_ended_a_month_ago_is_deleted_when_a_code_is_made(store: SessionStore) -> None:
    old, _ = signed_in(store)
    young, _ = signed_in(store, now_ms=NOW + 10 * DAY_MS)
    code = store.make_code(now_ms=NOW)
    assert {s.id for s in store.list()} == {old.id, young.id} and refused(store, code, NOW + DAY_MS) == "expired"
    store.make_code(now_ms=NOW + 14 * DAY_MS + 30 * DAY_MS + 1)
    assert [s.id for s in store.list()] == [young.id] and refused(store, code) == "unknown"


def test_a_store_that_cannot_be_written_says_so_and_sessions_stay_open(
    store: SessionStore, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, text = signed_in(store)
    code = store.make_code(now_ms=NOW)
    with unwritable(places, monkeypatch) as database:
        tokens = TokenStore(database)
        closed = SessionStore(database, tokens)
        for write in (closed.make_code, lambda: closed.exchange(code, NOW), lambda: closed.revoke(session.id)):
            with pytest.raises(Unavailable):
                write()
        for later_ms in (0, 60_000, 120_000):  # notes fail; the thread is well
            assert closed.verify(text, NOW + later_ms) == session
        closed.close()
        tokens.close()
    store.exchange(code, NOW)
    assert store.verify(text, NOW) == session and len(store.list()) == 2
