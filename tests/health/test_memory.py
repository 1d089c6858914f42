"""What limit is found on a machine and in containers, and what `--memory-limit` takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmis_stream.core.errors import ConfigError
from cmis_stream.health.memory import default_limit, parse_limit, resident_bytes

GB = 10**9


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": "MemTotal:       8000000 kB\nMemFree: 1 kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "has"),
    [
        ({}, 8_000_000 * 1024),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{2 * GB}\n"}, 2 * GB),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 8_000_000 * 1024),
        (
            {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": f"{GB}\n"},
            GB,
        ),
        (
            {
                "proc/self/cgroup": "8:pids:/x\n4:cpu,memory:/docker/1\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{3 * GB}\n",
            },
            3 * GB,
        ),
        (
            {"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"},
            8_000_000 * 1024,
        ),
    ],
    ids=["no container", "v2", "v2 without a limit", "v2 in a limited group", "v1 as seen in a container", "v1 without a limit"],
)
def test_the_default_is_a_share_of_the_least_that_the_process_may_have(tmp_path: Path, files: dict[str, str], has: int) -> None:
    assert default_limit(machine(tmp_path, files)) == int(has * 0.85)


def test_where_nothing_can_be_told_there_is_no_limit(tmp_path: Path) -> None:
    assert default_limit(tmp_path) is None and resident_bytes(tmp_path) is None


def test_this_process_has_some_memory_and_a_limit_above_it() -> None:
    resident, limit = resident_bytes(), default_limit()
    assert resident is not None and limit is not None and 10**6 < resident < limit


@pytest.mark.parametrize("text", ["", "0", "-1", "lots", "10 XB", "1e9"])
def test_other_texts_are_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(ConfigError, match="--memory-limit: expected bytes or a size"):
        parse_limit(text)
