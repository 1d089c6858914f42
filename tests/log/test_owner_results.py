"""What a partition's owner tells: rollups that miss nothing whatever the crashes, incidents that keep their ids."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmis_stream.core.ids import fact_id, moment_of
from cmis_stream.core.time import DAY_MS, HOUR_MS
from cmis_stream.log import owner as owner_module
from cmis_stream.log.checkpoint import recover
from cmis_stream.log.envelope import Tick, encode
from cmis_stream.log.owner import ROLLUPS, Owner
from cmis_stream.log.positions import Passed
from cmis_stream.log.rollup import Told
from tests.log.support import NOW, RULES, World, events, rules, settled

Cells = dict[tuple[Any, ...], tuple[Any, ...]]


@pytest.fixture(autouse=True)
def no_checkpoint_by_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints by count, or when the test asks; a slow machine makes no difference."""
    monkeypatch.setattr(owner_module, "CHECKPOINT_S", 1e9)


def followed(told: Iterable[Told]) -> Cells:
    """What a consumer knows: each position once, the newest value of each pane of each entity."""
    passed, cells = Passed(), {}
    for one in told:
        if passed.is_new(*one.source):
            rollup = one.rollup
            for org, (first, last) in zip(rollup.orgs, pairwise(rollup.bounds), strict=True):
                for row in range(first, last):
                    cell = (org, rollup.keys[rollup.entity[row]], int(rollup.start_ms[row]), int(rollup.pane_ms[row]))
                    cells[cell] = (bool(rollup.closed[row]), *rollup.sums[:, row].tolist())
    return cells


_steps = st.sampled_from([0, 0, 300, 2_000, 9_000, 9_000, 30_000, -3_000, -12_000, -1_000_000, 1_200_000, HOUR_MS, 2 * DAY_MS])
_records = st.lists(st.tuples(st.sampled_from(["acme", "beta"]), _steps, st.sampled_from("ab"), st.integers(0, 400)), max_size=40)


def stream(moves: list[Any]) -> list[bytes]:
    """Records of one or two events each, some ticks between them; stamps a part of a rollup's time apart."""
    found, stamp, newest, number = [rules()], NOW, {"acme": 0, "beta": 0}, {"acme": 0, "beta": 0}
    for org, step, campaign, pause in moves:
        stamp += pause
        ms = newest[org] + step
        newest[org] = max(newest[org], ms)
        given = [(campaign, ms, 1.0)] if step % 2_000 else [(campaign, ms, 2.0), ("c", ms - 1, 0.5)]
        found.append(events(*given, org=org, first=number[org], stamp=stamp + 30 * DAY_MS))
        number[org] += len(given)
        if pause > 350:
            found.append(encode(Tick(stamp + 30 * DAY_MS, NOW + max(newest.values()) if pause > 380 else None)))
    return found


@given(_records, st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12), st.integers(0, 6)), max_size=5))
@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_whatever_the_crashes_a_follower_of_rollups_ends_with_the_panes_of_an_undisturbed_run(
    moves: list[Any], crashes: list[tuple[int, int, int]]
) -> None:
    """Each crash: so many records to a checkpoint, so many more, so many of the last outputs were not durable yet."""
    records = stream(moves)

    async def undisturbed() -> Cells:
        world = World()
        owner = world.owner()
        await world.feed(owner, records)
        await owner.checkpoint(wait=True)
        return followed(world.bodies(ROLLUPS))

    async def disturbed() -> Cells:
        world = World()
        for number, (before, after, lost) in enumerate(crashes):
            owner = restarted(world, number)
            start = owner.position + 1
            await world.feed(owner, records[start : start + before], start)
            await owner.checkpoint(wait=True)
            safe, sent = dict(world.changelog), len(world.sent)
            start = owner.position + 1
            await world.feed(owner, records[start : start + after], start)
            del world.sent[max(sent, len(world.sent) - lost) :]
            world.changelog = safe
        owner = restarted(world, len(crashes))
        start = owner.position + 1
        await world.feed(owner, records[start:], start)
        await owner.checkpoint(wait=True)
        return followed(world.bodies(ROLLUPS))

    assert asyncio.run(disturbed()) == asyncio.run(undisturbed())


def restarted(world: World, number: int) -> Owner:
    owner = world.owner(f"g{number}")
    owner.load(dict(world.changelog))
    return owner


async def test_a_rollup_follows_the_first_record_of_each_quarter_second() -> None:
    world = World()
    owner = world.owner()
    stamps = [1000, 1100, 1249, 1250, 1260, 1990, 2000]
    await world.feed(owner, [events(("a", 0, 1.0), first=n, stamp=NOW + ms) for n, ms in enumerate(stamps)])
    told = [(one.source[2], one.stamp_ms - NOW, int(one.rollup.sums[0, 0])) for one in world.bodies(ROLLUPS)]
    assert told == [(0, 1000, 1), (3, 1250, 4), (5, 1990, 6), (6, 2000, 7)]


async def test_the_last_record_before_a_pause_is_told_without_waiting_for_another_one() -> None:
    world = World()
    owner = world.owner()
    await world.feed(owner, [events(("a", 0, 1.0), first=n, stamp=NOW + 1000 + n) for n in range(2)])
    await owner.tell_if_quiet()
    assert [one.source[2] for one in world.bodies(ROLLUPS)] == [0], "others may follow at once"
    owner.applied_at -= 0.25  # as if so much time had passed
    await owner.tell_if_quiet()
    await owner.tell_if_quiet()
    assert [(one.source[2], int(one.rollup.sums[0, 0])) for one in world.bodies(ROLLUPS)] == [(0, 1), (1, 2)]


async def test_nothing_untold_is_in_a_checkpoint() -> None:
    world = World()
    owner = world.owner()
    await world.feed(owner, [events(("a", 0, 1.0), first=n, stamp=NOW) for n in range(3)])
    assert [told.source[2] for told in world.bodies(ROLLUPS)] == [0]
    await owner.checkpoint(wait=True)
    assert [told.source[2] for told in world.bodies(ROLLUPS)] == [0, 2]
    assert world.stored and world.acked == [0, 1, 2]


async def test_a_record_applied_while_a_checkpoint_sends_its_rollup_is_told_before_it_is_saved() -> None:
    world = World()
    owner = world.owner()
    await world.feed(owner, [events(("a", 0, 1.0), first=n, stamp=NOW) for n in range(2)])
    world.sending = asyncio.Event()
    saving = asyncio.ensure_future(owner.checkpoint())
    await settled()
    applying = asyncio.ensure_future(world.feed(owner, [events(("a", 0, 1.0), first=2, stamp=NOW)], 2))
    await settled()
    assert owner.position == 2 and not world.stored
    world.sending.set()
    await asyncio.gather(saving, applying)
    assert not world.stored, "record 2 is in the state and not told"
    await owner.checkpoint(wait=True)
    assert [told.source[2] for told in world.bodies(ROLLUPS)] == [0, 1, 2]
    assert world.acked == [0, 1, 2]


async def test_rollups_are_sent_in_the_order_of_their_positions_however_long_sending_waits() -> None:
    world = World()
    owner = world.owner()
    await world.feed(owner, [events(("a", 0, 1.0), first=n, stamp=NOW) for n in range(2)])
    world.sending = waits = asyncio.Event()
    saving = asyncio.ensure_future(owner.checkpoint())
    await settled()
    world.sending = None  # the next one would overtake
    applying = asyncio.ensure_future(world.feed(owner, [events(("a", 0, 1.0), first=2, stamp=NOW + 1000)], 2))
    await settled()
    waits.set()
    await asyncio.gather(saving, applying)
    assert [told.source[2] for told in world.bodies(ROLLUPS)] == [0, 1, 2]
    assert followed(world.bodies(ROLLUPS))["acme", "USD", NOW, 10_000][:2] == (False, 3)


async def test_a_checkpoint_that_waited_while_the_next_record_began_tells_nothing_of_that_record() -> None:
    """It would be told at the position before, which consumers have passed."""
    world = World()
    owner = world.owner()
    await world.feed(owner, [rules(), events(("a", 0, 1.0), stamp=NOW)])
    world.sending = first_rollup = asyncio.Event()
    rest = [events(("a", 0, spend), first=n, stamp=NOW + 1000 * n) for n, spend in ((1, 1.0), (2, 20.0))]
    applying = asyncio.ensure_future(world.feed(owner, rest, 2))
    await settled()
    saving = asyncio.ensure_future(owner.checkpoint())  # waits for the rollup that is being sent
    await settled()
    world.sending = transitions = asyncio.Event()
    first_rollup.set()
    await settled()
    assert owner.position == 2, "record 3 waits to send"
    transitions.set()
    await asyncio.gather(applying, saving)
    await owner.checkpoint(wait=True)
    assert followed(world.bodies(ROLLUPS))["acme", "USD", NOW, 10_000][:2] == (False, 3)


# --- incidents --------------------------------------------------------------------------------------------------------

EPISODES = [
    rules(1, [{**RULES[0], "window": "1m"}]),
    events(("c1", 0, 20.0)),
    events(("c2", 1_000, 30.0), first=1),
    events(("c1", 70_000, 1.0), first=2),  # both resolve
    events(("c1", 71_000, 20.0), first=3),
    rules(2, []),
]


async def test_an_incident_has_the_id_of_its_opening_transition_until_it_is_resolved() -> None:
    world = World()
    await world.feed(world.owner(), EPISODES)
    assert [(line["campaign"], line["state"]) for line in world.lines] == [
        ("c1", "firing"), ("c2", "firing"), ("c1", "resolved"), ("c1", "firing"), ("c1", "resolved"), ("c2", "resolved")
    ]  # fmt: skip
    first, other, resolved, again, ended, other_ended = world.lines
    assert first["incident"] == fact_id(first["at"], f"/{first['id']}") == resolved["incident"]
    assert again["incident"] == fact_id(again["at"], f"/{again['id']}") == ended["incident"]
    assert other_ended["incident"] == other["incident"]
    assert len({first["incident"], other["incident"], again["incident"]}) == 3
    assert first["key"] == resolved["key"] == again["key"] != other["key"]
    assert moment_of(first["incident"]) == first["at"]


async def test_the_same_records_in_another_log_make_other_incidents() -> None:
    found = []
    for log in ("one", "other", "one"):
        world = World()
        await world.feed(world.owner(log=log), EPISODES)
        found.append([line["incident"] for line in world.lines])
    assert found[0] == found[2] and not set(found[0]) & set(found[1])


@pytest.mark.parametrize("checkpoints", [*([n] for n in range(len(EPISODES))), [1, 4], [2, 4], [0, 1, 2, 3, 4, 5]])
async def test_an_incident_keeps_its_id_over_a_restart(checkpoints: list[int]) -> None:
    whole = World()
    await whole.feed(whole.owner(), EPISODES)
    world = World()
    first = world.owner()
    for at in checkpoints:
        await world.feed(first, EPISODES[: at + 1])
        await first.checkpoint(wait=True)
    await world.feed(restarted(world, 1), EPISODES)
    assert world.lines == whole.lines


async def test_resolved_incidents_leave_the_state() -> None:
    world = World()
    owner = world.owner()
    await world.feed(owner, EPISODES)
    await owner.checkpoint(wait=True)
    assert not any(key.startswith("incidents/") for key in recover(world.changelog).items)
