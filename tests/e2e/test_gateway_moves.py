"""Gateway nodes that come and go behind one address: clients move, and nothing is missing or twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.network import Cable
from tests.e2e.support import needs_workload
from tests.faults.audience import Audience
from tests.faults.cluster import Cluster, Shape, until
from tests.faults.load import Load, expected_transitions, present_workload

pytestmark = [pytest.mark.slow, needs_workload]


@pytest.mark.spec("GTW-E15")
@pytest.mark.spec("GTW-M03")
@pytest.mark.timeout(300)
async def test_clients_of_a_gateway_that_is_stopped_in_order_go_on_at_another_without_a_gap(tmp_path: Path) -> None:
    workload = present_workload(tmp_path / "workload", events=12_000)
    async with Cluster(tmp_path / "run", workload.rules, Shape(workers=1, gateways=2)) as cluster:
        load = Load(workload, cluster.url, cluster.ingest_tokens(), 15, tmp_path / "sender")
        await until(lambda: all(part.run.running for part in cluster.parts), "all to run")
        while await cluster.adopted() < set(load.orgs):
            pass
        first, second = cluster.gateways
        balancer = Cable(first.port)
        await balancer.mend()
        audience = Audience(
            [f"ws://127.0.0.1:{balancer.port}/connection/websocket"], {org: cluster.read_token(org) for org in load.orgs}
        )
        try:
            await audience.connect()
            load.begin()
            for share, leaving, other in ((0.3, first, second), (0.6, second, first)):
                await load.comes_to(share)
                balancer.target = other.port
                assert await leaving.end() == 0, leaving.text
                await audience.sees(await load.probe())
                leaving.start()
                await leaving.ready()
            await load.all_sent()
            await load.close_panes()
            due = expected_transitions(workload)
            await until(lambda: audience.heard(load.end_ms) == due, "all transitions at the clients")
            assert max(Counter(audience.heard(load.end_ms)).values()) == 1 and sum(due.values()) > 100
            assert audience.unrecovered() == 0 and audience.disordered() == []
            assert min(len(client.subscribed) for client in audience.incidents.values()) == 3, "each has moved twice"
        finally:
            await audience.disconnect()
            await load.close()
            await balancer.cut()
