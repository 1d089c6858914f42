"""What a record of a results topic means for the channels."""

from __future__ import annotations

import json

import pytest

from cmis_stream.backplane.contract import Publication
from cmis_stream.core.errors import Rejected
from cmis_stream.live.results import read_result
from cmis_stream.log.owner import ROLLUPS, TRANSITIONS
from tests.live.support import ACME, FIGURES, INCIDENTS, METRICS, NOW, figures, line, transitions


def items(publication: Publication) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(publication.data())["items"]
    return found


def test_a_record_is_a_publication_for_each_org_that_it_concerns() -> None:
    result = read_result(TRANSITIONS, 9, transitions(4, line(4), line(4, 1, org="globex"), line(4, 2, campaign="d")))
    assert result.source == (METRICS, ACME, 4)
    assert {channel: [i["campaign"] for i in items(p)] for channel, p in result.publications.items()} == {
        INCIDENTS: ["c", "d"],
        "org:globex:incidents": ["c"],
    }
    assert {publication.offset for publication in result.publications.values()} == {9}
    assert [one["id"] for one in result.lines] == [f"{METRICS}/{ACME}/4/{n}" for n in range(3)]


def test_an_incident_s_item_says_what_its_transition_says() -> None:
    opened = line(4)
    (item,) = items(
        read_result(TRANSITIONS, 9, transitions(7, line(7, state="resolved", opened=opened["id"]))).publications[INCIDENTS]
    )
    assert item == {
        "id": opened["incident"], "key": opened["key"], "entity": "USD/meta//c", "rule": "r", "severity": "high",
        "level": "campaign", "currency": "USD", "platform": "meta", "account": "", "campaign": "c", "ad_set": "", "ad": "",
        "state": "resolved", "at": NOW + 7000, "value": 2.5, "window": "5m", "sums": [1, 2, 3, 4, 5, 6], "events": ["e7"],
        "version": 2,
    }  # fmt: skip
    (publication,) = read_result(TRANSITIONS, 9, transitions(4)).publications.values()
    assert [(one.entity, one.key) for one in publication.items] == [("USD/meta//c", opened["incident"])]
    assert items(publication)[0]["version"] == 1


def test_the_figures_of_an_org_are_its_own_rows_of_a_rollup() -> None:
    result = read_result(ROLLUPS, 3, figures(4, acme=7, globex=9))
    assert result.source == (METRICS, ACME, 4) and not result.lines
    assert {channel: items(p) for channel, p in result.publications.items()} == {
        channel: [{"entity": "USD", "at": NOW, "pane_ms": 10_000, "closed": False, "sums": [events, 0, 0, 0, 0, 0]}]
        for channel, events in ((FIGURES, 7), ("org:globex:metrics", 9))
    }
    publication = result.publications[FIGURES]
    assert len(publication.items) == 1 and publication.items[0].key == f"USD {NOW} 10000"
    assert [item.entity for item in publication.by_entity["USD"]] == ["USD"]


def test_the_size_of_figures_is_known_about_before_anybody_wants_them() -> None:
    publication = read_result(ROLLUPS, 3, figures(4, **{f"o{n}": 1 for n in range(1)})).publications["org:o0:metrics"]
    assert publication.size is not None
    assert len(publication.data()) / 2 < publication.size < 2 * len(publication.data())


def test_an_org_that_no_channel_can_name_has_none_and_the_others_have_theirs() -> None:
    """A foreign producer may write events of any org."""
    told = read_result(TRANSITIONS, 9, transitions(4, line(4, org="a:b"), line(4, 1)))
    assert list(told.publications) == [INCIDENTS] and len(told.lines) == 2
    assert list(read_result(ROLLUPS, 9, figures(4, **{"a:b": 1, "acme": 2, "": 3})).publications) == [FIGURES]


@pytest.mark.parametrize("topic", [TRANSITIONS, ROLLUPS])
@pytest.mark.parametrize("value", [b"", b"{}", b"\xc1"])
def test_what_is_no_result_is_an_error(topic: str, value: bytes) -> None:
    with pytest.raises((Rejected, ValueError, KeyError)):
        read_result(topic, 0, value)
