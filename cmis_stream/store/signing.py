"""Gateway and peer tokens: short-lived JWTs (HS256), signed with a key that all processes of the installation have: in a file of
the data folder, or given to them.

    gateway  five minutes   which session or API token a browser or program has; for the websocket
    peer     one minute     that a process of this installation asks another one about this org; for its `/peer/…`

Each has an audience of its own, so neither opens what the other does.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from pathlib import Path
from typing import NamedTuple

import jwt

from ..core.errors import CmisError, ConfigError
from ..core.time import MINUTE_MS

LASTS_MS = 5 * MINUTE_MS
PEER_LASTS_MS = MINUTE_MS
KEY_BYTES = 32
_ALGORITHM, _GATEWAY, _PEER = "HS256", "cmis-gateway", "cmis-peer"


class NotSigned(CmisError):
    """The text is no token of this kind and installation."""


class Signed(NamedTuple):
    """What a gateway token says: for which session or API token it was made, and when it ends (epoch ms)."""

    id: str
    expires_at_ms: int


class GatewayTokens:
    """The token carries no rights: what its session or API token opens is looked up whenever it is used."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def issue(self, holder_id: str, now_ms: int, until_ms: int | None = None) -> tuple[str, int]:
        """The token and its end in epoch ms: in five minutes, or at `until_ms` if that is sooner. Whole seconds, rounded
        down."""
        end_ms = now_ms + LASTS_MS if until_ms is None else min(now_ms + LASTS_MS, until_ms)
        return _signed(self._key, _GATEWAY, holder_id, now_ms, end_ms), end_ms // 1000 * 1000

    def read(self, text: str) -> Signed:
        """What it says, expired or not: the clock is the caller's. Raises NotSigned."""
        return _read(self._key, _GATEWAY, text)


OPERATOR = "*operator"
"""No org's id: a peer token of whoever may read the installation's key, for the status of its processes."""


class PeerTokens:
    """For questions about one org, from one process of the installation to another."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def issue(self, org: str, now_ms: int) -> str:
        return _signed(self._key, _PEER, org, now_ms, now_ms + PEER_LASTS_MS)

    def read(self, text: str, now_ms: int) -> str:
        """The org that may be asked about. Raises NotSigned, also when the token has ended."""
        signed = _read(self._key, _PEER, text)
        if signed.expires_at_ms <= now_ms:
            raise NotSigned(f"this token ended {now_ms - signed.expires_at_ms} ms ago")
        return signed.id


def _signed(key: bytes, audience: str, subject: str, now_ms: int, end_ms: int) -> str:
    claims = {"sub": subject, "aud": audience, "iat": now_ms // 1000, "exp": end_ms // 1000}
    return jwt.encode(claims, key, _ALGORITHM)


def _read(key: bytes, audience: str, text: str) -> Signed:
    # PyJWT would compare the times with the machine's clock.
    options = {"require": ["sub", "exp"], "verify_exp": False, "verify_iat": False}
    try:
        claims = jwt.decode(text, key, [_ALGORITHM], audience=audience, options=options)  # type: ignore[arg-type]
        return Signed(str(claims["sub"]), int(claims["exp"]) * 1000)
    except (jwt.InvalidTokenError, ValueError) as error:
        raise NotSigned(f"this is no {audience.removeprefix('cmis-')} token of ours: {error}") from None


def gateway_key(given: str | None, path: Path) -> bytes:
    """given: the key in base64, as `new_key` makes it. None: the one in the file (`signing_key`). ConfigError, which does not
    repeat what was given."""
    if given is None:
        return signing_key(path)
    try:
        key = base64.b64decode(given.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(f"CMIS_GATEWAY_KEY: expected a key of {KEY_BYTES} bytes in base64; `cmis new-keys` prints one")
    return key


def new_key() -> str:
    """Random, in base64."""
    return base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()


def signing_key(path: Path) -> bytes:
    """The key in this file; it is made when there is none, and only its owner can read it. ConfigError when it is damaged."""
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        key = _made(path)
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{path}: expected a key of {KEY_BYTES} bytes, got {len(key)}; delete the file and a new one is made")
    path.chmod(0o600)
    return key


def _made(path: Path) -> bytes:
    """Written whole under another name first, then linked: of two processes that start at once, one wins and both read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secrets.token_bytes(KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(scratch, path)
    except FileExistsError:
        pass  # the other process was first
    finally:
        scratch.unlink()
    return path.read_bytes()
