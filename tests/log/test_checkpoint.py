"""Checkpoints in a compacted changelog: whatever was written, torn or interleaved, the newest complete one is found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmis_stream.log.checkpoint import CheckpointError, CheckpointWriter, Write, recover

pytestmark = pytest.mark.spec("ALR-O04", partial="the storage of checkpoints; timers and cooldowns do not exist yet")

SLOTS, PART_BYTES = 6, 40
EXAMPLES = settings(max_examples=120, deadline=None, derandomize=True, database=None)

KEYS = st.sampled_from([f"pane/0/{i}" for i in range(9)])
# One checkpoint: the items that get a new value (of this many bytes), and those that are gone.
CHANGES = st.tuples(st.dictionaries(KEYS, st.integers(0, 150), max_size=5), st.sets(KEYS, max_size=3))


class Partition:
    """A changelog as compaction leaves it, and one generation that writes checkpoints of a state into it."""

    def __init__(self, generation: str = "a", changelog: dict[bytes, bytes] | None = None) -> None:
        self.changelog: dict[bytes, bytes] = {} if changelog is None else changelog
        self.writer = CheckpointWriter(generation, SLOTS, PART_BYTES)
        self.state: dict[str, Any] = {}
        self.position = -1

    def change(self, changes: tuple[dict[str, int], set[str]]) -> list[Write]:
        """The state moves on; the records of the checkpoint of it, not yet in the changelog."""
        new, gone = changes
        self.position += 1
        self.state = {key: value for key, value in self.state.items() if key not in gone}
        self.state |= {key: f"{key}@{self.position}" + "x" * size for key, size in new.items()}
        return self.writer.write(self.position, new.keys(), set(self.state), self.state.__getitem__)

    def append(self, writes: Sequence[Write]) -> None:
        for key, value in writes:
            if value is None:
                self.changelog.pop(key, None)
            else:
                self.changelog[key] = value

    def checkpoint(self, changes: tuple[dict[str, int], set[str]]) -> None:
        self.append(self.change(changes))


@given(st.lists(CHANGES, min_size=1, max_size=30))
@EXAMPLES
def test_recovery_yields_the_last_state_however_often_slots_were_rotated(steps: list[Any]) -> None:
    partition = Partition()
    for step in steps:
        partition.checkpoint(step)
        recovered = recover(dict(partition.changelog))
        assert (recovered.position, recovered.items) == (partition.position, partition.state)


@given(st.lists(CHANGES, min_size=2, max_size=20))
@EXAMPLES
def test_a_checkpoint_torn_at_any_part_is_not_believed_and_the_one_before_is_found(steps: list[Any]) -> None:
    partition = Partition()
    for step in steps[:-1]:
        partition.checkpoint(step)
    before = (partition.position, dict(partition.state))
    intact = dict(partition.changelog)
    writes = partition.change(steps[-1])
    parts = sum(value is not None for _, value in writes)
    for done in range(len(writes) + 1):
        partition.changelog = dict(intact)
        partition.append(writes[:done])
        recovered = recover(partition.changelog)
        after = (partition.position, partition.state)
        assert (recovered.position, recovered.items) == (after if done >= parts else before)


@given(st.lists(st.tuples(CHANGES, st.integers(0, 12)), min_size=2, max_size=20))
@EXAMPLES
def test_every_prefix_of_all_that_was_ever_written_can_be_recovered(steps: list[Any]) -> None:
    """A kill in each checkpoint and a recovery by a new generation, over and over."""
    partition = Partition("g0")
    complete: tuple[int, dict[str, Any]] = (-1, {})
    for number, (step, torn_after) in enumerate(steps):
        writes = partition.change(step)
        partition.append(writes[:torn_after])
        if torn_after >= sum(value is not None for _, value in writes):
            complete = (partition.position, dict(partition.state))
        recovered = recover(dict(partition.changelog))
        assert (recovered.position, recovered.items) == complete
        # The next process goes on from there, under keys of its own.
        successor = Partition(f"g{number + 1}", partition.changelog)
        successor.position, successor.state = recovered.position, dict(recovered.items)
        partition = successor


@given(st.lists(CHANGES, min_size=3, max_size=12), st.data())
@EXAMPLES
def test_a_zombies_checkpoints_in_between_change_nothing(steps: list[Any], data: st.DataObject) -> None:
    """The state follows from the log: the zombie writes true, older checkpoints, after and between its successor's."""
    zombie = Partition("00000001-zombie")
    zombie.checkpoint(steps[0])
    successor = Partition("00000002-owner", zombie.changelog)
    recovered = recover(dict(zombie.changelog))
    successor.position, successor.state = recovered.position, dict(recovered.items)
    behind = 1
    for number, step in enumerate(steps[1:], 1):
        successor.checkpoint(step)
        while behind < number and data.draw(st.booleans()):
            zombie.append(zombie.change(steps[behind])[: data.draw(st.integers(0, 9))])
            behind += 1
        found = recover(dict(successor.changelog))
        assert (found.position, found.items) == (successor.position, successor.state)


@given(st.lists(CHANGES, min_size=1, max_size=40))
@EXAMPLES
def test_the_changelog_holds_the_parts_of_the_newest_checkpoints_and_nothing_else(steps: list[Any]) -> None:
    partition, parts = Partition(), []
    for step in steps:
        writes = partition.change(step)
        parts.append(sum(value is not None for _, value in writes))
        partition.append(writes)
        assert len(partition.changelog) == sum(parts[-SLOTS:]), "nothing is left of a longer checkpoint in the same slot"


def test_an_unchanging_item_stays_recoverable_for_hundreds_of_checkpoints() -> None:
    partition = Partition()
    partition.checkpoint(({"pane/0/1": 100, "pane/0/2": 100}, set()))
    sizes = []
    for _ in range(300):
        writes = partition.change(({}, set()))
        sizes.append(sum(len(value or b"") for _, value in writes))
        partition.append(writes)
        assert recover(partition.changelog).items == partition.state
    assert 0 < min(sizes) < max(sizes), "nothing is written anew every time"


@given(st.lists(CHANGES, min_size=2, max_size=10), st.data())
@EXAMPLES
def test_a_corrupt_part_is_not_believed(steps: list[Any], data: st.DataObject) -> None:
    """Its data is not what was written: the newest checkpoint that does not need it is taken, or none is, loudly."""
    partition, states = Partition(), {}
    for step in steps:
        partition.checkpoint(step)
        states[partition.position] = dict(partition.state)
    key = data.draw(st.sampled_from(sorted(partition.changelog)))
    value = partition.changelog[key]
    place = data.draw(st.integers(value.index(b"data") + 6, len(value) - 1))
    partition.changelog[key] = value[:place] + bytes([value[place] ^ data.draw(st.integers(1, 255))]) + value[place + 1 :]
    try:
        recovered = recover(partition.changelog)
    except CheckpointError as error:
        assert "cannot be recovered" in str(error)
    else:
        assert recovered.items == states.get(recovered.position, {})


def test_no_complete_checkpoint_among_several_is_an_error_and_not_an_empty_state() -> None:
    partition = Partition()
    for _ in range(3):
        partition.checkpoint(({"pane/0/1": 100}, set()))
    first_parts = {key: value for key, value in partition.changelog.items() if not key.endswith(b"/0")}
    with pytest.raises(CheckpointError, match="none is complete"):
        recover(first_parts)


def test_nothing_or_a_first_checkpoint_that_was_only_begun_is_an_empty_state() -> None:
    assert (recover({}).position, recover({}).items) == (-1, {})
    partition = Partition()
    writes = partition.change(({"pane/0/1": 100}, set()))
    partition.append(writes[:-1])
    recovered = recover(partition.changelog)
    assert (recovered.position, recovered.items, recovered.stale_keys) == (-1, {}, list(partition.changelog))


def test_of_equal_positions_the_higher_sequence_is_taken() -> None:
    partition = Partition()
    partition.checkpoint(({"pane/0/1": 1}, set()))
    partition.position -= 1  # a checkpoint of the same position, with a state that was amended
    partition.checkpoint(({"pane/0/2": 1}, set()))
    assert recover(partition.changelog).items.keys() == {"pane/0/1", "pane/0/2"}


def test_every_key_that_recovery_saw_is_named_for_deletion() -> None:
    partition = Partition("old")
    for _ in range(4):
        partition.checkpoint(({"pane/0/1": 100}, set()))
    assert set(recover(partition.changelog).stale_keys) == set(partition.changelog)
