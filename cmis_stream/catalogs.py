"""What the relay does with changes: agents get the org's documents of each kind that they follow (docs/design/modules.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from sqlalchemy import select

from cmis_stream.log.catalog import Catalog
from cmis_stream.store import tables
from cmis_stream.store.changes import Change
from cmis_stream.store.database import Database
from cmis_stream.store.decisions import Actor
from cmis_stream.store.documents import Documents
from cmis_stream.store.kinds import Kind, Kinds

_EVERYTHING = Actor("catalogs", sees_private=True)
_table = tables.catalogs


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

    def send(self, org: str, changes: Sequence[Change]) -> None:
        """The sets that these changes are in. For `Relay`."""
        for name in sorted({change.kind for change in changes} & self._followed.keys()):
            # The version before the documents: a set with a higher version never holds older ones.
            version = self._next_version(org, name)
            self._publish(Catalog(name, org, version, list(self._items(org, self._followed[name]))))

    def _next_version(self, org: str, kind: str) -> int:
        own = (_table.c.org_id == org, _table.c.kind == kind)
        with self._overseer.transaction(None, writes=True) as tx:
            last = tx.rows(select(_table.c.version).where(*own))
            # At least the clock's, so that agents take sets of a store that was made anew.
            version = max(self._clock(), last[0][0] + 1 if last else 0)
            tx.insert_or_raise(_table, {"org_id": org, "kind": kind}, "version", version)
        return version

    def _items(self, org: str, kind: Kind) -> Iterator[object]:
        assert kind.catalog is not None
        items: Iterable[object] = map(kind.catalog, self._documents.everything(org, _EVERYTHING, kind.name))
        return (item for item in items if item is not None)
