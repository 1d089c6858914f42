"""A file's lines, window by window, sorted by the org that each names; lines themselves are never decoded or
changed."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

import msgspec

from .decode import LONGEST_LINE

WINDOW_BYTES = 32 << 20
USABLE_ORG = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
"""As the store allows org ids; a line naming anything else is rejected here, where one wrong line stops nothing."""
KEPT_OF_A_REJECTED_LINE = 4096


class _Named(msgspec.Struct, gc=False):
    org: str


_org_of = msgspec.json.Decoder(_Named).decode


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that names no usable org, so that it can be sent nowhere. line: 1-based."""

    line: int
    code: str
    detail: str
    raw: bytes


@dataclass(slots=True)
class Share:
    """One org's lines of a window, and their 1-based numbers in the file."""

    lines: list[bytes] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Window:
    """Whole lines from byte `offset` to byte `end`, `line_count` of them after `first_line` others."""

    offset: int
    end: int
    first_line: int
    line_count: int = 0
    shares: dict[str, Share] = field(default_factory=dict)
    bad: list[BadLine] = field(default_factory=list)

    @property
    def next_line(self) -> int:
        return self.first_line + self.line_count


class LineSource(Protocol):
    """Yields windows; `read` blocks, and returns None at the end."""

    def read(self, offset: int, first_line: int) -> Window | None: ...


class FileLines:
    """Windows of a file that can be sought; `org` given: every line is of that org. A last line may lack its
    newline."""

    def __init__(self, file: BinaryIO, org: str | None, window_bytes: int = WINDOW_BYTES) -> None:
        self.file, self.org, self.window_bytes = file, org, window_bytes

    def read(self, offset: int, first_line: int) -> Window | None:
        self.file.seek(offset)
        data = self.file.read(self.window_bytes)
        if not data:
            return None
        if len(data) < self.window_bytes:
            return sorted_by_org(data, offset, first_line, self.org)
        cut = data.rfind(b"\n") + 1
        if cut:
            return sorted_by_org(data[:cut], offset, first_line, self.org)
        if len(data) <= LONGEST_LINE:
            data += self.file.readline(LONGEST_LINE + 2 - len(data))
            if data.endswith(b"\n") or len(data) <= LONGEST_LINE:
                return sorted_by_org(data, offset, first_line, self.org)
        length = len(data) + _skipped_line(self.file.readline)
        bad = _too_long(first_line + 1, data, length)
        return Window(offset, offset + length, first_line, 1, bad=[bad])


def _skipped_line(readline: Callable[[int], bytes]) -> int:
    """Reads to the end of the line without keeping it; its length."""
    length = 0
    while part := readline(1 << 20):
        length += len(part)
        if part.endswith(b"\n"):
            break
    return length


def _too_long(line: int, raw: bytes, length: int) -> BadLine:
    detail = f"a line of {length} bytes; at most {LONGEST_LINE} are taken"
    return BadLine(line, "too_long", detail, raw[:KEPT_OF_A_REJECTED_LINE])


class PipeLines:
    """Windows of a pipe: whatever has arrived since the last one. A thread reads ahead, up to one window."""

    def __init__(self, pipe: BinaryIO, org: str | None, window_bytes: int = WINDOW_BYTES) -> None:
        self.pipe, self.org, self.window_bytes = pipe, org, max(window_bytes, 2 * LONGEST_LINE)
        self._waiting = bytearray()
        self._ended = False
        self._skipping = 0  # bytes so far of a line that is too long to be kept
        self._error: OSError | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._read_ahead, name="stdin", daemon=True).start()

    def _read_ahead(self) -> None:
        read: Callable[[int], bytes] = getattr(self.pipe, "read1", self.pipe.read)
        try:
            while part := read(1 << 20):
                with self._changed:
                    self._waiting += part
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: len(self._waiting) < self.window_bytes)
        except OSError as error:
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def read(self, offset: int, first_line: int) -> Window | None:
        with self._changed:
            while True:
                cut = self._waiting.rfind(b"\n") + 1
                if not cut and self._ended:
                    cut = len(self._waiting)
                if cut or self._ended:
                    break
                if len(self._waiting) > LONGEST_LINE + KEPT_OF_A_REJECTED_LINE:
                    self._skipping += len(self._waiting) - KEPT_OF_A_REJECTED_LINE
                    del self._waiting[KEPT_OF_A_REJECTED_LINE:]
                    self._changed.notify_all()
                self._changed.wait()
            data = bytes(self._waiting[:cut])
            del self._waiting[:cut]
            skipped, self._skipping = self._skipping, 0
            self._changed.notify_all()
        if self._error is not None:
            raise self._error
        if not data:
            return None
        if not skipped:
            return sorted_by_org(data, offset, first_line, self.org)
        head, _, rest = data.partition(b"\n")
        window = sorted_by_org(rest, offset + skipped + len(data) - len(rest), first_line + 1, self.org)
        window.offset, window.first_line, window.line_count = offset, first_line, window.line_count + 1
        window.bad.insert(0, _too_long(first_line + 1, head, len(head) + skipped))
        return window


def sorted_by_org(data: bytes, offset: int, first_line: int, org: str | None) -> Window:
    """The window of `data`, whole lines. Blank lines, counted but not sent, are those that the server skips too."""
    window = Window(offset, offset + len(data), first_line)
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    window.line_count = len(lines)
    if offset == 0 and lines and lines[0].startswith(b"\xef\xbb\xbf"):
        lines[0] = lines[0][3:]
    try:
        # All or nothing at C speed; lines that need a closer look are rare.
        if max(map(len, lines), default=0) > LONGEST_LINE or not all(lines):
            raise ValueError
        orgs = [org] * len(lines) if org is not None else [_org_of(line).org for line in lines]
        if not all(USABLE_ORG.fullmatch(name) for name in set(orgs)):
            raise ValueError
        if org is not None and any(line.isspace() for line in lines):
            raise ValueError
    except (msgspec.DecodeError, ValueError, RecursionError):
        _sort_carefully(window, lines, org)
        return window
    shares = window.shares
    for number, (name, line) in enumerate(zip(orgs, lines, strict=True), first_line + 1):
        share = shares.get(name)
        if share is None:
            share = shares[name] = Share()
        share.lines.append(line)
        share.numbers.append(number)
    return window


def _sort_carefully(window: Window, lines: list[bytes], org: str | None) -> None:
    for number, line in enumerate(lines, window.first_line + 1):
        if not line or line.isspace():
            continue
        if len(line) > LONGEST_LINE:
            window.bad.append(_too_long(number, line, len(line)))
            continue
        name = org
        if name is None:
            try:
                name = _org_of(line).org
            except msgspec.ValidationError:
                reason = ("missing", "an object with its org, since no org was given")
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                reason = ("malformed", f"JSON ({error})")
            else:
                reason = ("invalid", "an org of lower-case letters, digits, - and _")
        if name is None or (org is None and not USABLE_ORG.fullmatch(name)):
            window.bad.append(BadLine(number, reason[0], f"expected {reason[1]}", line[:KEPT_OF_A_REJECTED_LINE]))
            continue
        share = window.shares.setdefault(name, Share())
        share.lines.append(line)
        share.numbers.append(number)
