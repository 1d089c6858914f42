"""Housekeeping over a runtime: what leaves its threads goes to the log through the loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import orjson

from cmis_stream.catalogs import Catalogs
from cmis_stream.core.errors import CmisError
from cmis_stream.housekeeping import Housekeeping
from cmis_stream.log.catalog import Catalog, write_catalog
from cmis_stream.log.kafka_topics import MESSAGE_BYTES
from cmis_stream.log.topics import partition_for
from cmis_stream.store.relay import SendFailed

if TYPE_CHECKING:
    from cmis_stream.runtime import Runtime

ANSWERS_WITHIN_S = 30.0
"""A log that takes longer to make something durable is away; what was sent is sent again."""


def housekeeping_of(runtime: Runtime, name: str) -> Housekeeping:
    """In the running loop. name: no other process that runs has it; a process that is started again under its name takes up at
    once what it had begun. `Runtime.failed` is set when a part of it has a bug."""
    stores, settings, loop = runtime.stores, runtime.settings, asyncio.get_running_loop()

    def durably(sending: Coroutine[Any, Any, None]) -> None:
        future = asyncio.run_coroutine_threadsafe(sending, loop)
        try:
            future.result(ANSWERS_WITHIN_S)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise SendFailed(f"the log did not answer within {ANSWERS_WITHIN_S:.0f} s") from None
        except OSError as error:
            raise SendFailed(f"the log cannot be written: {error}") from error

    def publish_catalog(catalog: Catalog) -> None:
        if (size := len(write_catalog(catalog))) > MESSAGE_BYTES - 1024:
            raise SendFailed(f"its {catalog.kind}s make a record of {size} bytes, more than the log's {MESSAGE_BYTES}")
        durably(runtime.publish_catalog(catalog))

    def publish(org: str, topic: str, effect: str, body: bytes) -> None:
        if topic not in runtime.topics:
            raise CmisError(f"topic: expected one of {', '.join(sorted(runtime.topics))}, got {topic!r}")
        value = orjson.dumps({"id": effect, "org": org, "data": orjson.Fragment(body)})
        durably(_sent(runtime, topic, org, value))

    def failed(error: BaseException) -> None:
        if not runtime.failed.done():
            runtime.failed.set_exception(CmisError(f"housekeeping failed: {type(error).__name__}: {error}"))

    catalogs = Catalogs(stores.kinds, stores.documents, stores.overseer, publish_catalog, runtime.clock)
    return Housekeeping(
        stores,
        send=catalogs.send,
        epoch=runtime.log.epoch,
        publish=publish,
        worker=name,
        job_settings={
            "data_dir": str(settings.data_dir.absolute()),
            "store": stores.url,
            "files_url": settings.files_url,
            "secret_keys": settings.secret_keys,
            "gateway_key": settings.gateway_key,
        },
        failed=failed,
        clock=runtime.clock,
    )


async def _sent(runtime: Runtime, topic: str, org: str, value: bytes) -> None:
    await (await runtime.send(topic, partition_for(org.encode(), runtime.partitions), value))
