"""The peer's Python environment, and a run of it. quixstreams wants an older pydantic than ours, so it does not live in .venv."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from bench.workloads import REPOSITORY

LOCKED = REPOSITORY / "requirements" / "quix.txt"
RUN_S = 600


def python() -> Path:
    """Of an environment with the locked packages, made at the first call and after each change of the lock."""
    folder = REPOSITORY / ".cache" / "quix" / hashlib.sha256(LOCKED.read_bytes() + sys.version.encode()).hexdigest()[:16]
    if not folder.exists():
        making = folder.with_suffix(f".{os.getpid()}")
        print("Making an environment for quixstreams (once) ...", file=sys.stderr)
        try:
            venv.create(making, with_pip=True)
            pip = [str(making / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "--require-hashes", "-r", str(LOCKED)], check=True, stdout=sys.stderr)
            making.rename(folder)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return folder / "bin" / "python"  # a venv's python finds its packages wherever the folder lies


def run(broker: str, workload: Path, folder: Path) -> dict[str, float]:
    """Fills the peer's topic and processes it in one process; CPU and wall seconds from the first message on, peak MB."""
    command = [str(python()), "-m", "bench.peer_quix", broker, str(workload), str(folder)]
    ran = subprocess.run(
        command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE, text=True, timeout=RUN_S,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    figures: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return figures
