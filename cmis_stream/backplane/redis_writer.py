"""Publishing to Redis: what comes while a script is under way goes together with the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

from redis.asyncio import Redis

from cmis_stream.backplane.contract import Forgotten, Item, Publication
from cmis_stream.backplane.redis_link import Outage, asked, ended
from cmis_stream.backplane.redis_scripts import BEGIN, PLACE_TTL_S, STREAM_TTL_S, WRITE, Place, packed, place_key
from cmis_stream.core.channels import CONFLATED, TOPICS, parse_channel

SCRIPT_BYTES, SCRIPT_RECORDS = 1 << 20, 500
"""Of one script, during which Redis does nothing else."""
MERGED_BYTES = 64 << 10
"""Of publications that are merged: a client takes messages of 1 MiB."""

Told = tuple[str, Publication]


class _Step:
    """A record of a place on its way, or (begins) the beginning before it."""

    __slots__ = ("begins", "done", "offset", "size", "told")

    def __init__(self, offset: int, told: list[Told], *, begins: bool = False) -> None:
        self.offset, self.told, self.begins = offset, told, begins
        self.size = sum(publication.about_bytes for _, publication in told)
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()


class _Line:
    """What is on its way to a place since it began. known: what Redis has reached. reached: what has been handed in."""

    __slots__ = ("forgotten", "known", "open", "reached", "sending", "steps")

    def __init__(self, begins_after: int) -> None:
        self.reached, self.known = begins_after, -1
        self.open: list[Told] = []
        self.steps = deque([_Step(begins_after, [], begins=True)])
        self.sending: asyncio.Task[None] | None = None
        self.forgotten = False


class RedisWriter:
    def __init__(self, client: Redis, prefix: str, epoch: str, place: Callable[[str], Place], per_channel: int) -> None:
        self._prefix, self._epoch, self._place, self._per_channel = prefix, epoch, place, per_channel
        self._begin, self._write = client.register_script(BEGIN), client.register_script(WRITE)
        self._lines: dict[Place, _Line] = {}
        self._outage = Outage("results")

    @property
    def connected(self) -> bool:
        return not self._outage.lasts

    async def close(self) -> None:
        """What is on its way is given up."""
        await ended(line.sending for line in self._lines.values() if line.sending is not None)

    async def begin(self, place: Place, offset: int) -> int:
        before = self._lines.get(place)
        line = self._lines[place] = _Line(offset)
        line.sending = asyncio.create_task(self._send(place, line, before.sending if before else None))
        return await line.steps[0].done

    def publish(self, channel: str, publication: Publication) -> None:
        place = self._place(channel)
        line = self._lines.get(place)
        if line is None:
            line = self._lines[place] = _Line(publication.offset - 1)
        if publication.offset > line.reached:
            line.open.append((channel, publication))

    async def reached(self, place: Place, offset: int) -> None:
        line = self._lines.get(place)
        if line is None:
            line = self._lines[place] = _Line(offset)
        if line.forgotten:
            raise Forgotten(*place)
        told, line.open = line.open, []
        line.reached = max(offset, line.reached)
        step = _Step(line.reached, told)
        line.steps.append(step)
        if line.sending is None or line.sending.done():
            line.sending = asyncio.create_task(self._send(place, line))
        await step.done

    async def _send(self, place: Place, line: _Line, before: asyncio.Task[None] | None = None) -> None:
        """Until nothing waits any more; after what was on its way when the place began again."""
        if before is not None:
            await asyncio.wait([before])
        steps: list[_Step] = []
        try:
            while line.steps:
                steps = _next(line.steps)
                if steps[0].begins:
                    line.known = await self._begun(place, steps[0].offset)
                else:
                    await self._written(place, line, steps)
                line.reached = max(line.known, line.reached)
                for step in steps:
                    _settle(step.done, line.known)
        except BaseException as error:  # Forgotten, a bug, the end: all who wait are told, and it is raised where they are
            line.forgotten = True
            for step in (*steps, *line.steps):
                _settle(step.done, error)
            line.steps.clear()
            if not isinstance(error, Exception):
                raise

    async def _begun(self, place: Place, offset: int) -> int:
        keys = [place_key(self._prefix, place)]
        return int(await asked(self._outage, self._begin, keys, [self._epoch, offset, PLACE_TTL_S]))

    async def _written(self, place: Place, line: _Line, steps: Sequence[_Step]) -> None:
        """These records are in Redis, whoever has brought them there. Forgotten when that cannot be."""
        while True:
            reached = max(line.known, steps[-1].offset)
            told = [one for step in steps for one in step.told if one[1].offset > line.known]
            answer, at = await self._script(place, line.known, reached, told)
            if answer == b"lost":
                raise Forgotten(*place)
            line.known = int(at)
            if answer == b"done" or line.known >= reached:
                return

    async def _script(self, place: Place, known: int, reached: int, told: Iterable[Told]) -> tuple[bytes, int]:
        own = place_key(self._prefix, place)
        keys, numbers = [own], dict[str, int]()
        args: list[Any] = [self._epoch, known, reached, self._per_channel, PLACE_TTL_S, STREAM_TTL_S]
        for channel, publication in merged(told):
            number = numbers.get(channel)
            if number is None:
                keys.append(f"{own}:{channel}")
                number = numbers[channel] = len(keys)
            args += (number, publication.offset, packed(publication.items))
        answer, at = await asked(self._outage, self._write, keys, args)
        return answer, at


def _next(waiting: deque[_Step]) -> list[_Step]:
    """Takes what goes into one script: a beginning alone, else records as long as they fit; one at least."""
    steps = [waiting.popleft()]
    size = steps[0].size
    while waiting and not steps[0].begins and not waiting[0].begins and len(steps) < SCRIPT_RECORDS:
        size += waiting[0].size
        if size > SCRIPT_BYTES:
            break
        steps.append(waiting.popleft())
    return steps


def _settle(done: asyncio.Future[int], outcome: int | BaseException) -> None:
    if done.done():
        return  # whoever waited has gone
    if isinstance(outcome, asyncio.CancelledError):
        done.cancel()
    elif isinstance(outcome, BaseException):
        done.set_exception(outcome)
        done.exception()  # nobody waits for a beginning that came by itself
    else:
        done.set_result(outcome)


def merged(told: Iterable[Told]) -> list[Told]:
    """Publications in the order of their offsets, those of a conflated channel merged as far as they stay small."""
    by_channel: dict[str, list[Publication]] = {}
    for channel, publication in told:
        by_channel.setdefault(channel, []).append(publication)
    return [
        (channel, publication)
        for channel, own in by_channel.items()
        for publication in (_conflated(own) if len(own) > 1 and _is_conflated(channel) else own)
    ]


def _is_conflated(channel: str) -> bool:
    return TOPICS.get(parse_channel(channel).topic) == CONFLATED


def _conflated(publications: Sequence[Publication]) -> list[Publication]:
    sizes, groups = 0, [[publications[0]]]
    for before, publication in pairwise(publications):
        sizes += before.about_bytes
        if sizes + publication.about_bytes > MERGED_BYTES:
            groups.append([])
            sizes = 0
        groups[-1].append(publication)
    return [group[0] if len(group) == 1 else _newest(group) for group in groups]


def _newest(publications: Sequence[Publication]) -> Publication:
    """The newest item of each key, in the order in which they came."""
    items: dict[str, Item] = {}
    for publication in publications:
        for item in publication.items:
            items.pop(item.key, None)
            items[item.key] = item
    return Publication(publications[-1].offset, list(items.values()))
