"""How much memory this process has, and how much it may have."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cmis_stream.core.errors import ConfigError, shown

SHARE = 0.85
"""Of the machine's or the container's memory, when nothing is said: what is left is for the page cache and for others."""
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|kB|MB|GB|KiB|MiB|GiB)?")
_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_ROOT = Path("/")


def parse_limit(text: str) -> int:
    """Bytes of `--memory-limit`; ConfigError.

    >>> parse_limit("800MB"), parse_limit("1.5 GiB"), parse_limit("4096")
    (800000000, 1610612736, 4096)
    """
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _BYTES[match[2] or "B"]) if match else 0
    if not size:
        raise ConfigError(f"--memory-limit: expected bytes or a size such as 800MB or 2GiB, got {shown(text)}")
    return size


def resident_bytes(root: Path = _ROOT) -> int | None:
    """Of this process; None where there is no /proc."""
    try:
        return int((root / "proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None


def default_limit(root: Path = _ROOT) -> int | None:
    """Bytes: the share of what the container (cgroup v2 or v1) or else the machine has; None where neither can be told."""
    have = [*_cgroup_limits(root), *_machine(root)]
    return int(min(have) * SHARE) if have else None


def _machine(root: Path) -> list[int]:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return []
    return [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:")]


def _cgroup_limits(root: Path) -> list[int]:
    """Of our groups and those around them, as far as they are mounted: in a container the path may be the host's."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    files: list[Path] = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            files += _upwards(root / "sys/fs/cgroup", path, "memory.max")
        elif "memory" in controllers.split(","):
            files += _upwards(root / "sys/fs/cgroup/memory", path, "memory.limit_in_bytes")
    return [limit for file in files if (limit := _number(file)) is not None]


def _upwards(mount: Path, path: str, name: str) -> list[Path]:
    inside = mount / path.lstrip("/")
    return [folder / name for folder in (inside, *inside.parents) if folder.is_relative_to(mount)]


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # not mounted here, or "max"
        return None
