"""The installation's keys for what lies encrypted in the database: the first encrypts, all of them decrypt.

A key's id is made of the key, so rows say which one they need and nobody has to name keys. AES-256-GCM (NIST SP 800-38D) with
random nonces; what a value belongs to is bound to it, so that rows cannot be exchanged.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cmis_stream.core.errors import CmisError, ConfigError

from .signing import KEY_BYTES, signing_key

_NONCE_BYTES: Final = 12


class Damaged(CmisError):
    """What was encrypted is not what lies there now, or not where it belongs."""


class Sealed(NamedTuple):
    key_id: str
    data: bytes
    """Nonce, ciphertext, tag."""


class Keyring:
    def __init__(self, keys: Sequence[bytes]) -> None:
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise ConfigError(f"expected keys of {KEY_BYTES} bytes, at least one")
        self._keys = {key_id(key): AESGCM(key) for key in keys}
        self.current: str = key_id(keys[0])

    def __repr__(self) -> str:
        return f"Keyring({', '.join(self._keys)})"  # ids only

    def seal(self, plain: bytes, belongs_to: bytes) -> Sealed:
        nonce = os.urandom(_NONCE_BYTES)
        return Sealed(self.current, nonce + self._keys[self.current].encrypt(nonce, plain, belongs_to))

    def open(self, sealed: Sealed, belongs_to: bytes) -> bytes:
        """ConfigError when the key is not there, Damaged when it does not fit."""
        key = self._keys.get(sealed.key_id)
        if key is None:
            known = ", ".join(self._keys)
            raise ConfigError(f"the key {sealed.key_id}, which values in the database need, is not among this process's: {known}")
        try:
            return key.decrypt(sealed.data[:_NONCE_BYTES], sealed.data[_NONCE_BYTES:], belongs_to)
        except InvalidTag:
            raise Damaged("a value in the database is not what was written there") from None


def key_id(key: bytes) -> str:
    return hashlib.sha256(b"cmis key id\0" + key).hexdigest()[:12]


def keyring(setting: str | None, path: Path) -> Keyring:
    """setting: keys of 32 bytes in base64, commas between them, the newest first. None: the key in the file, made at first start
    and readable by its owner only. ConfigError does not repeat what it could not read."""
    if setting is None:
        return Keyring([signing_key(path)])
    try:
        return Keyring([base64.b64decode(part.strip(), validate=True) for part in setting.split(",")])
    except (binascii.Error, ConfigError):
        raise ConfigError(f"secret keys: expected keys of {KEY_BYTES} bytes in base64, with commas between them") from None


def bound(*parts: str) -> bytes:
    """What something belongs to, as bytes: different for different parts.

    >>> bound("a", "bc") == bound("ab", "c")
    False
    """
    return b"".join(len(part.encode()).to_bytes(4) + part.encode() for part in parts)
