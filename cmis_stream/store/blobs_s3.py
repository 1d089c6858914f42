"""Bytes of files in a bucket of S3, or of a server that speaks its protocol.

Small blobs are one PUT, larger ones a multipart upload; neither is seen before it is complete. What is abandoned is aborted; the
parts of a process that was killed stay, unseen, until a lifecycle rule of the bucket takes them (docs/design/primitives.md).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from cmis_stream.core.errors import ConfigError

from .blobs import Writing, checked, unavailable
from .database import Unavailable

if TYPE_CHECKING:
    from obstore.store import S3Config

PART: Final = 5 * 1024 * 1024
"""Bytes: S3 takes no smaller ones, and at most 10,000. Of a blob that is written about four are in memory at once."""
_PIECE: Final = 4 * 1024 * 1024
"""Read by one request: a stream could be held up by who reads it, until it is cut off."""
_EXPECTED: Final = "s3://BUCKET/PREFIX?endpoint=URL&region=NAME"


class S3Blobs:
    """url: s3://BUCKET/PREFIX, and as query `region`, and `endpoint` where it is not Amazon's. Credentials are those of the
    environment (AWS_ACCESS_KEY_ID…) or of the machine, never in the URL. timeout_s: of one request, which is tried three times
    unless that takes as long. ConfigError; the bucket is not looked at before it is needed."""

    def __init__(self, url: str, *, timeout_s: float = 20) -> None:
        bucket, prefix, options = _parsed(url)
        config: S3Config = {"disable_bulk_delete": True, "disable_tagging": True}  # not all servers have them
        if "endpoint" in options:
            config["endpoint"] = options["endpoint"]
        if "region" in options:
            config["region"] = options["region"]
        limit = timedelta(seconds=timeout_s)
        try:
            self._store = S3Store(
                bucket,
                prefix=prefix or None,
                config=config,
                client_options={
                    "allow_http": options.get("endpoint", "").startswith("http://"),
                    "connect_timeout": min(limit, timedelta(seconds=5)),
                    "timeout": limit,
                },
                retry_config={"max_retries": 2, "retry_timeout": limit},
            )
        except BaseError as error:
            raise ConfigError(f"--files: {_first_line(error)}") from None

    def create(self, key: str) -> Writing:
        return _S3Writing(self._store, checked(key))

    def read(self, key: str, start: int, end: int) -> Iterator[bytes]:
        with _asked():
            there = obstore.head(self._store, checked(key))["size"]
        return self._pieces(key, start, min(end, there))

    def remove(self, key: str) -> None:
        with _asked(), _in_bucket():
            obstore.delete(self._store, checked(key))

    def _pieces(self, key: str, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            try:
                with _asked():
                    piece = obstore.get_range(self._store, key, start=start, end=min(end, start + _PIECE)).to_bytes()
            except FileNotFoundError:  # removed meanwhile: it ends too early
                return
            start += len(piece)
            yield piece


class _S3Writing:
    def __init__(self, store: S3Store, key: str) -> None:
        self._store, self._key = store, key
        self._waiting = bytearray()
        self._parts: _Parts | None = None
        self._unanswered: Unavailable | None = None

    def write(self, piece: bytes) -> None:
        self._waiting += piece
        while len(self._waiting) >= PART:
            if self._parts is None:
                self._parts = _Parts(self._store, self._key)
            self._parts.send(bytes(self._waiting[:PART]))
            del self._waiting[:PART]

    def finish(self) -> None:
        self._unanswered = Unavailable("the place of files: the upload broke off")
        try:
            self._send_all()
        except Unavailable as error:
            self._unanswered = error
            raise
        self._unanswered = None

    def _send_all(self) -> None:
        if self._parts is not None:
            if self._waiting:
                self._parts.send(bytes(self._waiting))
            self._parts.complete()
        else:
            with _asked(), _in_bucket():
                obstore.put(self._store, self._key, bytes(self._waiting), use_multipart=False)

    def abandon(self) -> None:
        self._waiting.clear()
        if self._parts is not None:
            self._parts.abort()
        if self._unanswered is not None:
            raise self._unanswered


class _Abandoned(Exception):
    """Makes obstore abort the upload."""


class _Parts(threading.Thread):
    """A multipart upload: obstore takes its parts from an iterator, and aborts the upload when that raises."""

    def __init__(self, store: S3Store, key: str) -> None:
        super().__init__(name="multipart upload", daemon=True)
        self._store, self._key = store, key
        self._parts = SimpleQueue[bytes | None]()
        self._room = threading.Semaphore(1)  # for one part that waits
        self._aborted, self._over, self._complete = False, False, False
        self._why: Exception = Unavailable("the place of files: the upload broke off")
        self.start()

    def run(self) -> None:
        try:
            with _asked(), _in_bucket():
                obstore.put(self._store, self._key, self._taken(), chunk_size=PART, max_concurrency=1, use_multipart=True)
            self._complete = True
        except Unavailable as error:
            self._why = error
        except _Abandoned:
            pass
        finally:
            self._over = True
            self._room.release()

    def _taken(self) -> Iterator[bytes]:
        while (part := self._parts.get()) is not None:
            self._room.release()
            yield part
        if self._aborted:
            raise _Abandoned

    def send(self, part: bytes) -> None:
        self._room.acquire()
        if self._over:
            self._room.release()
            raise self._why
        self._parts.put(part)

    def complete(self) -> None:
        self._parts.put(None)
        self.join()
        if not self._complete:
            raise self._why

    def abort(self) -> None:
        """Nothing, when it is over."""
        self._aborted = True
        self._parts.put(None)
        self.join()


def _parsed(url: str) -> tuple[str, str, dict[str, str]]:
    """(bucket, prefix, options). ConfigError, which never repeats what could be a credential."""
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.hostname:
        raise ConfigError(f"--files: expected {_EXPECTED}, got {parts.scheme or 'no scheme'}://{parts.hostname or ''}")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("--files: expected no credentials in the URL; they are taken from AWS_ACCESS_KEY_ID and the like")
    options = dict(parse_qsl(parts.query))
    if unknown := sorted(set(options) - {"endpoint", "region"}):
        raise ConfigError(f"--files: expected endpoint and region, got {', '.join(unknown)}")
    if (endpoint := options.get("endpoint")) is not None and urlsplit(endpoint).scheme not in ("http", "https"):
        raise ConfigError("--files: expected endpoint=http://… or https://…")
    return parts.hostname, parts.path.strip("/"), options


@contextmanager
def _asked() -> Iterator[None]:
    try:
        yield
    except BaseError as error:
        raise unavailable(_first_line(error)) from None


@contextmanager
def _in_bucket() -> Iterator[None]:
    """Where the key need not be there, it is the bucket that is missing."""
    try:
        yield
    except FileNotFoundError as error:
        raise unavailable(_first_line(error)) from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
