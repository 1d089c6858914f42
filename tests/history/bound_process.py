"""An instance that takes events and keeps their history until it is killed: `python -m tests.history.bound_process FOLDER`.

Segments are short, so that a kill falls between and into them. It says `kept` once some of what it has sent is in files.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from pathlib import Path
from typing import Any

import httpx
import orjson

from cmis_stream.core.time import MINUTE_MS
from cmis_stream.instance import Instance
from cmis_stream.log.topics import partition_for
from cmis_stream.runtime import ROLLUPS
from cmis_stream.settings import Settings

SEGMENT_S = 0.05


def settings(folder: Path) -> Settings:
    return Settings(data_dir=folder, port=0, gateway_port=0)


def event(now_ms: int, number: int) -> dict[str, Any]:
    """Of one of five campaigns, in one of the last 20 minutes."""
    ts = now_ms - number % 20 * MINUTE_MS
    return {
        "id": uuid.uuid4().hex,
        "ts": ts,
        "platform": "meta",
        "campaign": f"c{number % 5}",
        "clicks": 1 + number % 3,
        "spend": 0.25,
    }


async def send(instance: Instance, client: httpx.AsyncClient, first: int, events: int) -> None:
    lines = [orjson.dumps(event(instance.runtime.clock(), number)) for number in range(first, first + events)]
    headers = {"Content-Type": "application/x-ndjson"}
    response = await client.post("/api/orgs/acme/events", content=b"\n".join(lines), headers=headers)
    assert response.json()["accepted"] == events, response.text


def client_of(instance: Instance) -> httpx.AsyncClient:
    tokens = instance.runtime.tokens
    if tokens.org("acme") is None:
        tokens.create_org("acme", "Acme")
    text = tokens.create("acme", ["ingest", "read"])[1]
    return httpx.AsyncClient(base_url=instance.url, headers={"Authorization": f"Bearer {text}"}, trust_env=False)


async def keep(folder: Path) -> None:
    async with Instance(settings(folder)) as instance:
        instance.runtime.history.segment_s = SEGMENT_S
        place = ROLLUPS, partition_for(b"acme", instance.runtime.partitions)
        begun, number, said = None, 0, False
        async with client_of(instance) as client:
            while True:
                await send(instance, client, number, 40)
                number += 40
                reached = instance.runtime.history.reached.get(place)
                begun = reached if begun is None else begun
                if not said and begun is not None and reached is not None and reached > begun:
                    said = True
                    print("kept", flush=True)


if __name__ == "__main__":
    asyncio.run(keep(Path(sys.argv[1])))
