"""The stores as a job's process has them: documents, files, secrets… of the installation that started it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cmis_stream.jobs.child import Run
from cmis_stream.settings import Role, Settings
from cmis_stream.stores import Stores


@contextmanager
def stores_of(run: Run) -> Iterator[Stores]:
    """Everything in it blocks. Of all orgs: what a job does, it does for `run.org`. Raises as `Stores`."""
    told = run.settings
    settings = Settings(
        data_dir=Path(told["data_dir"]),
        role=Role.API,  # does no housekeeping
        store_url=None if told["store"].startswith("sqlite:") else told["store"],
        files_url=told["files_url"],
        secret_keys=told["secret_keys"],
        gateway_key=told.get("gateway_key"),
    )
    stores = Stores(settings, lambda: time.time_ns() // 1_000_000)
    try:
        yield stores
    finally:
        stores.close()
