"""Where history lies, and what the name of a file says. docs/design/history.md has the rules.

    {root}/{dataset}/org={org}/day={YYYY-MM-DD}/{epoch}.{partition}.{start}-{end}.{kind}.parquet
    {root}/{dataset}/reached/{epoch}.{partition}.{end}.json

A file holds everything that the records start…end-1 of a partition say about an org and a day.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import quote, unquote

import msgspec

from cmis_stream.core.errors import CmisError, Rejected
from cmis_stream.core.time import DAY_MS

EVENTS, ROLLUPS = "events", "rollups"
HOURS, QUARTERS = "hours", "quarters"
_ORG = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_REACHED = "reached"
_LISTINGS = 100
_TEMPORARY_S = 3600.0
"""A temporary file this old belongs to nobody any more."""


class Part(NamedTuple):
    """A file. start, end: offsets of the records that it tells about, end not among them."""

    epoch: str
    partition: int
    start: int
    end: int
    kind: str
    path: str


class Reached(NamedTuple):
    """Everything below offset `end` is in files. source: the newest position in the metrics topic that rollups have told, -1 for
    none. lost: (from, to) offsets that the log had dropped before they were read."""

    end: int
    source: int = -1
    lost: tuple[tuple[int, int], ...] = ()


class Place(NamedTuple):
    """A partition of one log."""

    epoch: str
    partition: int


class Snapshot(NamedTuple):
    """What a reader may use: files by day, of the records below `reached` of each log."""

    days: Mapping[str, Sequence[Part]]
    reached: Mapping[str, Reached]


def day_of(ms: int) -> str:
    """
    >>> day_of(1767225599999), day_of(1767225600000)
    ('2025-12-31', '2026-01-01')
    """
    return datetime.fromtimestamp(ms // DAY_MS * DAY_MS / 1000, UTC).strftime("%Y-%m-%d")


def org_folder(root: Path, dataset: str, org: str) -> Path:
    """Rejected for what is no org's id, so that none leads elsewhere."""
    if not _ORG.fullmatch(org):
        raise Rejected("invalid", "org", org, "a-z, 0-9, - and _, at most 63, beginning with a letter or digit")
    return root / dataset / f"org={org}"


def day_folder(root: Path, dataset: str, org: str, day: str) -> Path:
    return org_folder(root, dataset, org) / f"day={day}"


def part_name(place: Place, start: int, end: int, kind: str) -> str:
    return f"{quote(place.epoch, safe='')}.{place.partition}.{start:016d}-{end:016d}.{kind}.parquet"


def parse_part(folder: Path, name: str) -> Part | None:
    """None: it is none of ours, or not whole yet."""
    pieces = name.rsplit(".", 4)
    if name.startswith(".") or len(pieces) != 5 or pieces[4] != "parquet":
        return None
    start, _, end = pieces[2].partition("-")
    return Part(unquote(pieces[0]), int(pieces[1]), int(start), int(end), pieces[3], str(folder / name))


# --- writing ----------------------------------------------------------------------------------------------------------


def write_durably(folder: Path, name: str, write: Callable[[IO[bytes]], Any], *, replace: bool = False) -> Path:
    """The file is there whole and survives a loss of power, or it is not there. One of this name stays, unless it is to be
    replaced: it says the same, and somebody may be reading it, some of it before and some of it after."""
    _make_folder(folder)
    path, temporary = folder / name, folder / f".{name}.{secrets.token_hex(4)}.tmp"
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(folder)
    return path


def _make_folder(folder: Path) -> None:
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in reversed(missing):
        _sync(place.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_reached(root: Path, dataset: str, place: Place, reached: Reached) -> None:
    """To be called when everything below is durable, by whoever wrote it: one who has lost the partition says the truth, too."""
    folder = root / dataset / _REACHED
    name = f"{quote(place.epoch, safe='')}.{place.partition}.{reached.end:016d}.json"
    write_durably(folder, name, lambda file: file.write(msgspec.json.encode(reached)))
    older = sorted(path for own, _, path in _reached_files(folder, [name]) if own == place)
    for path in older[:-1]:  # the newest but one stays for those who are just listing
        (folder / path).unlink(missing_ok=True)


def remove(parts: Iterable[Part]) -> None:
    for part in parts:
        Path(part.path).unlink(missing_ok=True)


def clear_temporary(folder: Path, now_s: float) -> None:
    """Deletes what killed writers have left half written. now_s: epoch seconds."""
    for name in _names(folder):
        path = folder / name
        if name.startswith(".") and name.endswith(".tmp") and path.exists() and now_s - path.stat().st_mtime > _TEMPORARY_S:
            path.unlink(missing_ok=True)


# --- reading ----------------------------------------------------------------------------------------------------------


def read_reached(root: Path, dataset: str, place: Place) -> Reached:
    """How far history is; Reached(0) when it has not begun."""
    return read_all_reached(root, dataset, place.partition).get(place.epoch, Reached(0))


def read_all_reached(root: Path, dataset: str, partition: int) -> dict[str, Reached]:
    """Epoch -> how far."""
    for _ in range(_LISTINGS):
        folder, newest = root / dataset / _REACHED, dict[str, tuple[int, str]]()
        for place, end, name in _reached_files(folder, ()):
            if place.partition == partition:
                newest[place.epoch] = max(newest.get(place.epoch, (-1, "")), (end, name))
        try:
            return {epoch: msgspec.json.decode((folder / name).read_bytes(), type=Reached) for epoch, (_, name) in newest.items()}
        except FileNotFoundError:
            continue
    raise CmisError(f"{root / dataset / _REACHED} changes faster than it can be read")


def _reached_files(folder: Path, without: Sequence[str]) -> Iterator[tuple[Place, int, str]]:
    for name in listed(folder):
        pieces = name.rsplit(".", 3)
        if not name.startswith(".") and len(pieces) == 4 and pieces[3] == "json" and name not in without:
            yield Place(unquote(pieces[0]), int(pieces[1])), int(pieces[2]), name


def listed(folder: Path) -> list[str]:
    """The names in a folder at one moment, [] when it is not there. While a file replaces others, one listing may miss both; two
    equal listings in a row do not."""
    before = _names(folder)
    for _ in range(_LISTINGS):
        now = _names(folder)
        if now == before:
            return now
        before = now
    raise CmisError(f"{folder} changes faster than it can be listed")


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def days_of(root: Path, dataset: str, org: str) -> list[str]:
    """Days of an org that have a folder, oldest first."""
    return [name.removeprefix("day=") for name in _names(org_folder(root, dataset, org)) if name.startswith("day=")]


def orgs_of(root: Path, dataset: str) -> list[str]:
    return [name.removeprefix("org=") for name in _names(root / dataset) if name.startswith("org=")]


def snapshot(root: Path, dataset: str, org: str, partition: int, first_day: str, last_day: str) -> Snapshot:
    """The org's files of these days, both included, that tell of records below `reached`."""
    for _ in range(_LISTINGS):
        reached = read_all_reached(root, dataset, partition)
        days = [day for day in days_of(root, dataset, org) if first_day <= day <= last_day]  # after `reached`: none is missing
        found: dict[str, list[Part]] = {}
        ahead = False
        for day in days:
            folder = day_folder(root, dataset, org, day)
            parts = [part for name in listed(folder) if (part := parse_part(folder, name)) is not None]
            usable = [part for part in parts if part.end <= reached.get(part.epoch, _NOTHING).end]
            # A merged file may have replaced some that we are to see: then `reached` has moved.
            ahead = ahead or len(usable) < len(parts)
            if usable:
                found[day] = usable
        if not ahead or reached == read_all_reached(root, dataset, partition):
            return Snapshot(found, reached)
    raise CmisError(f"{root / dataset} changes faster than it can be listed")


_NOTHING = Reached(0)


def cover(parts: Iterable[Part]) -> Iterator[tuple[Part, int]]:
    """Files of one kind, epoch, partition, org and day that tell everything once: each with the offset from which it counts.

    >>> [(p.start, p.end, at) for p, at in cover(Part("e", 0, a, b, "events", "") for a, b in [(0, 4), (0, 9), (4, 9), (7, 12)])]
    [(0, 9, 0), (7, 12, 9)]
    """
    covered = 0
    for part in sorted(parts, key=lambda part: (part.start, -part.end)):
        if part.end > covered:
            yield part, max(covered, part.start)
            covered = part.end


def start_of(day: str) -> int:
    """Epoch ms.

    >>> start_of("2026-01-01")
    1767225600000
    """
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * 1000
