"""A process for the tests to kill: `STORE_URL LOG` carries out the commands in partition 0 of the log, for ever.

Like an agent's, its reading begins before what is in the store: acks come later than results.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cmis_stream.live.commands import COMMANDS, CommandsOnFacts
from cmis_stream.log.embedded_reader import EmbeddedReader
from cmis_stream.store.database import Database
from cmis_stream.store.fact_commands import FactCommands
from cmis_stream.store.facts import Facts
from tests.store.fact_support import fact_kinds

BACK, AT_ONCE = 15, 4


@contextmanager
def ends_the_process() -> Iterator[None]:
    yield


async def work(url: str, log: Path) -> None:
    database, reader = Database(url), EmbeddedReader.open(log)
    facts = Facts(database, fact_kinds())
    runner = CommandsOnFacts(FactCommands(database, fact_kinds(), facts), facts, reader.epoch, ends_the_process)
    await runner.begin({0})
    offset = max(0, runner.reached.get(0, -1) + 1 - BACK)
    print("ready", flush=True)
    while True:
        records = await reader.read(COMMANDS, 0, offset, AT_ONCE, 1 << 20)
        for record in records:
            await runner.put(0, record.offset, record.value or b"", lambda: None)
            offset = record.offset + 1
        await runner.settled()
        if not records:
            await asyncio.sleep(0.01)


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], Path(sys.argv[2])))
