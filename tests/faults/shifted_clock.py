"""Runs `cmis` with a wall clock that is wrong: python shifted_clock.py OFFSET_FILE up --data-dir … The file holds the
milliseconds that the clock is ahead; it may change while the program runs. Clocks that measure durations stay right.
"""

import sys
import time
from pathlib import Path


def shift_the_clock(offset_file: Path) -> None:
    right_ns = time.time_ns

    def shifted_ns() -> int:
        return right_ns() + int(offset_file.read_text() or "0") * 1_000_000

    time.time_ns = shifted_ns
    time.time = lambda: shifted_ns() / 1e9


if __name__ == "__main__":
    shift_the_clock(Path(sys.argv[1]))
    sys.argv[:2] = ["cmis"]
    from cmis_stream.cli import main

    main()
