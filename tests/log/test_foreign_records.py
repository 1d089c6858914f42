"""Records that look like ours and are not: refused when they are read, wherever the mistake is."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import orjson
import pytest

from cmis_stream.core.errors import Rejected
from cmis_stream.core.rollups import Rollup
from cmis_stream.log import envelope, rollup, transitions
from cmis_stream.log.catalog import RULES, read_catalog
from cmis_stream.log.codec import pack, unpack
from cmis_stream.log.envelope import RuleSet, Tick
from tests.log.support import NOW, events

LINE: dict[str, Any] = {
    "incident": "019b76da-a800-71d6-a2ec-7216849ac021", "key": "496e9d647d06eee1", "org": "acme", "rule": "r", "severity": "high",
    "level": "campaign", "currency": "USD", "platform": "meta", "account": "", "campaign": "c", "ad_set": "", "ad": "",
    "at": NOW, "state": "firing", "value": 1.5, "window": "5m", "events": ["e1"],
    "sums": {"events": 1, "impressions": 2, "clicks": 3, "spend": 4, "conversions": 5, "revenue": 6},
}  # fmt: skip
BODY = {"source": ["cmis.metrics.v1", 0, 7], "stamp": NOW, "transitions": [LINE]}
WRONG: list[Any] = [None, 7, -1, 2**63, "x", [], {}, [None], ["x", 1], True]


def test_a_transition_record_of_ours_is_read() -> None:
    assert transitions.decode(orjson.dumps(BODY)) == (("cmis.metrics.v1", 0, 7), [LINE])


@pytest.mark.parametrize(
    "value", [b"", b"null", b"[]", b"{}", b"[" * 100_000, b"\xff", b'{"source": ["a", 0], "transitions": []}']
)
def test_what_is_no_transition_record_is_refused(value: bytes) -> None:
    with pytest.raises(Rejected):
        transitions.decode(value)


@pytest.mark.parametrize("field", [name for name in LINE if name != "events"])
def test_a_transition_without_one_of_its_fields_is_refused(field: str) -> None:
    line = {name: value for name, value in LINE.items() if name != field}
    with pytest.raises(Rejected):
        transitions.decode(orjson.dumps({**BODY, "transitions": [line]}))


def test_an_incident_that_is_no_id_is_refused() -> None:
    with pytest.raises(Rejected):
        transitions.decode(orjson.dumps({**BODY, "transitions": [{**LINE, "incident": "x"}]}))


RULE_SET = unpack(envelope.encode(RuleSet(NOW, "acme", 1, [], "pane")))
TICK = unpack(envelope.encode(Tick(NOW, NOW)))
ROLLUP = unpack(
    rollup.encode(
        ("cmis.metrics.v1", 0, 7), NOW,
        Rollup(
            orgs=["acme"], bounds=[0, 1], keys=["USD"], entity=np.zeros(1, np.int32), start_ms=np.array([NOW]),
            pane_ms=np.array([10_000]), closed=np.ones(1, bool), sums=np.ones((6, 1), np.int64),
        ),
    )
)  # fmt: skip


@pytest.mark.parametrize("record", [RULE_SET, TICK, unpack(events(("c", 0, 1.0)))], ids=["rules", "tick", "events"])
def test_an_envelope_with_a_field_of_another_kind_is_refused_or_still_one_that_can_be_applied(record: dict[str, Any]) -> None:
    for field in record:
        for wrong in WRONG:
            try:
                found = envelope.decode(pack({**record, field: wrong}))
            except Rejected:
                continue
            if isinstance(found, RuleSet):
                assert isinstance(found.org, str) and isinstance(found.rules, list) and type(found.version) is int
            assert type(found.stamp_ms) is int


def test_a_rollup_with_a_field_of_another_kind_is_refused_or_still_one_whose_rows_can_be_had() -> None:
    for field in ROLLUP:
        for wrong in WRONG:
            try:
                told = rollup.decode(pack({**ROLLUP, field: wrong}))
            except Rejected:
                continue
            assert told.rollup.sums.shape == (6, 1) and len(told.bounds) == len(told.orgs) + 1


@pytest.mark.parametrize(
    "value",
    [b"", b"[]", b"7", b"\xff", b'{"kind": "alert_rule"}', b'{"kind": "alert_rule", "org": "a", "version": 1, "items": 3}'],
)
def test_a_change_that_is_none_is_refused(value: bytes) -> None:
    with pytest.raises(Rejected):
        read_catalog(value, RULES)


def test_a_change_of_another_kind_and_a_deletion_are_nothing_to_the_rules() -> None:
    assert read_catalog(None, RULES) is None and read_catalog(msgspec.json.encode({"kind": "flag"}), RULES) is None
