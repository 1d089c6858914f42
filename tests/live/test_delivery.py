"""Results on their way to the backplane: each once, before a restart or after it."""

from __future__ import annotations

from typing import Any

import pytest

from cmis_stream.backplane.memory import MemoryBackplane
from cmis_stream.live import delivery as delivery_module
from cmis_stream.live.delivery import Delivery
from cmis_stream.log.owner import ROLLUPS, TRANSITIONS
from tests.live.support import ACME, FIGURES, INCIDENTS, PARTITIONS, Results, figures, line, transitions


class Node:
    """A process that has just started on the log."""

    def __init__(self, world: Results) -> None:
        self.world = world
        self.backplane = MemoryBackplane("e", world.tail.place, world.tail.read, world.tail.moment, patience_s=0.01)
        self.lines: list[dict[str, Any]] = []
        self.delivery = Delivery(self.backplane, self.lines.extend)
        self.got: list[tuple[str, int]] = []

    async def begin(self) -> Node:
        await self.delivery.begin(self.world.tail, PARTITIONS)
        for channel in (INCIDENTS, FIGURES):
            await self.backplane.listen(channel, lambda channel, publication: self.got.append((channel, publication.offset)))
        return self

    async def take(self, topic: str, *values: bytes) -> None:
        """Appends records and delivers them, as the agent does."""
        for value in values:
            offset = await self.world.append(topic, value)
            await self.delivery.take(topic, ACME, offset, value)


async def test_each_result_is_published_once_with_its_offset_and_told_to_listeners_here(world: Results) -> None:
    node = await Node(world).begin()
    await node.take(TRANSITIONS, transitions(0), transitions(1), transitions(0), transitions(1), transitions(2))
    await node.take(ROLLUPS, figures(0), figures(0), figures(2))
    assert node.got == [(INCIDENTS, 0), (INCIDENTS, 1), (INCIDENTS, 4), (FIGURES, 0), (FIGURES, 2)]
    assert [one["events"] for one in node.lines] == [["e0"], ["e1"], ["e2"]]


async def test_the_position_of_a_channel_moves_with_its_partition_also_without_publications(world: Results) -> None:
    node = await Node(world).begin()
    assert (await node.backplane.position(INCIDENTS)).offset == -1
    await node.take(TRANSITIONS, transitions(0, line(0, org="globex")), transitions(0))
    assert (await node.backplane.position(INCIDENTS)).offset == 1
    assert node.got == []


async def test_a_node_that_starts_knows_what_the_log_holds(world: Results) -> None:
    before = await Node(world).begin()
    await before.take(TRANSITIONS, *[transitions(source) for source in range(5)])
    node = await Node(world).begin()
    found = await node.backplane.recover(INCIDENTS, 1, "e", 100)
    assert (found.position.offset, [p.offset for p in found.publications or ()]) == (4, [2, 3, 4])


@pytest.mark.spec("GTW-M07", partial="between the log and the backplane; the gateway's part has tests of its own")
async def test_what_is_read_again_after_a_restart_is_published_once(world: Results) -> None:
    """Of records 0 to 4 the consumer had committed two; after a crash of the owner 3 and 4 come again, then 5."""
    before = await Node(world).begin()
    await before.take(TRANSITIONS, *[transitions(source) for source in range(5)])
    node = await Node(world).begin()
    for offset in range(2, 5):
        await node.delivery.take(TRANSITIONS, ACME, offset, transitions(offset))
    await node.take(TRANSITIONS, transitions(3), transitions(4), transitions(5))
    assert node.got == [(INCIDENTS, 7)]
    found = await node.backplane.recover(INCIDENTS, -1, "e", 100)
    assert [p.offset for p in found.publications or ()] == [0, 1, 2, 3, 4, 7]


async def test_a_client_goes_on_over_a_restart_beyond_what_memory_holds(world: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery_module, "REMEMBERED", {TRANSITIONS: (1, 1), ROLLUPS: (1, 1)})
    before = await Node(world).begin()
    await before.take(TRANSITIONS, *[transitions(source) for source in range(130)])
    node = await Node(world).begin()
    assert [p.offset for p in (await node.backplane.newest(INCIDENTS, 1000)).publications or ()] == list(range(80, 130))
    found = await node.backplane.recover(INCIDENTS, 9, "e", 1000)
    assert [p.offset for p in found.publications or ()] == list(range(10, 130))


async def test_the_start_of_a_log_that_retention_has_emptied_is_behind_what_was_there(world: Results) -> None:
    await world.append(TRANSITIONS, transitions(0), transitions(1))
    world.trim()
    node = await Node(world).begin()
    assert (await node.backplane.position(INCIDENTS)).offset == 1
    assert (await node.backplane.recover(INCIDENTS, -1, "e", 10)).publications is None, "two are gone: no silent gap"
