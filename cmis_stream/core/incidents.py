"""Incidents: one firing episode of (rule, entity) each, opened by one transition and closed by the next of the same key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cmis_stream.core.ids import fact_id

_CHUNKS = 64
_ITEM = "incidents/"


class OpenIncidents:
    """The open incidents of a partition, key -> id; part of its state, in chunks that are stored when they change.

    log: identity of the log. The same file replayed into another one makes other incidents, though at the same offsets.
    """

    def __init__(self, log: str = "") -> None:
        self._log = log
        self._chunks: list[dict[str, str]] = [{} for _ in range(_CHUNKS)]
        self._changed: set[int] = set()

    def name(self, lines: Iterable[dict[str, Any]]) -> None:
        """Gives each transition line (with `id`, `key`, `at`, `state`) the id of its `incident`."""
        for line in lines:
            number = int(line["key"][:2], 16) % _CHUNKS
            self._changed.add(number)
            if line["state"] == "firing":
                line["incident"] = self._chunks[number][line["key"]] = self._new(line)
            else:
                # None: a rule that fired already when the state did not yet know incidents.
                line["incident"] = self._chunks[number].pop(line["key"], None) or self._new(line)

    def _new(self, line: dict[str, Any]) -> str:
        return fact_id(line["at"], f"{self._log}/{line['id']}")

    # --- state --------------------------------------------------------------------------------------------------------

    def keys(self) -> set[str]:
        """The items that make up the state now."""
        return {f"{_ITEM}{number}" for number, chunk in enumerate(self._chunks) if chunk}

    def changed(self) -> set[str]:
        """The items that have changed since the last call."""
        changed, self._changed = self._changed, set()
        return {f"{_ITEM}{number}" for number in changed}

    def export(self, key: str) -> dict[str, str] | None:
        """The value of one item; None: it is none of these."""
        return self._chunks[int(key.removeprefix(_ITEM))] if key.startswith(_ITEM) else None

    def restore(self, items: Mapping[str, Any]) -> None:
        for key, value in items.items():
            if key.startswith(_ITEM):
                self._chunks[int(key.removeprefix(_ITEM))] = value
