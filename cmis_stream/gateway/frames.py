"""Websocket frames that are built once and written to many: unfragmented text from a server, without extensions (RFC 6455)."""

from __future__ import annotations

import struct

_TEXT_FIN = 0x81
_SHORT, _MEDIUM, _LONG = 126, 126, 127


def text_frame(payload: bytes) -> bytes:
    size = len(payload)
    if size < _SHORT:
        return struct.pack("!BB", _TEXT_FIN, size) + payload
    if size < 1 << 16:
        return struct.pack("!BBH", _TEXT_FIN, _MEDIUM, size) + payload
    return struct.pack("!BBQ", _TEXT_FIN, _LONG, size) + payload


def payloads(frames: bytes) -> list[bytes]:
    """What `text_frame` was given, for each of some frames behind each other."""
    found, start = [], 0
    while start < len(frames):
        size, head = frames[start + 1], 2
        if size == _MEDIUM:
            (size,), head = struct.unpack_from("!H", frames, start + 2), 4
        elif size == _LONG:
            (size,), head = struct.unpack_from("!Q", frames, start + 2), 10
        found.append(frames[start + head : start + head + size])
        start += head + size
    return found
