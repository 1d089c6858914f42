"""The records of cmis.metrics.v1: one of three kinds, each stamped with the time of its arrival.

    events  a batch of ad metric events of one partition, several orgs together, as columns
    tick    time passes in an idle partition; with a watermark: everything up to there is final (the end of a replay)
    rules   from here on an org's rules are these; so the log alone says which rules judged which event

A record is msgpack: {"k": kind, "v": version, "t": stamp in epoch ms, …}. Integers stand in the smallest type that holds
the column, times as distances from the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from operator import index
from typing import Any

import msgspec
import numpy as np

from cmis_stream.core.batch import PATH_SEPARATOR, VALUE_FIELDS, Batch, Segment, leaf_path
from cmis_stream.core.errors import Rejected
from cmis_stream.core.panes import narrow, narrow_rows
from cmis_stream.core.time import LATEST_MS
from cmis_stream.log.codec import pack, unpack

VERSION = 1
_ID_SEPARATOR = "\n"  # identifiers hold no control characters
_PATH_SEPARATORS = leaf_path("", "", "").count(PATH_SEPARATOR)


@dataclass(frozen=True, slots=True)
class Events:
    stamp_ms: int
    batch: Batch


@dataclass(frozen=True, slots=True)
class Tick:
    stamp_ms: int
    watermark_ms: int | None = None


@dataclass(frozen=True, slots=True)
class RuleSet:
    stamp_ms: int
    org: str
    version: int
    rules: list[Any]
    evaluate: str = "live"
    """What rules mean that do not say how they are evaluated."""


Record = Events | Tick | RuleSet


def encode(record: Record) -> bytes:
    head = {"v": VERSION, "t": record.stamp_ms}
    if isinstance(record, Tick):
        return pack({"k": "tick", **head, "w": record.watermark_ms})
    if isinstance(record, RuleSet):
        return pack(
            {
                "k": "rules",
                **head,
                "org": record.org,
                "version": record.version,
                "rules": record.rules,
                "evaluate": record.evaluate,
            }
        )
    batch = record.batch
    base = int(batch.ts_ms.min())
    one_row_each = len(batch.uid) == len(batch)
    return pack(
        {
            "k": "events",
            **head,
            "base": base,
            "ts": narrow(batch.ts_ms - base),
            "leaf": narrow(batch.leaf),
            "values": [row if row.any() else None for row in narrow_rows(batch.values)],
            "event": None if one_row_each else narrow(batch.event),
            "uid": narrow(batch.uid.view(np.int64)) if all(s.sequenced for s in batch.segments) else batch.uid,
            "paths": list(batch.paths),
            "segments": [(s.org, s.source, s.sequenced, s.count) for s in batch.segments],
            "ids": _ID_SEPARATOR.join(batch.ids),
        }
    )


def decode(data: bytes) -> Record:
    """The record in `data`; Rejected("malformed") when it is none of ours."""
    try:
        raw = unpack(data)
        kind, version, stamp = raw["k"], raw["v"], raw["t"]
        if version != VERSION:
            raise Rejected("unsupported", "v", version, f"version {VERSION}")
        if not _is_time(stamp):
            raise TypeError("t: a time in epoch ms")
        if kind == "tick":
            if raw["w"] is not None and not _is_time(raw["w"]):
                raise TypeError("w: a time in epoch ms, or nothing")
            return Tick(stamp, raw["w"])
        if kind == "rules":
            rules = RuleSet(stamp, raw["org"], raw["version"], raw["rules"], raw["evaluate"])
            if not (
                isinstance(rules.org, str) and rules.org and type(rules.version) is int and isinstance(rules.rules, list)
                and rules.evaluate in ("live", "pane")
            ):  # fmt: skip
                raise TypeError("rules of an org in a version")
            return rules
        if kind == "events":
            return Events(stamp, _batch(raw))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, msgspec.MsgspecError) as error:
        raise Rejected("malformed", "", data[:40], f"an envelope ({type(error).__name__}: {error})") from None
    raise Rejected("invalid", "k", kind, "events, tick or rules")


def _is_time(value: object) -> bool:
    return type(value) is int and abs(value) <= LATEST_MS


def _batch(raw: dict[str, Any]) -> Batch:
    n = len(raw["ts"])
    columns = [raw["ts"], raw["leaf"], raw["uid"], raw["event"], *raw["values"]]
    if any(column is not None and column.dtype.kind not in "iu" for column in columns):
        raise TypeError("columns of integers")
    values = np.zeros((len(raw["values"]), n), np.int64)
    for i, column in enumerate(raw["values"]):
        if column is not None:
            values[i] = column
    batch = Batch(
        ts_ms=raw["ts"].astype(np.int64) + index(raw["base"]),
        leaf=raw["leaf"].astype(np.int32),
        values=values,
        event=np.arange(n, dtype=np.int32) if raw["event"] is None else raw["event"].astype(np.int32),
        uid=raw["uid"].astype(np.uint64),
        paths=raw["paths"],
        segments=[Segment(*segment) for segment in raw["segments"]],
        ids=raw["ids"].split(_ID_SEPARATOR),
    )
    events = len(batch.uid)
    if not all(type(s.org) is str and type(s.source) is str and type(s.count) is int and s.count >= 0 for s in batch.segments):
        raise TypeError("segments of orgs and sources")
    if any(column.shape != (n,) for column in (batch.ts_ms, batch.leaf, batch.event)) or batch.uid.shape != (events,):
        raise ValueError("columns of different lengths")
    if len(values) != len(VALUE_FIELDS) or len(batch.ids) != events or sum(s.count for s in batch.segments) != events:
        raise ValueError("lists of different lengths")
    for pointer, end in ((batch.leaf, len(batch.paths)), (batch.event, events)):
        if n and not (pointer.min() >= 0 and pointer.max() < end):
            raise ValueError("an index points outside its list")
    if set(map(str.count, batch.paths, repeat(PATH_SEPARATOR))) - {_PATH_SEPARATORS}:
        raise ValueError("a path of another length")
    return batch
