"""Two owners of one partition that do not know of each other: their outputs and checkpoints come in any order, cut anywhere.

The same on real Kafka, with processes that are stopped: test_zombies.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmis_stream.core.time import HOUR_MS
from cmis_stream.log import owner as owner_module
from cmis_stream.log.checkpoint import CheckpointWriter, Recovered, Write, recover
from cmis_stream.log.envelope import Tick, encode
from cmis_stream.log.owner import ROLLUPS, TRANSITIONS, Owner
from cmis_stream.log.positions import Passed
from tests.e2e.support import follow, window_sums
from tests.log.support import NOW, RULES, World, events, rules
from tests.log.test_owner_results import followed

STREAM = [
    rules(),
    *(events((f"c{n % 3}", 1000 * n, 4.0), first=n, clicks=1, stamp=NOW + HOUR_MS + 100 * n) for n in range(10)),
    encode(Tick(NOW + HOUR_MS + 2_000)),
    *(events((f"c{n % 2}", 60_000 + 9_000 * n, 2.5), first=10 + n, clicks=n % 2) for n in range(20)),
    rules(2, RULES[:1]),
    rules(2, RULES[:1]),  # copied twice, by two agents
    *(events(("c1", 300_000 + 9_000 * n, 1.5 + n % 3), first=30 + n, stamp=NOW + 2 * HOUR_MS + 90 * n) for n in range(12)),
    rules(1, RULES),  # copied late by an agent that was stopped
    *(events(("c2", 420_000 + 9_000 * n, 12.0 * (n % 2)), first=42 + n, stamp=NOW + 3 * HOUR_MS + 90 * n) for n in range(12)),
]


class Sent(NamedTuple):
    topic: str
    body: Any


class Acked(NamedTuple):
    offset: int


Done = Sent | Acked | Write


class Recorded(World):
    """What an owner does, in order: outputs, changelog records one by one, acks."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[Done] = []

    async def send(self, topic: str, partition: int, value: bytes) -> asyncio.Future[None]:
        sent = await super().send(topic, partition, value)
        self.done.append(Sent(*self.sent[-1][:2]))
        return sent

    async def store(self, partition: int, writes: Iterable[Write]) -> list[asyncio.Future[None]]:
        writes = list(writes)
        self.done.extend(writes)
        return await super().store(partition, writes)


class Log:
    """What has reached the log of what several owners did."""

    def __init__(self) -> None:
        self.changelog: dict[bytes, bytes] = {}
        self.sent: list[Sent] = []
        self.acked = -1

    def take(self, done: Iterable[Done]) -> None:
        for one in done:
            match one:
                case Sent():
                    self.sent.append(one)
                case Acked(offset):
                    self.acked = max(self.acked, offset)
                case (key, value):
                    self.changelog.pop(key, None)  # its new place in the order of writes
                    if value is not None:
                        self.changelog[key] = value

    async def worked_on(self, generation: str, saves: list[int]) -> tuple[Owner, list[Done]]:
        """By an owner that recovers, reads on from what is acked, and applies as many records to each of its checkpoints."""
        world = Recorded()
        owner = world.owner(generation)
        owner.load(dict(self.changelog))
        start = self.acked + 1
        for count in saves:
            stop = min(max(start, owner.position + 1) + count, len(STREAM))
            for offset in range(start, stop):
                await owner.apply(offset, STREAM[offset], partial(world.done.append, Acked(offset)))
            start = max(start, stop)
            await owner.checkpoint(wait=True)
        return owner, world.done

    def bodies(self, topic: str) -> list[Any]:
        return [sent.body for sent in self.sent if sent.topic == topic]

    @property
    def lines(self) -> list[dict[str, Any]]:
        passed = Passed()
        return [line for body in self.bodies(TRANSITIONS) if passed.is_new(*body["source"]) for line in body["transitions"]]


def merged(first: list[Any], second: list[Any], turns: list[bool]) -> list[Any]:
    """Both in their own order; turns: whose is next, True the first's, as long as both have something."""
    first, second, found = list(first), list(second), []
    for turn in turns:
        found.append((first if turn and first else second if second else first).pop(0)) if first or second else None
    return found + first + second


async def disturbed(
    before: list[int], zombie: list[int], successor: list[int], seen: int, turns: list[bool], cut: int, names: str = "abcd"
) -> tuple[Log, Owner]:
    """An owner, then a zombie; `seen` of what that did is there when its successor recovers, the rest comes between what the
    successor does; of all that, the last `cut` are lost with both. A last owner goes on to the end."""
    log = Log()
    log.take((await log.worked_on(names[0], before))[1])
    _, of_zombie = await log.worked_on(names[1], zombie)
    log.take(of_zombie[:seen])
    _, of_successor = await log.worked_on(names[2], successor)
    refused = [one for one in of_zombie[seen:] if not isinstance(one, Acked)]
    together = merged(refused, of_successor, turns)
    log.take(together[: max(0, len(together) - cut)])
    last, done = await log.worked_on(names[3], [len(STREAM)])
    log.take(done)
    return log, last


def equal(found: tuple[Log, Owner], expected: tuple[Log, Owner]) -> dict[str, bool]:
    (log, owner), (wanted, model) = found, expected
    return {
        "events": owner.engine.events == model.engine.events,
        "sums": window_sums(owner.engine) == window_sums(model.engine),
        "firing": owner.engine.rules.firing_pairs() == model.engine.rules.firing_pairs(),
        "transitions": log.lines == wanted.lines,
        "rollups": followed(log.bodies(ROLLUPS)) == followed(wanted.bodies(ROLLUPS)),
    }


async def undisturbed() -> tuple[Log, Owner]:
    log = Log()
    owner, done = await log.worked_on("alone", [len(STREAM)])
    log.take(done)
    return log, owner


_saves = st.lists(st.integers(1, 12), max_size=4)


@pytest.fixture(autouse=True)
def as_the_test_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints when the test asks, of several parts each."""
    monkeypatch.setattr(owner_module, "CHECKPOINT_S", 1e9)
    monkeypatch.setattr(owner_module, "CHECKPOINT_RECORDS", 10_000)
    monkeypatch.setattr(owner_module, "CheckpointWriter", partial(CheckpointWriter, part_bytes=2_000))


@given(_saves, _saves, _saves, st.integers(0, 40), st.lists(st.booleans(), max_size=60), st.integers(0, 30))
@settings(max_examples=50, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_a_zombie_changes_nothing_whenever_its_writes_come(
    before: list[int], zombie: list[int], successor: list[int], seen: int, turns: list[bool], cut: int
) -> None:
    async def run() -> None:
        expected = await undisturbed()
        found = await disturbed(before, zombie, successor, seen, turns, cut)
        assert all((same := equal(found, expected)).values()), same
        follow(found[0].lines)

    asyncio.run(run())


SCENE: dict[str, Any] = {"before": [5], "zombie": [10], "successor": [30], "seen": 0, "turns": [False] * 200, "cut": 0}
"""The zombie's checkpoint comes after its successor's."""


async def test_the_scene_is_right_with_all_fences() -> None:
    assert all(equal(await disturbed(**SCENE), await undisturbed()).values())


async def test_recovery_that_trusts_what_was_written_last_loses_what_the_successor_had_acked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def recover_the_last(records: dict[bytes, bytes]) -> Recovered:
        last = list(records)[-1].split(b"/")[0] + b"/" if records else b""
        return recover({key: value for key, value in records.items() if key.startswith(last)})

    monkeypatch.setattr(owner_module, "recover", recover_the_last)
    same = equal(await disturbed(**SCENE), await undisturbed())
    assert not (same["events"] or same["sums"] or same["rollups"]), same
    assert all(equal(await disturbed(**{**SCENE, "zombie": []}), await undisturbed()).values())


async def test_owners_that_share_their_keys_lose_what_the_successor_had_acked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_module, "recover", lambda records: replace(recover(records), stale_keys=[]))
    scene: Any = {**SCENE, "before": [], "names": "aaaa"}
    same = equal(await disturbed(**scene), await undisturbed())
    assert not (same["events"] or same["sums"] or same["rollups"]), same
    assert all(equal(await disturbed(**{**scene, "zombie": []}), await undisturbed()).values())


async def test_without_positions_a_zombie_s_results_come_twice() -> None:
    log, _ = await disturbed(**SCENE)
    with pytest.raises(AssertionError, match="twice"):
        follow(line for body in log.bodies(TRANSITIONS) for line in body["transitions"])
