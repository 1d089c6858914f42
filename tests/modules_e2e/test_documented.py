"""docs/modules.md says what everything is that a module can declare."""

from __future__ import annotations

import re

import pytest

from cmis_stream.modules.discovery import GROUP
from cmis_stream.runtime import AGENTS
from cmis_stream.store.decisions import RemoveSchedule, Rule, SetSchedule, StartJob
from cmis_stream.store.fact_kinds import FactKind
from cmis_stream.store.kinds import BUILT_IN_EFFECTS, Kind, Manifest
from tests.e2e.support import ROOT

DOC = (ROOT / "docs" / "modules.md").read_text()


def table(heading: str) -> str:
    """The rows below a heading of a table."""
    found = re.search(rf"^\| {re.escape(heading)} \|.*\n((?:\|.*\n)+)", DOC, re.MULTILINE)
    assert found is not None, heading
    return found[1]


@pytest.mark.parametrize(
    ("heading", "fields"),
    [
        ("of a `Manifest`", Manifest.__dataclass_fields__), ("of a `Kind`", Kind.__dataclass_fields__),
        ("of a `FactKind`", FactKind.__dataclass_fields__), ("of a `Rule`", Rule._fields),
    ],
)  # fmt: skip
def test_every_field_is_explained_and_none_that_is_not_there(heading: str, fields: tuple[str, ...]) -> None:
    first_cells = " ".join(row.split(" | ")[0] for row in table(heading).splitlines())
    assert set(re.findall(r"`(\w+)`", first_cells)) == set(fields)


def test_effects_and_groups_of_entry_points_are_named() -> None:
    effects = table("effect")
    for name in (
        *(f'Effect("{one}"' for one in BUILT_IN_EFFECTS),
        *(f"{one.__name__}(" for one in (StartJob, SetSchedule, RemoveSchedule)),
    ):
        assert name in effects
    groups = [f"`{GROUP}`", f"`{AGENTS}`", "`cmis_stream.topics`"]
    assert all(group in DOC for group in groups)
