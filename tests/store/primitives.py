"""What the tests of jobs, schedules, files, secrets and personal fields share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import select

from cmis_stream.store import tables
from cmis_stream.store.database import Database
from cmis_stream.store.jobs import JobKind, JobKinds

ROOT = Path(__file__).parents[2]
_FUNCTIONS = (
    "count", "wait", "deaf", "environment", "reject", "give_up", "mistake", "die", "too_much", "not_json",
)  # fmt: skip
JOB_KINDS = JobKinds(*(JobKind(name, f"tests.store.job_functions:{name}") for name in _FUNCTIONS))


@contextmanager
def process(*arguments: str, **pipes: Any) -> Iterator[subprocess.Popen[str]]:
    """tests/store/primitives_worker.py, killed at the end."""
    command = [sys.executable, "-m", "tests.store.primitives_worker", *arguments]
    started = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, **pipes)
    try:
        yield started
    finally:
        started.kill()
        started.wait()
        if started.stdout is not None:
            started.stdout.close()


def outbox(database: Database, org: str = "acme") -> list[tuple[str, str]]:
    """(effect, body), by their times."""
    table = tables.outbox
    with database.transaction(org) as tx:
        wanted = select(table.c.effect, table.c.body).where(tx.own(table)).order_by(table.c.due_at, table.c.id)
        return [(effect, body) for effect, body in tx.rows(wanted)]
