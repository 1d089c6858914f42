"""Metric events as JSON text to columns, and for each event that is refused: where it stood and why.

Four readings, each for what the one before could not take: a window of lines as arrays (`uniform`), as objects
(`PlainEvent`), line by line (`WideEvent`), field by field (`reading`). The good events around a bad one keep their order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from ..core.batch import Batch
from ..core.errors import Rejected, shown
from .columns import Columns, Numbers, beyond, numbers, suspects
from .events import CloudEvent, MetricEvent, PlainEvent, WideEvent, flattened, settled
from .reading import parse_json, read_cloudevent, read_flat
from .uniform import read_uniform

LONGEST_LINE = 1 << 20
WINDOW_BYTES = 1 << 19
"""About 2,300 events of the flat format: larger windows fall out of the cache, smaller ones pay numpy's fixed cost more
often."""
# The C library gives what is freed back to the system, and a window's next arrays cost a page fault each 4 KiB, 100 ns an
# event. glibc keeps twice the size of the largest array that was ever freed (mallopt(3), M_TRIM_THRESHOLD): so free one.
np.empty(3 << 20, np.uint8)
RAW_KEPT = 4096

_plain = msgspec.json.Decoder(PlainEvent)
_wide = msgspec.json.Decoder(WideEvent)
_cloud_event = msgspec.json.Decoder(CloudEvent)
_raw_list = msgspec.json.Decoder(list[msgspec.Raw])
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_NEWLINE, _OPEN, _CLOSE = ord("\n"), ord("{"), ord("}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """One event that was not taken.

    index: its 0-based position in the request; line: its 1-based line in NDJSON, None otherwise; id: its own id if it
    could be read; raw: its text, cut at 4 KiB.
    """

    index: int
    line: int | None
    id: str | None
    error: Rejected
    raw: bytes


@dataclass(slots=True)
class Decoded:
    """`batch`: the accepted events, None without any. `events`: how many there were, refused ones included."""

    batch: Batch | None
    refused: list[Refusal]
    events: int


def decode_ndjson(
    body: bytes,
    *,
    org: str | None,
    source: str,
    now_ms: int | None,
    sequence: int | None = None,
    leaf_level: str = "ad",
    first_line: int = 0,
) -> Decoded:
    """Flat metric events, one a line; raises nothing, refuses event by event.

    org: events that name another are refused; None (replay of a file without server): each event has to name its own.
    source: of events that name none. sequence: the number of the body's first event; event i then has uid sequence + i
    (a refused one uses its number up) and segments are sequenced under `source`, whatever source an event names; with org
    None numbers count through all orgs of a file, and there is one segment, of the org "".
    now_ms: the arrival, epoch milliseconds, for `in_future`; None skips that check. leaf_level "campaign" drops ad sets
    and ads from the paths. first_line: lines before this body, for messages. Blank lines count as lines, not as events.
    """
    reader = _Reader(Columns(org, source, leaf_level, sequence), org, now_ms)
    line = first_line
    for start, end, too_long in _windows(body):
        if too_long:
            raw = body[start : start + RAW_KEPT]
            length = end - start - body.endswith(b"\n", start, end)
            error = Rejected("too_long", "", f"a line of {length} bytes", f"lines of at most {LONGEST_LINE} bytes")
            reader.refuse_line(line, error, raw)
            line += 1
        else:
            line += reader.window(memoryview(body)[start:end], line)
    return Decoded(reader.columns.batch(), reader.refused, reader.events)


def decode_json(body: bytes, *, org: str | None, source: str, now_ms: int | None, sequence: int | None = None) -> Decoded:
    """One flat event, or an array of them; anything with `specversion` is read as a CloudEvent. Raises and refuses
    nothing else.

    Rejected("malformed") when the body is neither an object nor an array.
    """
    return _decode_items(body, None, org, source, now_ms, sequence)


def decode_cloudevents(
    body: bytes, *, org: str | None, source: str = "", now_ms: int | None, batched: bool, sequence: int | None = None
) -> Decoded:
    """CloudEvents 1.0 in structured JSON: one object, or with `batched` an array of them.

    uid: by each event's own source, or by `sequence` under `source` as in `decode_ndjson`. Rejected("malformed") when
    the body as a whole is not of that shape.
    """
    return _decode_items(body, batched, org, source, now_ms, sequence, cloud=True)


def _decode_items(
    body: bytes,
    batched: bool | None,
    org: str | None,
    source: str,
    now_ms: int | None,
    sequence: int | None,
    cloud: bool = False,
) -> Decoded:
    array = body.lstrip()[:1] == b"["
    if batched is not None and batched != array:
        raise Rejected(
            "malformed",
            "",
            body[:200],
            "an array of CloudEvents" if batched else "one CloudEvent (batches have a type of their own)",
        )
    items: list[Any] = [body]
    if array:
        try:
            items = _raw_list.decode(body)
        except _UNREADABLE:
            items = _items_read_slowly(body)
    reader = _Reader(Columns(org, source, "ad", sequence), org, now_ms)
    for start in range(0, len(items), 2_000):
        reader.items([bytes(item) for item in items[start : start + 2_000]], cloud)
    return Decoded(reader.columns.batch(), reader.refused, reader.events)


def _items_read_slowly(body: bytes) -> list[bytes]:
    """The items of an array that the fast reader refused, for a NaN or a broken character in one of them.

    Rejected("malformed") when Python's own, more lenient reader cannot read it either.
    """
    try:
        return [json.dumps(item).encode() for item in json.loads(body)]
    except (ValueError, RecursionError) as error:
        raise Rejected("malformed", "", body[:200], f"a JSON array of events ({error})") from None


def _windows(body: bytes) -> Iterator[tuple[int, int, bool]]:
    """(start, end, too long): stretches of whole lines of about WINDOW_BYTES, and single lines over LONGEST_LINE."""
    start, size = 3 if body.startswith(b"\xef\xbb\xbf") else 0, len(body)
    while start < size:
        end = size if size - start <= WINDOW_BYTES * 5 // 4 else body.rfind(b"\n", start, start + WINDOW_BYTES) + 1
        if end <= 0:
            newline = body.find(b"\n", start + WINDOW_BYTES)
            end = size if newline < 0 else newline + 1
            if (size if newline < 0 else newline) - start > LONGEST_LINE:
                yield start, end, True
                start = end
                continue
        yield start, end, False
        start = end


class _Reader:
    """Collects what one request's windows yield."""

    def __init__(self, columns: Columns, org: str | None, now_ms: int | None) -> None:
        self.columns, self.org, self.now_ms = columns, org, now_ms
        self.refused: list[Refusal] = []
        self.events = 0

    def window(self, lines: memoryview, line: int) -> int:
        """Takes whole lines, the first of them after `line` others; returns how many lines they were."""
        rows = read_uniform(lines, org=self.org, leaf_level=self.columns.leaf_level)
        if rows is not None and not beyond(rows.table, self.now_ms):
            count = len(rows.ids)
            self.columns.add_rows(rows, np.arange(self.events, self.events + count))
            self.events += count
            return count
        text = bytes(lines)
        count = _object_lines(text)
        if count:
            for read in (_plain_lines, _wide_lines):
                try:
                    events = read(text)
                    table = numbers(events)
                except (*_UNREADABLE, OverflowError):
                    continue
                if len(events) == count and self._take(events, table, text):
                    return count
        return self._lines(text, line)

    def _take(self, events: Sequence[MetricEvent], table: Numbers, text: bytes) -> bool:
        """Adds a window's events if none of them needs explaining."""
        if suspects(events, table, org=self.org, now_ms=self.now_ms, escapes=_has_escapes(text)):
            return False
        self.columns.add(events, table, np.arange(self.events, self.events + len(events)))
        self.events += len(events)
        return True

    def _lines(self, text: bytes, line: int) -> int:
        lines = text.split(b"\n")
        if not lines[-1]:
            lines.pop()
        # What counts as blank must be the same for a client that numbers its events: see feeds.client.
        kept = [(number, raw) for number, raw in enumerate(lines, line) if raw and not raw.isspace()]
        self._judge([raw for _, raw in kept], [number for number, _ in kept], _read_wide, read_flat)
        return len(lines)

    def items(self, raws: list[bytes], cloud: bool) -> None:
        """Takes events that are not lines."""
        if cloud:
            self._judge(raws, None, _read_cloud_event, read_cloudevent)
        else:
            self._judge(raws, None, _read_either, _explain_either)

    def _judge(
        self,
        raws: list[bytes],
        lines: list[int] | None,
        read: Callable[[bytes], WideEvent | None],
        explain: Callable[..., WideEvent],
    ) -> None:
        """The fast reading of each, then the plain one for those that it did not take or that look suspicious."""
        events: list[Any] = []
        doubtful: list[int] = []
        for position, raw in enumerate(raws):
            try:
                event = read(raw) if len(raw) <= LONGEST_LINE else None
            except _UNREADABLE:
                event = None
            events.append(event)
            if event is None:
                doubtful.append(position)
        sound = [position for position, event in enumerate(events) if event is not None]
        try:
            table = numbers([events[position] for position in sound])
        except OverflowError:  # an integer beyond any double: let the plain reading find whose
            doubtful = list(range(len(raws)))
        else:
            chosen = [events[position] for position in sound]
            if chosen:
                odd = suspects(chosen, table, org=self.org, now_ms=self.now_ms, escapes=any(map(_has_escapes, raws)))
                doubtful = sorted(doubtful + [sound[i] for i in odd])
        for position in doubtful:
            events[position] = self._explained(raws[position], position, lines, explain)
        good = [position for position, event in enumerate(events) if event is not None]
        if good:
            accepted: list[MetricEvent] = [events[position] for position in good]
            self.columns.add(accepted, numbers(accepted), np.array(good, np.int64) + self.events)
        self.events += len(raws)

    def _explained(
        self, raw: bytes, position: int, lines: list[int] | None, explain: Callable[..., WideEvent]
    ) -> WideEvent | None:
        line = None if lines is None else lines[position]
        value: Any = None
        try:
            if len(raw) > LONGEST_LINE:
                raise Rejected("too_long", "", f"an event of {len(raw)} bytes", f"events of at most {LONGEST_LINE} bytes")
            value = parse_json(raw)
            return explain(value, org=self.org, now_ms=self.now_ms)
        except Rejected as error:
            own_id = value.get("id") if isinstance(value, dict) else None
            self._refuse(self.events + position, line, own_id, error, raw)
            return None

    def refuse_line(self, line: int, error: Rejected, raw: bytes) -> None:
        """Counts a line that was not read at all."""
        self._refuse(self.events, line, None, error, raw)
        self.events += 1

    def _refuse(self, index: int, line: int | None, own_id: Any, error: Rejected, raw: bytes) -> None:
        own_id = own_id[:200] if isinstance(own_id, str) else None if own_id is None else shown(own_id)
        self.refused.append(Refusal(index, None if line is None else line + 1, own_id, error, raw[:RAW_KEPT]))


def _object_lines(text: bytes) -> int:
    """The number of lines when each begins with { and ends with }, else 0.

    `decode_lines` splits at values, not at newlines: it takes two objects on one line, or one on two. But inside an
    object no newline stands between } and {, so where each line is so bounded and there are as many values as lines,
    each holds one.
    """
    data = np.frombuffer(text, np.uint8)
    breaks = np.flatnonzero(data == _NEWLINE)
    inner = breaks[:-1] if len(breaks) and breaks[-1] == len(data) - 1 else breaks
    last = data[-2] if len(inner) < len(breaks) and len(data) > 1 else data[-1]
    if data[0] != _OPEN or last != _CLOSE or (data[inner - 1] != _CLOSE).any() or (data[inner + 1] != _OPEN).any():
        return 0
    return len(inner) + 1


def _has_escapes(text: bytes) -> bool:
    return b"\\" in text or b"\x7f" in text


def _plain_lines(text: bytes) -> Sequence[MetricEvent]:
    return _plain.decode_lines(text)


def _wide_lines(text: bytes) -> Sequence[MetricEvent]:
    """Raises DecodeError when an event needs the plain reading."""
    events: list[WideEvent] = _wide.decode_lines(text)
    for event in events:
        if settled(event) is None:
            raise msgspec.DecodeError
    return events


def _read_wide(raw: bytes) -> WideEvent | None:
    return settled(_wide.decode(raw))


def _read_cloud_event(raw: bytes) -> WideEvent | None:
    return flattened(_cloud_event.decode(raw))


def _read_either(raw: bytes) -> WideEvent | None:
    return None if b'"specversion"' in raw else _read_wide(raw)


def _explain_either(value: Any, *, org: str | None, now_ms: int | None) -> WideEvent:
    cloud = isinstance(value, dict) and "specversion" in value
    return (read_cloudevent if cloud else read_flat)(value, org=org, now_ms=now_ms)
