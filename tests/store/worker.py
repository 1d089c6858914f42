"""Processes for the tests to kill: `write URL NAME ORG…` and `relay URL FILE`."""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from cmis_stream.store.changes import Change
from cmis_stream.store.database import Database, Unavailable
from cmis_stream.store.decisions import Command
from cmis_stream.store.documents import Documents, Idempotency
from cmis_stream.store.relay import Relay
from tests.store.support import ADA, kinds


def write(url: str, name: str, orgs: Sequence[str]) -> None:
    """Says (org, key, id) of each document that was answered. What was not is sent again with the same key."""
    documents = Documents(Database(url), kinds())
    for number, org in zip(itertools.count(), itertools.cycle(orgs)):
        command, key = Command("create", "campaign", body={"name": f"{name}/{number}"}), f"{name}/{number}"
        while True:
            try:
                result = documents.execute(org, ADA, command, idempotency=Idempotency("/campaigns", key))
                break
            except Unavailable:
                threading.Event().wait(0.05)
        assert result.document is not None
        print(json.dumps([org, key, result.document.id]), flush=True)


def relay(url: str, file: Path) -> None:
    with file.open("ab") as out:

        def send(org: str, changes: Sequence[Change]) -> None:
            out.write(b"".join(json.dumps([org, one.seq, one.hash]).encode() + b"\n" for one in changes))
            out.flush()
            os.fsync(out.fileno())

        Relay(Database(url), send).run(threading.Event())


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        relay(sys.argv[2], Path(sys.argv[3]))
