"""A partition that is taken away: whoever waits goes on, and nothing more is written, sent or acked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from cmis_stream.log import owner as owner_module
from cmis_stream.log.envelope import Tick, encode
from cmis_stream.log.owner import DEAD_LETTERS, ROLLUPS, Owner
from tests.log.support import NOW, RULES, World, events, rules, settled


@pytest.fixture(autouse=True)
def no_checkpoint_by_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints by count, or when the test asks; a slow machine makes no difference."""
    monkeypatch.setattr(owner_module, "CHECKPOINT_S", 1e9)


async def at_work(world: World) -> Owner:
    """With a checkpoint under way that waits for its outputs, and a record applied after it."""
    owner = world.owner()
    await world.feed(owner, [rules(), events(("c1", 0, 20.0))])
    world.prompt = False
    await world.feed(owner, [events(("c1", 1_000, 1.0), first=1)], 2)
    await owner.checkpoint()
    await settled()
    await world.feed(owner, [events(("c2", 2_000, 20.0), first=2)], 3)
    assert owner._saving is not None and not owner._saving.done() and not world.acked
    return owner


def become_durable(world: World) -> None:
    world.prompt = True
    for future in [*(future for _, _, future in world.sent), *(future for _, futures in world.stored for future in futures)]:
        if not future.done():
            future.set_result(None)


async def test_whoever_waits_for_a_checkpoint_returns_when_the_partition_is_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_module, "MOST_HELD", 2)
    world = World()
    owner = await at_work(world)
    applying = asyncio.ensure_future(world.feed(owner, [encode(Tick(NOW + 60_000))], 4))  # too much is held
    asked = asyncio.ensure_future(owner.checkpoint(wait=True))
    await settled()
    assert not applying.done() and not asked.done()
    owner.abandon()
    await asyncio.wait_for(asyncio.gather(applying, asked), 30)
    become_durable(world)
    await settled()
    assert not world.acked and not world.stored


CALLS: list[Callable[[World, Owner], Awaitable[object]]] = [
    lambda world, owner: world.feed(owner, [rules(2, RULES[:1])], 2),  # a record that the state holds
    lambda world, owner: world.feed(owner, [events(("c3", 3_000, 20.0), first=3)], 4),
    lambda world, owner: owner.checkpoint(),
    lambda world, owner: owner.checkpoint(wait=True),
    lambda world, owner: owner.tell_if_quiet(),
    lambda world, owner: owner.save_if_due(),
]


@pytest.mark.parametrize("call", range(len(CALLS)))
@pytest.mark.parametrize("under_way", ["nothing", "outputs", "writes"])
async def test_nothing_is_done_with_a_partition_that_was_taken_away(
    call: int, under_way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    owner = await at_work(world)
    if under_way != "outputs":
        for _, _, future in world.sent:
            if not future.done():
                future.set_result(None)
        await settled()
    if under_way == "nothing":
        become_durable(world)
        await settled()
    owner.abandon()
    monkeypatch.setattr(owner_module, "CHECKPOINT_S", 0)  # everything is due
    monkeypatch.setattr(owner_module, "ROLLUP_MS", 0)
    before, acked, stored = len(world.sent), list(world.acked), len(world.stored)
    become_durable(world)
    await CALLS[call](world, owner)
    await settled()
    assert (len(world.sent), world.acked, len(world.stored)) == (before, acked, stored)


async def test_a_record_that_waits_to_send_when_its_partition_is_taken_away_sends_no_more_and_is_not_acked() -> None:
    world = World()
    owner = world.owner()
    await world.feed(owner, [rules()])
    world.sending = asyncio.Event()
    both = events(("ahead", 30 * 86_400_000, 1.0), ("c1", 0, 20.0))  # a dead letter and a transition
    applying = asyncio.ensure_future(world.feed(owner, [both, encode(Tick(NOW + 60_000))], 1))
    saving = asyncio.ensure_future(owner.checkpoint(wait=True))
    await settled()
    owner.abandon()
    world.sending.set()
    await asyncio.gather(applying, saving)
    assert [topic for topic, _, _ in world.sent if topic != ROLLUPS] == [DEAD_LETTERS], "what was in the producer's hands"
    assert not world.acked and not world.stored and owner.position == 0


async def test_a_failure_is_not_told_any_more_once_the_partition_is_another_s() -> None:
    world = World()
    owner = await at_work(world)
    next(future for _, _, future in world.sent if not future.done()).set_exception(OSError("no space left"))
    await settled()
    owner.abandon()
    await owner.checkpoint(wait=True)
    await owner.save_if_due()
    assert not world.acked and not world.stored


async def test_a_waiter_that_is_cancelled_does_not_take_the_checkpoint_with_it() -> None:
    """Faust cancels an agent's task on its own account; the checkpoint belongs to the owner."""
    world = World()
    owner = await at_work(world)
    asked = asyncio.ensure_future(owner.checkpoint(wait=True))
    await settled()
    asked.cancel()
    await settled()
    become_durable(world)
    await owner.checkpoint(wait=True)
    assert world.acked == [0, 1, 2, 3]
