"""What the relay does with changes: agents get the org's documents of each kind that they follow (docs/design/modules.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import orjson
from sqlalchemy import select

from cmis_stream.log.catalog import Catalog
from cmis_stream.store import tables
from cmis_stream.store.changes import Change
from cmis_stream.store.database import Database
from cmis_stream.store.decisions import Actor, Document
from cmis_stream.store.documents import Documents
from cmis_stream.store.kinds import Kind, Kinds

_EVERYTHING = Actor("catalogs", sees_private=True)
_table = tables.catalogs
MOST_HELD: Final = 300_000
"""Documents that are kept here, so that a set is not read anew for each change of one of them."""


class _Held(NamedTuple):
    version: int
    created_at: int
    item: Any


class _Set:
    """An org's set of a kind as it is after the change `seq`, or later."""

    def __init__(self, documents: Iterable[Document], kind: Kind, seq: int) -> None:
        assert kind.catalog is not None
        self.seq, self._catalog = seq, kind.catalog
        self.held = {one.id: _Held(one.version, one.created_at, self._catalog(one)) for one in documents}

    def take(self, change: Change) -> bool:
        """False when it cannot be told what the document is now."""
        known = self.held.get(change.id)
        if known is not None and known.version >= change.version:
            return True  # it was read when this change had happened
        if change.after is None:
            self.held.pop(change.id, None)
            return True
        if known is None and change.version > 1:
            return False  # restored: when it was made stands in the store only
        created_at = change.at if known is None else known.created_at
        body = orjson.loads(change.after)
        document = Document(change.org, change.kind, change.id, change.version, created_at, change.at, None, body)
        self.held[change.id] = _Held(change.version, created_at, self._catalog(document))
        return True

    def items(self) -> list[Any]:
        """In the order of their ids, whichever way the set came about."""
        return [held.item for _, held in sorted(self.held.items()) if held.item is not None]


class Catalogs:
    """publish: blocks until the set is durable in the log; relay.SendFailed when that is not known. clock: epoch ms."""

    def __init__(
        self,
        kinds: Kinds,
        documents: Documents,
        overseer: Database,
        publish: Callable[[Catalog], None],
        clock: Callable[[], int],
    ) -> None:
        self._documents, self._overseer, self._publish, self._clock = documents, overseer, publish, clock
        self._followed = {name: kind for name, kind in kinds.items() if kind.catalog is not None}
        self._sets: dict[tuple[str, str], _Set] = {}

    def send(self, org: str, changes: Sequence[Change]) -> None:
        """The sets that these changes, which follow on one another, are in. For `Relay`."""
        for name in sorted({change.kind for change in changes} & self._followed.keys()):
            # The version before the documents: a set with a higher version never holds older ones.
            version = self._next_version(org, name)
            self._publish(Catalog(name, org, version, self._set(org, name, changes).items()))
        for (of, _), one in self._sets.items():
            if of == org and one.seq < changes[-1].seq and one.seq + 1 >= changes[0].seq:
                one.seq = changes[-1].seq  # none of these changes was of its kind

    def _next_version(self, org: str, kind: str) -> int:
        own = (_table.c.org_id == org, _table.c.kind == kind)
        with self._overseer.transaction(None, writes=True) as tx:
            last = tx.rows(select(_table.c.version).where(*own))
            # At least the clock's, so that agents take sets of a store that was made anew.
            version = max(self._clock(), last[0][0] + 1 if last else 0)
            tx.insert_or_raise(_table, {"org_id": org, "kind": kind}, "version", version)
        return version

    def _set(self, org: str, kind: str, changes: Sequence[Change]) -> _Set:
        """As it is after these changes; from the store when changes before them went past us, as they do while another process
        has the right to relay."""
        found = self._sets.pop((org, kind), None)
        follows = found is not None and changes[0].seq <= found.seq + 1
        if found is None or not follows or not all(found.take(change) for change in changes if change.kind == kind):
            found = _Set(self._documents.everything(org, _EVERYTHING, kind), self._followed[kind], 0)
        found.seq = max(found.seq, changes[-1].seq)
        self._sets[org, kind] = found  # the last one used stands last
        while len(self._sets) > 1 and sum(len(one.held) for one in self._sets.values()) > MOST_HELD:
            del self._sets[next(iter(self._sets))]
        return found
