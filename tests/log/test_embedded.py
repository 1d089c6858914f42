"""The embedded log: what is acknowledged is there, in order, whatever happens."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmis_stream.log import upkeep
from cmis_stream.log.embedded import EmbeddedLog, LogClosed, LogError, LogLocked, LogWriteFailed, Record

ALL = 1 << 40
REPO = Path(__file__).resolve().parents[2]


@pytest_asyncio.fixture
async def log(tmp_path: Path) -> AsyncIterator[EmbeddedLog]:
    log = EmbeddedLog.open(tmp_path / "log.db")
    yield log
    log.close()


def read_all(log: EmbeddedLog, topic: str, partition: int) -> list[Record]:
    return log.read(topic, partition, 0, ALL, ALL)


def offsets_of(log: EmbeddedLog, topic: str, partition: int) -> list[int]:
    return [record.offset for record in read_all(log, topic, partition)]


def child(code: str, *args: object, **options: object) -> subprocess.Popen[str]:
    """Start a second Python with the embedded log imported."""
    source = "import asyncio, sys\nfrom cmis_stream.log.embedded import *\n" + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", source, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )


# -- appending and reading --------------------------------------------------------------------------------------------

_records = st.lists(
    st.tuples(
        st.sampled_from([("a", 0), ("a", 1), ("a", 2), ("b", 0)]),
        st.none() | st.binary(max_size=12),
        st.none() | st.binary(max_size=40),
        st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=5)), max_size=2),
        st.integers(0, 2**45),
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(records=_records, step=st.integers(1, 7), max_bytes=st.integers(0, 100))
def test_what_is_appended_is_read_in_order_per_partition_and_again_after_reopening(
    records: list[tuple[tuple[str, int], bytes | None, bytes | None, list[tuple[str, bytes]], int]],
    step: int,
    max_bytes: int,
) -> None:
    async def scenario(path: Path) -> None:
        expected: dict[tuple[str, int], list[Record]] = defaultdict(list)
        log = EmbeddedLog.open(path)
        log.create_topic("a", 3)
        log.create_topic("b", 1)
        futures = []
        for (topic, partition), key, value, headers, ts_ms in records:
            line = expected[topic, partition]
            line.append(Record(len(line), ts_ms, key, value, headers))
            futures.append((log.append(topic, partition, key, value, headers, ts_ms), len(line) - 1))
        for future, offset in futures:
            assert await future == offset
        assert log.pending_bytes == 0
        for reopened in (False, True):
            if reopened:
                await log.aclose()
                log = EmbeddedLog.open(path)
            for topic, partition in [("a", 0), ("a", 1), ("a", 2), ("b", 0)]:
                found: list[Record] = []
                while batch := log.read(topic, partition, len(found), step, max_bytes):
                    assert len(batch) <= step
                    found += batch
                assert found == expected[topic, partition]
                assert log.highwater(topic, partition) == len(found)
        await log.aclose()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(Path(folder) / "log.db"))


async def test_a_read_returns_one_record_even_if_it_is_larger_than_asked(log: EmbeddedLog) -> None:
    log.create_topic("a", 1)
    await asyncio.gather(*(log.append("a", 0, None, bytes(100_000)) for _ in range(3)))
    assert [record.offset for record in log.read("a", 0, 1, 10, 5)] == [1]
    assert [record.offset for record in log.read("a", 0, 0, 10, 200_000)] == [0, 1]


async def test_only_durable_records_are_visible(log: EmbeddedLog) -> None:
    log.create_topic("a", 1)
    future = log.append("a", 0, b"k", b"v")
    assert log.pending_bytes == 2
    assert await future == 0
    assert log.highwater("a", 0) == 1


async def test_a_listener_hears_of_records_and_not_after_it_left(log: EmbeddedLog) -> None:
    log.create_topic("a", 1)
    heard = asyncio.Event()
    log.listen(heard.set)
    await log.append("a", 0, None, b"1")
    await asyncio.wait_for(heard.wait(), 5)
    log.unlisten(heard.set)
    heard.clear()
    await log.append("a", 0, None, b"2")
    await log.flush()
    assert not heard.is_set()


async def test_flush_covers_everything_handed_in_before(log: EmbeddedLog) -> None:
    log.create_topic("a", 1)
    futures = [log.append("a", 0, None, bytes(1000)) for _ in range(500)]
    await log.flush()
    assert all(future.done() for future in futures)


async def test_wrong_use_is_refused_with_what_came_and_what_was_expected(log: EmbeddedLog) -> None:
    log.create_topic("a", 2)
    log.create_topic("c", 2, compact=True)
    with pytest.raises(LogError, match="no topic nope; there are: a, c"):
        log.append("nope", 0, None, b"")
    with pytest.raises(LogError, match="got partition 2, expected 0 to 1"):
        log.append("a", 2, None, b"")
    with pytest.raises(LogError, match="got nothing, expected a key"):
        log.append("c", 0, None, b"")
    with pytest.raises(TypeError, match="value: got str, expected bytes"):
        log.append("a", 0, None, "text")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(LogError, match="sync: got 'maybe'"):
        EmbeddedLog.open(log.path, sync="maybe")


# -- topics, groups, generations --------------------------------------------------------------------------------------


async def test_creating_a_topic_again_takes_new_retention_and_refuses_another_shape(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path / "log.db")
    first = log.create_topic("a", 8, retention_ms=5)
    assert log.create_topic("a", 8, retention_ms=5) == first
    assert log.create_topic("a", 8, retention_ms=9, retention_bytes=7).retention_ms == 9
    with pytest.raises(LogError, match="exists with 8 partitions, cleanup delete, got 4 partitions, cleanup delete"):
        log.create_topic("a", 4)
    with pytest.raises(LogError, match="got 8 partitions, cleanup compact"):
        log.create_topic("a", 8, compact=True)
    await log.aclose()
    log = EmbeddedLog.open(tmp_path / "log.db")
    info = log.topics["a"]
    assert (info.partitions, info.compact, info.retention_ms, info.retention_bytes) == (8, False, 9, 7)
    await log.aclose()


async def test_generations_only_go_up_also_over_restarts(tmp_path: Path) -> None:
    seen = []
    for _ in range(3):
        log = EmbeddedLog.open(tmp_path / "log.db")
        seen += [log.next_generation("g"), log.next_generation("g")]
        assert log.next_generation(f"other-{len(seen)}") == 1
        await log.aclose()
    assert seen == [1, 2, 3, 4, 5, 6]


async def test_the_epoch_belongs_to_the_file(tmp_path: Path) -> None:
    epochs = []
    for name in ("a", "a", "b"):
        log = EmbeddedLog.open(tmp_path / f"{name}.db")
        epochs.append(log.epoch)
        await log.aclose()
    assert epochs[0] == epochs[1] != epochs[2]


async def test_group_offsets_are_kept_over_a_restart(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path / "log.db")
    log.create_topic("a", 2)
    assert log.committed("g", "a", 0) is None
    await log.commit_offsets("g", {("a", 0): 3, ("a", 1): 0})
    await log.commit_offsets("g", {("a", 0): 5})
    await log.aclose()
    log = EmbeddedLog.open(tmp_path / "log.db")
    assert (log.committed("g", "a", 0), log.committed("g", "a", 1)) == (5, 0)
    assert log.groups() == {"g": {("a", 0): 5, ("a", 1): 0}}
    await log.aclose()


# -- one writing process ----------------------------------------------------------------------------------------------


async def test_opening_twice_in_one_process_shares_the_log_until_the_last_close(tmp_path: Path) -> None:
    first = EmbeddedLog.open(tmp_path / "log.db")
    second = EmbeddedLog.open(tmp_path / "x" / ".." / "log.db")
    assert first is second
    with pytest.raises(LogError, match="already open with sync='normal'"):
        EmbeddedLog.open(tmp_path / "log.db", sync="full")
    first.create_topic("a", 1)
    first.close()
    assert await second.append("a", 0, None, b"v") == 0
    await second.aclose()
    with pytest.raises(LogClosed):
        second.append("a", 0, None, b"v")
    with pytest.raises(LogClosed, match="closed more often"):
        second.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("log-writer")]


async def test_closing_writes_what_is_pending(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path / "log.db", sync="full")
    log.create_topic("a", 1)
    futures = [log.append("a", 0, None, bytes(10_000)) for _ in range(100)]
    log.close()
    assert await asyncio.gather(*futures) == list(range(100))
    log = EmbeddedLog.open(tmp_path / "log.db")
    assert len(read_all(log, "a", 0)) == 100
    await log.aclose()


async def test_a_second_process_is_told_who_writes_and_what_to_do(log: EmbeddedLog) -> None:
    process = child(
        """
        try:
            EmbeddedLog.open(sys.argv[1])
        except LogLocked as error:
            print(error)
        """,
        log.path,
    )
    out, err = process.communicate(timeout=30)
    assert out.strip() == (f"process {os.getpid()} is already writing to {log.path}: stop it, or choose another --data-dir"), err
    assert issubclass(LogLocked, LogError)


async def test_a_second_process_reads_while_the_first_writes(log: EmbeddedLog) -> None:
    log.create_topic("a", 2)
    await log.append("a", 1, b"k", b"first", [("h", b"1")])
    script = """
        log = EmbeddedLog.open(sys.argv[1], read_only=True)
        print(sorted(log.topics), log.epoch, log.highwater("a", 1), log.read("a", 1, 0, 9, 99)[0].value, flush=True)
        sys.stdin.readline()
        print(log.highwater("a", 1), log.earliest("a", 1), log.committed("g", "a", 1), sorted(log.topics))
        print([record.value for record in log.read("a", 1, 1, 9, 99)], log.read("late", 0, 0, 9, 99)[0].value)
        try:
            log.create_topic("b", 1)
        except LogError as error:
            print(error)
        log.close()
    """
    reader = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import sys\nfrom cmis_stream.log.embedded import *\n" + textwrap.dedent(script),
        str(log.path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    before = (await asyncio.wait_for(reader.stdout.readline(), 30)).decode().strip()
    assert before == f"['a'] {log.epoch} 1 b'first'"
    log.create_topic("late", 1)
    await log.append("a", 1, b"k", b"second")
    await log.append("late", 0, None, b"third")
    await log.commit_offsets("g", {("a", 1): 1})
    out, _ = await asyncio.wait_for(reader.communicate(b"go\n"), 30)
    assert out.decode().splitlines() == [
        "2 0 1 ['a', 'late']",
        "[b'second'] b'third'",
        f"{log.path}: opened read only",
    ]


def test_a_reader_of_no_log_says_so(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no log here"):
        EmbeddedLog.open(tmp_path / "log.db", read_only=True)
    (tmp_path / "junk.db").write_bytes(b"not a database, but long enough to look like a file with content" * 20)
    for read_only in (True, False):
        with pytest.raises(LogError, match="cannot be opened as a log"):
            EmbeddedLog.open(tmp_path / "junk.db", read_only=read_only)


# -- failure ----------------------------------------------------------------------------------------------------------


async def test_after_kill_9_every_acknowledged_record_is_there_without_gap_or_tear(tmp_path: Path) -> None:
    script = """
        import hashlib
        async def main():
            log = EmbeddedLog.open(sys.argv[1])
            log.create_topic("a", 4)
            print("generation", log.next_generation("g"), flush=True)
            async def line(partition):
                while True:
                    body = bytes([partition]) * (200 + 97 * log.highwater("a", partition) % 60_000)
                    future = log.append("a", partition, hashlib.sha256(body).digest(), body)
                    both = log.commit_offsets("g", {("a", partition): log.highwater("a", partition)})
                    offset = await future
                    await both
                    print(partition, offset, flush=True)
            await asyncio.gather(*(line(partition) for partition in range(4) for _ in range(3)))
        asyncio.run(main())
    """
    chance = random.Random(20240607)
    acknowledged: dict[int, set[int]] = defaultdict(set)
    generations: list[int] = []
    for _ in range(4):
        process = child(script, tmp_path / "log.db")
        assert process.stdout is not None
        for _ in range(chance.randint(1, 400)):
            _note(process.stdout.readline(), acknowledged, generations)
        process.send_signal(signal.SIGKILL)
        for line in process.stdout:  # what it had acknowledged before it died
            if line.endswith("\n"):
                _note(line, acknowledged, generations)
        process.communicate()

        log = EmbeddedLog.open(tmp_path / "log.db")
        for partition in range(4):
            records = read_all(log, "a", partition)
            assert [record.offset for record in records] == list(range(len(records)))
            assert acknowledged[partition] <= set(range(len(records)))
            assert log.highwater("a", partition) == len(records)
            for record in records:
                assert record.value == bytes([partition]) * len(record.value or b"")
                assert hashlib.sha256(record.value or b"").digest() == record.key
            committed = log.committed("g", "a", partition)
            assert committed is None or committed <= len(records)
        await log.aclose()
    assert sum(map(len, acknowledged.values())) > 0
    assert generations == sorted(set(generations))


def _note(line: str, acknowledged: dict[int, set[int]], generations: list[int]) -> None:
    left, right = line.split()
    if left == "generation":
        generations.append(int(right))
    else:
        acknowledged[int(left)].add(int(right))


def _set_page_limit(log: EmbeddedLog, pages: int) -> None:
    """Make the disk full, as far as SQLite can tell (0: as it is now)."""
    db: sqlite3.Connection = log._writing()._db
    used = db.execute("pragma page_count").fetchone()[0]
    db.execute(f"pragma max_page_count = {used + pages}")


async def test_a_failed_transaction_fails_all_its_futures_and_uses_no_offset(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path / "log.db")
    log.create_topic("a", 2)
    log.create_topic("c", 1, compact=True)
    assert await log.append("a", 0, None, b"before") == 0
    assert await log.append("c", 0, b"k", b"before") == 0
    await log.commit_offsets("g", {("a", 0): 1})
    _set_page_limit(log, 2)

    log.create_topic("made while full", 1)
    generation = log.next_generation("g")
    futures: list[asyncio.Future[object]] = [
        log.append("a", 0, None, bytes(500_000)),  # type: ignore[list-item]  # futures of several types
        log.append("c", 0, b"k", bytes(500_000)),  # type: ignore[list-item]
        log.commit_offsets("g", {("a", 0): 2}),  # type: ignore[list-item]
        log.flush(),  # type: ignore[list-item]
    ]
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert any(isinstance(outcome, LogWriteFailed) for outcome in outcomes)
    assert isinstance(outcomes[0], LogWriteFailed)
    assert isinstance(outcomes[0].__cause__, sqlite3.Error)
    assert log.pending_bytes == 0
    assert (log.highwater("a", 0), offsets_of(log, "a", 0)) == (1, [0])
    assert [record.value for record in read_all(log, "c", 0)] == [b"before"]

    _set_page_limit(log, 10_000)
    assert await log.append("a", 0, None, b"after") == 1
    assert await log.append("c", 0, b"k", b"after") == 1
    assert await log.append("made while full", 0, None, b"v") == 0
    await log.aclose()

    log = EmbeddedLog.open(tmp_path / "log.db")
    assert [record.value for record in read_all(log, "a", 0)] == [b"before", b"after"]
    assert [record.value for record in read_all(log, "c", 0)] == [b"after"]
    assert log.next_generation("g") == generation + 1
    await log.aclose()


async def test_records_and_group_offsets_handed_in_together_stand_or_fall_together(log: EmbeddedLog) -> None:
    log.create_topic("a", 1)
    await log.append("a", 0, None, b"0")
    # No await between them: the writer takes all that is pending at once, and it cannot have taken the first alone,
    # because the lock it takes is held while they are handed in.
    _set_page_limit(log, 2)
    with log._writing()._wake:
        record = log.append("a", 0, None, bytes(500_000))
        offsets = log.commit_offsets("g", {("a", 0): 1})
    outcomes = await asyncio.gather(record, offsets, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [LogWriteFailed, LogWriteFailed]
    assert log.committed("g", "a", 0) is None
    _set_page_limit(log, 10_000)
    with log._writing()._wake:
        record = log.append("a", 0, None, bytes(500_000))
        offsets = log.commit_offsets("g", {("a", 0): 1})
    assert await record == 1
    await offsets
    assert log.committed("g", "a", 0) == 1


# -- retention and compaction -----------------------------------------------------------------------------------------


async def test_records_older_than_the_retention_go_and_younger_ones_stay(log: EmbeddedLog) -> None:
    log.create_topic("a", 2, retention_ms=1000)
    log.create_topic("kept", 1)
    await asyncio.gather(*(log.append("a", 0, None, b"v", ts_ms=ts) for ts in (10, 500, 900, 2000)))
    await log.append("kept", 0, None, b"v", ts_ms=0)
    assert log.maintain(now_ms=1600) == 2
    assert offsets_of(log, "a", 0) == [2, 3]
    assert (log.earliest("a", 0), log.highwater("a", 0)) == (2, 4)
    assert (log.earliest("a", 1), log.highwater("a", 1)) == (0, 0)
    assert offsets_of(log, "kept", 0) == [0]


async def test_offsets_continue_after_retention_has_deleted_everything(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path / "log.db")
    log.create_topic("a", 1, retention_ms=1000)
    await asyncio.gather(*(log.append("a", 0, None, b"v", ts_ms=1) for _ in range(1000)))
    assert log.maintain(now_ms=10_000) == 1000
    assert (log.earliest("a", 0), log.highwater("a", 0), log.bytes_held("a")) == (1000, 1000, 0)
    await log.aclose()
    log = EmbeddedLog.open(tmp_path / "log.db")
    assert (log.earliest("a", 0), log.highwater("a", 0)) == (1000, 1000)
    assert await log.append("a", 0, None, b"v") == 1000
    await log.aclose()


async def test_a_topic_over_its_bytes_loses_its_oldest_records_over_all_partitions(log: EmbeddedLog) -> None:
    log.create_topic("a", 3, retention_bytes=100_000)
    for ts in range(40):
        await log.append("a", ts % 2, None, bytes(10_000), ts_ms=ts)
    log.maintain(now_ms=50)
    assert log.bytes_held("a") <= 100_000
    left = sorted(record.ts_ms for partition in range(3) for record in read_all(log, "a", partition))
    assert len(left) >= 9
    assert left[-1] == 39
    assert log.maintain(now_ms=50) == 0


async def test_large_retention_runs_in_steps_and_appends_pass_between_them(
    log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "STEP_ROWS", 10)
    log.create_topic("a", 1, retention_ms=1000)
    await asyncio.gather(*(log.append("a", 0, None, b"v", ts_ms=1) for _ in range(500)))
    removed = log._writing().sweep(10_000)
    assert await log.append("a", 0, None, b"new", ts_ms=9_999) == 500
    assert await asyncio.wrap_future(removed) == 500
    assert offsets_of(log, "a", 0) == [500]


@settings(deadline=None, max_examples=20)
@given(
    writes=st.lists(
        st.tuples(st.integers(0, 1), st.sampled_from([b"x", b"y", b"z", b""]), st.none() | st.binary(max_size=5)),
        max_size=40,
    ),
    together=st.integers(1, 10),
)
def test_a_compacted_topic_holds_the_newest_record_of_each_key_and_the_last_of_each_partition(
    writes: list[tuple[int, bytes, bytes | None]], together: int
) -> None:
    async def scenario(path: Path) -> None:
        log = EmbeddedLog.open(path)
        log.create_topic("c", 2, compact=True)
        newest: dict[tuple[int, bytes], tuple[int, bytes | None]] = {}
        counts = [0, 0]
        futures = []
        for at, (partition, key, value) in enumerate(writes):
            futures.append(log.append("c", partition, key, value, ts_ms=0))
            newest[partition, key] = counts[partition], value
            counts[partition] += 1
            if at % together == 0:
                await asyncio.gather(*futures)
        await asyncio.gather(*futures)
        for swept in (False, True):
            if swept:
                log.maintain(now_ms=upkeep.TOMBSTONE_KEEP_MS + 1)
            for partition in (0, 1):
                expected = sorted(
                    (offset, key, value)
                    for (p, key), (offset, value) in newest.items()
                    if p == partition and not (swept and value is None and offset != counts[p] - 1)
                )
                found = [(r.offset, r.key, r.value) for r in read_all(log, "c", partition)]
                assert sorted(found) == expected
                assert log.highwater("c", partition) == counts[partition]
        held = sum(len(r.key or b"") + len(r.value or b"") for p in (0, 1) for r in read_all(log, "c", p))
        assert log.bytes_held("c") == held
        await log.aclose()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(Path(folder) / "log.db"))


async def test_rewriting_the_same_keys_reuses_the_files_space(log: EmbeddedLog) -> None:
    log.create_topic("c", 1, compact=True)
    sizes = []
    for turn in range(60):
        await log.append("c", 0, b"slot-%d" % (turn % 4), bytes(500_000))
        if turn >= 20:
            sizes.append(log._reader.execute("pragma page_count").fetchone()[0])
    assert len(read_all(log, "c", 0)) == 4
    assert max(sizes) <= sizes[0] + 40  # a record's worth of pages: no growth with the number of rewrites
