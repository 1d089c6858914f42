"""When watchdogs decide that a process is sick, and when they must not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmis_stream.health.decisions import (
    Blocked,
    Reading,
    RunningClock,
    Stalled,
    Standstill,
    Uncommitted,
    too_much_memory,
)

BUSY = Reading("cmis.metrics.v1", 3, "1", end=10, begun=4, reached=4, acked=4, committed=4)
SECONDS = st.floats(0, 1e6)


def test_a_partition_with_records_that_wait_and_no_progress_for_a_minute_is_sick_and_the_reason_says_where() -> None:
    stalled = Stalled(60)
    assert [stalled.look(s, [BUSY]) for s in (0, 30, 59.9)] == [None, None, None]
    reason = stalled.look(60, [BUSY])
    assert reason is not None and reason.code == "stalled"
    assert reason.text == "cmis.metrics.v1, partition 3: 6 records wait and none was applied for 60 s (the next is 4)"


def test_a_record_that_is_begun_and_never_done_is_named() -> None:
    stalled, stuck = Stalled(60), replace(BUSY, begun=5)
    stalled.look(0, [stuck])
    reason = stalled.look(61, [stuck])
    assert reason is not None and "it is at work on 4 since" in reason.text


@pytest.mark.parametrize("moved", [{"reached": 5}, {"begun": 5}, {"generation": "2"}, {"reached": 10, "end": 10}])
def test_whatever_moves_a_partition_gives_it_a_new_minute(moved: dict[str, int]) -> None:
    stalled, after = Stalled(60), replace(BUSY, **moved)
    stalled.look(0, [BUSY])
    assert stalled.look(59, [after]) is None and stalled.look(118, [after]) is None


def test_records_that_come_to_an_idle_partition_have_not_waited_since_it_was_idle() -> None:
    stalled, idle = Stalled(60), replace(BUSY, end=4)
    assert stalled.look(0, [idle]) is None and stalled.look(3600, [idle]) is None
    assert stalled.look(3601, [BUSY]) is None and stalled.look(3660, [BUSY]) is None
    assert stalled.look(3661, [BUSY]) is not None


def test_a_partition_that_was_away_in_between_begins_anew() -> None:
    stalled = Stalled(60)
    stalled.look(0, [BUSY])
    stalled.look(30, [])  # revoked, or the log was away
    assert stalled.look(61, [BUSY]) is None and stalled.look(121, [BUSY]) is not None


def test_offsets_that_are_acked_and_not_committed_for_a_minute_are_sick() -> None:
    watch, acked = Uncommitted(60), replace(BUSY, acked=9)
    assert watch.look(0, [acked]) is None
    reason = watch.look(60, [acked])
    assert reason is not None and reason.code == "not_committed"
    assert "5 records are acked and the committed offset has stood at 4 for 60 s" in reason.text


def test_a_long_adoption_or_a_slow_changelog_is_no_commit_lag() -> None:
    """What is applied and not in a checkpoint is not acked."""
    watch = Uncommitted(60)
    assert all(watch.look(s, [replace(BUSY, begun=9, reached=9)]) is None for s in range(0, 600, 5))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.floats(0, 40)), max_size=60))
def test_a_standstill_is_told_exactly_when_a_model_with_the_whole_history_says_so(steps: list[tuple[int, int, float]]) -> None:
    """(value of a, of b, where 0 means that it need not move; seconds until then)"""
    still: Standstill[str] = Standstill(60)
    history: list[tuple[float, dict[str, int]]] = []
    now = 0.0
    for a, b, seconds in steps:
        now += seconds
        marks = {name: value for name, value in (("a", a), ("b", b)) if value}
        history.append((now, marks))
        stood = {}
        for name, value in marks.items():
            since = now
            for at, then in reversed(history):
                if then.get(name) != value:
                    break
                since = at
            stood[name] = now - since
        expected = max(stood.values(), default=0.0)
        found = still.look(now, marks)
        assert (found is not None) == (bool(stood) and expected >= 60)
        if found is not None:
            assert found[1] == expected == stood[found[0]]


@given(SECONDS, st.lists(st.floats(0, 1e5), max_size=40))
def test_no_jump_of_the_clock_counts_as_more_than_one_step(start: float, jumps: list[float]) -> None:
    clock, now = RunningClock(2.0), start
    before = clock.advance(now)
    for jump in jumps:
        now += jump
        after = clock.advance(now)
        assert 0 <= after - before <= 2.0 + 1e-6
        assert after - before <= jump + 1e-6
        before = after


@given(st.floats(61, 1e6))
def test_a_process_that_was_stopped_is_not_sick_when_it_wakes(stopped_s: float) -> None:
    clock, loop_clock = RunningClock(2.0), RunningClock(1.0)
    stalled, uncommitted, blocked = Stalled(60), Uncommitted(60), Blocked(30)
    reading = replace(BUSY, acked=9)
    for now in (0.0, 1.0, stopped_s, stopped_s + 0.5):
        ran = clock.advance(now)
        assert stalled.look(ran, [reading]) is None and uncommitted.look(ran, [reading]) is None
        assert blocked.look(loop_clock.advance(now), turns=7) is None


def test_a_loop_without_a_turn_for_half_a_minute_is_blocked_and_one_with_turns_is_not() -> None:
    blocked = Blocked(30)
    assert all(blocked.look(second, turns=second // 20) is None for second in range(200))
    stuck = Blocked(30)
    assert stuck.look(0, 5) is None and stuck.look(29.5, 5) is None
    reason = stuck.look(30, 5)
    assert reason is not None and reason.text == "the event loop has had no turn for 30 s"


@pytest.mark.parametrize(
    ("resident", "limit", "sick"), [(100, 100, True), (99, 100, False), (None, 100, False), (5, None, False)]
)
def test_memory_at_its_limit_is_sick_and_unknown_memory_is_not(resident: int | None, limit: int | None, sick: bool) -> None:
    assert (too_much_memory(resident, limit) is not None) == sick
