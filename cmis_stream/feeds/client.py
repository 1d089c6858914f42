"""The sender behind `cmis ingest`: a file's flat events to the ingest endpoint, each line counted exactly once.

Every org's lines are numbered in the order of the file, and go out in that order, one request at a time, under one
source name; the server drops numbers that it has seen. So anything may be sent again: after a timeout, a server's
crash, or this process's own, whose position is on disk.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from ..core.errors import CmisError, ConfigError, shown
from . import resume
from .lines import WINDOW_BYTES, BadLine, FileLines, LineSource, PipeLines, Share, Window

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
REQUEST_BYTES = 8 << 20
SAVE_EVERY_S = 0.2
ERRORS_KEPT = 20
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_FINAL_FOR_ITS_LINES = frozenset({400, 413, 422})


@dataclass(slots=True)
class Progress:
    """How far it is. bytes_total: None for a pipe; waiting: why nothing moves right now, or None."""

    bytes_done: int = 0
    bytes_total: int | None = None
    sent: int = 0
    accepted: int = 0
    rejected: int = 0
    elapsed_s: float = 0.0
    waiting: str | None = None


@dataclass(slots=True)
class Summary:
    """What one run did. accepted counts what the server took, including what it knew already; errors is a sample.

    resumed_from: the byte at which an earlier run had stopped, 0 for a new file. rejected_file: where rejected lines
    are.
    """

    sent: int = 0
    accepted: int = 0
    rejected: int = 0
    resumed_from: int = 0
    requests: int = 0
    retries: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    rejected_file: Path | None = None


class IngestStopped(CmisError):
    """The server refuses all further requests, or was not there for too long. The same call resumes later; see
    `summary`."""

    def __init__(self, message: str, summary: Summary) -> None:
        super().__init__(message)
        self.summary = summary


async def send_file(
    path_or_stdin: Path | str | BinaryIO,
    *,
    url: str,
    token_for: Callable[[str], str],
    org: str | None = None,
    state_dir: Path,
    source: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    batch_events: int = 5000,
    retry_for_s: float = 300,
    concurrency: int = 4,
    compress: bool | None = None,
    window_bytes: int = WINDOW_BYTES,
) -> Summary:
    """Sends a file (also *.gz) or a binary stream of flat NDJSON; several orgs at once, one request of each.

    token_for: the token of an org. org: of every line; None: each line names its own. source: a label in place of
    "file" or "stdin" in the sender's name. compress: None means gzip unless the server is on this machine.
    Rejected lines go to <state>.rejected.ndjson, at least once. Raises IngestStopped (also when `retry_for_s` of trying
    again were in vain), ConfigError, OSError. A stream cannot be resumed.
    """
    if source is not None and not (source.isascii() and source.isprintable() and 0 < len(source) <= 100):
        raise ConfigError(f"source: expected 1 to 100 printable ASCII characters, got {shown(source)}")
    # File metadata of the local state, read once before anything is sent: nothing else waits for this loop.
    state_dir.mkdir(parents=True, exist_ok=True)
    if compress is None:
        compress = urlsplit(url).hostname not in _LOOPBACK
    if not isinstance(path_or_stdin, str | Path):
        position = resume.Position(f"{source or 'stdin'}:{uuid.uuid4().hex}", 0, "")
        state = state_dir / f"{position.source.replace('/', '_').replace(':', '-')}.json"
        sender = _Sender(url, token_for, position, state, False, progress, batch_events, retry_for_s, concurrency, compress)
        return await sender.run(PipeLines(path_or_stdin, org, window_bytes), None)
    path = Path(path_or_stdin)
    state = resume.state_path(state_dir, path, url, org)
    held = resume.lock(state)
    try:
        with _opened(path) as file:
            position = resume.position_of(file, path, state, source or "file")
            sender = _Sender(url, token_for, position, state, True, progress, batch_events, retry_for_s, concurrency, compress)
            size = None if path.suffix == ".gz" else path.stat().st_size
            return await sender.run(FileLines(file, org, window_bytes), size)
    finally:
        os.close(held)


def _opened(path: Path) -> BinaryIO:
    try:
        return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None


class _Sender:
    """One run over one source of lines."""

    def __init__(
        self, url: str, token_for: Callable[[str], str], position: resume.Position, state: Path, durable: bool,
        progress: Callable[[Progress], None] | None, batch_events: int, retry_for_s: float, concurrency: int, compress:
        bool,
    ) -> None:  # fmt: skip
        self.url, self.token_for, self.position, self.state, self.durable = (
            url.rstrip("/"),
            token_for,
            position,
            state,
            durable,
        )
        self.batch_events, self.retry_for_s, self.compress = batch_events, retry_for_s, compress
        self.report, self.progress, self.summary = progress, Progress(), Summary()
        self._slots = asyncio.Semaphore(concurrency)
        self._rejected: list[dict[str, Any]] = []
        self._saved_at = self._started = time.monotonic()
        self._connections = concurrency

    async def run(self, lines: LineSource, size: int | None) -> Summary:
        self.summary.resumed_from = self.progress.bytes_done = self.position.offset
        self.progress.bytes_total = size
        limits = httpx.Limits(max_connections=self._connections, max_keepalive_connections=self._connections)
        # Loading the certificates of a TLS context takes longer than sending a small file.
        timeout, tls = httpx.Timeout(60, connect=5), self.url.startswith("https:")
        if self.durable:
            # Before the first line goes out: the identity must not depend on how far a killed run came.
            resume.save(self.position, self.state)
        async with httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False, verify=tls) as client:
            self.client = client
            try:
                while True:
                    window = await asyncio.to_thread(lines.read, self.position.offset, self.position.first_line)
                    if window is None:
                        break
                    await self._send_window(window)
            finally:
                self._write_rejected()
                if self.durable:
                    resume.save(self.position, self.state)
        self._tell(None)
        return self.summary

    async def _send_window(self, window: Window) -> None:
        for bad in window.bad:
            self._reject_line(bad)
        try:
            async with asyncio.TaskGroup() as group:
                for org, share in window.shares.items():
                    group.create_task(self._send_share(org, share))
        except BaseExceptionGroup as errors:
            # The first of ours tells it: the others were cancelled by it, or say the same.
            ours = errors.subgroup(CmisError)
            if ours is None:
                raise
            raise _first(ours) from None
        position = self.position
        for org, share in window.shares.items():
            position.counters[org] = position.counters.get(org, 0) + len(share.lines)
        position.offset, position.first_line = window.end, window.next_line
        self.progress.bytes_done = window.end
        self._write_rejected()
        if self.durable:
            await asyncio.to_thread(resume.save, position, self.state)

    async def _send_share(self, org: str, share: Share) -> None:
        """One org's lines of a window, in order, from the first that is not acknowledged."""
        base = self.position.counters.get(org, 0)
        start = max(self.position.acknowledged.get(org, 0) - base, 0)
        while start < len(share.lines):
            end = min(start + self.batch_events, len(share.lines))
            while end - start > 1 and sum(map(len, share.lines[start:end])) + end - start > REQUEST_BYTES:
                end = start + (end - start) // 2
            async with self._slots:
                response = await self._posted(org, b"\n".join(share.lines[start:end]), base + start)
            self._count(org, response, share.lines[start:end], share.numbers[start:end])
            self.position.acknowledged[org] = base + end
            start = end
            self._tell(None)
            now = time.monotonic()
            if self.durable and now - self._saved_at > SAVE_EVERY_S:
                self._saved_at = now
                # A copy, since other orgs move on meanwhile; not in a thread, since two saves must not overtake each
                # other.
                resume.save(self.position, self.state)

    async def _posted(self, org: str, body: bytes, sequence: int) -> httpx.Response:
        """The final answer: any that is not temporary. IngestStopped after `retry_for_s` without one."""
        headers = {
            "Authorization": f"Bearer {self.token_for(org)}",
            "Content-Type": "application/x-ndjson",
            "Cmis-Source": self.position.source,
            "Cmis-Sequence": str(sequence),
        }
        if self.compress:
            body = await asyncio.to_thread(gzip.compress, body, 1)
            headers["Content-Encoding"] = "gzip"
        target = f"{self.url}/api/orgs/{quote(org, safe='')}/events"
        pause, give_up_at = FIRST_PAUSE_S, time.monotonic() + self.retry_for_s
        while True:
            wait = pause * random.uniform(0.5, 1.0)
            self.summary.requests += 1
            try:
                response = await self.client.post(target, content=body, headers=headers)
            except httpx.TransportError as error:
                reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            else:
                if response.status_code != 429 and 300 <= response.status_code < 500:
                    return response
                if response.status_code < 300 and isinstance(_document(response).get("accepted"), int):
                    return response
                # A 200 of something that is not our server (a proxy's page) is no receipt either.
                reason = f"{response.status_code} {_detail(response)}"
                wait = max(wait, _asked_pause_s(response))
            if time.monotonic() + wait > give_up_at:
                raise IngestStopped(f"{target}: no answer within {self.retry_for_s:g} s; the last: {reason}", self.summary)
            self.summary.retries += 1
            self._tell(reason)
            await asyncio.sleep(wait)
            pause = min(pause * 2, LONGEST_PAUSE_S)

    def _count(self, org: str, response: httpx.Response, lines: list[bytes], numbers: list[int]) -> None:
        if response.status_code >= 300 and response.status_code not in _FINAL_FOR_ITS_LINES:
            # A wrong token or address: the lines are good, and the next request would fare no better.
            raise IngestStopped(f"org {org!r}: {response.status_code} {_detail(response)}", self.summary)
        answer = _document(response)
        rejected = answer.get("rejected")
        if not isinstance(rejected, int):  # the request as a whole, not its events one by one
            rejected = len(lines)
        self.summary.sent += len(lines)
        self.summary.rejected += rejected
        self.summary.accepted += len(lines) - rejected
        listed = [error for error in answer.get("errors", ()) if isinstance(error.get("index"), int)]
        for error in listed:
            index = error["index"]
            if index < len(lines):
                self._reject({**error, "line": numbers[index], "org": org}, lines[index])
        if rejected and not listed:
            for number, line in zip(numbers, lines, strict=True):
                self._reject({"line": number, "org": org, "code": "malformed", "detail": _detail(response)}, line)

    def _reject_line(self, bad: BadLine) -> None:
        self.summary.rejected += 1
        self._reject({"line": bad.line, "code": bad.code, "detail": bad.detail}, bad.raw)

    def _reject(self, error: dict[str, Any], raw: bytes) -> None:
        if len(self.summary.errors) < ERRORS_KEPT:
            self.summary.errors.append(error)
        self._rejected.append({**error, "raw": raw[:4096].decode("utf-8", "replace")})
        if len(self._rejected) >= 1_000:
            self._write_rejected()

    def _write_rejected(self) -> None:
        if not self._rejected:
            return
        target = self.state.with_suffix(".rejected.ndjson")
        with target.open("ab") as out:
            out.writelines(msgspec.json.encode(error) + b"\n" for error in self._rejected)
        self._rejected.clear()
        self.summary.rejected_file = target

    def _tell(self, waiting: str | None) -> None:
        if self.report is None:
            return
        now, summary = self.progress, self.summary
        now.sent, now.accepted, now.rejected = summary.sent, summary.accepted, summary.rejected
        now.elapsed_s, now.waiting = time.monotonic() - self._started, waiting
        self.report(now)


def _first(errors: BaseExceptionGroup[CmisError]) -> CmisError:
    found = errors.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found


def _document(response: httpx.Response) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(response.content)
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _detail(response: httpx.Response) -> str:
    return str(_document(response).get("detail", response.reason_phrase))


def _asked_pause_s(response: httpx.Response) -> float:
    """How long the server asks to wait: our own finer figure, or Retry-After in seconds; 0 without."""
    precise = _document(response).get("retry_after_ms")
    if isinstance(precise, int):
        return precise / 1000
    seconds = response.headers.get("retry-after", "")
    return float(seconds) if seconds.isdecimal() else 0.0
