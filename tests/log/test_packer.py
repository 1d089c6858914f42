"""The packer: many small publishes, few envelopes, in order, and each publisher learns what became of its events."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from cmis_stream.core.batch import Batch, Segment, leaf_path
from cmis_stream.log import packer as packer_module
from cmis_stream.log.envelope import Events, decode
from cmis_stream.log.packer import EVENTS_PER_ENVELOPE, Packer, Pressure
from cmis_stream.log.topics import partition_for

PARTITIONS = 4
ORGS = {partition_for(name.encode(), PARTITIONS): name for name in (f"org{i}" for i in range(40))}


def batch(first: int, count: int = 1, org: str = ORGS[0]) -> Batch:
    return Batch(
        ts_ms=np.arange(first, first + count, dtype=np.int64), leaf=np.zeros(count, np.int32),
        values=np.zeros((5, count), np.int64),
        event=np.arange(count, dtype=np.int32), uid=np.arange(first, first + count, dtype=np.uint64),
        paths=[leaf_path(org, "USD", "meta")], segments=[Segment(org, "feed", True, count)],
        ids=[str(n) for n in range(first, first + count)],
    )  # fmt: skip


class Log:
    """Appends that become durable, or fail, when the test says so."""

    def __init__(self) -> None:
        self.on_the_way: list[tuple[int, list[str], asyncio.Future[None]]] = []
        self.packer = Packer(self.append, PARTITIONS, lambda: 7)

    def append(self, partition: int, value: bytes) -> asyncio.Future[None]:
        record = decode(value)
        assert isinstance(record, Events) and record.stamp_ms == 7
        future = asyncio.get_running_loop().create_future()
        self.on_the_way.append((partition, list(record.batch.ids), future))
        return future

    def publish(self, *args: int, org: str = ORGS[0]) -> asyncio.Task[None]:
        return asyncio.create_task(self.packer.publish(org, batch(*args, org=org)))

    def ids(self, partition: int = 0) -> list[str]:
        return [i for own, ids, _ in self.on_the_way if own == partition for i in ids]

    def all_durable(self) -> None:
        for _, _, future in self.on_the_way:
            if not future.done():
                future.set_result(None)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    monkeypatch.setattr(packer_module, "LINGER_S", 3600.0)
    return Log()


async def test_what_comes_while_an_envelope_is_on_its_way_shares_the_next_one_in_order(log: Log) -> None:
    first = log.publish(0)
    await settled()
    others = [log.publish(n) for n in range(1, 50)]
    await settled()
    assert [ids for _, ids, _ in log.on_the_way] == [["0"]], "a quiet feed is not held back, what follows waits"
    log.all_durable()
    await settled()
    assert first.done() and not any(other.done() for other in others)
    assert [ids for _, ids, _ in log.on_the_way[1:]] == [[str(n) for n in range(1, 50)]]
    log.all_durable()
    await asyncio.gather(*others)
    assert log.packer.waiting == 0


async def test_a_full_envelope_does_not_wait_for_the_one_before(log: Log) -> None:
    log.publish(0)
    await settled()
    published = log.publish(1, EVENTS_PER_ENVELOPE)
    await settled()
    assert len(log.on_the_way) == 2 and not published.done()
    log.all_durable()
    await published


async def test_what_waits_leaves_after_a_while_even_if_the_one_before_is_still_on_its_way(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packer_module, "LINGER_S", 0.001)
    log.publish(0)
    await settled()
    log.publish(1)
    async with asyncio.timeout(30):
        while len(log.on_the_way) < 2:
            await asyncio.sleep(0.001)
    assert log.ids() == ["0", "1"]
    log.all_durable()


async def test_partitions_do_not_wait_for_each_other_and_each_keeps_its_order(log: Log) -> None:
    published = [log.publish(n, org=ORGS[n % PARTITIONS]) for n in range(40)]
    while not all(one.done() for one in published):
        await settled()
        log.all_durable()
    for partition in range(PARTITIONS):
        assert log.ids(partition) == [str(n) for n in range(40) if n % PARTITIONS == partition]


async def test_a_large_publish_is_cut_and_done_when_all_pieces_are_durable(log: Log) -> None:
    count = 10 * EVENTS_PER_ENVELOPE
    published = log.publish(0, count)
    await settled()
    assert len(log.on_the_way) > 1 and log.ids() == [str(n) for n in range(count)]
    for _, _, future in log.on_the_way[:-1]:
        future.set_result(None)
    await settled()
    assert not published.done()
    log.all_durable()
    await published


async def test_a_failed_append_is_told_to_those_whose_events_were_in_it_and_to_nobody_else(log: Log) -> None:
    first = log.publish(0)
    await settled()
    second, third = log.publish(1), log.publish(2)
    elsewhere = log.publish(3, org=ORGS[1])
    await settled()
    log.all_durable()
    await settled()
    assert log.on_the_way[-1][1] == ["1", "2"]
    log.on_the_way[-1][2].set_exception(OSError("no space left"))
    results = await asyncio.gather(first, second, third, elsewhere, return_exceptions=True)
    assert results[0] is None and results[3] is None
    assert isinstance(results[1], OSError) and isinstance(results[2], OSError)
    after = log.publish(4)
    await settled()
    log.all_durable()
    await after
    assert log.packer.waiting == 0


async def test_too_much_waiting_turns_publishers_away_until_it_is_written(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packer_module, "MOST_WAITING", 100)
    large = log.publish(0, 5_000)
    await settled()
    with pytest.raises(Pressure, match="try again"):
        await log.packer.publish(ORGS[1], batch(1, org=ORGS[1]))
    log.all_durable()
    await large
    after = log.publish(6_000, 100)
    await settled()
    log.all_durable()
    await after


async def test_a_publisher_that_gives_up_does_not_keep_its_events_or_its_neighbours_back(log: Log) -> None:
    log.publish(0)
    await settled()
    leaver, stayer = log.publish(1), log.publish(2)
    await settled()
    leaver.cancel()
    log.all_durable()
    await settled()
    log.all_durable()
    await stayer
    assert log.ids() == ["0", "1", "2"] and log.packer.waiting == 0


async def test_draining_sends_what_waits_and_returns_when_all_is_durable(log: Log) -> None:
    published = [log.publish(n) for n in range(3)]
    await settled()
    draining = asyncio.create_task(log.packer.drain())
    await settled()
    assert log.ids() == ["0", "1", "2"] and not draining.done()
    log.all_durable()
    await draining
    assert all(one.done() for one in published)
