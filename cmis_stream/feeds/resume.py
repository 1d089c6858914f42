"""Where a sender of a file stopped: a small JSON file that is replaced atomically, and a lock against a second
sender."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import msgspec

from ..core.errors import ConfigError

HEAD_BYTES = 64 << 10


class Position(msgspec.Struct):
    """A file's identity, the window being sent, and how far each org has come.

    head_bytes, head_sha256: of the file's beginning when it was first sent, so that a file which grew is still the same
    and one that was replaced is not. counters: each org's number of lines before the window. acknowledged: each org's
    number of lines that the server has; the sequence number of its next one.
    """

    source: str
    head_bytes: int
    head_sha256: str
    offset: int = 0
    first_line: int = 0
    counters: dict[str, int] = {}
    acknowledged: dict[str, int] = {}


def position_of(file: BinaryIO, path: Path, state: Path, label: str) -> Position:
    """The stored position if it is this file's, else a new one at the start.

    A new one's source is label:<sha256 of the absolute path and the first 64 KiB>. Known limit: a file that was
    replaced by one of the same path and the same first 64 KiB is taken for the old one.
    """
    stored = _load(state)
    if stored is not None:
        head = _head(file, stored.head_bytes)
        if len(head) == stored.head_bytes and hashlib.sha256(head).hexdigest() == stored.head_sha256:
            return stored
    head = _head(file, HEAD_BYTES)
    identity = hashlib.sha256(os.fsencode(path.resolve()) + b"\0" + head).hexdigest()
    return Position(f"{label}:{identity}", len(head), hashlib.sha256(head).hexdigest())


def state_path(directory: Path, path: Path, url: str, org: str | None) -> Path:
    """One state per file, server and org given."""
    key = "\0".join((str(path.resolve()), url.rstrip("/"), org or ""))
    return directory / f"{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}.json"


def save(position: Position, state: Path) -> None:
    """Durable when it returns; a crash leaves the old or the new state."""
    temporary = state.with_suffix(".tmp")
    with temporary.open("wb") as out:
        out.write(msgspec.json.encode(position))
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(state)
    directory = os.open(state.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def lock(state: Path) -> int:
    """A descriptor that holds the state's lock until it is closed or the process ends; ConfigError when another holds
    it."""
    descriptor = os.open(state.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(f"another sender is at this file: {state.with_suffix('.lock')} is locked") from None
    return descriptor


def _head(file: BinaryIO, size: int) -> bytes:
    file.seek(0)
    return file.read(size)


def _load(state: Path) -> Position | None:
    try:
        return msgspec.json.decode(state.read_bytes(), type=Position)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise ConfigError(f"{state} is damaged ({error}); delete it to send the file again from its start") from None
