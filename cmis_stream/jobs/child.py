"""What runs in a job's process: it reads its job from stdin, calls its function, and says on stdout how it goes. JSON lines.

    in    {"job": {…}, "lease": 3, "checkpoint": base64 | null, "run": "module:function", "settings": {…}, "parent": pid},
          then {"saved": true}, {"end": "cancel" | "stop"}
    out   {"progress": 0.5, "said": "…"}, {"save": base64}, and at the end one of
          {"result": …}, {"problem": {code, detail, …}}, {"ended": "cancel" | "stop"}

It ends with its parent: by the kernel where there is PR_SET_PDEATHSIG (Linux), and when its stdin ends.
"""

from __future__ import annotations

import base64
import ctypes
import importlib
import os
import queue
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

import orjson

from cmis_stream.core.errors import CmisError, Rejected

NICENESS: Final = 10
"""Events and pages come first."""
BUG, PARENT_GONE = 1, 3
"""Exit codes; 0 after a last word."""
_PR_SET_PDEATHSIG: Final = 1


class Ended(BaseException):
    """Raised in the job's function when it is to end: cancelled, or its process stops. It may clean up, for some seconds."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(slots=True)
class Run:
    """What a job's function is given. checkpoint: of the run before, None at first. settings: what its process was told, such
    as where the data is. lease: of this run; higher than those of runs before it."""

    org: str
    id: str
    body: dict[str, Any]
    lease: int
    checkpoint: bytes | None
    settings: Mapping[str, Any]
    _out: BinaryIO
    _saved: queue.SimpleQueue[None] = field(default_factory=queue.SimpleQueue)
    _end: list[str] = field(default_factory=list)

    def progress(self, ratio: float, said: str = "") -> None:
        """0 to 1, with a few words for people. Cheap; raises Ended when it is to end."""
        self.check()
        self._say({"progress": ratio, "said": said})

    def save(self, checkpoint: bytes) -> None:
        """Returns when it is kept: the next run, should this one die, begins there. Raises Ended."""
        self.check()
        self._say({"save": base64.b64encode(checkpoint).decode()})
        self._saved.get()

    def check(self) -> None:
        """Raises Ended when it is to end. For stretches without progress."""
        if self._end:
            raise Ended(self._end[0])

    def _say(self, what: Mapping[str, Any]) -> None:
        self._out.write(orjson.dumps(what) + b"\n")
        self._out.flush()

    def _listen(self, lines: BinaryIO) -> None:
        for line in lines:
            told = orjson.loads(line)
            if "saved" in told:
                self._saved.put(None)
            else:
                self._end.append(told["end"])
        os._exit(PARENT_GONE)


def main() -> None:
    lines, out = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what the job prints is no word of ours
    order = orjson.loads(lines.readline())
    _end_with(order["parent"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it says what comes of it
    os.nice(NICENESS)
    job, checkpoint = order["job"], order["checkpoint"]
    kept = None if checkpoint is None else base64.b64decode(checkpoint)
    run = Run(job["org"], job["id"], job["body"], order["lease"], kept, order["settings"], out)
    threading.Thread(target=run._listen, args=(lines,), daemon=True).start()
    module, _, name = order["run"].partition(":")
    try:
        run._say({"result": getattr(importlib.import_module(module), name)(run)})
    except Ended as ended:
        run._say({"ended": ended.why})
    except Rejected as rejected:
        run._say({"problem": {**rejected.as_dict(), "detail": str(rejected)}})
    except CmisError as error:
        run._say({"problem": {"code": "failed", "detail": str(error)}})
    # Anything else is a bug: its traceback goes to stderr, and Python ends with BUG.
    out.close()
    sys.stderr.flush()
    os._exit(0)  # threads of libraries, and the one that listens, do not hold it up


def _end_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(PARENT_GONE)
