"""Ids of facts."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from cmis_stream.core.ids import fact_id, incident_key, moment_of
from tests.core.support import examples

_moments = st.integers(0, 7_258_118_400_000)


@given(_moments, st.text(max_size=20))
@examples(50)
def test_a_fact_s_id_is_a_uuid_of_version_7_that_remembers_its_moment(at_ms: int, name: str) -> None:
    made = UUID(fact_id(at_ms, name))
    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    assert moment_of(str(made)) == at_ms
    assert fact_id(at_ms, name) == str(made)


@given(st.lists(_moments, min_size=2, max_size=5))
@examples(30)
def test_ids_sort_by_their_moments(moments: list[int]) -> None:
    ids = sorted(fact_id(at_ms, f"name {i}") for i, at_ms in enumerate(moments))
    assert [moment_of(made) for made in ids] == sorted(moments)


def test_other_names_give_other_ids() -> None:
    assert len({fact_id(1, f"t/0/{offset}/0") for offset in range(10_000)}) == 10_000


def test_an_incident_s_key_is_of_org_rule_level_and_path() -> None:
    given = ("acme", "r", "campaign", ["USD", "meta", "", "c", "", ""])
    others = [
        ("beta", *given[1:]),
        ("acme", "s", *given[2:]),
        ("acme", "r", "ad", given[3]),
        ("acme", "r", "campaign", ["USD", "meta", "c", "", "", ""]),
    ]
    keys = [incident_key(*one) for one in (given, *others)]
    assert len(set(keys)) == 5 and {len(key) for key in keys} == {16}
