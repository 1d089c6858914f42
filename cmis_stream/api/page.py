"""Serves the built page: `index.html` for every path that is the page's own matter, its assets, and nothing else.

Files are read once and found by their exact names, so no path leads anywhere but to them.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .headers import content_security_policy
from .hosts import Hosts

FOLDER = Path(__file__).resolve().parents[1] / "page"
NOT_THE_PAGES = ("api", "assets", "healthz", "openapi.json", "asyncapi.json")
"""First parts of paths that never mean a view of the page: what is not there is not found."""
IMMUTABLE = "public, max-age=31536000, immutable"
COMPRESSED_FROM = 1024
_TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml", ".json": "application/json", ".map": "application/json", ".txt": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json", ".png": "image/png", ".ico": "image/x-icon", ".woff2": "font/woff2",
}  # fmt: skip
_COMPRESSIBLE = {".html", ".js", ".css", ".svg", ".json", ".map", ".txt", ".webmanifest"}
_ENCODINGS = {"br": ".br", "gzip": ".gz"}
"""Those that are sent, the better first -> the suffix of a file compressed beforehand."""
_NOT_BUILT = b"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>CMIS Stream</title>
<h1>The page is not built</h1>
<p>The API works; this source tree just has no page yet. To build it:</p>
<pre>python scripts/web.py build</pre>
<p>Then load this page again.</p>
</html>
"""


@dataclass(frozen=True, slots=True)
class _File:
    type: str
    etag: str
    bodies: dict[str, bytes]
    """Content-Encoding -> body; "identity" is always there."""


class Page:
    """An ASGI app, for the paths that no route takes."""

    def __init__(self, hosts: Hosts, folder: Path = FOLDER) -> None:
        self._hosts, self._folder = hosts, folder
        self._files: dict[str, _File] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._files:  # asked again as long as it is not built
            self._files = await asyncio.to_thread(_read, self._folder)
        await self._answer(Request(scope))(scope, receive, send)

    def _answer(self, request: Request) -> Response:
        path = request.scope["path"].removeprefix("/")
        file = self._files.get(path)
        if file is None and path.partition("/")[0] in NOT_THE_PAGES:
            raise HTTPException(404)
        if request.method not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        policy = content_security_policy(self._hosts.of(request).gateway_url)
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
        if file is None:
            file = self._files.get("index.html")
        if file is None:
            return Response(_NOT_BUILT, 503, headers, "text/html")
        if path.startswith("assets/"):
            headers["Cache-Control"] = IMMUTABLE  # their names change with their content
        headers |= {"ETag": file.etag, "Vary": "Accept-Encoding"}
        if _matches(request.headers.get("if-none-match", ""), file.etag):
            return Response(None, 304, headers)
        encoding = next(name for name in _accepted(request.headers.get("accept-encoding", "")) if name in file.bodies)
        if encoding != "identity":
            headers["Content-Encoding"] = encoding
        return Response(file.bodies[encoding], 200, headers, file.type)


def _read(folder: Path) -> dict[str, _File]:
    """Path below the folder, as in a URL -> file; empty when the page is not built."""
    if not (folder / "index.html").is_file():
        return {}
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    paths = {path.relative_to(folder).as_posix(): path for path in found}
    compressed = {f"{name}{suffix}" for name in paths for suffix in _ENCODINGS.values()}
    return {name: _file(path) for name, path in paths.items() if name not in compressed}


def _file(path: Path) -> _File:
    body = path.read_bytes()
    bodies = {"identity": body}
    for encoding, suffix in _ENCODINGS.items():
        beside = path.with_name(path.name + suffix)
        if beside.is_file():
            bodies[encoding] = beside.read_bytes()
    if "gzip" not in bodies and path.suffix in _COMPRESSIBLE and len(body) >= COMPRESSED_FROM:
        bodies["gzip"] = gzip.compress(body, mtime=0)
    # Weak: one tag for all encodings of the same content.
    etag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'
    return _File(_TYPES.get(path.suffix, "application/octet-stream"), etag, bodies)


def _matches(if_none_match: str, etag: str) -> bool:
    """
    >>> _matches('"x", W/"a"', 'W/"a"'), _matches('"a"', 'W/"a"'), _matches("*", 'W/"a"'), _matches("", 'W/"a"')
    (True, True, True, False)
    """
    given = [one.strip().removeprefix("W/") for one in if_none_match.split(",")]
    return etag.removeprefix("W/") in given or given == ["*"]


def _accepted(accept_encoding: str) -> list[str]:
    """Encodings that may be sent, the best first; `identity` always is one.

    >>> _accepted("gzip, deflate, br;q=0.5"), _accepted("br;q=0, gzip ; q=1"), _accepted("")
    (['br', 'gzip', 'identity'], ['gzip', 'identity'], ['identity'])
    """
    wanted = set()
    for part in accept_encoding.lower().split(","):
        name, _, q = part.partition(";")
        if q.replace(" ", "").removeprefix("q=").strip("0.") or not q:
            wanted.add(name.strip())
    return [name for name in _ENCODINGS if name in wanted] + ["identity"]
