"""Files: exports, reports, uploads. Rows in the database, bytes in `Blobs` (docs/design/primitives.md).

Everything blocks: call it in a thread.
The row comes before the first byte and goes after the last one, so a kill leaves nothing that no row knows of.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote
from uuid import uuid4

import jwt
from sqlalchemy import ColumnElement, delete, func, or_, select, tuple_, update

from cmis_stream.core.errors import Rejected
from cmis_stream.core.time import HOUR_MS, MINUTE_MS

from . import primitive_tables
from .blobs import Blobs, Writing
from .database import Database, Unavailable
from .keyring import Damaged
from .signing import NotSigned

HALF_WRITTEN_MS: Final = HOUR_MS
"""A file that nobody has written to for so long is what a kill has left."""
_TOUCH_MS: Final = 10 * MINUTE_MS
LARGEST: Final = 5 * 1024**3
LONGEST_NAME: Final = 200
COUNTED: Final = 10_000
LINK_LASTS_MS: Final = 5 * MINUTE_MS
_MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,99}/[a-z0-9][a-z0-9!#$&^_.+-]{0,99}(; ?charset=[a-z0-9-]{1,30})?")
_table = primitive_tables.files


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class StoredFile:
    """size: bytes. sha256: 64 hex digits. Times in epoch ms; expires_at None: it stays."""

    org: str
    id: str
    name: str
    media_type: str
    actor: str
    created_at: int
    expires_at: int | None
    size: int
    sha256: str

    @property
    def etag(self) -> str:
        return f'"{self.sha256}"'

    @property
    def disposition(self) -> str:
        """Content-Disposition: always to be saved, never shown in the page's origin."""
        plain = re.sub(r"[^A-Za-z0-9._ -]", "_", unicodedata.normalize("NFKD", self.name).encode("ascii", "replace").decode())
        return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(self.name, safe='')}"


class Files:
    """clock: epoch ms."""

    def __init__(self, database: Database, blobs: Blobs, clock: Callable[[], int] = _now_ms) -> None:
        self._database, self._blobs, self._clock = database, blobs, clock

    def create(
        self, org: str, name: str, media_type: str, actor: str, *, lasts_ms: int | None = None, limit: int = LARGEST
    ) -> Upload:
        """A file to be written; it is there once `finish` has returned. lasts_ms: until it is deleted; None: it stays."""
        if not 1 <= len(name) <= LONGEST_NAME or not name.isprintable() or "/" in name or "\\" in name:
            raise Rejected("invalid", "/name", name, f"1 to {LONGEST_NAME} printable characters without slashes")
        if not _MEDIA_TYPE.fullmatch(media_type):
            raise Rejected("invalid", "/media_type", media_type, "a media type such as text/csv")
        now_ms, identity = self._clock(), str(uuid4())
        row = {"org_id": org, "id": identity, "state": "writing", "name": name, "media_type": media_type, "actor": actor}
        with self._database.transaction(org, writes=True) as tx:
            tx.insert_new(_table, {**row, "created_at": now_ms, "expires_at": now_ms + HALF_WRITTEN_MS})
        return Upload(self, org, identity, self._blobs.create(_key(org, identity)), lasts_ms, limit, now_ms)

    def get(self, org: str, identity: str) -> StoredFile | None:
        """None: it is not there, not yet, or not any more."""
        with self._database.transaction(org) as tx:
            rows = tx.rows(select(_table).where(tx.own(_table), _table.c.id == identity, _table.c.state == "kept"))
        found = _file(rows[0]) if rows else None
        return None if found is None or (found.expires_at is not None and found.expires_at <= self._clock()) else found

    def list(self, org: str, limit: int = 100, before: tuple[int, str] | None = None) -> list[StoredFile]:
        """The newest first. before: (created_at, id) of the last one of the page before."""
        wanted = select(_table).where(*self._there()).order_by(_table.c.created_at.desc(), _table.c.id.desc()).limit(limit)
        if before is not None:
            wanted = wanted.where(tuple_(_table.c.created_at, _table.c.id) < tuple_(*before))
        with self._database.transaction(org) as tx:
            return [_file(row) for row in tx.rows(wanted.where(tx.own(_table)))]

    def count(self, org: str) -> int:
        """How many `list` has in all; exact up to COUNTED, and this where there are more."""
        with self._database.transaction(org) as tx:
            some = select(_table.c.id).where(tx.own(_table), *self._there()).limit(COUNTED).subquery()
            return int(tx.rows(select(func.count()).select_from(some))[0][0])

    def _there(self) -> tuple[ColumnElement[bool], ...]:
        return _table.c.state == "kept", or_(_table.c.expires_at.is_(None), _table.c.expires_at > self._clock())

    def read(self, file: StoredFile, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Its bytes from `start` to before `end`, in pieces. Damaged when they are not there, before the last piece when they are
        others than those that were written (of parts only their length is known)."""
        end = file.size if end is None else end
        try:
            pieces = self._blobs.read(_key(file.org, file.id), start, end)
        except FileNotFoundError:
            raise Damaged(f"the bytes of file {file.id} are gone") from None
        return _checked(pieces, file, end - start)

    def remove(self, org: str, identity: str) -> bool:
        """False when there was none."""
        there = (_table.c.id == identity, _table.c.state == "kept")
        with self._database.transaction(org, writes=True) as tx:
            found = tx.run(update(_table).where(tx.own(_table), *there).values(state="removing", expires_at=0)).rowcount == 1
        if found:
            self._erase(org, identity)
        return found

    def sweep(self, org: str) -> int:
        """Removes what has expired, and what a kill has left; how many."""
        with self._database.transaction(org, writes=True) as tx:
            over = (tx.own(_table), _table.c.expires_at <= self._clock())
            tx.run(update(_table).where(*over).values(state="removing"))
            gone = [identity for (identity,) in tx.rows(select(_table.c.id).where(*over))]
        for identity in gone:
            self._erase(org, identity)
        return len(gone)

    # --- for Upload -----------------------------------------------------------------------------------------------------

    def _touch(self, org: str, identity: str) -> None:
        self._still_writing(org, identity, expires_at=self._clock() + HALF_WRITTEN_MS)

    def _keep(self, org: str, identity: str, size: int, sha256: str, lasts_ms: int | None) -> StoredFile:
        expires_at = None if lasts_ms is None else self._clock() + lasts_ms
        self._still_writing(org, identity, state="kept", size=size, sha256=sha256, expires_at=expires_at)
        with self._database.transaction(org) as tx:
            return _file(tx.rows(select(_table).where(tx.own(_table), _table.c.id == identity))[0])

    def _still_writing(self, org: str, identity: str, **values: Any) -> None:
        mine = (_table.c.id == identity, _table.c.state == "writing")
        with self._database.transaction(org, writes=True) as tx:
            if tx.run(update(_table).where(tx.own(_table), *mine).values(**values)).rowcount != 1:
                raise Damaged(f"file {identity} was taken away while it was written: for too long nothing came")

    def _erase(self, org: str, identity: str) -> None:
        self._blobs.remove(_key(org, identity))
        with self._database.transaction(org, writes=True) as tx:
            tx.run(delete(_table).where(tx.own(_table), _table.c.id == identity))


class Upload:
    """A file that is being written: `write`, then `finish`; at the end of a with block what was not finished goes."""

    def __init__(
        self, files: Files, org: str, identity: str, blob: Writing, lasts_ms: int | None, limit: int, now_ms: int
    ) -> None:
        self._files, self._org, self.id, self._blob = files, org, identity, blob
        self._lasts_ms, self._limit, self._touched = lasts_ms, limit, now_ms
        self._size, self._hash, self._open = 0, hashlib.sha256(), True

    def write(self, piece: bytes) -> None:
        """Rejected("too_long") when it becomes larger than allowed."""
        self._size += len(piece)
        if self._size > self._limit:
            raise Rejected("too_long", "file", f"more than {self._limit} bytes", f"at most {self._limit} bytes")
        self._hash.update(piece)
        self._blob.write(piece)
        if (now_ms := self._files._clock()) - self._touched >= _TOUCH_MS:
            self._touched = now_ms
            self._files._touch(self._org, self.id)

    def finish(self, sha256: str | None = None) -> StoredFile:
        """sha256: what the sender says that it is; Rejected when it is something else."""
        digest = self._hash.hexdigest()
        if sha256 is not None and sha256.lower() != digest:
            raise Rejected("invalid", "sha256", digest, f"{sha256}, as it was said")
        self._files._touch(self._org, self.id)  # or bytes could appear behind a sweep that removes them
        self._blob.finish()
        self._open = False
        try:
            return self._files._keep(self._org, self.id, self._size, digest, self._lasts_ms)
        except Damaged:  # it was taken away between the touch and here: bytes without a row are nobody's
            self._files._erase(self._org, self.id)
            raise

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:
            self._blob.abandon()
            with contextlib.suppress(Unavailable):  # it expires
                self._files._erase(self._org, self.id)


class FileLinks:
    """Links that open one file of one org for five minutes, for whoever has them: a download by a browser, an e-mail, a program.
    key: the installation's (`signing.signing_key`)."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def issue(self, file: StoredFile, now_ms: int, lasts_ms: int = LINK_LASTS_MS) -> str:
        """The token of a link. It ends with its file, too."""
        end_ms = now_ms + min(max(lasts_ms, 0), LINK_LASTS_MS)
        end_ms = end_ms if file.expires_at is None else min(end_ms, file.expires_at)
        claims = {"sub": f"{file.org}/{file.id}", "aud": _AUDIENCE, "iat": now_ms // 1000, "exp": end_ms // 1000}
        return jwt.encode(claims, self._key, "HS256")

    def read(self, text: str, now_ms: int) -> tuple[str, str]:
        """(org, file). Raises NotSigned, also when it has ended."""
        options = {"require": ["sub", "exp"], "verify_exp": False, "verify_iat": False}  # the clock is the caller's
        try:
            claims = jwt.decode(text, self._key, ["HS256"], audience=_AUDIENCE, options=options)  # type: ignore[arg-type]
            org, _, identity = str(claims["sub"]).rpartition("/")
            ends_at = int(claims["exp"]) * 1000
        except (jwt.InvalidTokenError, ValueError) as error:
            raise NotSigned(f"this is no link to a file of ours: {error}") from None
        if ends_at <= now_ms:
            raise NotSigned(f"this link ended {now_ms - ends_at} ms ago")
        return org, identity


_AUDIENCE: Final = "cmis-file"


def _key(org: str, identity: str) -> str:
    """An org's name may hold anything; its hash is a folder."""
    return f"{hashlib.sha256(org.encode()).hexdigest()[:32]}/{identity[:2]}/{identity}"


def _checked(pieces: Iterator[bytes], file: StoredFile, length: int) -> Iterator[bytes]:
    seen, digest, last = 0, hashlib.sha256(), b""
    for piece in pieces:
        if last:
            yield last
        seen, last = seen + len(piece), piece
        digest.update(piece)
    if seen != length or (length == file.size and digest.hexdigest() != file.sha256):
        raise Damaged(f"the bytes of file {file.id} are not those that were written")
    if last:
        yield last


def _file(row: Any) -> StoredFile:
    return StoredFile(
        row.org_id, row.id, row.name, row.media_type, row.actor, row.created_at, row.expires_at, row.size, row.sha256
    )
