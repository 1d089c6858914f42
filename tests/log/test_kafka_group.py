"""Who owns a partition, as the group itself tells it: while members come, go and are gone, and while the broker is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from faust.assignor.client_assignment import ClientAssignment, ClientMetadata
from faust.assignor.partition_assignor import PartitionAssignor
from yarl import URL

from cmis_stream.log import kafka_group
from cmis_stream.log.kafka import client_settings
from cmis_stream.log.kafka_group import GroupOwners, owners_of
from scripts.kafka import Kafka
from tests.log.backends import PARTITIONS, OnKafka, Received, Rig, collect, running

A, B = "http://127.0.0.1:8611", "http://127.0.0.1:8612"


@pytest.fixture
async def rig(kafka: Kafka, tmp_path: Path) -> Rig:
    made = Rig(OnKafka(kafka.bootstrap), tmp_path)
    await made.create()
    return made


def member(rig: Rig, address: str) -> Any:
    app = rig.app("cmis", canonical_url=address)
    collect(app, rig.topic(app), Received())
    return app


@asynccontextmanager
async def asking(rig: Rig, kafka: Kafka) -> AsyncIterator[GroupOwners]:
    owners = GroupOwners(client_settings([URL(kafka.url)]), rig.named("cmis"), rig.named("events"))
    try:
        yield owners
    finally:
        await owners.close()


async def told(owners: GroupOwners) -> list[str | None]:
    """Of each partition, asked anew."""
    await asyncio.sleep(kafka_group.AGAIN_S)
    return [await owners.owner(partition, instead_of=await owners.owner(partition)) for partition in range(PARTITIONS)]


async def until(owners: GroupOwners, expected: set[str | None]) -> list[str | None]:
    async with asyncio.timeout(60):
        while set(found := await told(owners)) != expected:
            pass
    return found


def held(app: Any) -> set[int]:
    return {tp.partition for tp in app.assignor.assigned_actives() if tp.topic.startswith("events")}


@pytest.mark.slow
async def test_each_partition_is_owned_by_the_member_that_has_it(rig: Rig, kafka: Kafka) -> None:
    first, second = member(rig, A), member(rig, f"{B}/some/path")
    async with asking(rig, kafka) as owners:
        assert set(await told(owners)) == {None}, "no such group"
        async with running(first):
            assert await until(owners, {A}) == [A] * PARTITIONS
            async with running(second):
                found = await until(owners, {A, B})
                assert held(first) and held(second), "each has some"
                assert found == [A if partition in held(first) else B for partition in range(PARTITIONS)]
            await until(owners, {A})
        await until(owners, {None})


@pytest.mark.slow
async def test_while_the_group_is_changing_nobody_is_the_owner(rig: Rig, kafka: Kafka) -> None:
    first, second = member(rig, A), member(rig, B)
    leaving, may_leave = asyncio.Event(), asyncio.Event()

    async def slow_to_leave(_app: Any, /, *_sent: Any, **_named: Any) -> None:
        leaving.set()
        await may_leave.wait()

    async with asking(rig, kafka) as owners, running(first):
        await until(owners, {A})
        first.on_partitions_revoked.connect(slow_to_leave)
        joining = asyncio.ensure_future(second.start())
        try:
            async with asyncio.timeout(30):
                await leaving.wait()
            await until(owners, {None})
            may_leave.set()
            await joining
            await until(owners, {A, B})
        finally:
            may_leave.set()
            await second.stop()


@pytest.mark.slow
async def test_however_many_ask_the_group_is_asked_once_and_not_again_for_a_while(
    rig: Rig, kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, described = [], GroupOwners._described

    async def counted(self: GroupOwners) -> dict[int, str]:
        asked.append(asyncio.get_running_loop().time())
        return await described(self)

    monkeypatch.setattr(GroupOwners, "_described", counted)
    monkeypatch.setattr(kafka_group, "FRESH_S", 1e9)
    async with asking(rig, kafka) as owners, running(member(rig, A)):
        await until(owners, {A})
        asked.clear()
        assert await asyncio.gather(*(owners.owner(n % PARTITIONS) for n in range(100))) == [A] * 100 and not asked
        await asyncio.sleep(kafka_group.AGAIN_S)
        assert await asyncio.gather(*(owners.owner(n % PARTITIONS, instead_of=A) for n in range(100))) == [A] * 100
        assert len(asked) == 1
        await owners.owner(0, instead_of=B)
        assert len(asked) == 1, "somebody has asked since"
        monkeypatch.setattr(kafka_group, "FRESH_S", 0.0)
        await owners.owner(0)
        assert len(asked) == 2


@pytest.mark.slow
async def test_one_who_gives_up_waiting_takes_nothing_from_the_others(rig: Rig, kafka: Kafka) -> None:
    async with asking(rig, kafka) as owners, running(member(rig, A)):
        waiting = [asyncio.ensure_future(owners.owner(0)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        assert isinstance((await asyncio.gather(*waiting, return_exceptions=True))[0], asyncio.CancelledError)
        await until(owners, {A})


@pytest.mark.slow
async def test_while_the_broker_is_away_the_last_owners_are_told_and_after_it_the_new_ones(
    kafka: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker of its own: a test that shares one must not end it."""
    monkeypatch.setattr(kafka_group, "ASK_S", 0.5)
    with Kafka(tmp_path / "own") as own:
        rig = Rig(OnKafka(own.bootstrap), tmp_path)
        await rig.create()
        first, second = member(rig, A), member(rig, B)
        async with asking(rig, own) as owners, running(first):
            await until(owners, {A})
            own.pause()
            assert await told(owners) == [A] * PARTITIONS, "it does not answer"
            own.resume()
            await asyncio.to_thread(own.kill)
            assert await told(owners) == [A] * PARTITIONS, "nobody listens"
            await asyncio.to_thread(own.start)
            async with running(second):
                found = await until(owners, {A, B})
                assert found == [A if partition in held(first) else B for partition in range(PARTITIONS)]


async def test_before_a_broker_has_ever_answered_nobody_is_known(caplog: pytest.LogCaptureFixture) -> None:
    owners = GroupOwners(client_settings([URL("kafka://127.0.0.1:1")]), "cmis", "events")
    assert await owners.owner(0) is None and "could not be asked who owns what" in caplog.text
    await owners.close()


@pytest.mark.parametrize("assignment", [b"", b"\x00\x00", b"\x00\x02" + bytes(4) + b"\x00\x00\x00\x04none", b"\xff" * 40])
def test_a_member_that_is_not_of_faust_owns_nothing(assignment: bytes, caplog: pytest.LogCaptureFixture) -> None:
    assert owners_of("events", [("m1", "client", "/192.0.2.1", b"", assignment)]) == {}
    assert "m1 (/192.0.2.1)" in caplog.text


@pytest.mark.parametrize("address", ["", "worker-1", "file:///etc/passwd", "http://", "ftp://127.0.0.1:21"])
def test_a_member_without_an_address_that_can_be_asked_owns_nothing(address: str, caplog: pytest.LogCaptureFixture) -> None:
    assert owners_of("events", [("m1", "c", "h", b"", assignment_of(address)), ("m2", "c", "h", b"", assignment_of(A))]) == {
        0: A, 3: A
    }  # fmt: skip
    assert "m1" in caplog.text and "m2" not in caplog.text


@pytest.mark.parametrize(
    ("address", "url"), [("http://w1:8610/", "http://w1:8610"), ("https://[::1]:8610/x?y#z", "https://[::1]:8610")]
)
def test_of_an_address_scheme_host_and_port_count(address: str, url: str) -> None:
    assert owners_of("events", [("m1", "c", "h", b"", assignment_of(address))]) == {0: url, 3: url}


def assignment_of(address: str) -> bytes:
    """As Faust's leader gives it."""

    own = ClientAssignment(actives={"events": [0, 3], "others": [1]}, standbys={"events": [2]})
    metadata = ClientMetadata(assignment=own, url=address, changelog_distribution={})
    told: bytes = ConsumerProtocolMemberAssignment(
        4, [("events", [0, 3])], PartitionAssignor._compress(metadata.dumps())
    ).encode()
    return told
