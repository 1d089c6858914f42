"""A process that keeps the history of a log until it is killed: `python -m tests.history.process LOG ROOT`.

It reads, writes and merges without a pause, a few records at a time, so that a kill falls into all of them.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from cmis_stream.history import recorder
from cmis_stream.history.recorder import TOPICS, History
from cmis_stream.log.embedded_reader import EmbeddedReader
from tests.core.support import NOW


async def keep(log: str, root: str) -> None:
    recorder.STEP_RECORDS = random.randint(1, 7)  # other cuts each time
    reader = EmbeddedReader.open(Path(log))
    history = History(reader, Path(root), 1, lambda: NOW)
    await history.begin([0])
    print("begun", flush=True)
    while True:
        for dataset in TOPICS:
            await history.follow_once(dataset, flush=random.random() < 0.7)
        await history.merge_due(all_quiet=random.random() < 0.3)


if __name__ == "__main__":
    asyncio.run(keep(*sys.argv[1:]))
