"""A worker on Kafka, with all agents and without HTTP, that tests can hold at a point, or take its fences away.

As a process: python kafka_worker.py BROKER_URL FOLDER [SCENE as JSON]; it says "recovered" whenever it has its partitions, and
runs until it is killed. Processes with the same folder share a store.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cmis_stream.log import owner as owner_module
from cmis_stream.log.checkpoint import Recovered, Write, recover
from cmis_stream.log.owner import TRANSITIONS
from cmis_stream.log.system import LogSystem
from cmis_stream.runtime import Runtime
from cmis_stream.settings import Role, Settings

SESSION = {"broker_session_timeout": 3.0, "broker_heartbeat_interval": 0.3}


@dataclass(frozen=True)
class Scene:
    """What a test wants of a process. Files in `points` (a folder): the process makes `held` and waits for `go`.

    records: after so many a checkpoint is made, and none by age; no ticks either. hold: "checkpoint" or "results", just before
    they are handed to the producer, for the nth time (and every later checkpoint: it writes no other). without: a fence that is
    taken away, "generations" (all write the same keys) or "highest" (recovery takes the checkpoint that was written last).
    """

    records: int
    points: str = ""
    hold: str = ""
    nth: int = 1
    without: str = ""

    @property
    def as_argument(self) -> str:
        return json.dumps(asdict(self))


def _recover_among_shared_keys(records: Mapping[bytes, bytes]) -> Recovered:
    return replace(recover(records), stale_keys=[])  # none is older: all are ours


def _recover_what_was_written_last(records: Mapping[bytes, bytes]) -> Recovered:
    if not records:
        return Recovered()
    last = list(records)[-1].split(b"/")[0] + b"/"
    return recover({key: value for key, value in records.items() if key.startswith(last)})


RECOVERIES = {"": recover, "generations": _recover_among_shared_keys, "highest": _recover_what_was_written_last}


class Worker(Runtime):
    """What `cmis worker` runs; a killed one's partitions move as fast as a broker allows."""

    scene: Scene | None = None

    def __init__(self, settings: Settings, system: LogSystem, *others: Any) -> None:
        super().__init__(settings, replace(system, options={**system.options, **SESSION}), *others)
        self._times = 0

    def play(self, scene: Scene) -> None:
        self.scene, self.ticking = scene, False
        if scene.hold == "checkpoint":
            self._hold_checkpoints(scene)

    def generation(self) -> str:
        return "same" if self.scene is not None and self.scene.without == "generations" else super().generation()

    async def send(self, topic: str, partition: int, value: bytes) -> Awaitable[Any]:
        if topic == TRANSITIONS and self.scene is not None and self.scene.hold == "results":
            self._times += 1
            if self._times == self.scene.nth:
                self._hold()
        return await super().send(topic, partition, value)

    def _hold_checkpoints(self, scene: Scene) -> None:
        put = self.table.put

        async def held(partition: int, writes: Iterable[Write]) -> list[Awaitable[Any]]:
            self._times += 1
            if self._times >= scene.nth:
                self._hold()
            return await put(partition, writes)

        self.table.put = held  # type: ignore[method-assign]

    def _hold(self) -> None:
        """The loop stands still: whatever is known when it goes on, this write comes first."""
        assert self.scene is not None
        points = Path(self.scene.points)
        (points / "held").touch()
        while not (points / "go").exists():
            time.sleep(0.01)
        (points / "go").unlink()

    async def alone(self) -> None:
        """Until it has all partitions: those that were killed are members of the group until their session is over."""
        async with asyncio.timeout(60):
            while len(self.owners) < self.partitions:
                if self.failed.done():
                    self.failed.result()
                await asyncio.sleep(0.05)

    async def ended(self) -> None:
        """Until something has gone wrong; raises it."""
        await asyncio.shield(self.failed)


@contextlib.asynccontextmanager
async def running(broker: str, folder: Path, scene: Scene | None = None) -> AsyncIterator[Worker]:
    """From recovery on, or raises what kept it from that."""
    worker = await Worker.open(Settings(data_dir=folder, role=Role.WORKER, log_url=broker))
    assert isinstance(worker, Worker)
    if scene is not None:
        worker.play(scene)
    try:
        await worker.start()
        yield worker
    finally:
        await worker.stop()


async def main(broker: str, folder: str, scene: str = "null") -> None:
    wanted = None if scene == "null" else Scene(**json.loads(scene))
    if wanted is not None:
        owner_module.CHECKPOINT_S, owner_module.CHECKPOINT_RECORDS = 1e9, wanted.records
        owner_module.recover = RECOVERIES[wanted.without]
    async with running(broker, Path(folder), wanted) as worker:
        print("recovered", flush=True)
        await worker.ended()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
