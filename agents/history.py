"""History: keeps events and rollups as Parquet, beyond the log's days (docs/design/history.md).

It follows the log by its reader, outside the group, for the partitions that this process is assigned: it holds no ack, so
neither a full disk nor a slow one keeps the metrics agent waiting. What it has in files it knows from the files.
"""

from __future__ import annotations

import faust

from cmis_stream.runtime import Runtime


def attach(app: faust.App, runtime: Runtime) -> None:
    runtime.on_assigned(runtime.history.begin)
    runtime.on_revoked(runtime.history.end)

    @app.task  # type: ignore[untyped-decorator]
    async def keep_history() -> None:
        with runtime.guard("history"):
            await runtime.history.run()
