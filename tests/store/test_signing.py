from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jwt
import pytest

from cmis_stream.core.errors import ConfigError
from cmis_stream.store.signing import (
    PEER_LASTS_MS,
    GatewayTokens,
    NotSigned,
    PeerTokens,
    Signed,
    gateway_key,
    new_key,
    signing_key,
)

NOW = 1_767_225_600_500
KEY = bytes(range(64))


def forged(claims: dict[str, object], key: bytes | None = KEY, algorithm: str = "HS256") -> str:
    claims = {"sub": "s1", "aud": "cmis-gateway", "exp": NOW // 1000 + 60, **claims}
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, key, algorithm)


def test_a_token_says_for_whom_it_is_and_ends_in_five_minutes() -> None:
    signer = GatewayTokens(KEY)
    text, end_ms = signer.issue("s1", NOW)
    assert end_ms == NOW - 500 + 300_000 and signer.read(text) == Signed("s1", end_ms)
    assert jwt.get_unverified_header(text)["alg"] == "HS256"


def test_it_never_outlives_its_session() -> None:
    text, end_ms = GatewayTokens(KEY).issue("s1", NOW, NOW + 10_900)
    assert end_ms == NOW + 10_500 and GatewayTokens(KEY).read(text).expires_at_ms == end_ms


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "a.b.c", "\udcff", "cmis_1_2",
        forged({}, bytes(64)),
        forged({}, KEY, "HS384"),
        forged({}, None, "none"),
        forged({"aud": "other"}),
        forged({"exp": None}),
        forged({"sub": None}),
        forged({})[:-2],
    ],
)  # fmt: skip
def test_what_we_did_not_sign_is_refused(text: str) -> None:
    with pytest.raises(NotSigned):
        GatewayTokens(KEY).read(text)


def test_the_same_claims_under_our_key_are_taken() -> None:
    assert GatewayTokens(KEY).read(forged({})) == Signed("s1", (NOW // 1000 + 60) * 1000)


def test_a_peer_token_names_the_org_that_may_be_asked_about_for_a_minute() -> None:
    text = PeerTokens(KEY).issue("acme", NOW)
    assert PeerTokens(KEY).read(text, NOW) == PeerTokens(KEY).read(text, NOW - 500 + PEER_LASTS_MS - 1) == "acme"
    with pytest.raises(NotSigned, match="ended 0 ms ago"):
        PeerTokens(KEY).read(text, NOW - 500 + PEER_LASTS_MS)
    with pytest.raises(NotSigned, match="no peer token"):
        PeerTokens(bytes(64)).read(text, NOW)


def test_neither_kind_of_token_is_taken_for_the_other() -> None:
    with pytest.raises(NotSigned, match="no gateway token"):
        GatewayTokens(KEY).read(PeerTokens(KEY).issue("s1", NOW))
    with pytest.raises(NotSigned, match="no peer token"):
        PeerTokens(KEY).read(GatewayTokens(KEY).issue("acme", NOW)[0], NOW)


def test_the_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "data" / "gateway.key"
    key = signing_key(path)
    assert len(key) == 32 and signing_key(path) == key and path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]
    path.chmod(0o644)
    assert signing_key(path) == key and path.stat().st_mode & 0o777 == 0o600
    assert signing_key(tmp_path / "other.key") != key


def test_of_several_that_make_the_key_at_once_all_read_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        keys = set(threads.map(signing_key, [tmp_path / "gateway.key"] * 16))
    assert len(keys) == 1


def test_a_damaged_key_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "gateway.key").write_bytes(b"short")
    with pytest.raises(ConfigError, match=r"expected a key of 32 bytes, got 5; delete"):
        signing_key(tmp_path / "gateway.key")


def test_a_key_that_is_given_counts_and_no_file_is_made_or_read(tmp_path: Path) -> None:
    path, given = tmp_path / "data" / "gateway.key", new_key()
    assert gateway_key(given, path) == gateway_key(f" {given}\n", path) == base64.b64decode(given) and given != new_key()
    assert not path.parent.exists()
    assert gateway_key(None, path) == signing_key(path) != gateway_key(given, path)


@pytest.mark.parametrize("given", ["", "c2hvcnQ=", "no base64!", "ü" * 44, new_key() + "=", new_key()[:-4]])
def test_a_key_that_is_none_is_told_without_repeating_it(tmp_path: Path, given: str) -> None:
    with pytest.raises(ConfigError, match=r"CMIS_GATEWAY_KEY: expected a key of 32 bytes in base64; `cmis new-keys`") as told:
        gateway_key(given, tmp_path / "gateway.key")
    assert not given or given not in str(told.value)
