"""Leaf paths by their text in the lines: each is made and judged once, then found again by arrays.

A process sees the same entities again and again, so this is kept from request to request, up to a limit of memory.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from ..core.batch import PATH_SEPARATOR, Int64, UInt64
from .events import CURRENCY, PLATFORMS

LARGEST_MEMORY = 64 << 20
"""Bytes of all tables together, about: some 130,000 ads. Beyond it all are begun anew."""
Template = tuple[int | bytes, ...]
"""The seven parts of paths: the words that a part takes in a row, or what stands there in every line, with its quote."""

_TO_PATH = bytes.maketrans(b'"', PATH_SEPARATOR.encode())
_HALF = np.uint64(32)
_GUESSES_PER_ROW = 8


class Leaves:
    """Paths of one template, numbered from 0.

    A path's row is uint64[width]: its variable parts as they stand in the lines, each with its closing quote and then
    zero bytes.
    """

    def __init__(self, template: Template) -> None:
        self.paths: list[str] = []
        self._template = template
        self._width = sum(part for part in template if isinstance(part, int))
        self._numbers: dict[str, int] = {}
        self._rows: UInt64 = np.zeros((64, self._width), np.uint64)
        # The number to be tried first, by hash. Where hashes collide the last path's number stands; the others are found by
        # their bytes.
        self._displaced: dict[bytes, int] = {}
        self._guesses: npt.NDArray[np.int32] = np.zeros(_GUESSES_PER_ROW * len(self._rows), np.int32)
        self._factors = np.random.default_rng().integers(1 << 63, size=self._width, dtype=np.uint64) | np.uint64(1)

    @property
    def memory(self) -> int:
        """Bytes, about."""
        objects = (len(self.paths) + len(self._displaced)) * (150 + 8 * self._width)
        return self._rows.nbytes + self._guesses.nbytes + objects

    def numbers(self, rows: UInt64) -> Int64 | None:
        """The number of each row's path, new ones included; None when a path breaks a rule."""
        found = self._guesses.take(self._places(rows)).astype(np.int64)
        wrong = self._records(self._rows)[found].view(np.uint64).reshape(rows.shape) != rows
        if wrong.any():
            missed = np.flatnonzero(wrong) // self._width
            missed = missed[np.append(True, missed[1:] != missed[:-1])]
            rest = rows[missed]
            keys: list[bytes] = self._records(rest).tolist()
            numbers = [self._displaced.get(key, -1) for key in keys]
            if -1 in numbers:
                looked_up = self._looked_up(keys, rest)
                if looked_up is None:
                    return None
                numbers = looked_up
            found[missed] = numbers
        return found

    def _looked_up(self, keys: list[bytes], rows: UInt64) -> list[int] | None:
        """By the paths themselves, for those that are new and those that were displaced since they were seen last."""
        paths, known = self._paths_of(rows), self._numbers
        new = [path for path in dict.fromkeys(paths) if path not in known]
        if not all(map(_is_sound, {tuple(path.split(PATH_SEPARATOR, 3)[:3]) for path in new})):
            return None
        self._displaced.update((key, known[path]) for key, path in zip(keys, paths, strict=True) if path in known)
        known.update(zip(new, range(len(known), len(known) + len(new)), strict=True))
        self.paths += new
        numbers = [known[path] for path in paths]
        if len(known) > len(self._rows):
            self._grow(len(known))
        self._rows[numbers] = rows
        self._guesses[self._places(rows)] = numbers
        return numbers

    def _grow(self, paths: int) -> None:
        rows, size = self._rows, len(self._rows)
        while size < paths:
            size *= 2
        self._rows = np.zeros((size, self._width), np.uint64)
        self._rows[: len(rows)] = rows
        self._guesses = np.zeros(_GUESSES_PER_ROW * size, np.int32)
        self._guesses[self._places(rows)] = np.arange(len(rows))

    def _places(self, rows: UInt64) -> Int64:
        hashed = (rows ^ (rows >> _HALF)) @ self._factors
        hashed >>= np.uint64(65 - len(self._guesses).bit_length())
        places: Int64 = hashed.view(np.int64)
        return places

    def _records(self, rows: UInt64) -> npt.NDArray[np.void]:
        """Each row as one item, which numpy copies faster than its words."""
        return rows.view(f"V{8 * self._width}").ravel()

    def _paths_of(self, rows: UInt64) -> list[str]:
        words: list[UInt64] = []
        at = 0
        for part in (*self._template, b"\n"):
            if isinstance(part, int):
                words.append(rows[:, at : at + part])
                at += part
            else:
                constant = np.frombuffer(part.ljust(-(-len(part) // 8) * 8, b"\0"), np.uint64)
                words.append(np.broadcast_to(constant, (len(rows), len(constant))))
        return np.hstack(words).tobytes().translate(_TO_PATH, b"\0").decode("ascii").split("\n")[:-1]


def _is_sound(begin: tuple[str, ...]) -> bool:
    """Of what concerns one part alone; the lines' reader looks at which parts there are."""
    org, currency, platform = begin
    return org != "" and platform in PLATFORMS and CURRENCY.fullmatch(currency) is not None


class KnownLeaves:
    """Tables of leaves by template, for requests in several threads."""

    def __init__(self, largest_memory: int = LARGEST_MEMORY) -> None:
        self._largest_memory = largest_memory
        self._memory = 0
        self._tables: dict[Template, Leaves] = {}
        self._lock = threading.Lock()

    def numbers(self, template: Template, rows: UInt64) -> tuple[Leaves, Int64] | None:
        """The table, which stays valid for who holds it, and each row's number in it; None when a path breaks a rule."""
        with self._lock:
            if self._memory > self._largest_memory:
                self._tables.clear()
                self._memory = 0
            leaves = self._tables.get(template)
            before = leaves.memory if leaves else 0
            if leaves is None:
                leaves = self._tables[template] = Leaves(template)
            found = leaves.numbers(rows)
            self._memory += leaves.memory - before
        return None if found is None else (leaves, found)
