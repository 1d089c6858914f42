"""Personal fields: sealed under a key of the person whom they are about, so that deleting the key erases them everywhere.

What is written and hashed is the sealed text; `None` is what is read once the subject is erased. AES-SIV (RFC 5297): the same
value in the same field of the same document gives the same text, so what did not change does not look changed.
"""

from __future__ import annotations

import base64
import binascii
import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple
from uuid import uuid4

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from sqlalchemy import select, update

from cmis_stream.core.errors import ConfigError, Rejected

from . import primitive_tables
from .database import Database, Transaction
from .decisions import Document
from .keyring import Damaged, Keyring, Sealed, bound
from .personal_fields import Fields

_table = primitive_tables.subject_keys
_MARK: Final = "sealed"
_BITS: Final = 512
LONGEST_SUBJECT: Final = 200
_AT_ONCE: Final = 500


class Place(NamedTuple):
    """What a body is or becomes the body of: bound to its personal fields, so that they count nowhere else."""

    kind: str
    id: str


class PersonalData:
    """The keys of subjects. Nothing is kept in memory, so that an erasure counts at once in every process. clock: epoch ms."""

    def __init__(self, database: Database, keys: Keyring, clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._database, self._keys, self._clock = database, keys, clock

    def seal(self, tx: Transaction, fields: Fields, place: Place, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body as it is written. Subjects that are new get their keys in this transaction. Rejected when a field has a value
        and its subject is not said."""
        made = copy.deepcopy(dict(body))
        found = list(fields.walk(made))
        for _, _, path, subject in found:
            if not 1 <= len(subject) <= LONGEST_SUBJECT:
                raise Rejected("missing", path, subject, f"whom this personal field is about, 1 to {LONGEST_SUBJECT} characters")
        keys = self._alive(tx, {subject for *_, subject in found}) if found else {}
        for holder, name, path, subject in found:
            identity, key = keys[subject]
            sealed = key.encrypt(holder[name].encode(), [_bound(tx.org, place, path)])
            holder[name] = f"{_MARK}:{identity}:{base64.b64encode(sealed).decode()}"
        return made

    def open(self, tx: Transaction, fields: Fields, bodies: Sequence[tuple[Place, Mapping[str, Any]]]) -> list[dict[str, Any]]:
        """The bodies as they were given, null where the subject is erased. Damaged when a text was not sealed for its place."""
        made = [copy.deepcopy(dict(body)) for _, body in bodies]
        found = [
            (place, *one) for (place, _), body in zip(bodies, made, strict=True) for one in fields.walk(body)
        ]  # fmt: skip
        parts = [_parts(holder[name]) for _, holder, name, _, _ in found]
        keys = self._known(tx, {identity for identity, _ in parts}) if parts else {}
        for (place, holder, name, path, _), (identity, sealed) in zip(found, parts, strict=True):
            key = keys.get(identity)
            try:
                plain = None if key is None else key.decrypt(sealed, [_bound(tx.org, place, path)]).decode()
            except InvalidTag:
                raise Damaged(f"{place.kind} {place.id}{path} is not what was sealed there") from None
            holder[name] = plain
        return made

    def erase(self, org: str, subject: str) -> bool:
        """Every personal field about the subject is null from now on, wherever it was written. False when there was none."""
        with self._database.transaction(org, writes=True) as tx:
            alive = (tx.own(_table), _table.c.subject == subject, _table.c.erased_at.is_(None))
            # Written over before it is set to null: what lies on disk is the row, not the column.
            for row in tx.rows(select(_table.c.id, _table.c.sealed).where(*alive)):
                tx.run(update(_table).where(tx.own(_table), _table.c.id == row.id).values(sealed=bytes(len(row.sealed))))
            return tx.run(update(_table).where(*alive).values(sealed=None, erased_at=self._clock())).rowcount > 0

    def rotate(self, org: str) -> int:
        """Lays subjects' keys under the installation's current key; how many lay under another one."""
        moved = 0
        with self._database.transaction(org, writes=True) as tx:
            old = select(_table).where(tx.own(_table), _table.c.sealed.is_not(None), _table.c.key_id != self._keys.current)
            for row in tx.rows(old):
                key_id, sealed = self._keys.seal(self._unwrapped(tx.org, row), _key_bound(tx.org, row.id))
                same = (_table.c.id == row.id, _table.c.erased_at.is_(None))
                moved += tx.run(update(_table).where(tx.own(_table), *same).values(key_id=key_id, sealed=sealed)).rowcount
        return moved

    def _alive(self, tx: Transaction, subjects: set[str]) -> dict[str, tuple[str, AESSIV]]:
        found = self._read(tx, subjects)
        while missing := sorted(subjects - found.keys()):
            for subject in missing:
                identity, key = str(uuid4()), AESSIV.generate_key(_BITS)
                key_id, sealed = self._keys.seal(key, _key_bound(tx.org, identity))
                row = {"org_id": tx.org, "id": identity, "subject": subject, "key_id": key_id, "sealed": sealed}
                tx.insert_new(_table, {**row, "created_at": self._clock(), "erased_at": None})
            found |= self._read(tx, set(missing))  # of two that made one at the same time, one did
        return found

    def _read(self, tx: Transaction, subjects: set[str]) -> dict[str, tuple[str, AESSIV]]:
        return {
            row.subject: (row.id, AESSIV(self._unwrapped(tx.org, row)))
            for row in self._rows(tx, _table.c.subject, subjects)
            if row.erased_at is None
        }

    def _known(self, tx: Transaction, identities: set[str]) -> dict[str, AESSIV]:
        return {
            row.id: AESSIV(self._unwrapped(tx.org, row))
            for row in self._rows(tx, _table.c.id, identities)
            if row.sealed is not None
        }

    def _rows(self, tx: Transaction, column: Any, values: Iterable[str]) -> Iterator[Any]:
        wanted = sorted(values)
        for start in range(0, len(wanted), _AT_ONCE):
            yield from tx.rows(select(_table).where(tx.own(_table), column.in_(wanted[start : start + _AT_ONCE])))

    def _unwrapped(self, org: str, row: Any) -> bytes:
        return self._keys.open(Sealed(row.key_id, row.sealed), _key_bound(org, row.id))


class Sealer:
    """Documents as they are written and read, of kinds with personal fields and without. fields: of the kinds that have some."""

    def __init__(self, fields: Mapping[str, Fields], data: PersonalData | None) -> None:
        if fields and data is None:
            raise ConfigError(f"kinds with personal fields need the keys of subjects: {', '.join(sorted(fields))}")
        self._fields, self._data = fields, data

    def sealed(self, tx: Transaction, document: Document) -> Document:
        fields = self._fields.get(document.kind)
        if fields is None or self._data is None:
            return document
        return replace(document, body=self._data.seal(tx, fields, Place(document.kind, document.id), document.body))

    def opened(self, tx: Transaction, documents: Sequence[Document]) -> list[Document]:
        """In the same order; one question to the database per kind."""
        made = {(one.kind, one.id): one for one in documents}
        for kind in {one.kind for one in documents} & self._fields.keys():
            of = [one for one in documents if one.kind == kind]
            bodies = self.opened_bodies(tx, kind, [(one.id, one.body) for one in of])
            made |= {(kind, one.id): replace(one, body=body) for one, body in zip(of, bodies, strict=True)}
        return [made[one.kind, one.id] for one in documents]

    def opened_bodies(self, tx: Transaction, kind: str, bodies: Sequence[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
        """bodies: with the ids of their documents, of which there may be several versions."""
        if (fields := self._fields.get(kind)) is None or self._data is None:
            return [dict(body) for _, body in bodies]
        return self._data.open(tx, fields, [(Place(kind, identity), body) for identity, body in bodies])


def _bound(org: str, place: Place, path: str) -> bytes:
    return bound("personal", org, place.kind, place.id, path)


def _key_bound(org: str, identity: str) -> bytes:
    return bound("subject key", org, identity)


def _parts(text: str) -> tuple[str, bytes]:
    mark, _, rest = text.partition(":")
    identity, _, sealed = rest.partition(":")
    try:
        if mark != _MARK:
            raise ValueError(mark)
        return identity, base64.b64decode(sealed, validate=True)
    except (ValueError, binascii.Error):
        raise Damaged("a personal field in the database is not sealed") from None
