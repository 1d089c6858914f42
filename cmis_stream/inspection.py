"""Looking into a log, also beside the instance that writes it: `cmis topics` and `cmis tail`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from cmis_stream.core.batch import PATH_SEPARATOR, VALUE_FIELDS
from cmis_stream.core.errors import ConfigError, Rejected
from cmis_stream.core.metrics import FIELDS
from cmis_stream.core.time import rfc3339
from cmis_stream.log import envelope, rollup
from cmis_stream.log.embedded import EmbeddedLog, Record
from cmis_stream.log.topics import load_topics

POLL_S = 0.2
_GROUP = "cmis"


def _opened(data_dir: Path) -> EmbeddedLog:
    if not (data_dir / "log.db").exists():
        raise ConfigError(f"{data_dir}: there is no log yet; `cmis up` makes one")
    return EmbeddedLog.open(data_dir / "log.db", read_only=True)


def topics_table(data_dir: Path) -> str:
    """A table of all topics: partitions, records, bytes, what is waiting for its reader, retention."""
    declared = load_topics()
    log = _opened(data_dir) if (data_dir / "log.db").exists() else None
    held = dict(log.topics) if log is not None else {}
    rows = [("topic", "partitions", "records", "MB", "lag", "kept")]
    for name in dict.fromkeys([*declared, *sorted(held)]):
        spec, info = declared.get(name), held.get(name)
        kept = (
            "newest per key" if (spec and spec.compact) or (info and info.compact) else _days(spec.retention_ms if spec else None)
        )
        if log is None or info is None:
            rows.append((name, str(spec.partitions if spec else ""), "–", "–", "–", kept))
            continue
        ends = [log.highwater(name, p) for p in range(info.partitions)]
        records = sum(end - log.earliest(name, p) for p, end in enumerate(ends))
        read = [log.committed(_GROUP, name, p) for p in range(info.partitions)]
        lag = (
            sum(end - at for end, at in zip(ends, read, strict=True) if at is not None)
            if any(r is not None for r in read)
            else None
        )
        size = f"{log.bytes_held(name) / 1e6:,.1f}"
        rows.append((name, str(info.partitions), f"{records:,}", size, "–" if lag is None else f"{lag:,}", kept))
    if log is not None:
        log.close()
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i in (0, 5) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _days(retention_ms: int | None) -> str:
    if retention_ms is None:
        return "for ever"
    days = retention_ms / 86_400_000
    return f"{days:g} day" if days == 1 else f"{days:g} days"


def tail_lines(data_dir: Path, topic: str, count: int, *, follow: bool, events: bool) -> Iterator[str]:
    """JSON lines of the newest records, ordered by time of arrival; with `follow`, endless."""
    log = _opened(data_dir)
    try:
        if topic not in log.topics:
            raise ConfigError(f"there is no topic {topic!r}; there are: {', '.join(sorted(log.topics))}")
        next_offset = {}
        newest: list[tuple[int, Record]] = []
        for partition in range(log.topics[topic].partitions):
            end = log.highwater(topic, partition)
            start = max(log.earliest(topic, partition), end - count)
            newest.extend((partition, record) for record in log.read(topic, partition, start, count, 64 << 20))
            next_offset[partition] = end
        newest.sort(key=lambda pair: pair[1].ts_ms)
        for partition, record in newest[-count:] if count else []:
            yield from _shown(topic, partition, record, events)
        while follow:
            time.sleep(POLL_S)
            for partition, offset in next_offset.items():
                for record in log.read(topic, partition, offset, 500, 8 << 20):
                    next_offset[partition] = record.offset + 1
                    yield from _shown(topic, partition, record, events)
    finally:
        log.close()


def _shown(topic: str, partition: int, record: Record, events: bool) -> Iterator[str]:
    line: dict[str, Any] = {"partition": partition, "offset": record.offset, "at": rfc3339(record.ts_ms)}
    if record.key is not None:
        line["key"] = record.key.decode("utf-8", "replace")
    yield orjson.dumps({**line, **_content(topic, record.value, events)}).decode()


def _content(topic: str, value: bytes | None, events: bool) -> dict[str, Any]:
    if value is None:
        return {"deleted": True}
    if topic == "cmis.metrics.v1":
        return _metrics(value, events)
    if topic == "cmis.rollups.v1":
        return _rollup(value, events)
    try:
        return {"value": orjson.loads(value)}
    except orjson.JSONDecodeError:
        return {"bytes": len(value)}


def _rollup(value: bytes, rows: bool) -> dict[str, Any]:
    try:
        told = rollup.decode(value)
    except Rejected as error:
        return {"unreadable": str(error)}
    panes = told.rollup
    about: dict[str, Any] = {
        "kind": "rollup", "stamp": rfc3339(told.stamp_ms), "source": list(told.source), "orgs": told.orgs,
        "rows": len(panes.entity), "bytes": len(value),
    }  # fmt: skip
    if rows:
        about["rows"] = [
            {
                "entity": panes.keys[panes.entity[row]],
                "pane": rfc3339(int(panes.start_ms[row])),
                "pane_ms": int(panes.pane_ms[row]),
                "closed": bool(panes.closed[row]),
                **dict(zip(FIELDS, panes.sums[:, row].tolist(), strict=True)),
            }
            for row in range(len(panes.entity))
        ]
    return about


def _metrics(value: bytes, events: bool) -> dict[str, Any]:
    try:
        decoded = envelope.decode(value)
    except Rejected as error:
        return {"unreadable": str(error)}
    match decoded:
        case envelope.Tick(stamp_ms, watermark_ms):
            return {"kind": "tick", "stamp": rfc3339(stamp_ms), **({"watermark": rfc3339(watermark_ms)} if watermark_ms else {})}
        case envelope.RuleSet(stamp_ms, org, version, rules):
            return {"kind": "rules", "stamp": rfc3339(stamp_ms), "org": org, "version": version, "rules": len(rules)}
    batch = decoded.batch
    orgs = sorted({segment.org or batch.paths[0].split(PATH_SEPARATOR)[0] for segment in batch.segments})
    about: dict[str, Any] = {
        "kind": "events",
        "stamp": rfc3339(decoded.stamp_ms),
        "events": len(batch.uid),
        "orgs": orgs,
        "bytes": len(value),
    }
    if events:
        about["rows"] = [
            {
                "id": batch.ids[batch.event[row]],
                "time": rfc3339(int(batch.ts_ms[row])),
                "series": batch.paths[batch.leaf[row]].split(PATH_SEPARATOR),
                **dict(zip(VALUE_FIELDS, batch.values[:, row].tolist(), strict=True)),
            }
            for row in range(len(batch))
        ]
    return about
