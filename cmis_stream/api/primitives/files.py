"""`/api/orgs/{org}/files` and `/files/{token}`: bytes in and out, streamed. Everything that blocks runs in threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse

from ...core.errors import Rejected, shown
from ...core.time import rfc3339
from ...store.files import LINK_LASTS_MS, LONGEST_NAME, FileLinks, Files, StoredFile, Upload
from ...store.keyring import Damaged
from ...store.listing import LIMIT, MOST, storable
from ...store.ranges import asked_part
from ...store.signing import NotSigned
from ..auth import Auth
from ..bodies import too_large
from ..documents.components import COUNT, EXAMPLE_ID, TEXT, TIME, Schema, page_schema
from ..documents.openapi import found
from ..documents.operations import answer, caller_of
from ..documents.refusals import Refusals
from ..documents.requests import parameters
from ..lists import refused
from ..problems import Problem
from .operations import READ, WRITE, bounded_number, described, header, identity, object_of, or_null, page, query, read_cursor
from .uploads import media_type_of, name_of, sha256_of

LARGEST: Final = 1 << 30
PIECE: Final = 1 << 20
"""Bytes that are handed to a thread at once."""
LONGEST_LIFE_S: Final = 10 * 366 * 86_400
_PATH: Final = "/api/orgs/{org}/files"
_MISSING = "There is no such file."


def add_files(
    router: APIRouter, files: Files, links: FileLinks, auth: Auth, refusals: Refusals, clock: Callable[[], int]
) -> None:
    async def file_of(request: Request, scope: str) -> StoredFile:
        caller = await caller_of(auth, request, scope)
        parameters(request)
        return there(await refusals.read(files.get, caller.org, identity(request, _MISSING)))

    async def content_of(request: Request, file: StoredFile) -> Response:
        headers = {
            "Content-Type": file.media_type,
            "Content-Disposition": file.disposition,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }
        part = asked_part(request.headers.get("range"), request.headers.get("if-range"), file.etag, file.size)
        if _has(request.headers.get("if-none-match"), file.etag):
            return Response(status_code=304, headers={"ETag": file.etag, "Accept-Ranges": "bytes", "Cache-Control": "no-store"})
        if part.status == 416:
            del part.headers["Content-Length"]
            detail = f"Range: expected a part of {file.size} bytes, got {shown(request.headers.get('range'))}."
            raise Problem(416, "out_of_range", detail, headers=part.headers)
        try:
            pieces = await refusals.read(files.read, file, part.start, part.end)
        except Damaged:
            there(await refusals.read(files.get, file.org, file.id))  # 404: it was deleted meanwhile
            raise
        return StreamingResponse(pieces, part.status, {**headers, **part.headers})

    @router.post(
        **described(
            _PATH, "upload_file", "Upload a file", {201: found(_FILE, "It is there.", "Location")}, (*WRITE, 413),
            _UPLOAD, {"required": True, "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}},
        )
    )  # fmt: skip
    async def upload_file(request: Request) -> Response:
        """Takes the body as it is, of any media type, at most 1 GiB. It is there, whole, once this is answered, or not at all."""
        caller = await caller_of(auth, request, "write")
        given = parameters(request, ("name", "expires_in_s"))
        name = given.get("name", name_of(request.headers))
        if name is None:
            raise refused(Rejected("missing", "name", "nothing", "a name, here or in Content-Disposition"))
        lasts_s = bounded_number("expires_in_s", given["expires_in_s"], 1, LONGEST_LIFE_S) if "expires_in_s" in given else None
        media_type, digest = media_type_of(request.headers), sha256_of(request.headers)
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > LARGEST:
            raise too_large(f"{declared} bytes are more than the {LARGEST} that a file may have.")

        def create() -> Upload:
            if not storable(name):
                raise refused(Rejected("invalid", "name", name, "a text"))
            lasts_ms = None if lasts_s is None else lasts_s * 1000
            try:
                return files.create(caller.org, name, media_type, caller.id, lasts_ms=lasts_ms, limit=LARGEST)
            except Rejected as error:  # of the query or a header, not of a body
                raise refused(Rejected(error.code, error.field.removeprefix("/"), error.got, error.expected)) from None

        upload = await refusals.write(create)
        try:
            file = await _received(request, upload, digest, refusals)
        finally:
            await refusals.write(upload.__exit__)
        response = answer(shown_file(file), 201)
        response.headers["Location"] = _url(file)
        return response

    @router.get(
        **described(
            _PATH, "list_files", "List files", {200: found(page_schema(_FILE), "A page.")}, READ,
            [query("limit", {"type": "integer", "minimum": 1, "maximum": MOST, "default": LIMIT}),
             query("cursor", TEXT, "`next` of the page before.")],
        )
    )  # fmt: skip
    async def list_files(request: Request) -> Response:
        """The newest first."""
        caller = await caller_of(auth, request, "read")
        given = parameters(request, ("limit", "cursor"))
        limit = bounded_number("limit", given.get("limit", str(LIMIT)), 1, MOST)
        before = read_cursor(given.get("cursor"))

        def listed() -> Response:
            return answer(page(files.list(caller.org, limit + 1, before), limit, files.count(caller.org), shown_file))

        return await refusals.read(listed)

    @router.get(**described(f"{_PATH}/{{id}}", "get_file", "Get what is known of a file", {200: found(_FILE, "Found.")}, READ))
    async def get_file(request: Request) -> Response:
        return answer(shown_file(await file_of(request, "read")))

    @router.get(
        **described(
            f"{_PATH}/{{id}}/content", "download_file", "Get a file's content", _CONTENT, (*READ, 416), _ASKED
        )
    )  # fmt: skip
    async def download_file(request: Request) -> Response:
        """Its bytes or a part of them, always to be saved. A whole file is checked against its digest: when the bytes are others
        the connection breaks off before the end."""
        return await content_of(request, await file_of(request, "read"))

    @router.post(
        **described(
            f"{_PATH}/{{id}}/link", "link_to_file", "Make a link to a file",
            {200: found(_LINK, "Whoever has it can download the file until it ends.")}, WRITE,
        )
    )  # fmt: skip
    async def link_to_file(request: Request) -> Response:
        """A path on this host that needs no session and no token, for five minutes or until the file expires."""
        file = await file_of(request, "read")
        now_ms = clock()
        end_ms = now_ms + LINK_LASTS_MS if file.expires_at is None else min(now_ms + LINK_LASTS_MS, file.expires_at)
        return answer({"url": f"/files/{links.issue(file, now_ms)}", "expires_at": rfc3339(end_ms // 1000 * 1000)})

    @router.delete(**described(f"{_PATH}/{{id}}", "delete_file", "Delete a file", {204: {"description": "It is gone."}}, WRITE))
    async def delete_file(request: Request) -> Response:
        """For good, also for links to it."""
        caller = await caller_of(auth, request, "write")
        parameters(request)
        if not await refusals.write(files.remove, caller.org, identity(request, _MISSING)):
            raise Problem(404, "not_found", _MISSING)
        return Response(status_code=204)

    @router.get(
        **described(
            "/files/{token}", "download_by_link", "Download by a link", _CONTENT, (404, 416, 503), _ASKED, public=True
        )
    )  # fmt: skip
    async def download_by_link(request: Request) -> Response:
        """What `link_to_file` made; from anywhere, without a session."""
        try:
            org, name = links.read(request.path_params["token"], clock())
        except NotSigned:
            raise Problem(404, "not_found", "There is no such link, or it has ended.") from None
        return await content_of(request, there(await refusals.read(files.get, org, name)))

    def there(file: StoredFile | None) -> StoredFile:
        if file is None:
            raise Problem(404, "not_found", _MISSING)
        return file


async def _received(request: Request, upload: Upload, sha256: str | None, refusals: Refusals) -> StoredFile:
    """The body, written as it comes: never more than a piece of it is in memory."""
    waiting, size, held = list[bytes](), 0, 0
    try:
        async for part in request.stream():
            size, held = size + len(part), held + len(part)
            if size > LARGEST:
                raise too_large(f"A file may have at most {LARGEST} bytes.")
            waiting.append(part)
            if held >= PIECE:
                await refusals.write(upload.write, b"".join(waiting))
                waiting, held = [], 0
        await refusals.write(upload.write, b"".join(waiting))
        return await refusals.write(_finished, upload, sha256)
    except ClientDisconnect:
        raise Problem(400, "malformed", "The connection closed before the body was complete.") from None
    except Damaged:
        raise Problem(400, "malformed", "For too long nothing came of the body; nothing of it was kept.") from None


def _finished(upload: Upload, sha256: str | None) -> StoredFile:
    try:
        return upload.finish(sha256)
    except Rejected as error:  # of a header, not of a body that could be read
        said = {"header": "Content-Digest", "code": error.code, "got": shown(error.got), "expected": error.expected}
        detail = f"Content-Digest: expected {error.expected}, got {shown(error.got)}."
        raise Problem(400, error.code, detail, extra={"errors": [said]}) from None


def _has(if_none_match: str | None, etag: str) -> bool:
    return if_none_match is not None and any(
        one.strip() == "*" or one.strip().removeprefix("W/") == etag for one in if_none_match.split(",")
    )


def _url(file: StoredFile) -> str:
    return f"/api/orgs/{file.org}/files/{file.id}"


def shown_file(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "name": file.name,
        "media_type": file.media_type,
        "size": file.size,
        "sha256": file.sha256,
        "created_at": rfc3339(file.created_at),
        "expires_at": None if file.expires_at is None else rfc3339(file.expires_at),
        "url": f"{_url(file)}/content",
    }


_FILE: Schema = object_of(
    {
        "id": TEXT,
        "name": {**TEXT, "maxLength": LONGEST_NAME},
        "media_type": TEXT,
        "size": {**COUNT, "description": "Bytes."},
        "sha256": {**TEXT, "description": "In hex; in double quotes it is the content's ETag."},
        "created_at": TIME,
        "expires_at": {**or_null(TIME), "description": "When it is deleted; null: it stays."},
        "url": {**TEXT, "description": "Path of its content."},
    },
    {
        "id": EXAMPLE_ID, "name": "spend.csv", "media_type": "text/csv", "size": 1200, "sha256": "e3b0c442" * 8,
        "created_at": "2026-01-01T00:00:00.000Z", "expires_at": None, "url": f"/api/orgs/acme/files/{EXAMPLE_ID}/content",
    },
)  # fmt: skip
_LINK: Schema = object_of({"url": {**TEXT, "description": "A path on this host."}, "expires_at": TIME})
_UPLOAD = [
    query("name", {**TEXT, "maxLength": LONGEST_NAME}, "The file's name; needed where Content-Disposition has none."),
    query(
        "expires_in_s", {"type": "integer", "minimum": 1, "maximum": LONGEST_LIFE_S}, "Deleted after so long; left out: never."
    ),
    header("Content-Disposition", "The file's name: filename, or filename*."),
    header(
        "Content-Digest", "sha-256=:BASE64: (RFC 9530); what has another digest is not kept. Other algorithms are not looked at."
    ),
]
_ASKED = [
    header("Range", "bytes=FIRST-LAST; several at once get the whole file."),
    header("If-Range", "An ETag: of another content the whole file is wanted."),
    header("If-None-Match", "ETags that are there already."),
]
_HEADERS: Schema = {
    "ETag": {"schema": TEXT, "description": "Of the content."},
    "Accept-Ranges": {"schema": TEXT},
    "Content-Disposition": {"schema": TEXT, "description": "attachment, with its name."},
}
_BYTES: Schema = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
_CONTENT: dict[int, Schema] = {
    200: {"description": "All of it.", "content": _BYTES, "headers": _HEADERS},
    206: {
        "description": "The part that Range names.",
        "content": _BYTES,
        "headers": {**_HEADERS, "Content-Range": {"schema": TEXT, "description": "Which it is."}},
    },
    304: {"description": "If-None-Match has it.", "headers": {name: _HEADERS[name] for name in ("ETag", "Accept-Ranges")}},
}
