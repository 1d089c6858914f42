"""Watch: follows the transitions, each once, for whoever listens in this process (the terminal view).

Keyed by org, acked when read; a restart begins where it stopped. Replays of the metrics agent are dropped by position.
"""

from __future__ import annotations

from typing import Any

import faust
import orjson

from cmis_stream.log.positions import Passed
from cmis_stream.runtime import TRANSITIONS, Runtime


def attach(app: faust.App, runtime: Runtime) -> None:
    passed = Passed()

    @app.agent(runtime.raw_topic(TRANSITIONS), concurrency=1, name="watch")
    async def watch(stream: Any) -> None:
        async for event in stream.noack().events():
            with runtime.guard("watch"):
                record = orjson.loads(event.value)
                if passed.is_new(*record["source"]):
                    runtime.heard(record["transitions"])
                event.ack()
