"""The records of cmis.rollups.v1: one `core.rollups.Rollup` with the position it was told at.

msgpack: {"v": version, "source": [topic, partition, offset] of the newest source record in it, "t": that record's stamp in
epoch ms, …}. Integers stand in the smallest type that holds the column, times as panes of 10 s from the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import msgspec
import numpy as np

from cmis_stream.core.errors import Rejected
from cmis_stream.core.metrics import FIELDS
from cmis_stream.core.panes import narrow, narrow_rows
from cmis_stream.core.rollups import Rollup
from cmis_stream.core.time import LATEST_MS, PANE_SIZES_MS
from cmis_stream.log.codec import pack, unpack

VERSION = 1
_KEY_SEPARATOR = "\n"  # keys are percent-encoded
_PANE_MS = PANE_SIZES_MS[0]


def encode(source: tuple[str, int, int], stamp_ms: int, rollup: Rollup) -> bytes:
    start = rollup.start_ms // _PANE_MS
    first = int(start.min())
    return pack(
        {
            "v": VERSION,
            "source": source,
            "t": stamp_ms,
            "orgs": rollup.orgs,
            "bounds": rollup.bounds,
            "keys": _KEY_SEPARATOR.join(rollup.keys),
            "entity": narrow(rollup.entity),
            "first": first,
            "start": narrow(start - first),
            "panes": narrow(rollup.pane_ms // _PANE_MS),
            "closed": rollup.closed.astype(np.uint8),
            "sums": [row if row.any() else None for row in narrow_rows(rollup.sums)],
        }
    )


class Told:
    """A record. source: the position it was told at. stamp_ms: of that record. rollup: made when it is asked for."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        if raw["v"] != VERSION:
            raise Rejected("unsupported", "v", raw["v"], f"version {VERSION}")
        topic, partition, offset = raw["source"]
        self.source: tuple[str, int, int] = (topic, partition, offset)
        self.stamp_ms: int = raw["t"]
        self.orgs: list[str] = raw["orgs"]
        self.bounds: list[int] = raw["bounds"]
        self._raw = raw
        if not (
            type(topic) is str
            and type(partition) is type(offset) is type(self.stamp_ms) is type(raw["first"]) is int
            and type(raw["keys"]) is str
        ):
            raise TypeError("source, t, first, keys")
        if abs(raw["first"]) * _PANE_MS > LATEST_MS:
            raise ValueError("a time of no pane")
        self._check_columns()

    def _check_columns(self) -> None:
        """What a foreign record gets wrong is known now, not when somebody asks for the rows."""
        raw, rows = self._raw, len(self._raw["entity"])
        columns = [raw[name] for name in ("entity", "start", "panes", "closed")] + [c for c in raw["sums"] if c is not None]
        if len(raw["sums"]) != len(FIELDS) or any(column.dtype.kind not in "iu" or column.shape != (rows,) for column in columns):
            raise ValueError("columns of different lengths, or not of integers")
        if rows and not 0 <= raw["entity"].min() <= raw["entity"].max() <= raw["keys"].count(_KEY_SEPARATOR):
            raise ValueError("an index points outside its list")
        if not all(type(org) is str for org in self.orgs) or not all(type(bound) is int for bound in self.bounds):
            raise TypeError("orgs, bounds")
        ends = self.bounds[:1] == [0] and self.bounds[-1:] == [rows] and self.bounds == sorted(self.bounds)
        if not ends or len(self.bounds) != len(self.orgs) + 1:
            raise ValueError("bounds of other rows")

    @cached_property
    def rollup(self) -> Rollup:
        raw, rows = self._raw, len(self._raw["entity"])
        sums = np.zeros((len(raw["sums"]), rows), np.int64)
        for i, column in enumerate(raw["sums"]):
            if column is not None:
                sums[i] = column
        return Rollup(
            orgs=self.orgs,
            bounds=self.bounds,
            keys=raw["keys"].split(_KEY_SEPARATOR),
            entity=raw["entity"].astype(np.int32),
            start_ms=(raw["start"].astype(np.int64) + raw["first"]) * _PANE_MS,
            pane_ms=raw["panes"].astype(np.int64) * _PANE_MS,
            closed=raw["closed"].astype(bool),
            sums=sums,
        )


def decode(data: bytes) -> Told:
    """Rejected("malformed" or "unsupported") when it is none of ours."""
    try:
        return Told(unpack(data))
    except (ValueError, LookupError, TypeError, AttributeError, msgspec.MsgspecError) as error:
        raise Rejected("malformed", "", data[:40], f"a rollup ({type(error).__name__}: {error})") from None
