"""Windows of lines that differ in nothing but their values, as programs write them: columns straight from the bytes.

The first line teaches the `Shape`: the literal text around the values. Each line is then held against it, all lines at
once: positions come from the colons, every literal is compared byte by byte, a string must hold no quote, backslash or
control character, a number nothing but digits and a dot. So each byte is accounted for, and what is taken is JSON with
exactly the meaning that the other readings give it. Anything else, and any event that they would refuse, is theirs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.batch import Int64, UInt64
from .digits import doubles
from .leaves import KnownLeaves, Leaves
from .shapes import BLOCK, BLOCK_WORDS, FEWEST_LINES, NUMBER_FIELDS, PATH_FIELDS, Layout, Shape, shape_of

FEWEST_BYTES = 75_000
"""About 320 events of the flat format: below these, the fixed cost of two hundred operations on arrays is more than they
save."""

_PRINTABLE = re.compile(r"[ !#-\[\]-~]{1,200}")
_MARGIN = bytes(1024)  # before and behind the text, so that no block reaches out of the buffer
_BLOCK_TYPE = np.dtype((np.void, BLOCK))
_NEWLINE, _COLON, _DEL = ord("\n"), ord(":"), 127
_WHOLE_FIELDS = frozenset({"ts", "impressions", "clicks"})

_known = KnownLeaves()


@dataclass(frozen=True, slots=True)
class Rows:
    """n events. table: float64[n, 6], see `columns.Numbers`. ids: bytes of ASCII [n]. leaf [n]: index into
    `leaves.paths`."""

    table: npt.NDArray[np.float64]
    ids: npt.NDArray[np.bytes_]
    leaf: Int64
    leaves: Leaves

    def id_texts(self) -> list[str]:
        # Bytes to UCS-4 by hand: a quarter of the time of decoding each.
        size = self.ids.itemsize
        texts: list[str] = self.ids.view(np.uint8).astype(np.uint32).view(f"U{size}").tolist()
        return texts


def read_uniform(text: memoryview, *, org: str | None, leaf_level: str) -> Rows | None:
    """A window of whole lines; None when they are not uniform or an event breaks a rule (except those about the size of
    numbers, which are not looked at). org, leaf_level: as in `decode.decode_ndjson`."""
    if len(text) < FEWEST_BYTES or sys.byteorder != "little" or not (org is None or _PRINTABLE.fullmatch(org)):
        return None
    shape = shape_of(text, org)
    lines = None if shape is None else _lines(text, shape)
    if lines is None or not lines.are_hierarchies():
        return None
    layout = lines.layout(PATH_FIELDS[:5] if leaf_level == "campaign" else PATH_FIELDS)
    blocks = lines.blocks(layout)
    table = lines.table(layout, blocks) if layout.has_literals(blocks) else None
    if table is None:
        return None
    ids, paths = layout.texts(blocks, lines.sizes)
    found = _known.numbers(layout.template, paths)
    if found is None:
        return None
    leaves, leaf = found
    return Rows(table, ids.view(f"S{8 * ids.shape[1]}").ravel(), leaf, leaves)


@dataclass(frozen=True, slots=True)
class _Lines:
    """n lines with k values each, which begin at starts[k, n] in the buffer and have sizes[k, n] bytes."""

    shape: Shape
    buffer: bytes
    starts: Int64
    sizes: Int64
    shortest: list[int]
    longest: list[int]

    def are_hierarchies(self) -> bool:
        """Whether each event has a campaign or an account, and no level without the one above it."""
        place = self.shape.place
        if all(field in place and self.shortest[place[field]] for field in ("campaign", "ad_set", "ad")):
            return True
        account, campaign, ad_set, ad = (
            self.sizes[place[field]] > 0 if field in place else np.False_ for field in ("account", "campaign", "ad_set", "ad")
        )
        return not np.any((ad & ~ad_set) | (ad_set & ~campaign) | ~(campaign | account))

    def layout(self, path_fields: Sequence[str]) -> Layout:
        """With room for the longest values, and none for those that are not needed."""
        widths = []
        for field, longest in zip(self.shape.fields, self.longest, strict=True):
            if field in NUMBER_FIELDS:
                widths.append(1)
            elif field == "id" or field in path_fields:
                # Words for the text and a quote, in few different widths: known leaves are kept by these.
                widths.append(max(2, 1 << (longest // 8).bit_length()))
            else:
                widths.append(0)
        return self.shape.layout(tuple(widths))

    def blocks(self, layout: Layout) -> UInt64:
        """uint64[b, n, BLOCK_WORDS]: of each literal all, of each value the first words, with whatever stands behind it."""
        blocks = np.ndarray(len(self.buffer) - BLOCK, _BLOCK_TYPE, self.buffer, 0, (1,))
        places = self.starts[layout.values]
        places += layout.offsets
        copied: UInt64 = blocks[places].view(np.uint64)
        return copied.reshape(*places.shape, BLOCK_WORDS)

    def table(self, layout: Layout, blocks: UInt64) -> npt.NDArray[np.float64] | None:
        """float64[n, 6]; None when a number is not written in digits and a dot, or is too long."""
        shape, numbers = self.shape, self.shape.numbers
        sizes = self.sizes[numbers]
        long = [row for row, k in enumerate(numbers) if self.longest[k] > 8]
        last = np.empty((len(long), sizes.shape[1]), np.uint64)
        words = np.ndarray(len(self.buffer) - 8, np.uint64, self.buffer, 0, (1,))
        for lower, row in enumerate(long):
            last[lower] = words[self.starts[numbers[row]] + sizes[row] - 8]
        read = doubles(layout.numbers(blocks), sizes, long, last)
        if read is None:
            return None
        values, dotted = read
        table = np.zeros((len(NUMBER_FIELDS), sizes.shape[1]))
        for row, k in enumerate(numbers):
            if row in dotted and shape.fields[k] in _WHOLE_FIELDS:
                return None
            table[NUMBER_FIELDS.index(shape.fields[k])] = values[row]
        return table.T


def _lines(text: memoryview, shape: Shape) -> _Lines | None:
    """Where the values are, judged by the colons; None when the number of signs differs from line to line.

    After this and the comparison of literals, no quote and no control character is left for the values to hold.
    """
    before = _MARGIN + shape.end
    buffer = b"".join((before, text, b"" if text[-1] == _NEWLINE else b"\n", _MARGIN))
    stop = len(buffer) - len(_MARGIN)
    data = np.frombuffer(buffer, np.uint8, stop - len(before), len(before))
    colons = np.flatnonzero(data == _COLON)
    n, rest = divmod(len(colons), shape.colons)
    if rest or n < FEWEST_LINES or data.max() >= _DEL or b"\\" in buffer or not buffer.endswith(shape.end + _MARGIN):
        return None
    # Control characters and quotes at once: 34 ^ 2 is 32, while 32 and 33 become more.
    signs = data ^ np.uint8(2)
    signs = np.less(signs, 33, out=signs.view(np.bool_))
    if np.count_nonzero(signs) != n * (shape.quotes + 1):
        return None
    starts = colons.reshape(n, -1).T[shape.columns]
    starts += shape.gaps + len(before)
    sizes = np.empty_like(starts)
    sizes[:-1] = starts[1:]
    sizes[-1, :-1] = starts[0, 1:]
    sizes[-1, -1] = stop - len(shape.end) + len(shape.literals[0])  # as if another line followed
    sizes -= starts
    sizes -= shape.next_literals
    shortest, longest = sizes.min(axis=1), sizes.max(axis=1)
    if (shortest < shape.shortest).any() or (longest > shape.longest).any():
        return None
    return _Lines(shape, buffer, starts, sizes, shortest.tolist(), longest.tolist())
