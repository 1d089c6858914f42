"""The numbers of JSON from their text, eight characters at a time and many numbers at once.

A word is a uint64 of eight ASCII characters, the first of them in its lowest byte. What comes out is the double nearest to
the text, as any correct reader of JSON gives it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..core.batch import Int64, UInt64

LONGEST_NUMBER = 16
"""Characters, the dot included: 15 digits and a dot, or an integer of 16 digits."""

Places = npt.NDArray[np.uint8]
Float64 = npt.NDArray[np.float64]


def _word(byte: int) -> np.uint64:
    return np.uint64(byte * 0x0101010101010101)


_ZEROS, _CARRY, _TOP = _word(ord("0")), _word(0x80 - 10), _word(0x80)
_BYTE, _DOT = np.uint64(0xFF), np.uint64(ord(".") ^ ord("0"))
_PAIRS, _UPPER, _LOWER = np.uint64(0x000000FF000000FF), np.uint64(100 + (1_000_000 << 32)), np.uint64(1 + (10_000 << 32))
_NO_DOT = 8
_PARTS = 10.0 ** np.array([7, 6, 5, 4, 3, 2, 1, 0, 0])
"""By the place of the dot in a word: what the digits are to be divided by."""


def doubles(first: UInt64, sizes: Int64, long: list[int], last: UInt64) -> tuple[Float64, set[int]] | None:
    """f columns of n unsigned numbers, float64[f, n], and which columns have dots; None when some text is no such
    number, or one with eight decimals and more than eight characters.

    first [f, n]: the words that begin with the numbers, whatever follows. sizes [f, n]: characters, 1 to LONGEST_NUMBER.
    long: the columns where some exceed eight; last [len(long), n]: the words that these numbers end.
    """
    columns, n = first.shape
    words = np.empty((columns + len(long), n), np.uint64)
    head = np.bitwise_xor(first, _ZEROS, out=words[:columns])
    # The first two characters: a digit from 1 to 9, or a zero that no digit follows. (Behind a number of one character
    # stands something else.)
    leading = head.view(np.uint16)[:, ::4].byteswap()
    leading -= 10
    if leading.max() >= 0x0A00 - 10:
        return None
    # Digits move to the end of their word, those of a long number to the end of two, with zeros before them.
    room = np.subtract(8, sizes)
    for lower, column in enumerate(long, columns):
        spare = _bits(np.maximum(room[column], 0))
        np.left_shift((last[lower - columns] ^ _ZEROS) >> spare, spare, out=words[lower])
        room[column] += 8
    head <<= _bits(room)
    others = _no_digits(words)
    marked = np.flatnonzero(others.max(axis=1)).tolist()
    place: dict[int, Places] = {}
    if marked:
        squeezed = _squeezed(words[marked], others[marked])
        if squeezed is None:
            return None
        words[marked], places = squeezed
        place = dict(zip(marked, places, strict=True))
    values = _values(words)
    for lower, upper in enumerate(long, columns):
        if not _joined(values, upper, lower, place.pop(upper, None), place.pop(lower, None)):
            return None
    # Digits and power of ten are exact, so the quotient is rounded once, as a double is that is read from the text.
    for column, where in place.items():
        values[column] /= _PARTS[where]
    return values[:columns], {long[row - columns] if row >= columns else row for row in marked}


def _joined(values: Float64, upper: int, lower: int, above: Places | None, below: Places | None) -> bool:
    """Makes one number of a row with the upper digits and one with the lower; False when both have a dot."""
    # The products are exact: multiples of 2^7 below 10^16. The sum is rounded once, or exact too when there is a dot: then
    # it has 15 digits at most.
    values[upper] *= 1e8 if below is None else np.where(below < _NO_DOT, 1e7, 1e8)
    values[upper] += values[lower]
    if below is not None:
        values[upper] /= _PARTS[below]
    if above is not None:
        values[upper] /= np.where(above < _NO_DOT, _PARTS[above] * 1e8, 1)
    return above is None or below is None or not ((above < _NO_DOT) & (below < _NO_DOT)).any()


def _bits(characters: Int64) -> UInt64:
    """How far to shift; shifts of 64 and more leave nothing, in numpy."""
    return (characters << 3).view(np.uint64)


def _no_digits(words: UInt64) -> UInt64:
    """0x80 at each byte over 9; all are below 0x80."""
    found = words + _CARRY
    found &= _TOP
    return found


def _values(words: UInt64) -> Float64:
    """The numbers that eight digits spell."""
    pairs = words * np.uint64(10)
    pairs += words >> np.uint64(8)
    odd = pairs >> np.uint64(16)
    odd &= _PAIRS
    odd *= _LOWER
    pairs &= _PAIRS
    pairs *= _UPPER
    pairs += odd
    pairs >>= np.uint64(32)
    return pairs.astype(np.float64)


def _squeezed(words: UInt64, others: UInt64) -> tuple[UInt64, Places] | None:
    """Words of digits without the dot that stood among them, and its place: 0 to 6, or _NO_DOT. None for anything
    else."""
    dot = others >> np.uint64(7)
    before = dot - np.uint64(1)  # all bits below the dot; every bit of a word without one
    place = np.bitwise_count(before)
    place >>= 3
    at_dot = dot * _BYTE
    wrong = words & at_dot
    wrong ^= dot * _DOT
    wrong |= dot & before
    if wrong.any() or (place == 7).any():
        return None
    upper = words & before
    upper <<= np.minimum(dot, 1) << np.uint64(3)
    before |= at_dot
    upper |= words & ~before
    return upper, place
