"""What the jobs of the tests do. Each step is written to a file, with the lease of the run that made it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from cmis_stream.core.errors import CmisError, Rejected
from cmis_stream.jobs.child import Ended, Run


def count(run: Run) -> dict[str, Any]:
    """Counts to body["to"] in steps that are saved, as an export or a training does."""
    at, trace = int(run.checkpoint or b"0"), Path(run.body["trace"])
    began = at
    while at < run.body["to"]:
        time.sleep(run.body.get("step_s", 0.005))
        with trace.open("a") as file:
            file.write(f"{run.lease} {at} {os.getpid()}\n")
        at += 1
        run.progress(at / run.body["to"], f"{at} of {run.body['to']}")
        run.save(str(at).encode())
    return {"counted": at, "from": began}


def wait(run: Run) -> None:
    """Until it is told to end; says that it did."""
    Path(run.body["trace"]).write_text(str(os.getpid()))
    try:
        while True:
            run.progress(0.5, "waiting")
            time.sleep(0.01)
    except Ended as ended:
        Path(run.body["trace"]).write_text(f"cleaned up: {ended.why}")
        raise


def deaf(run: Run) -> None:
    """Never looks whether it is to end."""
    Path(run.body["trace"]).write_text(str(os.getpid()))
    threading.Event().wait()


def environment(run: Run) -> dict[str, Any]:
    print("this is not the protocol")
    return {"environment": dict(os.environ), "settings": run.settings, "argv": Path("/proc/self/cmdline").read_text().split("\0")}


def reject(run: Run) -> None:
    raise Rejected("out_of_range", "/days", 400, "at most 90")


def give_up(run: Run) -> None:
    raise CmisError("the platform does not answer")


def mistake(run: Run) -> None:
    raise ZeroDivisionError


def die(run: Run) -> None:
    """After a step that is saved, as long as there are some in body["steps"]."""
    at = int(run.checkpoint or b"0")
    if at < run.body["steps"]:
        run.save(str(at + 1).encode())
    os.kill(os.getpid(), 9)


def too_much(run: Run) -> Any:
    if "save" in run.body:
        run.save(bytes(run.body["save"]))
    return "x" * run.body.get("result", 0)


def not_json(run: Run) -> Any:
    return object()
