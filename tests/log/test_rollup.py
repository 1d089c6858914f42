"""The records of cmis.rollups.v1."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmis_stream.core.errors import Rejected
from cmis_stream.core.rollups import Rollup
from cmis_stream.log.codec import pack
from cmis_stream.log.rollup import decode, encode

SOURCE = ("cmis.metrics.v1", 3, 77)
_rows = st.lists(
    st.tuples(
        st.integers(0, 4), st.sampled_from([10_000, 60_000, 900_000, 3_600_000]), st.integers(0, 700_000), st.booleans(),
        st.tuples(*[st.integers(-(2**62), 2**62)] * 6),
    ),
    min_size=1, max_size=20,
)  # fmt: skip


def made(rows: list[tuple[int, int, int, bool, tuple[int, ...]]]) -> Rollup:
    entity, size, start, closed, sums = zip(*rows, strict=True)
    return Rollup(
        orgs=["acme", "beta"], bounds=[0, 1, len(rows)], keys=["USD", "USD/meta", "EUR/x%2Fy", "USD#v", "USD/meta//c"],
        entity=np.array(entity, np.int32), start_ms=np.array(start, np.int64) * 10_000, pane_ms=np.array(size, np.int64),
        closed=np.array(closed, bool), sums=np.array(sums, np.int64).T.copy(),
    )  # fmt: skip


@given(_rows)
@settings(max_examples=50, deadline=None, derandomize=True, database=None)
def test_a_rollup_comes_back_as_it_was(rows: list[tuple[int, int, int, bool, tuple[int, ...]]]) -> None:
    rollup = made(rows)
    told = decode(encode(SOURCE, 1_767_225_600_123, rollup))
    again = told.rollup
    assert (told.source, told.stamp_ms, told.orgs, told.bounds) == (SOURCE, 1_767_225_600_123, rollup.orgs, rollup.bounds)
    assert (again.orgs, again.bounds, again.keys) == (rollup.orgs, rollup.bounds, rollup.keys)
    for name in ("entity", "start_ms", "pane_ms", "closed", "sums"):
        assert getattr(again, name).tolist() == getattr(rollup, name).tolist()
        assert getattr(again, name).dtype == getattr(rollup, name).dtype


def test_a_rollup_of_small_figures_is_small() -> None:
    rollup = made([(i % 5, 10_000, i, False, (3, 200, 5, 1_000_000, 0, 0)) for i in range(1000)])
    assert len(encode(SOURCE, 0, rollup)) < 15_000


@pytest.mark.parametrize("data", [b"", b"{}", b"\xc1", pack([1]), pack({"v": 1}), pack({"v": 1, "source": 3, "t": 0})])
def test_what_is_no_rollup_is_refused(data: bytes) -> None:
    with pytest.raises(Rejected) as refused:
        decode(data)
    assert refused.value.code == "malformed"


def test_a_rollup_of_another_version_is_refused_as_such() -> None:
    with pytest.raises(Rejected) as refused:
        decode(pack({"v": 2}))
    assert refused.value.code == "unsupported"
