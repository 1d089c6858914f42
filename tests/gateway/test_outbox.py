"""The two queues of a client, over a socket that fills up and empties whenever it likes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cmis_stream.gateway.figures import Figures
from cmis_stream.gateway.limits import Limits
from cmis_stream.gateway.outbox import Outbox

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.none()),
        st.tuples(st.just("publish"), st.tuples(st.integers(0, 1), st.sets(st.integers(0, 8), min_size=1))),
        st.tuples(st.just("resume"), st.integers(1, 6)),
    ),
    max_size=60,
)


class Socket:
    """Takes so many writes until it is full."""

    def __init__(self) -> None:
        self.takes = 1
        self.written: list[bytes] = []
        self.outbox = Outbox(self.write, Limits(), Figures(), lambda _: None)

    def write(self, frames: bytes) -> None:
        assert not self.outbox.full
        self.written.append(frames)
        self.takes -= 1
        if self.takes <= 0:
            self.outbox.pause()


class Group:
    def __init__(self, name: int) -> None:
        self.name = name

    def frame(self, items: list[bytes], offset: int) -> bytes:
        return json.dumps([self.name, offset, [json.loads(item) for item in items]]).encode() + b"\n"


@given(STEPS)
@settings(max_examples=300, deadline=None)
def test_lossless_frames_all_come_in_order_and_of_each_key_the_newest_value(steps: list[tuple[str, Any]]) -> None:
    socket, groups = Socket(), [Group(0), Group(1)]
    newest: dict[tuple[int, int], int] = {}
    sent = 0
    for offset, (step, value) in enumerate([*steps, ("resume", 1_000)]):
        if step == "send":
            socket.outbox.send(b"[%d]\n" % sent)
            sent += 1
        elif step == "publish":
            group, keys = groups[value[0]], value[1]
            newest.update(((value[0], key), offset) for key in keys)
            items = {str(key): (offset, json.dumps([key, offset]).encode()) for key in keys}
            if socket.outbox.full:
                socket.outbox.conflate(group, items)
            else:
                socket.write(group.frame([json for _, json in items.values()], offset))
        else:
            socket.takes = value
            socket.outbox.resume()
    lines = [json.loads(line) for line in b"".join(socket.written).splitlines()]
    assert [line[0] for line in lines if len(line) == 1] == list(range(sent))
    got: dict[tuple[int, int], int] = {}
    at = [-1, -1]
    for group, offset, items in (line for line in lines if len(line) == 3):
        assert offset > at[group], "a client that is cut off here recovers everything behind this offset"
        at[group] = offset
        for key, value in items:
            assert got.get((group, key), -1) < value <= offset
            got[group, key] = value
        assert all(value > offset for (other, key), value in newest.items() if other == group and got.get((other, key)) != value)
    assert got == newest
    assert (socket.outbox.lossless_bytes, socket.outbox.conflated_items) == (0, 0)


async def test_too_much_is_told_once_and_nothing_is_kept_or_written_afterwards() -> None:
    told: list[str] = []
    written: list[bytes] = []
    outbox = Outbox(written.append, Limits(lossless_bytes=10), Figures(), told.append)
    outbox.pause()
    for _ in range(4):
        outbox.send(b"12345")
    await asyncio.sleep(0)
    assert told == ["expected at most 10 bytes waiting, got 15"]
    outbox.pause()
    for _ in range(4):
        outbox.send(b"more")
    outbox.resume()
    await asyncio.sleep(0)
    assert len(told) == 1 and written == [] and outbox.lossless_bytes == 0
