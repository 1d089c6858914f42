"""A log that waits for room on a full disk: nothing is lost or refused, and the order stays."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cmis_stream.log.embedded import EmbeddedLog, LogWriteFailed


def limit_pages(log: EmbeddedLog, more: int) -> None:
    """The disk has room for so many more pages."""
    assert log._writer is not None
    db = log._writer._db
    db.execute(f"pragma max_page_count = {db.execute('pragma page_count').fetchone()[0] + more}")


async def full(log: EmbeddedLog) -> None:
    async with asyncio.timeout(30):
        while not log.full:
            await asyncio.sleep(0.01)


async def test_what_is_appended_while_the_disk_is_full_is_written_in_its_order_once_there_is_room(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path / "log.db")
    log.wait_for_room()
    log.create_topic("a", 1)
    limit_pages(log, 1)
    large = log.append("a", 0, None, bytes(500_000))
    await full(log)
    after = [log.append("a", 0, None, b"%d" % n) for n in range(3)]
    committed = log.commit_offsets("g", {("a", 0): 4})
    assert not large.done()
    limit_pages(log, 10_000)
    assert [await large, *[await future for future in after]] == [0, 1, 2, 3]
    await committed
    assert not log.full and log.committed("g", "a", 0) == 4
    assert [record.value for record in log.read("a", 0, 1, 10, 1 << 20)] == [b"0", b"1", b"2"]
    await log.aclose()


async def test_closing_does_not_wait_for_room(tmp_path: Path) -> None:
    log = EmbeddedLog.open(tmp_path / "log.db")
    log.wait_for_room()
    log.create_topic("a", 1)
    limit_pages(log, 1)
    large = log.append("a", 0, None, bytes(500_000))
    await full(log)
    async with asyncio.timeout(30):
        await log.aclose()
    with pytest.raises(LogWriteFailed, match="full"):
        await large
