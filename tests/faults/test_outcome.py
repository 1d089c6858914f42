"""The count of the fault suite: what is missing and what is there twice is seen, in numbers and in sums."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.faults import __main__ as suite
from tests.faults.outcome import Outcome, Tally
from tests.faults.scenarios import SCENARIOS


def test_what_is_missing_is_lost_and_what_is_there_twice_or_unexpected_is_doubled() -> None:
    assert Tally.of(Counter("abb"), Counter("abb")) == Tally(3, 3, 0, 0)
    assert Tally.of(Counter("abb"), Counter("abcc")) == Tally(3, 4, 1, 2)


def test_events_are_counted_by_cell_so_that_one_lost_and_one_doubled_elsewhere_do_not_cancel_out() -> None:
    assert Tally.of_sums({"a": (2, 10), "b": (3, 30)}, {"a": (1, 5), "b": (4, 40)}) == Tally(5, 5, 1, 1)
    assert Tally.of_sums({"a": (2, 10)}, {"b": (1, 1)}) == Tally(2, 1, 2, 1)


def test_the_right_number_with_another_sum_is_not_right() -> None:
    assert Tally.of_sums({"a": (2, 10)}, {"a": (2, 11)}) == Tally(2, 2, 1, 1)


def test_a_table_keeps_the_rows_of_faults_that_were_not_played_in_the_order_of_the_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "reliability.md"
    page.write_text(f"before\n{suite.BEGIN}\n{suite.END}\nafter\n")
    monkeypatch.setattr(suite, "PAGE", page)
    good = Tally(5, 5, 0, 0)
    first, last = SCENARIOS[0].name, SCENARIOS[-1].name
    suite.write_table([Outcome(last, good, good, good, None, 1.0)])
    suite.write_table([Outcome(first, good, Tally(5, 4, 1, 0), good, 2.25, 1.0)])
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert rows == [
        f"| {first} | 5 | 5 | 5 | 4 | 5 | 5 | 1 | 0 | 2.2 |",
        f"| {last} | 5 | 5 | 5 | 5 | 5 | 5 | 0 | 0 | – |",
    ]
