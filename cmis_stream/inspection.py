"""Looking into a log, also beside the instance that writes it: `cmis topics` and `cmis tail`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import orjson

from cmis_stream.core.batch import PATH_SEPARATOR, VALUE_FIELDS
from cmis_stream.core.errors import ConfigError, Rejected
from cmis_stream.core.metrics import FIELDS
from cmis_stream.core.time import rfc3339
from cmis_stream.log import envelope, rollup
from cmis_stream.log.reader import STEP_BYTES, STEP_RECORDS, LogReader, Record, read_all
from cmis_stream.log.topics import TopicSpec, load_topics

POLL_S = 0.2
_GROUP = "cmis"
_OURS = ("cmis.", f"{_GROUP}-")  # declared topics, and what our Faust app makes for itself
_CHANGELOG = "-changelog"


async def topics_table(log: LogReader | None, bytes_held: Callable[[str], Awaitable[int]] | None = None) -> str:
    """A table of our topics: partitions, records, lag of the agents, retention; and bytes, when the log can tell them.

    log: None when there is none yet; then the table says what is declared. Records of compacted topics are counted by offsets.
    """
    declared = load_topics()
    held = await log.topics() if log is not None else {}
    rows = [["topic", "partitions", "records", "MB", "lag", "kept"]]
    for name in dict.fromkeys([*declared, *(name for name in held if name.startswith(_OURS))]):
        if log is None or name not in held:
            rows.append([name, str(declared[name].partitions), *"–––", _kept(name, declared)])
            continue
        ends, starts, read = await log.ends(name), await log.starts(name), await log.committed(_GROUP, name)
        records = sum(ends.values()) - sum(starts.get(partition, 0) for partition in ends)
        lag = f"{sum(ends[p] - offset for p, offset in read.items() if p in ends):,}" if read else "–"
        size = f"{await bytes_held(name) / 1e6:,.1f}" if bytes_held is not None else "–"
        rows.append([name, str(len(ends)), f"{records:,}", size, lag, _kept(name, declared)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *figures, kept in rows:
        cells = [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(figures, widths[1:-1], strict=True)), kept]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def _kept(name: str, declared: Mapping[str, TopicSpec]) -> str:
    if name in declared:
        return kept(declared[name])
    return "newest per key" if name.endswith(_CHANGELOG) else "–"


def kept(spec: TopicSpec) -> str:
    """For how long a topic keeps its records, in words."""
    if spec.compact:
        return "newest per key"
    days = (spec.retention_ms or 0) / 86_400_000
    return f"{days:g} day" if days == 1 else f"{days:g} days"


async def tail_lines(log: LogReader, topic: str, count: int, *, follow: bool, events: bool) -> AsyncIterator[str]:
    """JSON lines of the newest records, ordered by time of arrival; with `follow`, endless.

    ConfigError for a topic that is not there.
    """
    ends = await log.ends(topic)
    if not ends:
        there = ", ".join(await log.topics()) or "none"
        raise ConfigError(f"there is no topic {topic!r}; there are: {there}")
    newest: list[tuple[int, Record]] = []
    for partition, end in ends.items():
        if count:
            newest += [(partition, record) async for record in read_all(log, topic, partition, max(0, end - count))]
    newest.sort(key=lambda pair: pair[1].ts_ms)
    following = {**ends, **{partition: record.offset + 1 for partition, record in newest}}
    for partition, record in newest[-count:]:
        yield _shown(topic, partition, record, events)
    while follow:
        await asyncio.sleep(POLL_S)
        for partition, offset in following.items():
            for record in await log.read(topic, partition, offset, STEP_RECORDS, STEP_BYTES):
                following[partition] = record.offset + 1
                yield _shown(topic, partition, record, events)


def _shown(topic: str, partition: int, record: Record, events: bool) -> str:
    line: dict[str, Any] = {"partition": partition, "offset": record.offset, "at": rfc3339(record.ts_ms)}
    if record.key is not None:
        line["key"] = record.key.decode("utf-8", "replace")
    return orjson.dumps({**line, **_content(topic, record.value, events)}).decode()


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
