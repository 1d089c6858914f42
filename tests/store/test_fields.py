"""Moments in documents: kept as epoch ms, shown in RFC 3339, wherever a model has them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from cmis_stream.core.time import LATEST_MS, rfc3339
from cmis_stream.store.fields import Time, in_rest, times_of


class Leaf(BaseModel):
    at: Time | None = None
    count: int = 0


class Other(BaseModel):
    since: Time


class Tree(BaseModel):
    at: Time
    leaf: Leaf | Other | None = None
    leaves: list[Leaf] = []
    named: dict[str, Leaf] = {}
    times: dict[str, list[Time]] = {}
    below: list[Tree] = []
    anything: dict[str, Any] = {}


def test_moments_are_found_in_objects_lists_unions_and_within_themselves() -> None:
    kept = {
        "at": 0, "leaf": {"since": 1}, "leaves": [{"at": 2, "count": 3}, {"at": None}], "named": {"at": {"at": 4, "count": 5}},
        "times": {"at": [6]}, "below": [{"at": 7, "below": [{"at": 8}]}], "anything": {"at": 9},
    }  # fmt: skip
    assert in_rest(kept, times_of(Tree)) == {
        "at": rfc3339(0), "leaf": {"since": rfc3339(1)}, "leaves": [{"at": rfc3339(2), "count": 3}, {"at": None}],
        "named": {"at": {"at": rfc3339(4), "count": 5}}, "times": {"at": [rfc3339(6)]},
        "below": [{"at": rfc3339(7), "below": [{"at": rfc3339(8)}]}], "anything": {"at": 9},
    }  # fmt: skip


@given(st.integers(0, LATEST_MS))
def test_a_moment_that_is_shown_is_the_one_that_is_read(ms: int) -> None:
    shown = in_rest({"since": ms}, times_of(Other))
    assert Other.model_validate(shown).since == Other.model_validate({"since": ms}).since == ms


@pytest.mark.parametrize("wrong", [-1, LATEST_MS + 1, 1.0, True, "", "2026-01-01", "2026-01-01T00:00:00", "1767225600000", None])
def test_what_is_no_moment_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError):
        Other.model_validate({"since": wrong})
