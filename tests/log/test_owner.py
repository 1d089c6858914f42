"""A partition's owner: the order of outputs, checkpoint and acks; what a restart repeats; what it refuses."""

from __future__ import annotations

import asyncio

import pytest

from cmis_stream.core.engine import Engine
from cmis_stream.core.time import DAY_MS
from cmis_stream.log import owner as owner_module
from cmis_stream.log.envelope import Tick, encode
from cmis_stream.log.owner import DEAD_LETTERS, ROLLUPS, TRANSITIONS
from tests.log.support import NOW, PARTITION, RULES, TOPIC, World, events, rules, settled


@pytest.fixture(autouse=True)
def no_checkpoint_by_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints by count, or when the test asks; a slow machine makes no difference."""
    monkeypatch.setattr(owner_module, "CHECKPOINT_S", 1e9)


async def test_outputs_are_durable_before_the_checkpoint_begins_and_the_checkpoint_before_any_ack() -> None:
    world = World()
    world.prompt = False
    owner = world.owner()
    await world.feed(owner, [rules(), events(("c1", 0, 20.0))])
    saving = asyncio.ensure_future(owner.checkpoint(wait=True))
    await settled()
    assert [topic for topic, _, _ in world.sent] == [TRANSITIONS, ROLLUPS]
    for _, _, output in world.sent:
        assert not world.stored and not world.acked
        output.set_result(None)
        await settled()
    (_, parts), *rest = world.stored
    assert not rest and not world.acked
    for part in parts[:-1]:
        part.set_result(None)
    await settled()
    assert not world.acked
    parts[-1].set_result(None)
    await saving
    assert world.acked == [0, 1]


@pytest.mark.parametrize("what", ["output", "checkpoint"])
async def test_a_write_that_fails_acks_nothing_and_is_told(what: str) -> None:
    world = World()
    world.prompt = False
    owner = world.owner()
    await world.feed(owner, [rules(), events(("c1", 0, 20.0))])
    saving = asyncio.ensure_future(owner.checkpoint(wait=True))
    await settled()
    if what == "output":
        world.sent[0][2].set_exception(OSError("no space left"))
    else:
        for _, _, output in world.sent:
            output.set_result(None)
        await settled()
        world.stored[0][1][0].set_exception(OSError("no space left"))
        for part in world.stored[0][1][1:]:
            part.set_result(None)
    with pytest.raises(OSError, match="no space"):
        await saving
    await settled()
    assert not world.acked
    assert what == "checkpoint" or not world.stored
    with pytest.raises(OSError, match="no space"):
        await owner.save_if_due()


STREAM = [
    rules(),
    *(events((f"c{n % 3}", 1000 * n, 4.0), first=n, clicks=1) for n in range(12)),
    encode(Tick(NOW + 20_000)),
    *(events((f"c{n % 2}", 60_000 + 9_000 * n, 2.5), first=12 + n, clicks=n % 2) for n in range(40)),
    rules(2, RULES[:1]),
    *(events(("c1", 500_000 + 9_000 * n, 1.5), first=52 + n) for n in range(10)),
]


async def uninterrupted() -> World:
    world = World()
    await world.feed(world.owner(), STREAM)
    return world


@pytest.mark.parametrize("checkpoint_at", [0, 1, 7, 13, 30, 53, 54, 60])
@pytest.mark.parametrize("more", [0, 1, 5])
@pytest.mark.parametrize("torn", [False, True])
async def test_a_restart_from_any_checkpoint_gives_the_same_transitions_with_the_same_ids(
    checkpoint_at: int, more: int, torn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed `more` records after a checkpoint, or (torn) in the middle of the next one."""
    monkeypatch.setattr(owner_module, "CHECKPOINT_RECORDS", 10_000)
    whole = await uninterrupted()
    assert len(whole.lines) >= 6 and not whole.bodies(DEAD_LETTERS)
    world = World()
    first = world.owner()
    await world.feed(first, STREAM[: checkpoint_at + 1])
    await first.checkpoint(wait=True)
    before = dict(world.changelog)
    await world.feed(first, STREAM[checkpoint_at + 1 : checkpoint_at + 1 + more], checkpoint_at + 1)
    if torn:
        await first.checkpoint(wait=True)
        ours = [key for key in world.changelog if world.changelog[key] != before.get(key)]
        world.changelog = {key: value for key, value in world.changelog.items() if key not in ours[:1]} if ours else before
    repeated = len(world.sent)
    second = world.owner("g2")
    second.load(dict(world.changelog))
    assert second.position == checkpoint_at
    world.acked.clear()
    await world.feed(second, STREAM)
    assert world.acked == list(range(checkpoint_at + 1)), "what the state includes is acked, and not applied"
    after = [line for topic, body, _ in world.sent[repeated:] if topic == TRANSITIONS for line in body["transitions"]]
    assert after == [line for line in whole.lines if int(line["id"].split("/")[2]) > checkpoint_at]
    await second.checkpoint(wait=True)
    assert world.acked == list(range(len(STREAM)))
    assert second.engine.rules.firing_pairs() == (await _engine_after_all()).rules.firing_pairs()


LATE = [
    rules(1, [{**rule, "evaluate": "pane"} for rule in RULES]),
    events(("c1", 0, 4.0), ("c2", 0, 4.0), ("c3", 0, 1.0)),
    events(("c1", 40_000, 4.0), first=3),
    events(("c2", 2_000, 7.0), first=4),  # its pane is closed: the window changes without a pane that would touch it
    events(("c1", 58_000, 0.1), first=5),
    events(("c3", 3_000, 20.0), first=6),
    events(("c1", 90_000, 0.1), first=7),
    encode(Tick(NOW + 400_000, NOW + 100_000)),
]


@pytest.mark.parametrize("checkpoint_at", range(len(LATE)))
async def test_a_window_that_a_late_event_changed_is_judged_after_a_restart_too(checkpoint_at: int) -> None:
    whole = World()
    await whole.feed(whole.owner(), LATE)
    assert [(line["campaign"], line["rule"]) for line in whole.lines] == [("c2", "spend"), ("c3", "spend")]
    world = World()
    first = world.owner()
    await world.feed(first, LATE[: checkpoint_at + 1])
    await first.checkpoint(wait=True)
    second = world.owner("g2")
    second.load(dict(world.changelog))
    await world.feed(second, LATE)
    assert world.lines == whole.lines


async def _engine_after_all() -> Engine:
    world = World()
    owner = world.owner()
    await world.feed(owner, STREAM)
    return owner.engine


async def test_the_keys_of_older_generations_are_deleted_once_the_new_one_is_safe() -> None:
    world = World()
    first = world.owner("g1")
    await world.feed(first, STREAM[:5])
    await first.checkpoint(wait=True)
    second = world.owner("g2")
    second.load(dict(world.changelog))
    await world.feed(second, STREAM[5:6], 5)
    world.prompt = False
    saving = asyncio.ensure_future(second.checkpoint(wait=True))
    await settled()
    (_, parts) = world.stored[-1]
    assert any(key.startswith(b"g1/") for key in world.changelog), "not before its own is durable"
    world.prompt = True
    for part in parts:
        part.set_result(None)
    await saving
    assert world.changelog and all(key.startswith(b"g2/") for key in world.changelog)


async def test_a_checkpoint_asked_for_while_a_record_waits_to_send_its_outputs_does_not_hold_half_of_it() -> None:
    world = World()
    owner = world.owner()
    await world.feed(owner, [rules(), events(("c1", 0, 1.0))])
    world.sending = asyncio.Event()
    applying = asyncio.ensure_future(world.feed(owner, [events(("c1", 1000, 20.0), first=1)], 2))
    await settled()
    asked = asyncio.ensure_future(owner.checkpoint())
    await settled()
    for changelog in [dict(world.changelog)]:
        restarted = world.owner("g2")
        restarted.load(changelog)
        assert restarted.position < 2
        assert restarted.engine.events <= 1, "the record's events are in a state whose position is before it"
    world.sending.set()
    await applying
    await asked
    await owner.checkpoint(wait=True)
    assert world.acked == [0, 1, 2] and len(world.lines) == 1


async def test_a_partition_that_was_taken_away_acks_nothing_more() -> None:
    world = World()
    world.prompt = False
    owner = world.owner()
    await world.feed(owner, [rules(), events(("c1", 0, 20.0))])
    await owner.checkpoint()
    await settled()
    owner.abandon()
    for _, _, future in world.sent:
        if not future.done():
            future.set_result(None)
    await settled()
    assert not world.acked and not world.stored


@pytest.mark.parametrize("bad", [b"", b"\xc1", b"not msgpack at all", b'{"json": 1}', encode(Tick(NOW))[:-1]])
async def test_a_record_that_cannot_be_read_is_a_dead_letter_with_its_position_and_the_stream_goes_on(bad: bytes) -> None:
    world = World()
    owner = world.owner()
    await world.feed(owner, [rules(), bad, events(("c1", 0, 20.0))])
    (letter,) = world.bodies(DEAD_LETTERS)
    assert letter["source"] == [TOPIC, PARTITION, 1]
    assert letter["reasons"][0]["code"] in ("malformed", "invalid", "unsupported")
    await owner.checkpoint(wait=True)
    assert world.acked == [0, 1, 2] and len(world.lines) == 1


async def test_a_rule_that_is_no_longer_understood_is_a_dead_letter_and_the_others_are_in_force() -> None:
    world = World()
    owner = world.owner()
    await world.feed(owner, [rules(given=[{**RULES[0], "window": "3m"}, RULES[0]]), events(("c1", 0, 20.0))])
    (letter,) = world.bodies(DEAD_LETTERS)
    assert (letter["source"][2], letter["reasons"][0]["org"], letter["reasons"][0]["field"]) == (0, "acme", "window")
    assert [(line["rule"], line["state"]) for line in world.lines] == [("spend", "firing")]
    await owner.checkpoint(wait=True)
    again = world.owner("g2")
    again.load(world.changelog)
    assert again.engine.rules.firing_pairs() == owner.engine.rules.firing_pairs()


async def test_events_that_are_too_late_or_from_the_future_are_dead_letters_with_their_ids() -> None:
    world = World()
    owner = world.owner()
    await world.feed(owner, [
        events(("c1", 0, 1.0), stamp=NOW),
        events(("old", -7 * DAY_MS - 60_000, 1.0), ("c1", 1000, 1.0), ("ahead", 61_001, 1.0),
               ("soon", 59_000, 1.0), first=1, stamp=NOW),
    ])  # fmt: skip
    (letter,) = world.bodies(DEAD_LETTERS)
    assert letter["source"] == [TOPIC, PARTITION, 1]
    assert {(r["code"], r["id"], r["org"], r["ts"]) for r in letter["reasons"]} == {
        ("too_late", "e1", "acme", NOW - 7 * DAY_MS - 60_000),
        ("in_future", "e3", "acme", NOW + 61_001),
    }
    assert owner.engine.events == 3


async def test_a_transition_names_the_newest_events_that_led_to_it() -> None:
    world = World()
    await world.feed(world.owner(), [
        rules(1, RULES[:1]),
        events(("c1", 0, 3.0), ("c2", 1, 50.0), ("c1", 2, 3.0), ("c1", 3, 3.0), ("c1", 4, 3.0)),
    ])  # fmt: skip
    found = {line["campaign"]: line["events"] for line in world.lines}
    assert found == {"c1": ["e4", "e3", "e2"], "c2": ["e1"]}
    assert [line["id"] for line in world.lines] == [f"{TOPIC}/{PARTITION}/1/{n}" for n in range(2)]


async def test_applying_waits_when_too_much_is_applied_and_not_acked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_module, "MOST_HELD", 30)
    world = World()
    world.prompt = False
    owner = world.owner()
    feeding = asyncio.ensure_future(world.feed(owner, [encode(Tick(NOW + n)) for n in range(100)]))
    await settled()
    for _ in range(20):
        await settled()
    assert not feeding.done() and owner.position < 60
    world.prompt = True
    for _, parts in world.stored:
        for part in parts:
            part.set_result(None)
    await feeding
    await owner.checkpoint(wait=True)
    await owner.checkpoint(wait=True)
    assert world.acked == list(range(100))


async def test_rule_sets_that_come_again_or_late_and_ticks_of_another_time_change_nothing() -> None:
    """Copies of two workers' catalogs, and the tick of one that was stopped and wrote it when it went on."""
    once = [
        rules(), *(events((f"c{n % 3}", 1000 * n, 4.0), first=n, clicks=1) for n in range(12)), rules(2, RULES[:1]),
        *(events((f"c{n % 2}", 60_000 + 9_000 * n, 2.5), first=12 + n) for n in range(12)),
    ]  # fmt: skip
    again = [
        once[0], *(record for event in once[1:13] for record in (event, once[0])), once[13],
        *(record for event in once[14:] for record in (once[13], event, once[0], encode(Tick(NOW - 60_000)))),
    ]  # fmt: skip
    worlds, owners = (World(), World()), []
    for world, stream in zip(worlds, (once, again), strict=True):
        owners.append(world.owner())
        await world.feed(owners[-1], stream)
    told = [[{**line, "id": "", "incident": ""} for line in world.lines] for world in worlds]
    assert told[0] == told[1] and len(told[0]) >= 6
    assert owners[0].engine.rules.firing_pairs() == owners[1].engine.rules.firing_pairs()
    assert owners[1].engine.versions == {"acme": 2}
