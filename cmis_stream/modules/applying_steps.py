"""Carrying out a plan in bulks, wherever the documents are: over REST or in the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from cmis_stream.store.documents import MOST_ITEMS

from .applying import Change, Conflict, Create, Operation, Remove, Same, Step, operations

NOT_REMOVED: Final = "not deleted, since not everything else could be done"
Send = Callable[[str, Sequence[Operation]], Sequence[str | None]]
"""Carries out operations on documents of a kind, at most MOST_ITEMS, each of which stands or falls alone; why one could not be
done, None for what was."""


class Done(NamedTuple):
    """problem: why a step was not done."""

    step: Step
    problem: str | None


def carry_out(steps: Iterable[Step], send: Send) -> Iterator[Done]:
    """Each step with what became of it, in the order of the plan. What is the same is left out.

    Nothing is removed once something else could not be done: what should have been moved away from it might go with it.
    """
    failed = False
    for batch in _batches(steps):
        removing = isinstance(batch[0], Remove)
        if isinstance(batch[0], Conflict) or (removing and failed):
            done = [Done(step, str(step.error) if isinstance(step, Conflict) else NOT_REMOVED) for step in batch]
        else:
            done = list(_sent(batch, send))
        failed = failed or (not removing and any(one.problem is not None for one in done))
        yield from done


def _sent(batch: Sequence[Step], send: Send) -> Iterator[Done]:
    own = [(step, operations(step)) for step in batch if isinstance(step, Create | Change | Remove)]
    problems = iter(send(own[0][0].kind, [operation for _, those in own for operation in those]))
    for step, those in own:
        found = [next(problems) for _ in those]
        yield Done(step, next((problem for problem in found if problem is not None), None))


def _batches(steps: Iterable[Step]) -> Iterator[list[Step]]:
    """Neighbours of the same kind, as many as fit; removals, conflicts and the rest apart."""
    batch: list[Step] = []
    size = 0
    for step in steps:
        if isinstance(step, Same):
            continue
        needs = 1 if isinstance(step, Conflict) else len(operations(step))
        if batch and (_sort(step) != _sort(batch[0]) or size + needs > MOST_ITEMS):
            yield batch
            batch, size = [], 0
        batch.append(step)
        size += needs
    if batch:
        yield batch


def _sort(step: Step) -> tuple[str, bool, bool]:
    return step.kind, isinstance(step, Remove), isinstance(step, Conflict)
