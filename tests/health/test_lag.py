"""How far behind, and what of it the watchdogs are shown."""

from __future__ import annotations

from cmis_stream.health.lag import LogView
from cmis_stream.health.loop_lag import BOUNDS_S, LoopLag
from tests.health.support import METRICS, NOW, TRANSITIONS, Held, World


async def view_of(world: World) -> LogView:
    view = LogView(world.parts)
    await view.refresh(0)
    return view


async def test_lag_is_counted_from_what_is_applied_and_its_seconds_from_the_newest_applied_stamp() -> None:
    held = Held(position=7)
    held.engine.now_ms = NOW - 90_000
    world = World(held)
    world.log.end, world.log.done = {METRICS: {3: 10, 4: 99}}, {METRICS: {3: 2}}
    assert (await view_of(world)).lags() == {(METRICS, 3): (2, 90.0)}  # 4 is not held here


async def test_nothing_that_waits_is_no_lag_however_old_the_newest_record_is() -> None:
    held = Held(position=9)
    held.engine.now_ms = NOW - 3_600_000
    world = World(held)
    world.log.end = {METRICS: {3: 10}}
    assert (await view_of(world)).lags() == {(METRICS, 3): (0, 0.0)}


async def test_topics_without_a_position_here_are_behind_by_the_oldest_record_that_is_not_committed() -> None:
    world = World(Held(position=9))
    world.log.end, world.log.done = {METRICS: {3: 10}, TRANSITIONS: {3: 50}}, {TRANSITIONS: {3: 20}}
    world.log.stamp_ms = NOW - 12_000
    view = await view_of(world)
    assert view.lags()[TRANSITIONS, 3] == (30, 12.0)
    world.log.done, world.log.stamp_ms = {TRANSITIONS: {3: 40}}, NOW - 4_000
    await view.refresh(0)
    assert view.lags()[TRANSITIONS, 3] == (10, 4.0)


async def test_records_that_retention_took_before_anyone_read_them_are_waited_for_by_nobody() -> None:
    world = World(Held(position=499, begun=499, acked=499))
    world.log.end = world.log.start = {METRICS: {3: 1_000}, TRANSITIONS: {3: 1_000}}
    world.log.done = {METRICS: {3: 500}, TRANSITIONS: {3: 500}}
    view = await view_of(world)
    assert [lag.records for lag in view.lags().values()] == [0, 0]
    assert all(reading.end == reading.reached == reading.begun for reading in view.readings())


async def test_readings_leave_out_the_topics_whose_readers_wait_for_something() -> None:
    world = World(Held(position=4, begun=5, acked=3))
    world.log.end, world.log.done = {METRICS: {3: 10}, TRANSITIONS: {3: 5}}, {METRICS: {3: 2}, TRANSITIONS: {3: 1}}
    view = await view_of(world)
    own, results = view.readings()
    assert (own.begun, own.reached, own.acked, own.committed, own.end) == (6, 5, 4, 2, 10)
    assert (results.topic, results.reached, results.acked, results.committed) == (TRANSITIONS, 1, 1, 1)
    assert view.readings(frozenset((TRANSITIONS,))) == [own]


async def test_a_log_that_is_away_is_told_since_when_and_is_not_asked_each_time() -> None:
    world = World(Held())
    world.log.away = "no broker answers"
    view = await view_of(world)
    assert view.away_since is not None and view.away_because == "no broker answers"
    asked = world.log.asked
    assert not await view.refresh(0) and world.log.asked == asked


async def test_a_role_outside_the_group_tells_the_lag_of_all_partitions() -> None:
    world = World()
    world.parts.group_lag = True
    world.log.end, world.log.done = {METRICS: {0: 5, 1: 7}}, {METRICS: {0: 5, 1: 3}}
    world.log.stamp_ms = NOW - 1_000
    assert (await view_of(world)).lags() == {(METRICS, 0): (0, 0.0), (METRICS, 1): (4, 1.0)}


def test_loop_lag_keeps_a_histogram_and_the_most_of_the_last_minute() -> None:
    now = 100.0
    lag = LoopLag(lambda: now)
    for seconds in (0.0005, 2.0, 0.2):
        lag.observe(seconds)
    assert lag.most_s == 2.0 and round(lag.sum_s, 6) == 2.2005
    buckets = dict(lag.buckets())
    assert buckets["0.001"] == 1 and buckets["0.25"] == 2 and buckets["2.5"] == buckets["+Inf"] == 3
    assert len(buckets) == len(BOUNDS_S) + 1
    now = 150.0
    lag.observe(0.1)
    now = 165.0
    assert lag.most_s == 0.1
    now = 300.0
    assert lag.most_s == 0.0
