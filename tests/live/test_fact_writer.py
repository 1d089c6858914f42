"""Facts of a module's agent: each record of its topic once, whatever is repeated, by whomever."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from cmis_stream.core.errors import Rejected
from cmis_stream.live.fact_writer import FactWriter
from cmis_stream.store.decisions import Body
from cmis_stream.store.facts import Change, Facts
from tests.store.conftest import Places
from tests.store.fact_support import NOW, opened

TOPIC = "toy.played.v1"


def changes_of(value: bytes) -> list[Change]:
    """b"a": one more note on the finding of acme and of globex each."""
    if not value.isalpha():
        raise Rejected("malformed", "", value, "letters")

    def noted(before: Body | None) -> Body:
        notes = [] if before is None else before["notes"]
        return {"name": "found", "notes": [*notes, value.decode()]}

    return [Change(org, "finding", "f", NOW, noted) for org in ("acme", "globex")]


def writer(facts: Facts) -> FactWriter:
    return FactWriter(facts, TOPIC, "toy", "e", contextlib.nullcontext, changes_of)


def notes(facts: Facts, org: str = "acme") -> list[str]:
    found = facts.get(org, "finding", "f")
    return [] if found is None else list(found.body["notes"])


def noting(acked: list[int], offset: int) -> Callable[[], None]:
    return lambda: acked.append(offset)


async def test_each_record_counts_once_and_is_acked_when_it_is_in_the_store(tmp_path: Path) -> None:
    with opened(Places(f"sqlite:///{tmp_path / 'store.db'}", f"sqlite:///{tmp_path / 'store.db'}")) as facts:
        first, acked = writer(facts), list[int]()
        await first.begin({3})
        for offset, value in enumerate([b"a", b"{", b"b", b"b", b""]):
            await first.put(3, offset, value, noting(acked, offset))
        await first.put(3, 2, b"b", noting(acked, 2))
        await first.settled()
        assert notes(facts) == notes(facts, "globex") == ["a", "b", "b"] and acked == [0, 1, 2, 3, 4, 2]
        assert facts.positions("toy", "e") == {(TOPIC, 3): 4}


async def test_a_writer_that_has_lost_its_partition_writes_nothing_twice(tmp_path: Path) -> None:
    with opened(Places(f"sqlite:///{tmp_path / 'store.db'}", f"sqlite:///{tmp_path / 'store.db'}")) as facts:
        old, new = writer(facts), writer(facts)
        for one in (old, new):
            await one.begin({3})
        await old.put(3, 0, b"a", lambda: None)
        await old.settled()
        for offset, value in enumerate([b"a", b"b", b"c"]):  # it knows nothing of the other
            await new.put(3, offset, value, lambda: None)
        await new.settled()
        for offset, value in enumerate([b"b", b"c", b"d"], 1):
            await old.put(3, offset, value, lambda: None)
        await old.settled()
        assert notes(facts) == ["a", "b", "c", "d"] and facts.positions("toy", "e") == {(TOPIC, 3): 3}
