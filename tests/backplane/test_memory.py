"""What only the backplane in memory does."""

from __future__ import annotations

from cmis_stream.backplane.memory import MemoryBackplane
from tests.backplane.support import EPOCH, TOPIC, Heard, Writer, offsets
from tests.gateway.world import INCIDENTS, Log, incident, place


async def test_memory_is_bounded_over_all_channels_and_the_log_has_the_rest() -> None:
    log = Log()
    size = len(incident(0, text="x" * 1000).json)
    backplane = MemoryBackplane(EPOCH, place, log.read, log.moment, max_bytes=10 * size + 5)
    writer = Writer(backplane, log)
    await writer.begin()
    channels = [f"org:o{number}:incidents" for number in range(4)]
    for number in range(40):
        await writer.deliver(writer.append(channels[number % 4], item=incident(number, text="x" * 1000)))
    held = [len((await backplane.newest(channel, 100)).publications or ()) for channel in channels]
    assert sum(held) in (9, 10) and max(held) - min(held) <= 1
    assert offsets((await backplane.recover(channels[0], -1, "epoch-1", 100)).publications) == list(range(0, 40, 4))


async def test_listeners_in_this_process_are_told_of_a_hole() -> None:
    log = Log()
    backplane = MemoryBackplane(EPOCH, place, log.read, log.moment)
    writer = Writer(backplane, log)
    await writer.begin()
    heard = Heard()
    await backplane.listen(INCIDENTS, heard)
    await writer.write(INCIDENTS)
    for _ in range(3):
        writer.append(INCIDENTS)  # which nobody publishes
    await backplane.begin(TOPIC, 0, 3)
    await writer.write(INCIDENTS)
    assert [(one.offset, one.gap) for one in heard.publications] == [(0, False), (3, True), (4, False)]
