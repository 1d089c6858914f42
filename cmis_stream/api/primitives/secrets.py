"""`/api/orgs/{org}/secrets`: credentials that are given and never shown again. No value is in an answer or a log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ...core.time import rfc3339
from ...store.listing import storable
from ...store.secrets import LONGEST, Secrets, Status
from ..auth import Auth
from ..documents.components import TEXT, TIME, Schema, page_schema
from ..documents.openapi import found
from ..documents.operations import answer, caller_of
from ..documents.refusals import Refusals
from ..documents.requests import parameters
from ..problems import Problem
from .operations import READ, WITH_BODY, WRITE, described, object_of, one_text, or_null, text_of, whole

_PATH = "/api/orgs/{org}/secrets"


def add_secrets(router: APIRouter, secrets: Secrets, declared: Mapping[str, str], auth: Auth, refusals: Refusals) -> None:
    def shown(name: str, status: Status) -> dict[str, Any]:
        updated_at = None if status.updated_at is None else rfc3339(status.updated_at)
        return {"name": name, "title": declared.get(name), "set": status.set, "updated_at": updated_at}

    @router.get(
        **described(_PATH, "list_secrets", "List secrets", {200: found(page_schema(_SECRET), "All there are.")}, READ)
    )  # fmt: skip
    async def list_secrets(request: Request) -> Response:
        """Those that modules need, set or not, and others that are set; never a value."""
        caller = await caller_of(auth, request, "admin")
        parameters(request)
        there = await refusals.read(secrets.list, caller.org)
        names = sorted({*declared, *there})
        return answer(whole([shown(name, there.get(name, Status(False, None))) for name in names]))

    @router.put(
        **described(
            f"{_PATH}/{{name:path}}", "set_secret", "Set a secret", {200: found(_SECRET, "It is set.")}, WITH_BODY,
            body=one_text("value", LONGEST, f"At most {LONGEST} bytes. It is in no answer, not even in one that refuses it."),
        )
    )  # fmt: skip
    async def set_secret(request: Request) -> Response:
        """The value that counts from now on. It is kept encrypted."""
        caller = await caller_of(auth, request, "admin")
        parameters(request)
        name, value = request.path_params["name"], await text_of(request, "value", LONGEST)
        return answer(shown(name, await refusals.write(secrets.set, caller.org, name, value, caller.id)))

    @router.delete(
        **described(f"{_PATH}/{{name:path}}", "delete_secret", "Delete a secret", {204: {"description": "It is gone."}}, WRITE)
    )
    async def delete_secret(request: Request) -> Response:
        caller = await caller_of(auth, request, "admin")
        parameters(request)
        name = request.path_params["name"]
        if not storable(name) or not await refusals.write(secrets.remove, caller.org, name):
            raise Problem(404, "not_found", "There is no such secret, or it is not set.")
        return Response(status_code=204)


_SECRET: Schema = object_of(
    {
        "name": TEXT,
        "title": {**or_null(TEXT), "description": "What it is, for people; null: no module declares it."},
        "set": {"type": "boolean"},
        "updated_at": or_null(TIME),
    },
    {"name": "meta/token", "title": "Meta access token", "set": True, "updated_at": "2026-01-01T00:00:00.000Z"},
)
