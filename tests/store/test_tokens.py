from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmis_stream.core.errors import Rejected
from cmis_stream.store.tokens import TokenStore, Unauthorized

NOW = 1_767_225_600_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[TokenStore]:
    store = TokenStore.open(path)
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


def test_the_secret_is_stored_nowhere_and_only_the_owner_reads_the_files(store: TokenStore, path: Path) -> None:
    _, text = store.create("acme", ["ingest"])
    secret = text.split("_", 2)[2]
    files = list(path.parent.iterdir())
    assert {file.name for file in files} >= {"store.db", "store.db-wal"}
    for file in files:
        assert file.stat().st_mode & 0o777 == 0o600, file
        assert secret.encode() not in file.read_bytes()


def test_reasons_are_told_apart_for_the_log(store: TokenStore) -> None:
    token, text = store.create("acme", ["ingest"], expires_at_ms=NOW + 10)
    assert reason(store, "") == reason(store, "cmis_abc") == reason(store, "Bearer") == "malformed"
    assert reason(store, "cmis_000000000000_" + "x" * 43) == "unknown"
    assert reason(store, text + "x") == reason(store, f"cmis_{token.id}_\udcff") == "wrong_secret"
    assert store.verify(text, NOW + 9).id == token.id
    assert reason(store, text, NOW + 10) == "expired"
    assert store.revoke(token.id) and not store.revoke(token.id) and not store.revoke("nobody")
    assert reason(store, text) == "revoked"


def test_revocation_in_another_process_holds_within_a_second(store: TokenStore, path: Path) -> None:
    token, text = store.create("acme", ["ingest"])
    store.verify(text, NOW)
    code = (
        "import sys; from pathlib import Path; from cmis_stream.store.tokens import TokenStore;"
        "s = TokenStore.open(Path(sys.argv[1])); assert s.revoke(sys.argv[2]); s.close()"
    )
    subprocess.run([sys.executable, "-c", code, str(path), token.id], check=True, cwd=Path(__file__).parents[2])
    revoked_at = time.monotonic()
    while time.monotonic() - revoked_at < 1.05:
        try:
            store.verify(text, NOW)
        except Unauthorized:
            return
        time.sleep(0.01)
    assert reason(store, text) == "revoked"


def test_a_verified_token_costs_microseconds(store: TokenStore) -> None:
    _, text = store.create("acme", ["ingest"])
    store.verify(text, NOW)
    best = 1.0
    for _ in range(5):
        start = time.process_time()
        for _ in range(1_000):
            store.verify(text, NOW)
        best = min(best, (time.process_time() - start) / 1_000)
    assert best < 20e-6


def test_use_is_noted_at_most_once_a_minute(path: Path, store: TokenStore) -> None:
    token, text = store.create("acme", ["ingest"])
    for later in (0, 30_000, 59_999):
        store.verify(text, NOW + later)
    other = TokenStore.open(path)
    deadline = time.monotonic() + 5
    while other.list("acme")[0].last_used_ms is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert other.list("acme")[0].last_used_ms == NOW
    store.verify(text, NOW + 60_000)
    store._writer.submit(lambda: None).result()
    assert other.list("acme")[0].last_used_ms == NOW + 60_000 and other.list("acme")[0].id == token.id
    other.close()


def test_orgs_are_listed_and_found(store: TokenStore) -> None:
    store.create_org("globex", "Globex")
    assert [org.id for org in store.orgs()] == ["acme", "globex"]
    found = store.org("globex")
    assert found is not None and found.name == "Globex" and store.org("nobody") is None


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


def test_several_processes_write_at_once(path: Path, store: TokenStore) -> None:
    code = (
        "import sys; from pathlib import Path; from cmis_stream.store.tokens import TokenStore;"
        "s = TokenStore.open(Path(sys.argv[1])); [s.create('acme', ['read']) for _ in range(50)]; s.close()"
    )
    root = Path(__file__).parents[2]
    processes = [subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=root) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert len(store.list("acme")) == 150


def test_a_wide_open_file_is_closed(path: Path) -> None:
    path.parent.mkdir(parents=True)
    sqlite3.connect(path).close()
    path.touch()
    path.chmod(0o666)
    TokenStore.open(path).close()
    assert path.stat().st_mode & 0o777 == 0o600
