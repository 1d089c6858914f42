"""Secrets: credentials that people give and programs use. Encrypted at rest, never shown again. Blocks: call it in a thread."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, NoReturn

from sqlalchemy import delete, select, update

from cmis_stream.core.errors import Rejected

from . import primitive_tables
from .database import Database, Transaction
from .keyring import Keyring, Sealed, bound

LONGEST: Final = 16 * 1024
_table = primitive_tables.secrets
_NAME = re.compile(r"[a-z0-9][a-z0-9_.:/-]{0,199}")


class Secret:
    """A value that does not show itself: not in repr, str, format, JSON or pickle. `text()` is the one way to it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def text(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not written anywhere")


class Status(NamedTuple):
    """All that is shown of a secret. updated_at: epoch ms, None when it is not set."""

    set: bool
    updated_at: int | None


class Secrets:
    """clock: epoch ms."""

    def __init__(self, database: Database, keys: Keyring, clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._database, self._keys, self._clock = database, keys, clock

    def set(self, org: str, name: str, value: str | Secret, actor: str) -> Status:
        """Rejected never repeats the value."""
        if not _NAME.fullmatch(name):
            raise Rejected("invalid", "name", name, "lower-case letters, digits and _.:/-, at most 200")
        text = value.text() if isinstance(value, Secret) else value
        if not text or len(text.encode(errors="replace")) > LONGEST:
            raise Rejected("too_long", "value", f"{len(text)} characters", f"1 to {LONGEST} bytes")
        try:
            plain = text.encode()
        except UnicodeEncodeError:
            raise Rejected("invalid", "value", "a text with half surrogates", "a text") from None
        now_ms = self._clock()
        key_id, sealed = self._keys.seal(plain, bound("secret", org, name))
        row = {"key_id": key_id, "sealed": sealed, "actor": actor, "updated_at": now_ms}
        with self._database.transaction(org, writes=True) as tx:
            if not tx.insert_new(_table, {"org_id": org, "name": name, **row}):
                tx.run(update(_table).where(tx.own(_table), _table.c.name == name), row)
        return Status(True, now_ms)

    def remove(self, org: str, name: str) -> bool:
        """False when it was not set."""
        with self._database.transaction(org, writes=True) as tx:
            return tx.run(delete(_table).where(tx.own(_table), _table.c.name == name)).rowcount == 1

    def status(self, org: str, name: str) -> Status:
        return self.list(org).get(name, Status(False, None))

    def list(self, org: str) -> dict[str, Status]:
        """Of all that are set, by name."""
        with self._database.transaction(org) as tx:
            wanted = select(_table.c.name, _table.c.updated_at).where(tx.own(_table)).order_by(_table.c.name)
            return {name: Status(True, updated_at) for name, updated_at in tx.rows(wanted)}

    def reveal(self, org: str, name: str) -> Secret | None:
        """For the code that signs in somewhere with it, never for an answer. None when it is not set.

        ConfigError when its key is missing, Damaged when the row is not what was written."""
        with self._database.transaction(org) as tx:
            rows = self._rows(tx, _table.c.name == name)
        return Secret(self._opened(org, rows[0]).decode()) if rows else None

    def rotate(self, org: str) -> int:
        """Encrypts with the current key what another one has encrypted; how many. After it, the others may go."""
        with self._database.transaction(org, writes=True) as tx:
            rows = self._rows(tx, _table.c.key_id != self._keys.current)
            for row in rows:
                key_id, sealed = self._keys.seal(self._opened(org, row), bound("secret", org, row.name))
                values = {"key_id": key_id, "sealed": sealed}
                same = (_table.c.name == row.name, _table.c.sealed == row.sealed)  # unless it was set anew meanwhile
                tx.run(update(_table).where(tx.own(_table), *same), values)
        return len(rows)

    def _rows(self, tx: Transaction, *where: Any) -> Any:
        return tx.rows(select(_table.c.name, _table.c.key_id, _table.c.sealed).where(tx.own(_table), *where))

    def _opened(self, org: str, row: Any) -> bytes:
        return self._keys.open(Sealed(row.key_id, row.sealed), bound("secret", org, row.name))
