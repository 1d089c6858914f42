"""What can be asked of one collection, over HTTP: each method answers one operation."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from ...core.errors import Rejected
from ...store.bodies import validated
from ...store.changes import Changes
from ...store.commands import DEFAULTS
from ...store.decisions import Actor, Command, Document, Result
from ...store.documents import Documents, Idempotency
from ...store.kinds import Kind
from ...store.listing import Asked, asked
from ...store.writing import as_uuid
from ..auth import Auth, Caller
from ..bodies import read_body
from ..lists import refused
from . import requests
from .places import Collection
from .refusals import Refusals
from .shapes import READ_ONLY, Shape

WITH_BODY = ("create", "update", "patch", "clone")


def actor_of(caller: Caller) -> Actor:
    """The caller as the store knows it. Until people have roles, the scope admin is the role admin, which sees also what is
    private to others."""
    admin = "admin" in caller.scopes
    return Actor(caller.id, frozenset({"admin"}) if admin else frozenset(), sees_private=admin)


class Operations:
    """Of one collection. Everything that blocks runs in threads."""

    def __init__(self, place: Collection, documents: Documents, changes: Changes, auth: Auth, refusals: Refusals) -> None:
        self._place, self._kind = place, place.kind
        self._documents, self._changes, self._auth, self._refusals = documents, changes, auth, refusals
        self._shape = Shape(place.kind)

    # --- reading ------------------------------------------------------------------------------------------------------

    async def list(self, request: Request) -> Response:
        caller = await self._caller(request, "read")
        try:
            wanted = asked(self._kind, request.query_params.multi_items())
        except Rejected as error:
            raise refused(error) from None
        return await self._refusals.read(self._listed, caller, wanted)

    def _listed(self, caller: Caller, wanted: Asked) -> Response:
        try:
            page = self._documents.list(caller.org, actor_of(caller), self._kind.name, wanted)
        except Rejected as error:  # a cursor that somebody made up
            raise refused(error) from None
        items = [self._shape.document(document) for document in page.items]
        return answer({"items": items, "next": page.next, "total_estimate": page.total_estimate})

    async def get(self, request: Request) -> Response:
        caller = await self._caller(request, "read")
        found = await self._refusals.read(self._found, request, caller, requests.with_deleted(request))
        return self._shown(found)

    async def changes(self, request: Request) -> Response:
        """Also of a deleted document: of who does not see the document nobody learns what it was."""
        caller = await self._caller(request, "read")
        before, limit = requests.page_of_changes(request)
        return await self._refusals.read(self._changed, request, caller, before, limit)

    def _changed(self, request: Request, caller: Caller, before: int | None, limit: int) -> Response:
        found = self._found(request, caller, True)
        changes, total = self._changes.page_of(caller.org, self._kind.name, found.id, before, limit + 1)
        following = str(changes[limit - 1].seq) if len(changes) > limit else None
        shown = self._documents.opened(caller.org, self._kind.name, changes[:limit])
        items = [self._shape.change(change) for change in shown]
        return answer({"items": items, "next": following, "total_estimate": total})

    def _found(self, request: Request, caller: Caller, deleted: bool) -> Document:
        name = request.path_params["id"]
        found = self._documents.get(caller.org, actor_of(caller), self._kind.name, name, deleted=deleted)
        if found is None:
            raise Rejected("not_found", "id", name, f"the id of a {self._kind.name} of this org")
        return found

    # --- writing ------------------------------------------------------------------------------------------------------

    async def act(self, request: Request, name: str) -> Response:
        """Carries out a command, one that every kind has or one of its own."""
        caller = await self._caller(request, name)
        requests.parameters(request)
        version = requests.expected_version(request, required=name in ("update", "patch", "delete"))
        key = requests.idempotency(request, caller.org)
        raw = b"" if name == "delete" else await read_body(request, requests.LARGEST_BODY)
        media = (requests.MERGE_PATCH, requests.JSON) if name == "patch" else (requests.JSON,)
        requests.check_media(request, raw, *media)
        result = await self._refusals.write(self._acted, request, caller, name, raw, version, key)
        return self._answer(request, name, result)

    def _acted(
        self, request: Request, caller: Caller, name: str, raw: bytes, version: int | None, key: Idempotency | None
    ) -> Result:
        given = requests.parsed(raw) if raw or (name in WITH_BODY and name != "clone") else {}
        command = command_of(self._kind, name, request.path_params.get("id"), given)
        return self._documents.execute(caller.org, actor_of(caller), command, expected_version=version, idempotency=key)

    def _answer(self, request: Request, name: str, result: Result) -> Response:
        document = result.document
        repeated = {"Idempotency-Replayed": "true"} if result.repeated else {}
        if name == "delete" and document is not None:
            return Response(status_code=204, headers={"ETag": etag(document), **repeated})
        if name in DEFAULTS and document is not None:
            response = self._shown(document, 201 if result.created else 200)
        else:
            made = result.created and document is not None
            response = answer(self._shape.result(result), 201 if made else 200)
            if document is not None:
                response.headers["ETag"] = etag(document)
        if response.status_code == 201 and document is not None:
            response.headers["Location"] = f"{self._place.path.format(**request.path_params)}/{document.id}"
        response.headers.update(repeated)
        return response

    # --- both ---------------------------------------------------------------------------------------------------------

    async def _caller(self, request: Request, command: str) -> Caller:
        return await caller_of(self._auth, request, self._kind.scope(command))

    def _shown(self, document: Document, status: int = 200) -> Response:
        response = answer(self._shape.document(document), status)
        response.headers["ETag"] = etag(document)
        return response


async def caller_of(auth: Auth, request: Request, scope: str) -> Caller:
    """Who asks; where the path names no org, it is the token's."""
    org = request.path_params.get("org")
    if org is not None:
        return await auth.admitted(request, org, scope)
    token = await asyncio.to_thread(auth.token, request)
    return await asyncio.to_thread(auth.authorize_program, request, token.org, scope)


def command_of(kind: Kind, name: str, identity: str | None, given: Any) -> Command:
    """The command that a request or an item of a bulk asks for. Rejected, when its body is not what the command takes.

    identity: what the path or the item names. A new document may bring a UUID of its own as `id`.
    """
    body = dict(requests.an_object(given))
    if name in WITH_BODY:
        own = body.get("id")
        if own is not None and not isinstance(own, str):
            raise Rejected("wrong_type", "/id", own, "a UUID, or none")
        if own is not None and identity is not None and own != identity and as_uuid(identity) is not None:
            raise Rejected("invalid", "/id", own, f"{identity!r}, the one that this is about, or none")
        if name == "create":
            identity = own if identity is None else identity
        return Command(name, kind.name, identity, {field: value for field, value in body.items() if field not in READ_ONLY})
    rule = kind.rule(name)
    if rule is not None and rule.body is not None:
        return Command(name, kind.name, identity, validated(rule.body, body))
    for field, value in body.items():
        raise Rejected("invalid", f"/{field}", value, f"no such field: {name} takes no body")
    return Command(name, kind.name, identity)


def etag(document: Document) -> str:
    return f'"{document.version}"'


def answer(body: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")
