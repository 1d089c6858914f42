"""The job `count_toys`: goes through an org's toys page by page and writes their names into a file.

It remembers how far it is, so a run that dies is followed by one that goes on there; nothing is counted twice.
"""

from __future__ import annotations

import time
from typing import Any

import orjson

from cmis_stream.job_stores import stores_of
from cmis_stream.jobs.child import Run
from cmis_stream.store.decisions import Actor

ACTOR = Actor("count_toys", sees_private=True)
LASTS_MS = 86_400_000


def count_toys(run: Run) -> dict[str, Any]:
    """-> {"toys": how many, "resumed": runs that went on where another one was, "file": id of a CSV with their slugs}"""
    state: dict[str, Any] = orjson.loads(run.checkpoint) if run.checkpoint else {"slugs": [], "cursor": "", "resumed": 0}
    state["resumed"] += run.checkpoint is not None
    with stores_of(run) as stores:
        while state["cursor"] is not None:
            more = [("cursor", state["cursor"])] if state["cursor"] else []
            asked = [("sort", "id"), ("limit", str(run.body["page"])), *more]
            page = stores.documents.list(run.org, ACTOR, "toy", asked)
            state["slugs"] += [toy.body["slug"] for toy in page.items]
            state["cursor"] = page.next
            run.save(orjson.dumps(state))
            run.progress(len(state["slugs"]) / max(page.total_estimate, 1), f"{len(state['slugs'])} toys")
            time.sleep(run.body["pause_ms"] / 1000)
        with stores.files.create(run.org, "toys.csv", "text/csv", ACTOR.id, lasts_ms=LASTS_MS) as upload:
            upload.write("".join(f"{slug}\r\n" for slug in state["slugs"]).encode())
            file = upload.finish()
    return {"toys": len(state["slugs"]), "resumed": state["resumed"], "file": file.id}
