"""What `LogReader` promises, over both logs; and what happens to readers of Kafka when nobody answers."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from yarl import URL

from cmis_stream.core.errors import CmisError
from cmis_stream.log.embedded_reader import EmbeddedReader
from cmis_stream.log.kafka import client_settings
from cmis_stream.log.kafka_reader import KafkaReader
from cmis_stream.log.reader import LogAway, LogReader, Record, read_all
from scripts.kafka import Kafka
from scripts.server import free_port
from tests.log.written import NOW, Written, WrittenKafka, written_embedded, written_kafka

MB = 1 << 20


@pytest.fixture
def topic() -> str:
    return f"events-{secrets.token_hex(4)}"


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.slow)])
async def written(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Written]:
    embedded = request.param == "embedded"
    async with written_embedded(tmp_path) if embedded else written_kafka(request.getfixturevalue("kafka").url) as made:
        yield made


@pytest.fixture
async def log(written: Written) -> AsyncIterator[LogReader]:
    reader = await written.reader()
    yield reader
    await reader.close()


def numbered(count: int, first: int = 0) -> list[tuple[bytes | None, bytes | None]]:
    return [(b"key", b"%d" % number) for number in range(first, first + count)]


def values(records: list[Record]) -> list[bytes | None]:
    return [record.value for record in records]


async def everything(log: LogReader, topic: str, partition: int, start: int | None = None) -> list[Record]:
    return [record async for record in read_all(log, topic, partition, start)]


# --- records ---------------------------------------------------------------------------------------------------------


async def test_records_come_in_order_with_all_that_was_appended(written: Written, log: LogReader, topic: str) -> None:
    await written.create(topic, 3)
    await written.append(topic, 1, *numbered(50), ts_ms=NOW)
    await written.append(topic, 1, (None, b"last"), ts_ms=NOW + 5)
    await written.append(topic, 2, (b"k", b"other"))
    found = await log.read(topic, 1, 0, 1000, MB)
    assert found[:2] == [Record(0, NOW, b"key", b"0", []), Record(1, NOW, b"key", b"1", [])]
    assert found[50] == Record(50, NOW + 5, None, b"last", [])
    assert [record.offset for record in found] == list(range(51))
    assert await log.read(topic, 2, 0, 1000, MB) == [Record(0, NOW, b"k", b"other", [])]


async def test_no_more_records_come_than_asked_for_and_they_begin_at_the_offset(
    written: Written, log: LogReader, topic: str
) -> None:
    await written.create(topic, 1)
    await written.append(topic, 0, *numbered(10))
    assert values(await log.read(topic, 0, 3, 2, MB)) == [b"3", b"4"]
    assert values(await log.read(topic, 0, 9, 2, MB)) == [b"9"]
    assert await log.read(topic, 0, 3, 0, MB) == []


async def test_bytes_are_limited_but_one_record_always_comes(written: Written, log: LogReader, topic: str) -> None:
    await written.create(topic, 1)
    sizes = [6 * MB, 100, 100, 6 * MB, 100]  # larger than one fetch, too
    await written.append(topic, 0, *((None, random.randbytes(size)) for size in sizes))
    assert [len(value or b"") for value in values(await log.read(topic, 0, 0, 10, 1))] == [6 * MB]
    assert [len(value or b"") for value in values(await log.read(topic, 0, 1, 10, 200))] == [100, 100]
    assert [len(value or b"") for value in values(await log.read(topic, 0, 3, 10, 5 * MB))] == [6 * MB]
    assert [len(record.value or b"") for record in await everything(log, topic, 0)] == sizes


async def test_at_the_end_there_is_nothing_and_then_there_is(written: Written, log: LogReader, topic: str) -> None:
    await written.create(topic, 2)
    assert await log.read(topic, 0, 0, 10, MB) == [] and await everything(log, topic, 0) == []
    await written.append(topic, 0, *numbered(2))
    assert await log.read(topic, 0, 2, 10, MB) == []
    assert await log.read(topic, 0, 900, 10, MB) == [], "beyond the end"
    await written.append(topic, 0, (None, b"new"))
    assert values(await log.read(topic, 0, 2, 10, MB)) == [b"new"]


async def test_a_tombstone_has_no_value(written: Written, log: LogReader, topic: str) -> None:
    await written.create(topic, 1, compact=True)
    await written.append(topic, 0, (b"k", None))
    assert (await log.read(topic, 0, 0, 10, MB))[0] == Record(0, NOW, b"k", None, [])


async def test_holes_of_compaction_are_passed(written: Written, log: LogReader, topic: str) -> None:
    await written.create(topic, 1, compact=True)
    await written.append(topic, 0, *[(b"k%d" % (n % 4), b"%d" % n) for n in range(40)])
    await written.compact(topic, 0)
    left = [(record.offset, record.value) for record in await everything(log, topic, 0) if record.key != b"filler"]
    assert left == [(36, b"36"), (37, b"37"), (38, b"38"), (39, b"39")]
    assert values(await log.read(topic, 0, 5, 1, MB)) == [b"36"]
    assert values(await log.read(topic, 0, 0, 2, MB)) == [b"36", b"37"]
    assert (await log.starts(topic))[0] <= 36


# --- where partitions begin and end ------------------------------------------------------------------------------------


async def test_ends_and_starts_are_those_of_every_partition(written: Written, log: LogReader, topic: str) -> None:
    await written.create(topic, 3)
    assert await log.ends(topic) == await log.starts(topic) == {0: 0, 1: 0, 2: 0}
    await written.append(topic, 1, *numbered(4))
    assert await log.ends(topic) == {0: 0, 1: 4, 2: 0} and await log.starts(topic) == {0: 0, 1: 0, 2: 0}


async def test_what_retention_takes_moves_the_start_and_reading_begins_with_what_is_left(
    written: Written, log: LogReader, topic: str
) -> None:
    await written.create(topic, 2)
    await written.append(topic, 1, *numbered(5), ts_ms=NOW)
    await written.append(topic, 1, *numbered(3, 5), ts_ms=NOW + 5000)
    await written.trim(topic, 1, NOW + 5000)
    assert await log.starts(topic) == {0: 0, 1: 5} and await log.ends(topic) == {0: 0, 1: 8}
    assert values(await log.read(topic, 1, 0, 2, MB)) == [b"5", b"6"]
    assert values(await everything(log, topic, 1)) == values(await everything(log, topic, 1, 2)) == [b"5", b"6", b"7"]
    assert await log.offset_at(topic, 1, NOW) == 5
    await written.trim(topic, 1, NOW + 9000)
    assert await log.starts(topic) == await log.ends(topic) == {0: 0, 1: 8}
    assert await log.read(topic, 1, 0, 2, MB) == [] == await everything(log, topic, 1)
    assert await log.offset_at(topic, 1, NOW) == 8


async def test_a_topic_or_partition_that_is_not_there_has_nothing(written: Written, log: LogReader, topic: str) -> None:
    assert await log.ends(topic) == await log.starts(topic) == await log.committed("cmis", topic) == {}
    assert await log.read(topic, 0, 0, 10, MB) == [] == await everything(log, topic, 0)
    assert await log.offset_at(topic, 0, NOW) == 0
    assert topic not in await log.topics()
    await written.create(topic, 1)
    assert await log.ends(topic) == {0: 0} and (await log.topics())[topic] == 1
    assert await log.read(topic, 7, 0, 10, MB) == [] and await log.offset_at(topic, 7, NOW) == 0


async def test_the_offset_of_a_moment_is_the_first_record_s_of_that_time_or_later(
    written: Written, log: LogReader, topic: str
) -> None:
    await written.create(topic, 2)
    assert await log.offset_at(topic, 1, NOW) == 0
    for number in range(5):
        await written.append(topic, 1, *numbered(3), ts_ms=NOW + 100 * number)
    moments = (-5, 0, 1, 100, 250, 400, 401)
    assert [await log.offset_at(topic, 1, NOW + ms) for ms in moments] == [0, 0, 3, 3, 9, 12, 15]
    assert await log.offset_at(topic, 1, -7) == 0


async def test_the_offset_of_a_moment_is_that_of_a_record_also_among_holes(written: Written, log: LogReader, topic: str) -> None:
    await written.create(topic, 1, compact=True)
    for number in range(30):
        await written.append(topic, 0, (b"k%d" % (number if number % 10 == 0 else 99), b""), ts_ms=NOW + number)
    await written.compact(topic, 0)
    kept = {record.offset: record.ts_ms for record in await everything(log, topic, 0) if record.key != b"filler"}
    assert list(kept) == [0, 10, 20, 29]
    assert [await log.offset_at(topic, 0, NOW + ms) for ms in (0, 1, 10, 11, 20, 21, 29)] == [0, 10, 10, 20, 20, 29, 29]


async def test_committed_offsets_are_those_of_the_group(written: Written, log: LogReader, topic: str) -> None:
    await written.create(topic, 3)
    await written.append(topic, 0, *numbered(4))
    group = f"group-{topic}"
    assert await log.committed(group, topic) == {}
    await written.commit(group, topic, {0: 3, 2: 0})
    assert await log.committed(group, topic) == {0: 3, 2: 0}
    assert await log.committed(f"other-{topic}", topic) == {}


async def test_the_epoch_is_the_log_s_for_every_reader(written: Written, log: LogReader, tmp_path: Path) -> None:
    other = await written.reader()
    assert other.epoch == log.epoch != ""
    await other.close()
    async with written_embedded(tmp_path / "another") as another:
        elsewhere = await another.reader()
        assert elsewhere.epoch != log.epoch
        await elsewhere.close()


# --- many at once, and the end ------------------------------------------------------------------------------------------


async def test_what_is_appended_while_everything_is_read_does_not_come(written: Written, log: LogReader, topic: str) -> None:
    await written.create(topic, 1)
    await written.append(topic, 0, *numbered(10))
    found = []
    async for record in read_all(log, topic, 0):
        found.append(record.value)
        await written.append(topic, 0, (None, b"later"))
    assert found == [b"%d" % number for number in range(10)]


async def test_readings_at_the_same_time_do_not_disturb_each_other(written: Written, log: LogReader, topic: str) -> None:
    await written.create(topic, 8)
    for partition in range(8):
        await written.append(topic, partition, *numbered(300, 1000 * partition))

    async def read(partition: int, step: int) -> list[bytes | None]:
        found: list[bytes | None] = []
        while records := await log.read(topic, partition, len(found), step, MB):
            found += values(records)
            assert (await log.ends(topic))[partition] == 300
        return found

    found = await asyncio.gather(*(read(partition % 8, 7 + partition) for partition in range(24)))
    assert found == [[b"%d" % (1000 * (n % 8) + i) for i in range(300)] for n in range(24)]


async def test_a_reading_that_is_cancelled_leaves_the_reader_as_it_was(written: Written, log: LogReader, topic: str) -> None:
    await written.create(topic, 1)
    await written.append(topic, 0, *((None, random.randbytes(MB)) for _ in range(8)))
    for turns in range(12):
        reading = asyncio.create_task(log.read(topic, 0, 0, 8, 8 * MB))
        for _ in range(turns):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    assert [record.offset for record in await everything(log, topic, 0)] == list(range(8))


async def test_closing_waits_for_readings_and_later_ones_are_refused(written: Written, topic: str) -> None:
    await written.create(topic, 1)
    await written.append(topic, 0, *((None, random.randbytes(MB)) for _ in range(4)))
    log = await written.reader()
    readings = [asyncio.create_task(log.read(topic, 0, 0, 4, 4 * MB)) for _ in range(10)]
    await asyncio.sleep(0)
    await log.close()
    found = await asyncio.gather(*readings)
    assert all(records[0].offset == 0 for records in found)
    for refused in (log.read(topic, 0, 0, 1, MB), log.ends(topic), log.offset_at(topic, 0, NOW), log.committed("g", topic)):
        with pytest.raises(LogAway, match="closed"):
            await refused
    await log.close()


async def test_a_log_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CmisError, match="no log here"):
        EmbeddedReader.open(tmp_path / "log.db")
    port = free_port()
    with pytest.raises(LogAway, match=f"no broker answers at 127.0.0.1:{port}"):
        await KafkaReader.open(client_settings([URL(f"kafka://127.0.0.1:{port}")]))


# --- only Kafka ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_marks_of_transactions_are_passed(kafka: Kafka, topic: str) -> None:
    async with written_kafka(kafka.url) as written, AIOKafkaProducer(
        **written.client, transactional_id=topic
    ) as producer:  # fmt: skip
        await written.create(topic, 1)
        for number in range(5):
            async with producer.transaction():
                await producer.send_and_wait(topic, b"%d" % number, partition=0)
        log = await written.reader()
        assert [record.offset for record in await everything(log, topic, 0)] == [0, 2, 4, 6, 8]
        assert await log.ends(topic) == {0: 10} and await log.read(topic, 0, 9, 5, MB) == []
        await log.close()


@pytest.mark.slow
async def test_a_reader_lives_through_restarts_of_its_broker(kafka: Kafka, topic: str) -> None:
    async with written_kafka(kafka.url) as written:
        await written.create(topic, 2)
        await written.append(topic, 1, *numbered(5))
        log = await written.reader()
        assert len(await log.read(topic, 1, 0, 10, MB)) == 5
        for end in (kafka.stop, kafka.kill):
            await asyncio.to_thread(end)
            reading = asyncio.create_task(log.read(topic, 1, 0, 10, MB))
            await asyncio.sleep(0.5)
            assert not reading.done()
            await asyncio.to_thread(kafka.start)
            assert len(await reading) == 5
        await log.close()


async def impatient(kafka: Kafka, seconds: float) -> KafkaReader:
    return await KafkaReader.open({**client_settings([URL(kafka.url)]), "request_timeout_ms": int(seconds * 1000)})


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "paused"])
async def test_nobody_waits_for_ever_for_a_broker_that_does_not_answer(kafka: Kafka, topic: str, how: str) -> None:
    async with written_kafka(kafka.url) as written:
        await written.create(topic, 1)
        await written.append(topic, 0, *numbered(5))
        log, leaving = await impatient(kafka, 3), await written.reader()
        await log.read(topic, 0, 0, 10, MB), await leaving.read(topic, 0, 0, 10, MB)
        await asyncio.to_thread(kafka.stop if how == "stopped" else kafka.pause)
        try:
            async with asyncio.timeout(60):  # patience, not an assertion: each would otherwise wait for ever
                for asked in (log.read(topic, 0, 0, 10, MB), log.ends(topic), log.ends("unknown"), log.topics()):
                    with pytest.raises(LogAway, match=r"no answer from 127\.0\.0\.1"):
                        await asked
                reading = asyncio.create_task(leaving.read(topic, 0, 0, 10, MB))
                await asyncio.sleep(0.1)
                await leaving.close()
                with pytest.raises(LogAway):
                    await reading
        finally:
            await asyncio.to_thread(kafka.start if how == "stopped" else kafka.resume)
        async with asyncio.timeout(60):  # it is back as soon as the broker is
            while True:
                try:
                    assert values(await log.read(topic, 0, 0, 10, MB)) == [b"0", b"1", b"2", b"3", b"4"]
                    break
                except LogAway:
                    pass
        await log.close()


@pytest.mark.slow
async def test_a_topic_that_is_deleted_is_not_there_any_more(kafka: Kafka, topic: str) -> None:
    async with written_kafka(kafka.url) as written:
        assert isinstance(written, WrittenKafka)
        await written.create(topic, 2)
        await written.append(topic, 1, *numbered(5))
        log = await written.reader()
        assert await log.ends(topic) == {0: 0, 1: 5}
        await written.admin.delete_topics([topic])
        async with asyncio.timeout(60):
            while await log.ends(topic):
                await asyncio.sleep(0.1)
        assert await log.read(topic, 1, 0, 10, MB) == []
        await log.close()
