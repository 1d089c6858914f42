"""In which order documents are written that point at each other. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence

from cmis_stream.store.kinds import Kinds


def ranks(kinds: Kinds) -> Mapping[str, int]:
    """A number for each kind: kinds that it points at have lower ones, as far as they do not point back."""
    rank: dict[str, int] = {}
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name not in seen:
            seen.add(name)
            for target in sorted(ref.target for ref in kinds[name].refs.values()):
                visit(target)
            rank[name] = len(rank)

    for name in sorted(kinds):
        visit(name)
    return rank


def dependents_last(documents: Sequence[tuple[int, str, Sequence[str]]], among: Collection[str]) -> tuple[list[int], list[int]]:
    """Places of documents (rank, id, ids that it points at), those that others point at first; and those of a circle.

    among: only these ids count. Otherwise by rank, then as they stand.

    >>> dependents_last([(0, "a", ["b"]), (0, "b", []), (0, "c", [])], {"a", "b", "c"})
    ([1, 0, 2], [])
    >>> dependents_last([(0, "a", ["b"]), (0, "b", ["a"])], {"a", "b"})
    ([], [0, 1])
    """
    waiting: dict[int, int] = {}
    followers: dict[str, list[int]] = {}
    for place, (_, identity, targets) in enumerate(documents):
        needed = {target for target in targets if target in among and target != identity}
        waiting[place] = len(needed)
        for target in needed:
            followers.setdefault(target, []).append(place)
    free = [(documents[place][0], place) for place, count in waiting.items() if not count]
    heapq.heapify(free)
    order = []
    while free:
        _, place = heapq.heappop(free)
        order.append(place)
        for follower in followers.get(documents[place][1], ()):
            waiting[follower] -= 1
            if not waiting[follower]:
                heapq.heappush(free, (documents[follower][0], follower))
    return order, sorted(set(waiting) - set(order))
