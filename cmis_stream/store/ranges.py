"""Ranges of HTTP (RFC 9110 §14): which part of a file is asked for. Pure."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_RANGE: Final = re.compile(r"bytes=[ \t]*(\d*)-(\d*)[ \t]*", re.ASCII)
_DIGITS: Final = 19


class Part(NamedTuple):
    """status: 200 whole, 206 a part, 416 none of it is there. Bytes from `start` to before `end`."""

    status: int
    start: int
    end: int
    headers: dict[str, str]


def asked_part(range_header: str | None, if_range: str | None, etag: str, size: int) -> Part:
    """What a request with these headers (None: without) gets of a file of `size` bytes.

    A range that cannot be read, several at once, and one of another version (If-Range) get the whole file.

    >>> part = asked_part("bytes=2-3", None, '"x"', 10)
    >>> part.status, part.start, part.end, part.headers["Content-Range"]
    (206, 2, 4, 'bytes 2-3/10')
    >>> asked_part("bytes=10-", None, '"x"', 10).headers["Content-Range"]
    'bytes */10'
    """
    headers = {"Accept-Ranges": "bytes", "ETag": etag}
    whole = Part(200, 0, size, {**headers, "Content-Length": str(size)})
    match = None if range_header is None else _RANGE.fullmatch(range_header.strip())
    if match is None or (if_range is not None and if_range.strip() != etag):
        return whole
    first, last = match[1], match[2]
    if max(len(first), len(last)) > _DIGITS or not (first or last) or (first and last and int(last) < int(first)):
        return whole
    if first:
        start, end = int(first), min(int(last) + 1, size) if last else size
    else:
        start, end = max(0, size - int(last)), size  # the last so many
    if start >= end:
        return Part(416, 0, 0, {**headers, "Content-Range": f"bytes */{size}", "Content-Length": "0"})
    return Part(
        206, start, end, {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}", "Content-Length": str(end - start)}
    )
