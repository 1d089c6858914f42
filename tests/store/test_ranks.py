"""Vocabularies with an order: documents are listed by them as facts are."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict

from cmis_stream.core.errors import ConfigError, Rejected
from cmis_stream.store.database import Database
from cmis_stream.store.documents import Documents
from cmis_stream.store.kinds import FilterType, Kind, Kinds, Manifest
from tests.store.support import ADA, Clock, create

RANKS = ("critical", "high", "low")


class Task(BaseModel):
    model_config = ConfigDict(extra="forbid")
    severity: Literal["critical", "high", "low"] | None = "low"
    number: int = 0


def task(ranks: tuple[str, ...] = RANKS) -> Kind:
    filters: dict[str, FilterType] = {"severity": "text", "number": "number"}
    return Kind("task", Task, filters=filters, sorts=("severity",), ranks={"severity": ranks})


def test_a_list_of_documents_is_in_the_order_of_ranks_the_newest_first_among_equals(database: Database, clock: Clock) -> None:
    documents = Documents(database, Kinds([Manifest("trial", (task(),))]), clock)
    for number in range(12):
        create(documents, "task", number=number, severity=(*RANKS, None)[number % 4])

    def listed(*parameters: tuple[str, str]) -> list[int]:
        found, cursor = list[int](), None
        while True:
            more = [("cursor", cursor)] if cursor else []
            page = documents.list("acme", ADA, "task", [*parameters, ("limit", "5"), *more])
            found += [one.body["number"] for one in page.items]
            cursor = page.next
            if cursor is None:
                return found

    assert listed(("sort", "severity")) == [8, 4, 0, 9, 5, 1, 10, 6, 2, 11, 7, 3]
    assert listed(("sort", "-severity")) == [10, 6, 2, 9, 5, 1, 8, 4, 0, 11, 7, 3]
    assert listed(("sort", "severity,id")) == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert listed(("filter[severity]", "high")) == [9, 5, 1]
    assert listed(("filter[severity][in]", "low,critical"), ("sort", "severity")) == [8, 4, 0, 10, 6, 2]
    assert listed(("filter[severity][ne]", "low")) == [11, 9, 8, 7, 5, 4, 3, 1, 0]


@pytest.mark.parametrize("parameter", [("filter[severity][gt]", "low"), ("filter[severity]", "none")])
def test_what_has_no_rank_and_no_order_cannot_be_asked_for(database: Database, clock: Clock, parameter: tuple[str, str]) -> None:
    documents = Documents(database, Kinds([Manifest("trial", (task(),))]), clock)
    with pytest.raises(Rejected) as caught:
        documents.list("acme", ADA, "task", [parameter])
    assert caught.value.field == parameter[0]


@pytest.mark.parametrize("ranks", [(), ("critical", "high"), (*RANKS, "more"), (*RANKS, "low")])
def test_ranks_are_the_field_s_vocabulary(ranks: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"trial\.task\.severity: expected a Literal"):
        Kinds([Manifest("trial", (task(ranks),))])
