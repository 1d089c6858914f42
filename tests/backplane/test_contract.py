"""What every backplane guarantees (`backplane/contract.py`); the suite runs over each implementation."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmis_stream.backplane.contract import Backplane, Publication, Recovered, Unready
from tests.backplane.support import OTHER, TOPIC, Heard, Make, Opener, Writer, offsets
from tests.gateway.world import INCIDENTS, METRICS, TOPICS, Log, incident, metric


async def test_a_listener_gets_the_publications_of_its_channel_in_order_and_repeats_only_once(make: Make) -> None:
    log = Log()
    backplane = await make(log)
    writer = Writer(backplane, log)
    await writer.begin()
    heard = Heard()
    await backplane.listen(INCIDENTS, heard)
    await backplane.listen(INCIDENTS, heard)
    for channels in ((INCIDENTS,), (OTHER,), (), (INCIDENTS, OTHER)):
        await writer.write(*channels)
    for repeated in (0, 3, 1):
        await writer.deliver(repeated)
    assert await heard.until(await writer.write(INCIDENTS)) == [0, 3, 4]


async def test_who_does_not_listen_any_more_hears_nothing(make: Make) -> None:
    log = Log()
    backplane = await make(log)
    writer = Writer(backplane, log)
    heard, stays = Heard(), Heard()
    for listener in (heard, stays):
        await backplane.listen(INCIDENTS, listener)
    await heard.until(await writer.write(INCIDENTS))
    await backplane.unlisten(INCIDENTS, heard)
    assert await stays.until(await writer.write(INCIDENTS)) == [0, 1]
    assert heard.offsets == [0]


async def test_an_offset_that_the_partition_has_passed_is_not_published_any_more_in_any_channel(make: Make) -> None:
    log = Log()
    backplane = await make(log)
    writer = Writer(backplane, log)
    await writer.begin()
    await writer.write(OTHER)
    assert (await backplane.position(INCIDENTS)).offset == 0
    await backplane.publish(INCIDENTS, Publication(0, [incident(0)]))
    assert offsets((await backplane.newest(INCIDENTS, 10)).publications) == []


async def test_a_channel_without_publications_has_the_position_of_its_partition(make: Make) -> None:
    log = Log()
    backplane = await make(log)
    writer = Writer(backplane, log)
    await writer.begin()
    assert await backplane.position(INCIDENTS) == (-1, "epoch-1")
    for _ in range(3):
        await writer.write(OTHER)
    assert await backplane.position(INCIDENTS) == (2, "epoch-1")
    assert (await backplane.recover(INCIDENTS, 0, "epoch-1", 10)) == ((2, "epoch-1"), [])


async def test_the_position_does_not_pass_a_record_of_which_only_some_publications_are_out(make: Make) -> None:
    log = Log()
    backplane = await make(log)
    writer = Writer(backplane, log)
    await writer.begin()
    offset = writer.append(OTHER, INCIDENTS)
    await backplane.publish(OTHER, Publication(offset, [incident(1)]))
    assert (await backplane.position(OTHER)).offset <= offset
    assert (await backplane.position(INCIDENTS)).offset == -1


async def test_before_anything_is_known_of_a_partition_the_answer_is_to_ask_again(make: Make) -> None:
    backplane = await make(Log())
    with pytest.raises(Unready, match=r"cmis\.transitions\.v1, partition 0"):
        await backplane.position(INCIDENTS)
    with pytest.raises(Unready):
        await backplane.recover(INCIDENTS, 5, "epoch-1", 10)


async def test_what_was_missed_comes_from_memory_or_beyond_it_from_the_log_without_a_hole(make: Make) -> None:
    log = Log()
    backplane = await make(log, per_channel=3)
    writer = Writer(backplane, log)
    await writer.begin()
    for number in range(20):
        await writer.write(INCIDENTS if number % 2 else OTHER)
    for after in range(-1, 20):
        recovered = await backplane.recover(INCIDENTS, after, "epoch-1", 100)
        assert recovered.position == (19, "epoch-1")
        assert offsets(recovered.publications) == [offset for offset in range(1, 20, 2) if offset > after]
    assert offsets((await backplane.newest(INCIDENTS, 2)).publications) == [17, 19]


@pytest.mark.spec("GTW-O01")
async def test_a_backplane_that_has_just_started_recovers_from_the_log(make: Make) -> None:
    log = Log()
    before = Writer(await make(log), log)
    for _ in range(10):
        await before.write(INCIDENTS)
    backplane = await make(log)
    writer = Writer(backplane, log)
    await writer.begin()
    await writer.write(INCIDENTS)
    assert offsets((await backplane.recover(INCIDENTS, 4, "epoch-1", 100)).publications) == [5, 6, 7, 8, 9, 10]


async def test_what_cannot_be_had_whole_is_not_given_in_part(make: Make) -> None:
    log = Log()
    backplane = await make(log, per_channel=3)
    writer = Writer(backplane, log)
    await writer.begin()
    for _ in range(10):
        await writer.write(INCIDENTS)
    log.earliest[TOPIC] = 5
    assert (await backplane.recover(INCIDENTS, 3, "epoch-1", 100)).publications is None, "older than the log"
    assert offsets((await backplane.recover(INCIDENTS, 4, "epoch-1", 100)).publications) == [5, 6, 7, 8, 9]
    assert (await backplane.recover(INCIDENTS, 4, "epoch-2", 100)).publications is None, "another log"
    assert (await backplane.recover(INCIDENTS, 4, "epoch-1", 4)).publications is None, "more than the limit"
    assert (await backplane.recover(INCIDENTS, 12, "epoch-1", 100)).publications is None, "never heard of"


async def test_an_offset_ahead_of_the_position_is_waited_for(make: Make) -> None:
    log = Log()
    backplane = await make(log, patience_s=3_600)
    writer = Writer(backplane, log)
    for _ in range(3):
        writer.append(INCIDENTS)
    await backplane.begin(TOPIC, 0, -1)  # the agent begins again at the first of them
    recovering = asyncio.create_task(backplane.recover(INCIDENTS, 1, "epoch-1", 10))
    for offset in range(3):
        await asyncio.sleep(0)
        assert offset > 1 or not recovering.done()
        await writer.deliver(offset)
    async with asyncio.timeout(20):
        recovered = await recovering
    assert recovered.position.offset >= 1
    assert offsets(recovered.publications) in ([], [2])


class HeldLog(Log):
    """Reads at once, and gives what it has read when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.reading, self.may_give = asyncio.Event(), asyncio.Event()

    async def read(self, channel: str, after: int, limit: int) -> Any:
        found = await super().read(channel, after, limit)
        self.reading.set()
        await self.may_give.wait()
        return found


async def test_a_record_that_is_in_the_log_before_it_is_published_comes_once(make: Make) -> None:
    log = HeldLog()
    backplane = await make(log, per_channel=1)
    writer = Writer(backplane, log)
    await writer.begin()
    for _ in range(5):
        await writer.write(INCIDENTS)
    ahead = writer.append(INCIDENTS)
    recovering = asyncio.create_task(backplane.recover(INCIDENTS, -1, "epoch-1", 100))
    await log.reading.wait()
    await writer.deliver(ahead)
    log.may_give.set()
    assert offsets((await recovering).publications) == [0, 1, 2, 3, 4, 5]


async def test_what_memory_loses_while_the_log_is_read_is_read_from_the_log(make: Make) -> None:
    log = HeldLog()
    backplane = await make(log, per_channel=1)
    writer = Writer(backplane, log)
    await writer.begin()
    for _ in range(5):
        await writer.write(INCIDENTS)
    recovering = asyncio.create_task(backplane.recover(INCIDENTS, -1, "epoch-1", 100))
    await log.reading.wait()
    for _ in range(5):
        await writer.write(INCIDENTS)
    log.may_give.set()
    assert offsets((await recovering).publications) == list(range(10))


async def test_pages_lead_through_everything(make: Make) -> None:
    log = Log()
    backplane = await make(log, per_channel=5)
    writer = Writer(backplane, log)
    await writer.begin()
    for number in range(23):
        await writer.write(INCIDENTS if number % 3 else OTHER)
    found: list[int] = []
    while page := (await backplane.page(INCIDENTS, found[-1] if found else -1, "epoch-1", 4)).publications:
        assert len(page) <= 4
        found += offsets(page)
    assert found == [number for number in range(23) if number % 3]


@pytest.mark.spec("GTW-O03", partial="the moment; that a client gets everything from it on is shown in tests/gateway")
async def test_a_moment_is_the_offset_behind_which_everything_since_then_comes(make: Make) -> None:
    log = Log()
    backplane = await make(log)
    writer = Writer(backplane, log)
    await writer.begin()
    for stamp_ms in (100, 200, 200, 300):
        await writer.deliver(writer.append(INCIDENTS, stamp_ms=stamp_ms))
    moments = {at: await backplane.moment(INCIDENTS, at) for at in (50, 100, 150, 200, 201, 300, 999)}
    assert moments == {50: None, 100: -1, 150: 0, 200: 0, 201: 2, 300: 2, 999: 3}


STEPS = st.lists(
    st.one_of(
        st.sampled_from([(INCIDENTS,), (OTHER,), (INCIDENTS, OTHER), ()]).map(lambda channels: ("append", channels)),
        st.just(("deliver", None)),
        st.integers(0, 5).map(lambda back: ("repeat", back)),
        st.tuples(st.integers(0, 12), st.integers(0, 3)).map(lambda reader: ("join", reader)),
        st.just(("turn", None)),
    ),
    max_size=40,
)


def test_whoever_listens_and_then_recovers_sees_each_publication_once_and_in_order(opener: Opener) -> None:
    """Whatever is written, repeated or forgotten meanwhile."""

    async def run(steps: list[tuple[str, Any]], per_channel: int, log_turns: int) -> None:
        async with AsyncExitStack() as opened:
            log = SlowLog(log_turns)
            backplane = await opener.open(opened, log, per_channel=per_channel, patience_s=10.0)
            writer = Writer(backplane, log)
            await writer.begin()
            readers: list[Reader] = []
            delivered = 0  # which is behind the log
            for step, value in [*steps, ("append", (INCIDENTS,)), *[("deliver", None)] * (len(steps) + 1)]:
                if step == "append":
                    writer.append(*value)
                elif step == "deliver" and delivered < log.next_offset[TOPIC]:
                    await writer.deliver(delivered)
                    delivered += 1
                elif step == "repeat" and delivered:
                    await writer.deliver(max(0, delivered - 1 - value))
                elif step == "join":
                    readers.append(Reader(backplane, min(value[0], delivered) - 1, value[1]))
                await asyncio.sleep(0)
            published = [entry.offset for _, channel, entry in log.records[TOPIC] if channel == INCIDENTS]
            for reader in readers:
                assert await reader.finished(published[-1]) == [offset for offset in published if offset > reader.after]

    @settings(max_examples=opener.examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(STEPS, st.integers(1, 4), st.integers(0, 3))
    def whatever_comes(steps: list[tuple[str, Any]], per_channel: int, log_turns: int) -> None:
        asyncio.run(run(steps, per_channel, log_turns))

    whatever_comes()


class SlowLog(Log):
    """A read takes some turns of the event loop before it looks and some after."""

    def __init__(self, turns: int) -> None:
        super().__init__()
        self.turns = turns

    async def read(self, channel: str, after: int, limit: int) -> Any:
        for _ in range(self.turns):
            await asyncio.sleep(0)
        found = await super().read(channel, after, limit)
        for _ in range(self.turns):
            await asyncio.sleep(0)
        return found


class Reader:
    """Listens, recovers after `after` a little later, and ignores what it has seen by its offset."""

    def __init__(self, backplane: Backplane, after: int, turns: int) -> None:
        self.after = after
        self._backplane, self._turns = backplane, turns
        self._heard = Heard()
        self._recovering = asyncio.create_task(self._recover())

    async def _recover(self) -> Recovered:
        await self._backplane.listen(INCIDENTS, self._heard)
        for _ in range(self._turns):
            await asyncio.sleep(0)
        return await self._backplane.recover(INCIDENTS, self.after, "epoch-1", 1000)

    async def finished(self, last: int) -> list[int]:
        """All that it has, when it has this one."""
        recovered = await self._recovering
        if recovered.position.offset < last:
            await self._heard.until(last)
        return offsets(recovered.publications) + [offset for offset in self._heard.offsets if offset > recovered.position.offset]


async def test_records_may_be_on_their_way_together(make: Make) -> None:
    log = Log()
    backplane = await make(log)
    writer = Writer(backplane, log)
    await writer.begin()
    heard = Heard()
    await backplane.listen(INCIDENTS, heard)
    coming = [writer.append(*([INCIDENTS] if number % 2 else [OTHER])) for number in range(100)]
    await asyncio.gather(*(writer.deliver(offset) for offset in coming))
    assert await heard.until(99) == list(range(1, 100, 2))
    assert (await backplane.recover(OTHER, -1, "epoch-1", 100)).position.offset == 99


async def test_of_a_conflated_channel_the_newest_value_of_each_key_comes_at_the_last_offset_whatever_is_merged(
    make: Make,
) -> None:
    log = Log()
    backplane = await make(log)
    writer, topic = Writer(backplane, log), TOPICS["metrics"]
    await writer.begin(topic)
    heard = Heard()
    await backplane.listen(METRICS, heard)
    coming = [writer.append(METRICS, item=metric(f"USD/p{number % 3}", events=number)) for number in range(60)]
    await asyncio.gather(*(writer.deliver(offset, topic) for offset in coming))
    assert await heard.until(59) == sorted(set(heard.offsets))
    recovered = await backplane.recover(METRICS, -1, "epoch-1", 100)
    for publications in (heard.publications, recovered.publications or ()):
        newest = {item.entity: item for publication in publications for item in publication.items}
        assert newest == {f"USD/p{place}": metric(f"USD/p{place}", events=57 + place) for place in range(3)}


async def test_who_begins_behind_what_was_reached_leaves_a_hole_that_readers_fill_from_the_log(make: Make) -> None:
    log = Log()
    backplane = await make(log)
    writer = Writer(backplane, log)
    await writer.begin()
    for _ in range(3):
        await writer.write(INCIDENTS)
    for _ in range(3):
        writer.append(INCIDENTS)  # which nobody publishes
    assert await backplane.begin(TOPIC, 0, 5) == 5
    await writer.write(INCIDENTS)
    assert offsets((await backplane.newest(INCIDENTS, 10)).publications) == [6]
    assert offsets((await backplane.recover(INCIDENTS, 1, "epoch-1", 100)).publications) == [2, 3, 4, 5, 6]


async def test_who_begins_again_is_told_what_was_reached_and_changes_nothing(make: Make) -> None:
    log = Log()
    backplane = await make(log)
    writer = Writer(backplane, log)
    await writer.begin()
    heard = Heard()
    await backplane.listen(INCIDENTS, heard)
    for _ in range(5):
        await writer.write(INCIDENTS)
    assert await backplane.begin(TOPIC, 0, 1) == 4
    await asyncio.gather(*(writer.deliver(offset) for offset in range(2, 5)))
    assert await heard.until(await writer.write(INCIDENTS)) == [0, 1, 2, 3, 4, 5]
    assert offsets((await backplane.newest(INCIDENTS, 10)).publications) == [0, 1, 2, 3, 4, 5]


def test_a_publication_is_encoded_whole_or_for_one_entity() -> None:
    publication = Publication(7, [metric("USD"), metric("USD/meta", events=2), metric("USD", at=10_000)])
    whole = b'{"items":[' + b",".join(item.json for item in publication.items) + b"]}"
    assert publication.data() == whole
    assert publication.data("USD/meta") == b'{"items":[' + publication.items[1].json + b"]}"
    assert publication.data("EUR") == b'{"items":[]}'
