"""Checkpoints of one partition's state in a compacted changelog; docs/design/checkpoints.md is the protocol."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cmis_stream.core.errors import CmisError
from cmis_stream.log.codec import pack, unpack

SLOTS = 64
PART_BYTES = 900_000


Write = tuple[bytes, bytes | None]
"""A changelog record: key, value (None: the key is deleted)."""


class CheckpointError(CmisError):
    """The changelog holds checkpoints, but none that is complete."""


class CheckpointWriter:
    """Turns changed items into changelog records of one generation.

    generation: unique to this assignment of the partition in this process.
    """

    def __init__(self, generation: str, slots: int = SLOTS, part_bytes: int = PART_BYTES) -> None:
        self._generation, self._slots, self._part_bytes = generation, slots, part_bytes
        self.sequence = 0
        self._written: dict[str, int] = {}  # item -> sequence of the checkpoint with its current value
        self._parts: dict[int, int] = {}  # slot -> parts it has

    def write(self, position: int, changed: Iterable[str], keys: set[str], export: Callable[[str], Any]) -> list[Write]:
        """The records of the next checkpoint: source offset `position`, items that changed, all items of the state."""
        self.sequence += 1
        items = {key for key in changed if key in keys}
        items.update(key for key in keys if key not in self._written)
        self._written = {key: sequence for key, sequence in self._written.items() if key in keys}
        items.update(self._due(items))
        for key in items:
            self._written[key] = self.sequence
        head = pack({"position": position, "manifest": self._written})
        return self._cut(head, pack({key: export(key) for key in sorted(items)}), position)

    def _due(self, chosen: set[str]) -> Iterator[str]:
        """Items whose slot is about to be written again, and a share of the old ones."""
        old = sorted((sequence, key) for key, sequence in self._written.items() if self.sequence - sequence >= self._slots // 2)
        share = -(-2 * len(self._written) // self._slots)
        for place, (sequence, key) in enumerate(old):
            if key not in chosen and (place < share or self.sequence - sequence >= self._slots - 2):
                yield key

    def _cut(self, head: bytes, body: bytes, position: int) -> list[Write]:
        slot = self.sequence % self._slots
        blob = len(head).to_bytes(4, "little") + head + body
        checksum = zlib.crc32(blob)
        chunks = [blob[i : i + self._part_bytes] for i in range(0, len(blob), self._part_bytes)]
        writes: list[Write] = []
        for part, chunk in enumerate(chunks):
            info = {"sequence": self.sequence, "position": position, "parts": len(chunks), "crc": checksum, "data": chunk}
            writes.append((self._key(slot, part), pack(info)))
        # Parts of the checkpoint that stood here before and was longer.
        writes.extend((self._key(slot, part), None) for part in range(len(chunks), self._parts.get(slot, 0)))
        self._parts[slot] = len(chunks)
        return writes

    def _key(self, slot: int, part: int) -> bytes:
        return f"{self._generation}/{slot}/{part}".encode()


@dataclass(slots=True)
class Recovered:
    """position: source offset of the last record in the state, -1 for none; stale_keys: what to delete afterwards."""

    position: int = -1
    items: dict[str, Any] = field(default_factory=dict)
    stale_keys: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class _Candidate:
    sequence: int
    position: int
    crc: int
    total: int
    parts: dict[int, bytes]

    def blob(self) -> bytes | None:
        if len(self.parts) != self.total:
            return None
        data = b"".join(self.parts[part] for part in range(self.total))
        return data if zlib.crc32(data) == self.crc else None


def recover(records: Mapping[bytes, bytes]) -> Recovered:
    """The state in the newest complete checkpoint of a partition's changelog (key -> latest value)."""
    generations: dict[str, dict[int, _Candidate]] = defaultdict(dict)
    for key, value in records.items():
        generation, _, place = key.decode().partition("/")
        info = unpack(value)
        part, sequence = int(place.partition("/")[2]), info["sequence"]
        candidate = generations[generation].get(sequence)
        if candidate is None:
            candidate = _Candidate(sequence, info["position"], info["crc"], info["parts"], {})
            generations[generation][sequence] = candidate
        candidate.parts[part] = bytes(info["data"])
    ordered = sorted(
        ((c.position, c.sequence, generation) for generation, found in generations.items() for c in found.values()), reverse=True
    )
    for position, sequence, generation in ordered:
        items = _read(generations[generation], sequence)
        if items is not None:
            return Recovered(position, items, list(records))
    if any(sequence > 1 for _, sequence, _ in ordered):
        raise CheckpointError(
            f"the changelog holds {len(ordered)} checkpoints and none is complete; the state cannot be recovered"
        )
    # Only the very first checkpoint was begun: nothing has been acked on the strength of it.
    return Recovered(stale_keys=list(records))


def _read(found: Mapping[int, _Candidate], sequence: int) -> dict[str, Any] | None:
    """The items of a checkpoint, collected from those that its manifest names; None when one is missing."""
    opened = _open(found.get(sequence))
    if opened is None:
        return None
    manifest, bodies = opened[0]["manifest"], {sequence: opened[1]}
    items: dict[str, Any] = {}
    for key, written in manifest.items():
        if written not in bodies:
            other = _open(found.get(written))
            if other is None:
                return None
            bodies[written] = other[1]
        if key not in bodies[written]:
            return None
        items[key] = bodies[written][key]
    return items


def _open(candidate: _Candidate | None) -> tuple[dict[str, Any], dict[str, Any]] | None:
    blob = candidate.blob() if candidate is not None else None
    if blob is None:
        return None
    size = int.from_bytes(blob[:4], "little")
    return unpack(blob[4 : 4 + size]), unpack(blob[4 + size :])
