"""msgpack with numpy arrays as raw buffers: read without copying, written at the speed of memory."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

_ARRAY = 1  # msgpack extension: one byte of dimensions, 4 bytes of each, 2 of dtype, then the little-endian buffer


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        shape = b"".join(n.to_bytes(4, "little") for n in value.shape)
        head = bytes((value.ndim,)) + shape + value.dtype.str[1:].encode()
        return msgspec.msgpack.Ext(_ARRAY, head + np.ascontiguousarray(value).tobytes())
    if isinstance(value, np.integer):
        return int(value)
    raise TypeError(f"{type(value).__name__} is not stored")


def _decode(code: int, data: memoryview) -> Any:
    if code != _ARRAY:
        raise ValueError(f"msgpack extension: expected {_ARRAY}, got {code}")
    dimensions = data[0]
    end = 1 + 4 * dimensions
    shape = [int.from_bytes(data[i : i + 4], "little") for i in range(1, end, 4)]
    dtype = np.dtype("<" + bytes(data[end : end + 2]).decode())
    return np.frombuffer(data, dtype, offset=end + 2).reshape(shape)


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode)
_decoder = msgspec.msgpack.Decoder(ext_hook=_decode)


def pack(value: Any) -> bytes:
    """
    >>> unpack(pack({"a": np.array([[1, 2]], np.int16)}))["a"].tolist()
    [[1, 2]]
    """
    return _encoder.encode(value)


def unpack(data: bytes) -> Any:
    """What `pack` made; arrays are read-only views of `data`. ValueError (msgspec.DecodeError) for anything else."""
    return _decoder.decode(data)
