"""What the lines of a window have in common: the literal text around their values, learnt from the first of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ..core.batch import Int64, UInt64
from .digits import LONGEST_NUMBER
from .events import DEFAULT_CURRENCY, LONGEST_IDENTIFIER
from .leaves import Template

NUMBER_FIELDS = ("ts", "impressions", "clicks", "spend", "conversions", "revenue")
PATH_FIELDS = ("org", "currency", "platform", "account", "campaign", "ad_set", "ad")
LONGEST_LINE = 4096  # of those that teach
LONGEST_LITERAL = 256
BLOCK = 32
"""Bytes that are copied at once. Copies cost the same from 8 to 64 bytes; what is copied in vain costs later."""
BLOCK_WORDS = BLOCK // 8
FEWEST_LINES = 32
"""That are compared at once: each step costs numpy a call."""

_VALUE = re.compile(rb'(?<=":")[^"]*|(?<=": ")[^"]*|(?<=":)[0-9.]+|(?<=": )[0-9.]+')
_TOO_LONG = re.compile(rb'": ?[0-9.]{%d}' % (LONGEST_NUMBER + 1))
_MEMBER = re.compile(rb'( *[{,] *"([a-z_]+)" *: *)("")?')


class Shape:
    """Literals and values take turns. literals[k] stands before the value of fields[k], quotes of strings included; the
    first begins with `end`, that of the line before. Values that have to be constant are part of a literal.
    """

    def __init__(self, org: str | None, fields: list[str], literals: list[bytes], colons: list[int], end: bytes) -> None:
        """colons: how many stand in a line before each value, and at last how many in all; some may be inside strings.
        end: of each line, with the newline."""
        self.org, self.fields, self.literals, self.end = org, fields, literals, end
        self.place = {field: k for k, field in enumerate(fields)}
        self.colons, self.quotes = colons[-1], sum(literal.count(b'"') for literal in literals)
        self.columns = np.array(colons[:-1]) - 1
        """Of the colons in a line, those before the values; a value begins so many bytes behind its colon: `gaps`."""
        self.gaps = np.array([len(literal) - literal.rfind(b":") for literal in literals])[:, np.newaxis]
        self.next_literals = np.roll([len(literal) for literal in literals], -1)[:, np.newaxis]
        """The sizes of the literals behind the values."""
        self.numbers = [k for k, field in enumerate(fields) if field in NUMBER_FIELDS]
        self.shortest = np.array([0 if field in PATH_FIELDS else 1 for field in fields])
        self.longest = np.array([LONGEST_NUMBER if field in NUMBER_FIELDS else LONGEST_IDENTIFIER for field in fields])
        self.layout = lru_cache(4)(lambda widths: Layout(self, widths))


def shape_of(text: memoryview, org: str | None) -> Shape | None:
    """The shape of a text's first line; None when that has other fields than those of `events.PlainEvent`, or values of
    other kinds. org: of the request, hence of each event that names one."""
    line, newline, _ = bytes(text[:LONGEST_LINE]).partition(b"\n")
    if not newline or not line.isascii() or _TOO_LONG.search(line):
        return None  # the next lines will hardly be better
    skeleton = _VALUE.sub(b"", line)
    inside = ()
    if skeleton.count(b":") != line.count(b":"):
        inside = tuple(value.count(b":") for value in _VALUE.findall(line))
    return _shape(skeleton, org, inside)


@lru_cache(512)
def _shape(skeleton: bytes, org: str | None, inside: tuple[int, ...]) -> Shape | None:
    """skeleton: a line without its values. inside: colons in each of these; () for none anywhere."""
    constant = {"type": b"metric"} if org is None else {"type": b"metric", "org": org.encode()}
    fields: list[str] = []
    literals: list[bytes] = []
    colons = [0]
    names: set[str] = set()
    literal, at = b"", 0
    counts = iter(inside)
    while member := _MEMBER.match(skeleton, at):
        before, name, is_text = member[1], member[2].decode(), member[3] is not None
        if name in names or (b"{" in before) != (at == 0):
            return None
        literal += before
        colons[-1] += before.count(b":")
        if name in constant and is_text:
            literal += b'"' + constant[name] + b'"'
        elif is_text and (name == "id" or name in PATH_FIELDS):
            fields.append(name)
            literals.append(literal + b'"')
            colons.append(colons[-1])
            literal = b'"'
        elif not is_text and name in NUMBER_FIELDS:
            fields.append(name)
            literals.append(literal)
            colons.append(colons[-1])
            literal = b""
        else:
            return None
        colons[-1] += next(counts, 0)
        names.add(name)
        at = member.end()
    end = literal + skeleton[at:] + b"\n"
    if not re.fullmatch(b" *}", skeleton[at:]) or not names >= {"id", "platform", "ts"}:
        return None
    literals[0] = end + literals[0]
    return Shape(org, fields, literals, colons, end) if max(map(len, literals)) <= LONGEST_LITERAL else None


class Layout:
    """How the words of lines are copied: in blocks, of which each value takes one or more, with the literal before it.

    Word w of a line is word w % BLOCK_WORDS of its block w // BLOCK_WORDS.
    """

    def __init__(self, shape: Shape, widths: Sequence[int]) -> None:
        """widths: of the values, words; 0 for those that are not needed."""
        values: list[int] = []
        offsets: list[int] = []
        first: dict[str, int] = {}
        row, mask = b"", b""
        for k, (field, literal, width) in enumerate(zip(shape.fields, shape.literals, widths, strict=True)):
            before = -(-len(literal) // 8) * 8
            count = -(-(before + 8 * width) // BLOCK)
            values += [k] * count
            offsets += [BLOCK * block - before for block in range(count)]
            if width:
                first[field] = (len(row) + before) // 8
            row += literal.rjust(before, b"\0").ljust(BLOCK * count, b"\0")
            mask += (b"\xff" * len(literal)).rjust(before, b"\0").ljust(BLOCK * count, b"\0")
        self.values, self.offsets = np.array(values), np.array(offsets)[:, np.newaxis]
        """Of each block: the value that it is near, and how far it begins from it."""
        self._literals = np.frombuffer(row, np.uint64).reshape(-1, BLOCK_WORDS)
        self._mask = np.frombuffer(mask, np.uint64).reshape(-1, BLOCK_WORDS)
        self._numbers = np.divmod([first[shape.fields[k]] for k in shape.numbers], BLOCK_WORDS)

        path_fields = [field for field in PATH_FIELDS if field in first]
        constant = {"org": shape.org or "", "currency": DEFAULT_CURRENCY}
        self.template: Template = tuple(
            widths[shape.place[field]] if field in first else constant.get(field, "").encode() + b'"' for field in PATH_FIELDS
        )
        texts = [(field, word) for field in ("id", *path_fields) for word in range(widths[shape.place[field]])]
        self._id_words = widths[shape.place["id"]]
        self._text_values = np.array([shape.place[field] for field, _ in texts])
        self._text_words = np.divmod([first[field] + word for field, word in texts], BLOCK_WORDS)
        # To the end of each word from the beginning of its text, bits; the quote behind the parts of a path is kept.
        self._text_bits = np.array([8 * (8 * (word + 1) - (field != "id")) for field, word in texts])[:, np.newaxis]

    def has_literals(self, blocks: UInt64) -> bool:
        """blocks [b, n, BLOCK_WORDS], n >= FEWEST_LINES: whether each line has all the literals' bits, and between them
        no others."""
        some, every = _over_lines(np.bitwise_or, blocks), _over_lines(np.bitwise_and, blocks)
        return not (((some ^ self._literals) | (every ^ self._literals)) & self._mask).any()

    def numbers(self, blocks: UInt64) -> UInt64:
        """uint64[numbers, n]: the words that begin with the shape's numbers."""
        block, word = self._numbers
        return blocks.transpose(0, 2, 1)[block, word]

    def texts(self, blocks: UInt64, sizes: Int64) -> tuple[UInt64, UInt64]:
        """Ids and paths, uint64[n, words] each: each text with zeros behind it, and in paths a quote before these.

        sizes [values, n]: of the texts, bytes.
        """
        block, word = self._text_words
        words = blocks.transpose(0, 2, 1)[block, word]
        spare = sizes[self._text_values]
        spare <<= 3
        np.subtract(self._text_bits, spare, out=spare)
        shifts = np.maximum(spare, 0, out=spare).view(np.uint64)
        words <<= shifts
        words >>= shifts
        return np.ascontiguousarray(words[: self._id_words].T), np.ascontiguousarray(words[self._id_words :].T)


def _over_lines(operation: np.ufunc, blocks: UInt64) -> UInt64:
    """operation.reduce(blocks, axis=1) for n >= FEWEST_LINES, many lines at a time."""
    b, n, _ = blocks.shape
    lines = blocks[:, : n // FEWEST_LINES * FEWEST_LINES].reshape(b, -1, FEWEST_LINES * BLOCK_WORDS)
    reduced: UInt64 = operation.reduce(lines, axis=1)
    operation(reduced, blocks[:, -FEWEST_LINES:].reshape(b, -1), out=reduced)  # for the last ones, that were left out
    every: UInt64 = operation.reduce(reduced.reshape(b, FEWEST_LINES, BLOCK_WORDS), axis=1)
    return every
