"""A small disk for an installation, and a way to fill it."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

SIZE_MB = 512
STEP = 64 << 10


class NoSmallDisk(Exception):
    """One sentence: why there cannot be one here."""


def small_disk(folder: Path, opened: AsyncExitStack) -> Path:
    """A file system of its own in memory, mounted below `folder`. NoSmallDisk when that is not allowed."""
    place = folder / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "cmis-faults", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise NoSmallDisk("a small disk needs the command mount") from None
    if done.returncode:
        raise NoSmallDisk(f"a small disk needs to be mounted, which is not allowed here: {done.stderr.strip()}")
    opened.callback(subprocess.run, ["umount", "-l", str(place)], check=False)
    return place / "data"


@contextmanager
def full_disk(data_dir: Path) -> Iterator[None]:
    """Not a byte is left on the disk of the folder, until the exit."""
    ballast = data_dir.parent / "ballast"
    file = os.open(ballast, os.O_CREAT | os.O_WRONLY)
    try:
        for size in (1 << 20, STEP, 4096, 1):  # ever smaller pieces
            _fill(file, b"\0" * size)
        yield
    finally:
        os.close(file)
        ballast.unlink()


def _fill(file: int, piece: bytes) -> None:
    try:
        while os.write(file, piece):
            pass
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
