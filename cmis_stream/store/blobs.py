"""Where the bytes of files are: a port, and a folder behind it; `blobs_s3.py` is a bucket."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from .database import Unavailable

_PIECE: Final = 256 * 1024
_log = logging.getLogger(__name__)


class Writing(Protocol):
    """A blob that is being written. Unavailable when there is no room, or the place is away."""

    def write(self, piece: bytes) -> None: ...

    def finish(self) -> None:
        """When this returns the blob is there, whole, and survives whatever happens."""
        ...

    def abandon(self) -> None:
        """Unavailable when the blob may still appear, since `finish` got no answer: `remove` it later, not now."""
        ...


class Blobs(Protocol):
    """Bytes under keys that are made of [0-9a-f/-]. A blob is whole or not there; it never changes."""

    def create(self, key: str) -> Writing:
        """What was half-written under this key goes."""
        ...

    def read(self, key: str, start: int, end: int) -> Iterator[bytes]:
        """Bytes from `start` to before `end`, in pieces. FileNotFoundError, at once, when there is none of this key."""
        ...

    def remove(self, key: str) -> None:
        """Also what is half-written; nothing when there is none."""
        ...


def checked(key: str) -> str:
    """The key; ValueError when it is none."""
    if not key or set(key) - set("0123456789abcdef/-") or "//" in key or key.startswith("/"):
        raise ValueError(f"expected a key of 0-9, a-f, / and -, got {key!r}")
    return key


class FolderBlobs:
    """A folder; when several machines serve it, one that they share. Keys are paths in it; `.part` is half-written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self, key: str) -> Writing:
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            return _FolderWriting(path)
        except OSError as error:
            raise _unavailable(error) from error

    def read(self, key: str, start: int, end: int) -> Iterator[bytes]:
        try:
            file = self._path(key).open("rb")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _unavailable(error) from error
        return _pieces(file, start, end)

    def remove(self, key: str) -> None:
        path = self._path(key)
        try:
            path.unlink(missing_ok=True)
            path.with_suffix(".part").unlink(missing_ok=True)
        except OSError as error:
            raise _unavailable(error) from error

    def _path(self, key: str) -> Path:
        return self._folder / checked(key)


class _FolderWriting:
    def __init__(self, path: Path) -> None:
        self._path, self._part = path, path.with_suffix(".part")
        self._file = os.fdopen(os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")

    def write(self, piece: bytes) -> None:
        try:
            self._file.write(piece)
        except OSError as error:
            raise _unavailable(error) from error

    def finish(self) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.rename(self._path)
            _sync(self._path.parent)
        except OSError as error:
            raise _unavailable(error) from error

    def abandon(self) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pieces(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    with file:
        file.seek(start)
        while start < end and (piece := file.read(min(_PIECE, end - start))):
            start += len(piece)
            yield piece


def _unavailable(error: OSError) -> Unavailable:
    return unavailable(
        "no room is left" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or "it cannot be used"
    )


def unavailable(why: str) -> Unavailable:
    """What to raise; whoever asked is not told why, so it is logged."""
    _log.warning("the place of files: %s", why)
    return Unavailable(f"the place of files: {why}")
