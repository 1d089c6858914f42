"""A query finds the owner in a real group, and follows the partition from worker to worker."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from cmis_stream.log.kafka import client_settings
from cmis_stream.log.kafka_group import GroupOwners
from cmis_stream.peer.client import Peers, RemotePanes
from cmis_stream.query.datasets import NotHere, Queries
from cmis_stream.store.signing import PeerTokens
from scripts.kafka import Kafka
from tests.log.backends import PARTITIONS, OnKafka, Received, Rig, collect
from tests.peer.support import ACME, KEY, NOW, QUERY, Worker


class Member(Worker):
    """A worker whose app is in the group, and that owns what the group has given to it."""

    def __init__(self, rig: Rig) -> None:
        super().__init__()
        self.rig, self.app_of_group = rig, None
        self.panes.here = False

    async def __aenter__(self) -> Member:
        self._stack = AsyncExitStack()
        address = await self._stack.enter_async_context(self.served())
        self.app_of_group = app = self.rig.app("cmis", canonical_url=address)
        collect(app, self.rig.topic(app), Received())
        app.on_partitions_assigned.connect(self._assigned, weak=False)
        app.on_partitions_revoked.connect(self._revoked, weak=False)
        await app.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.app_of_group.stop()
        await self._stack.aclose()

    async def _assigned(self, _app: Any, /, assigned: Any, **_named: Any) -> None:
        self.panes.here = any(tp.partition == ACME and tp.topic == self.rig.named("events") for tp in assigned)

    async def _revoked(self, _app: Any, /, *_sent: Any, **_named: Any) -> None:
        self.panes.here = False


@pytest.mark.slow
async def test_queries_follow_their_partition_from_worker_to_worker(kafka: Kafka, tmp_path: Path) -> None:
    rig = Rig(OnKafka(kafka.bootstrap), tmp_path)
    await rig.create()
    owners = GroupOwners(client_settings([URL(kafka.url)]), rig.named("cmis"), rig.named("events"))
    peers = Peers(owners, PeerTokens(KEY), PARTITIONS, lambda: NOW)
    queries = Queries({"panes": RemotePanes(peers)})

    async def answered() -> None:
        async with asyncio.timeout(60):
            while True:
                try:
                    answer = json.loads(await queries.answer("acme", QUERY))
                except NotHere:
                    await asyncio.sleep(0.05)  # as a client comes again after Retry-After
                    continue
                assert answer["rows"] == [["c1", "USD", 3, 1_500_000]]
                return

    try:
        with pytest.raises(NotHere):
            await queries.answer("acme", QUERY)
        served: list[int] = []
        async with AsyncExitStack() as last:
            for _ in range(3):  # each hands its partitions over to the next and leaves
                member = Member(rig)
                async with AsyncExitStack() as stack:
                    await stack.enter_async_context(member)
                    await last.aclose()
                    await answered()
                    served.append(member.requests)
                    last.push_async_exit(stack.pop_all().__aexit__)
        assert all(served), "each has been asked while it was the only one"
    finally:
        await peers.close()
        await owners.close()
