"""`POST /api/orgs/{org}/events`: from a request to columns in the log, answered event by event."""

from __future__ import annotations

import asyncio
import math
import re
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ..core.batch import Batch
from ..core.errors import CmisError, Rejected
from ..feeds.decode import Decoded, Refusal, decode_cloudevents, decode_json, decode_ndjson
from .auth import Auth
from .bodies import read_body, too_large
from .problems import Problem

LARGEST_COMPRESSED = 8 << 20
LARGEST_BODY = 64 << 20
LARGEST_RATIO = 200
"""Of a gzip body beyond its first MiB. Flat events compress to a tenth; only bombs come near zlib's 1,000."""
IN_SEVERAL = "Send it in several requests."
LISTED_ERRORS = 100
INLINE_BYTES, INLINE_EVENTS = 64 << 10, 500
"""Bodies up to this size and number of events are decoded on the event loop; larger and compressed ones in a thread."""
DECODING_AT_ONCE = 4
_SOURCE = re.compile(r"[^\x00-\x1f\x7f]{1,200}")
_SEQUENCE = re.compile(r"[0-9]{1,18}")

NDJSON, JSON = "application/x-ndjson", "application/json"
CLOUD_EVENT, CLOUD_EVENTS = "application/cloudevents+json", "application/cloudevents-batch+json"


class Busy(CmisError):
    """The log takes no more right now; temporary."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"busy; try again in {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


class LogUnavailable(CmisError):
    """The log cannot be written; temporary, but nobody knows for how long."""


@dataclass(frozen=True, slots=True)
class ApiPorts:
    """What the API needs of the rest.

    publish(org, batch): returns when the events are durable in the log. dead_letter(org, refusals, source): likewise
    for refused events. Both may raise Busy or LogUnavailable. clock(): epoch milliseconds.
    """

    auth: Auth
    publish: Callable[[str, Batch], Awaitable[None]]
    dead_letter: Callable[[str, list[Refusal], str], Awaitable[None]]
    clock: Callable[[], int]


class Ingest:
    """The endpoint. One per app: it bounds how many large bodies are decoded at once, and with them the memory."""

    def __init__(self, ports: ApiPorts) -> None:
        self.ports = ports
        self._decoding = asyncio.Semaphore(DECODING_AT_ONCE)

    async def __call__(self, request: Request, org: str) -> Response:
        now_ms = self.ports.clock()
        caller = await self.ports.auth.admitted_program(request, org, "ingest")
        org = caller.org
        kind = _content_type(request)
        compressed = _is_gzip(request)
        source, sequence = _sender(request, f"token:{caller.id}")
        body = await read_body(request, LARGEST_COMPRESSED if compressed else LARGEST_BODY, IN_SEVERAL)
        decode = partial(_decoded, body, compressed, kind, org, source, sequence, now_ms)
        try:
            if not compressed and _is_small(body):
                decoded = decode()
            else:
                async with self._decoding:
                    decoded = await asyncio.to_thread(decode)
        except Rejected as error:
            raise Problem(400, "malformed", f"The body cannot be read: {error}", extra={"errors": [error.as_dict()]}) from None
        await self._kept(org, decoded, source)
        return _answer(decoded, pointers_with_index=kind in (CLOUD_EVENTS, JSON) and body.lstrip()[:1] == b"[")

    async def _kept(self, org: str, decoded: Decoded, source: str) -> None:
        """Durable in the log. Events first: a request repeated because they failed must not repeat its dead letters."""
        try:
            if decoded.batch is not None:
                await self.ports.publish(org, decoded.batch)
            if decoded.refused:
                await self.ports.dead_letter(org, decoded.refused, source)
        except Busy as busy:
            raise Problem(
                429,
                "busy",
                "More events are waiting than the log takes right now; send the same request again.",
                headers={"Retry-After": str(max(1, math.ceil(busy.retry_after_s)))},
                extra={"retry_after_ms": math.ceil(busy.retry_after_s * 1000)},
            ) from None
        except LogUnavailable as error:
            detail = f"{error}; send the same request again."
            raise Problem(503, "unavailable", detail, headers={"Retry-After": "1"}) from None


def _is_small(body: bytes) -> bool:
    """Decoded in under 5 ms even if every event is refused, which takes ten times as long as taking it."""
    return len(body) <= INLINE_BYTES and body.count(b"\n") + body.count(b",{") < INLINE_EVENTS


def _content_type(request: Request) -> str:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (NDJSON, JSON, CLOUD_EVENT, CLOUD_EVENTS):
        raise Problem(
            415,
            "unsupported_media",
            f"Content-Type {kind or 'none'!r} is not taken; send {NDJSON}, {CLOUD_EVENT}, {CLOUD_EVENTS} or {JSON}.",
            headers={"Accept": f"{NDJSON}, {CLOUD_EVENT}, {CLOUD_EVENTS}, {JSON}"},
        )
    return kind


def _is_gzip(request: Request) -> bool:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip", ""):
        detail = f"Content-Encoding {encoding!r} is not taken; send gzip, or none."
        raise Problem(415, "unsupported_media", detail, headers={"Accept-Encoding": "gzip"})
    return encoding.endswith("gzip")


def _sender(request: Request, default: str) -> tuple[str, int | None]:
    """(source, first sequence number or None) from the Cmis- headers."""
    source, first = request.headers.get("cmis-source"), request.headers.get("cmis-sequence")
    if source is not None and not _SOURCE.fullmatch(source):
        raise Problem(400, "invalid", "Cmis-Source: expected 1 to 200 characters without control characters.")
    if first is None:
        return source or default, None
    if source is None:
        raise Problem(400, "invalid", "Cmis-Sequence needs Cmis-Source: the numbers count one sender's events.")
    if not _SEQUENCE.fullmatch(first):
        raise Problem(400, "invalid", f"Cmis-Sequence: expected the number of the body's first event, got {first[:40]!r}.")
    return source, int(first)


def decompressed(body: bytes) -> bytes:
    """A gzip body's content, of one or several members. Problem 413 beyond the limits, 400 when it is damaged.

    Never holds more than the limit allows: the output of each step is bounded, whatever the input claims.
    """
    out = bytearray()
    rest = body
    while rest:
        member = zlib.decompressobj(wbits=31)
        try:
            while not member.eof and rest:
                out += member.decompress(rest, 1 << 18)
                rest = member.unconsumed_tail
                if len(out) > LARGEST_BODY:
                    raise too_large(f"Decompressed, the body has more than {LARGEST_BODY} bytes.", IN_SEVERAL)
                if len(out) > (1 << 20) and len(out) > LARGEST_RATIO * (len(body) - len(rest)):
                    raise too_large(f"The body decompresses to more than {LARGEST_RATIO} times its size.", IN_SEVERAL)
            out += member.flush() if member.eof else b""
        except zlib.error as error:
            raise Problem(400, "malformed", f"The body is not gzip: {error}") from None
        if not member.eof:
            raise Problem(400, "malformed", "The gzip body ends too early.")
        rest = member.unused_data.lstrip(b"\0")
    return bytes(out)


def _decoded(body: bytes, gzip: bool, kind: str, org: str, source: str, sequence: int | None, now_ms: int) -> Decoded:
    if gzip:
        body = decompressed(body)
    if kind == NDJSON:
        return decode_ndjson(body, org=org, source=source, now_ms=now_ms, sequence=sequence)
    if kind == JSON:
        return decode_json(body, org=org, source=source, now_ms=now_ms, sequence=sequence)
    batched = kind == CLOUD_EVENTS
    return decode_cloudevents(body, org=org, source=source, now_ms=now_ms, batched=batched, sequence=sequence)


def _answer(decoded: Decoded, pointers_with_index: bool) -> Response:
    rejected = len(decoded.refused)
    errors = [_error(refusal, pointers_with_index) for refusal in decoded.refused[:LISTED_ERRORS]]
    result = {"accepted": decoded.events - rejected, "rejected": rejected, "errors_total": rejected, "errors": errors}
    if rejected and rejected == decoded.events:
        detail = (
            f"None of the {rejected} events could be taken."
            if rejected > 1
            else f"The event could not be taken: {errors[0]['detail']}"
        )
        raise Problem(422, "all_rejected", detail, extra=result)
    return Response(msgspec.json.encode(result), media_type="application/json")


def _error(refusal: Refusal, with_index: bool) -> dict[str, Any]:
    """One refused event. pointer: JSON pointer to the field, inside the event, or inside the array that was sent."""
    field = refusal.error.field
    # A custom metric's name may hold dots: the pointer's last part is then the whole name.
    parts = field.split(".", 2 if field.startswith("data.custom.") else 1) if field else []
    pointer = "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)
    return {
        "index": refusal.index,
        "line": refusal.line,
        "id": refusal.id,
        **refusal.error.as_dict(),
        "detail": str(refusal.error),
        "pointer": f"/{refusal.index}{pointer}" if with_index else pointer,
    }
