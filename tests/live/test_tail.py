"""Results read back from the log."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmis_stream.backplane.contract import Publication
from cmis_stream.live import tail as tail_module
from cmis_stream.live.tail import LOOK_BACK
from cmis_stream.log.owner import ROLLUPS, TRANSITIONS
from cmis_stream.log.reader import LogAway
from tests.live.support import ACME, FIGURES, INCIDENTS, NOW, Results, figures, line, results, transitions
from tests.log.written import written_embedded, written_kafka


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.slow)])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Results]:
    opening = written_embedded(tmp_path) if request.param == "embedded" else written_kafka(request.getfixturevalue("kafka").url)
    async with results(opening) as made:
        yield made


def offsets(found: Sequence[Publication] | None) -> list[int] | None:
    return None if found is None else [publication.offset for publication in found]


async def test_a_channel_s_publications_after_an_offset_come_in_order_and_no_more_than_asked_for(world: Results) -> None:
    for source in range(6):
        await world.append(TRANSITIONS, transitions(source, line(source, org="acme" if source % 2 else "globex")))
    assert offsets(await world.tail.read(INCIDENTS, -1, 10)) == [1, 3, 5]
    assert offsets(await world.tail.read(INCIDENTS, 1, 10)) == [3, 5]
    assert offsets(await world.tail.read(INCIDENTS, 1, 1)) == [3]
    assert offsets(await world.tail.read(INCIDENTS, 5, 10)) == []
    assert offsets(await world.tail.read("org:nobody:incidents", -1, 10)) == []


async def test_what_is_read_is_what_was_published(world: Results) -> None:
    await world.append(ROLLUPS, figures(0, acme=5, globex=6))
    found = await world.tail.read(FIGURES, -1, 10)
    assert found is not None and b'"sums":[5,0,0,0,0,0]' in found[0].data() and b"6,0" not in found[0].data()


async def test_repeats_are_left_out_also_when_their_originals_came_before_the_offset(world: Results) -> None:
    """After a crash the owner tells 3, 4 and 5 again."""
    for source in (0, 1, 2, 3, 4, 5, 3, 4, 5, 6):
        await world.append(TRANSITIONS, transitions(source))
    assert offsets(await world.tail.read(INCIDENTS, -1, 100)) == [0, 1, 2, 3, 4, 5, 9]
    assert offsets(await world.tail.read(INCIDENTS, 5, 100)) == [9]
    assert offsets(await world.tail.read(INCIDENTS, 7, 100)) == [9]


@given(st.lists(st.integers(0, 12), max_size=6), st.integers(-1, 30), st.integers(1, 8))
@settings(max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_pages_of_any_size_hold_each_result_once(
    tmp_path_factory: pytest.TempPathFactory, crashes: list[int], after: int, limit: int
) -> None:
    async def run() -> None:
        async with results(written_embedded(tmp_path_factory.mktemp("log"))) as world:
            sources, source = [], 0
            for crash in [*crashes, None]:
                sources += range(source, source + 5)
                source = source + 5 if crash is None else max(0, source + 5 - crash)
            highest, fresh = -1, []
            for offset, told in enumerate(sources):
                await world.append(TRANSITIONS, transitions(told))
                if told > highest:
                    highest, fresh = told, [*fresh, offset]
            found, at = [], after
            while page := offsets(await world.tail.read(INCIDENTS, at, limit)):
                found += page
                at = page[-1]
            assert found == [offset for offset in fresh if offset > after]

    asyncio.run(run())


async def test_what_retention_has_taken_cannot_be_read(world: Results) -> None:
    await world.append(TRANSITIONS, *[transitions(source) for source in range(3)])
    await world.trim()
    await world.append(TRANSITIONS, transitions(3), transitions(4), ts_ms=NOW + 2000)
    assert (await world.reader.starts(TRANSITIONS))[ACME] == 3
    assert await world.tail.read(INCIDENTS, 1, 10) is None
    assert await world.tail.read(INCIDENTS, 3, 10) is None, "whether 4 is a repeat cannot be said: what it could repeat is gone"


async def test_the_log_may_be_trimmed_behind_what_is_looked_back_to(world: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "LOOK_BACK", 2)
    await world.append(TRANSITIONS, *[transitions(source) for source in range(3)])
    await world.trim()
    await world.append(TRANSITIONS, *[transitions(source) for source in range(3, 7)], ts_ms=NOW + 2000)
    assert await world.tail.read(INCIDENTS, 3, 10) is None
    assert offsets(await world.tail.read(INCIDENTS, 4, 10)) == [5, 6]


async def test_more_than_one_reading_may_take_cannot_be_read(world: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "_STEP_RECORDS", 5)
    monkeypatch.setattr(tail_module, "MOST_RECORDS", 12)
    await world.append(TRANSITIONS, *[transitions(source, line(source, org="globex")) for source in range(12)])
    assert offsets(await world.tail.read(INCIDENTS, -1, 10)) == []
    await world.append(TRANSITIONS, *[transitions(source, line(source, org="globex")) for source in range(12, 20)])
    assert await world.tail.read(INCIDENTS, -1, 10) is None


async def test_a_moment_is_the_offset_before_the_first_result_of_that_time(world: Results) -> None:
    for n in range(5):
        await world.append(TRANSITIONS, transitions(n), ts_ms=NOW + 100 * n)
    assert [await world.tail.moment(INCIDENTS, NOW + ms) for ms in (-5, 0, 1, 100, 250, 400, 401)] == [-1, -1, 0, 0, 2, 3, 4]


async def test_a_moment_before_what_the_log_holds_is_not_known(world: Results) -> None:
    assert await world.tail.moment(INCIDENTS, NOW) == -1
    await world.append(TRANSITIONS, transitions(0), transitions(1))
    await world.trim()
    await world.append(TRANSITIONS, transitions(2), transitions(3), ts_ms=NOW + 2000)
    assert await world.tail.moment(INCIDENTS, NOW + 2000) is None
    assert await world.tail.moment(INCIDENTS, NOW + 2001) == 3


async def test_the_newest_records_come_with_the_offset_before_them(world: Results) -> None:
    assert await world.tail.newest(TRANSITIONS, ACME, 10, 1000) == (-1, [])
    assert await world.tail.newest("cmis.unknown.v1", ACME, 10, 1000) == (-1, [])
    await world.append(TRANSITIONS, *[transitions(source) for source in range(120)])
    before, records = await world.tail.newest(TRANSITIONS, ACME, 60, 1 << 30)
    assert (before, [r.offset for r in records]) == (59, list(range(60, 120)))
    before, records = await world.tail.newest(TRANSITIONS, ACME, 1000, 1)
    assert (before, [r.offset for r in records]) == (69, list(range(70, 120)))
    await world.trim()
    assert await world.tail.newest(TRANSITIONS, ACME, 10, 1000) == (119, [])


async def test_the_newest_are_found_whatever_their_sizes_are(world: Results) -> None:
    """Steps back follow the size of what was seen: small records behind large ones, and the other way round."""
    padded = [transitions(n, line(n, campaign="c" * (40_000 if 200 <= n < 220 else 1))) for n in range(400)]
    await world.append(TRANSITIONS, *padded)
    for most in (1, 50, 51, 170, 230, 399, 400, 4000):
        before, records = await world.tail.newest(TRANSITIONS, ACME, most, 1 << 30)
        count = min(400, max(most, 50))
        assert (before, [r.offset for r in records]) == (399 - count, list(range(400 - count, 400)))
    before, records = await world.tail.newest(TRANSITIONS, ACME, 4000, 300_000)
    size = sum(len(r.value or b"") for r in records)
    assert size >= 300_000 and len(records) < 400 and [r.offset for r in records] == list(range(before + 1, 400))


async def test_a_channel_comes_from_its_org_s_partition(world: Results) -> None:
    assert world.tail.place(INCIDENTS) == (TRANSITIONS, ACME) and world.tail.place(FIGURES) == (ROLLUPS, ACME)
    assert world.tail.place("org:globex:metrics")[1] != ACME


async def test_reading_is_not_done_on_the_event_loop_s_thread(world: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.append(TRANSITIONS, transitions(0))
    threads = set()
    real = tail_module.read_result
    monkeypatch.setattr(tail_module, "read_result", lambda *given: (threads.add(threading.get_ident()), real(*given))[1])
    await world.tail.read(INCIDENTS, -1, 1)
    assert threads and threading.get_ident() not in threads


async def test_a_tail_whose_reader_is_closed_says_that_the_log_is_away(world: Results) -> None:
    await world.append(TRANSITIONS, transitions(0))
    await world.reader.close()
    for asked in (world.tail.read(INCIDENTS, -1, 1), world.tail.moment(INCIDENTS, NOW), world.tail.newest(ROLLUPS, 0, 1, 1)):
        with pytest.raises(LogAway):
            await asked


def test_no_repeat_is_further_from_its_original_than_is_looked_back() -> None:
    assert LOOK_BACK >= 800
