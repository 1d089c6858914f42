"""Numbers read eight characters at a time are the doubles that Python reads from the same text."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cmis_stream.feeds.digits import LONGEST_NUMBER, doubles

JSON = re.compile(r"(0|[1-9][0-9]*)(\.[0-9]+)?")


def read(columns: list[list[str]], after: str = ",") -> tuple[list[list[float]], set[int]] | None:
    """The texts as they stand in lines: something before each, `after` behind it."""
    key = '"a_long_key":   '
    text = key + "".join(cell + after + key for column in columns for cell in column)
    buffer = text.encode()
    sizes = np.array([[len(cell) for cell in column] for column in columns])
    steps = sizes.ravel() + len(after) + len(key)
    starts = (len(key) + np.cumsum(steps) - steps).reshape(sizes.shape)
    words = np.ndarray(len(buffer) - 7, np.uint64, buffer, 0, (1,))
    long = [i for i, column in enumerate(columns) if max(map(len, column)) > 8]
    found = doubles(words[starts], sizes, long, words[(starts + sizes)[long] - 8])
    return None if found is None else (found[0].tolist(), found[1])


def is_left_out(column: list[str]) -> bool:
    """The one form of valid numbers that is not read."""
    return any(len(cell) > 8 and cell[-9] == "." for cell in column)


cells = st.one_of(
    st.from_regex(r"(0|[1-9][0-9]{0,15})", fullmatch=True),
    st.from_regex(r"(0|[1-9][0-9]{0,7})\.[0-9]{1,7}", fullmatch=True),
    st.from_regex(r"[0-9.]{1,16}", fullmatch=True),
)


@given(st.lists(st.lists(cells, min_size=3, max_size=3), min_size=1, max_size=4), st.sampled_from([",", "}\n", " ", ", "]))
@example([["0.1", "123456789.123456", "9007199254740993"]], ",")
@example([["1234567.12345678", "1", "1"]], ",")
@settings(max_examples=500, deadline=None)
def test_columns_are_read_exactly_or_not_at_all(columns: list[list[str]], after: str) -> None:
    valid = all(JSON.fullmatch(cell) for column in columns for cell in column)
    found = read(columns, after)
    if valid and not any(map(is_left_out, columns)):
        assert found is not None
        assert found[0] == [[float(cell) for cell in column] for column in columns]
        assert found[1] == {i for i, column in enumerate(columns) if any("." in cell for cell in column)}
    else:
        assert found is None


@pytest.mark.parametrize("text", ["1a", "a1", "1/2", "1:2", "12345678a", "a12345678", "1\x7f", "--", "1e5", "-1", "+1", "1-"])
def test_no_other_character_passes_for_a_digit(text: str) -> None:
    assert read([["7", text, "7"]]) is None and read([["7.5", text, "7"]]) is None and read([["1234567890", text, "7"]]) is None


def test_every_byte_but_digits_and_the_dot_is_refused_everywhere() -> None:
    for size in (1, 2, 8, 9, 16):
        for place in range(size):
            for code in range(1, 127):
                text = "1" * place + chr(code) + "1" * (size - place - 1)
                if not JSON.fullmatch(text):
                    assert read([[text, "12.5", "3"]]) is None, text


def test_a_hundred_thousand_decimals_are_each_the_nearest_double() -> None:
    draw = random.Random(5)
    texts = []
    for _ in range(100_000):
        digits = str(draw.randrange(1, 10 ** draw.randint(1, 15))).zfill(2)
        after = draw.randint(1, len(digits) - 1)
        text = f"{int(digits[:-after])}.{digits[-after:]}"
        texts.append(text if len(text) <= LONGEST_NUMBER and not is_left_out([text]) else digits.lstrip("0"))
    found = read([texts])
    assert found is not None and found[0][0] == [float(text) for text in texts]
