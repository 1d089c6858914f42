"""REST over the kinds of all modules and the toy: an app, who asks it, and bodies made from the kinds' examples."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import httpx
from fastapi import FastAPI

from cmis_stream.api.app import create_app
from cmis_stream.api.documents import documents_router
from cmis_stream.api.documents.places import Collection, collections
from cmis_stream.api.ingest import ApiPorts
from cmis_stream.modules.discovery import all_kinds
from cmis_stream.store.changes import Changes
from cmis_stream.store.database import Database
from cmis_stream.store.documents import Documents
from cmis_stream.store.keyring import Keyring
from cmis_stream.store.kinds import Kind
from cmis_stream.store.personal import PersonalData
from cmis_stream.store.signing import KEY_BYTES
from tests.api.conftest import World
from tests.contracts.toy.manifest import MANIFEST

KINDS = all_kinds([MANIFEST])
COLLECTIONS = [place for place in collections(KINDS) if not place.by_token]
UNKNOWN = "01890000-0000-7000-8000-000000000000"
Body = dict[str, Any]


class Caller:
    """A token's requests. org: its own."""

    def __init__(self, app: FastAPI, org: str, text: str) -> None:
        self.org = org
        headers = {"Authorization": f"Bearer {text}", "Request-Id": "same"}
        transport = httpx.ASGITransport(app)  # a mistake of ours comes through instead of becoming a 500
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)

    async def ask(self, method: str, path: str, *, org: str | None = None, **more: Any) -> httpx.Response:
        """path: as in OpenAPI, {org} being the caller's own."""
        return await self.client.request(method, path.replace("{org}", org or self.org), **more)

    async def created(self, place: Collection, body: Mapping[str, Any]) -> Body:
        response = await self.ask("POST", place.path, json=body)
        assert response.status_code == 201, response.text
        made: Body = response.json()
        return made

    async def everything(self, path: str, limit: int = 500, **parameters: str) -> list[Body]:
        """All pages of a list."""
        items, cursor = list[Body](), dict[str, str]()
        while True:
            response = await self.ask("GET", path, params={**parameters, "limit": str(limit), **cursor})
            assert response.status_code == 200, response.text
            page = response.json()
            items += page["items"]
            if page["next"] is None:
                return items
            cursor = {"cursor": page["next"]}


class Rest:
    """ann and ben write in acme, adam is admin there, eve only reads; gus writes in globex."""

    def __init__(self, world: World, database: Database) -> None:
        self.documents, self.changes = Documents(database, KINDS, personal=personal_data(database)), Changes(database)
        self.world, self.database = world, database
        router = documents_router(self.documents, self.changes, KINDS, world.auth)
        ports = ApiPorts(world.auth, world.log.publish, world.log.dead_letter, world.now)
        self.app = create_app(ports, [router], schemas=router.schemas)
        self.ann, self.ben = self._caller("acme", "read", "write"), self._caller("acme", "read", "write")
        self.adam, self.eve = self._caller("acme", "read", "write", "admin"), self._caller("acme", "read")
        self.gus = self._caller("globex", "read", "write")
        self._numbers = itertools.count(1)

    def _caller(self, org: str, *scopes: str) -> Caller:
        return Caller(self.app, org, self.world.tokens.create(org, scopes)[1])

    async def close(self) -> None:
        for caller in (self.ann, self.ben, self.adam, self.eve, self.gus):
            await caller.client.aclose()

    async def body(self, caller: Caller, kind: Kind, example: int = 0) -> Body:
        """An example of the kind that can be created: what it points at is there, what is unique is new."""
        number = next(self._numbers)
        body: Body = dict(kind.examples[example % len(kind.examples)])
        for field, ref in kind.refs.items():
            if field in body:
                target = await caller.created(place_of(ref.target), await self.body(caller, KINDS[ref.target]))
                body[field] = [target["id"]] if kind.is_list(field) else target["id"]
        for fields in kind.unique:
            free = [field for field in fields if field in body and field not in kind.refs]
            if free and not any(field in kind.refs for field in fields):
                value = body[free[0]]
                body[free[0]] = f"{value}{number}" if isinstance(value, str) else value + number
        return body


def personal_data(database: Database) -> PersonalData:
    return PersonalData(database, Keyring([bytes(KEY_BYTES)]))


def place_of(kind: str) -> Collection:
    return next(place for place in COLLECTIONS if place.kind.name == kind)


def at(etag: str | int) -> dict[str, str]:
    return {"If-Match": f'"{etag}"' if isinstance(etag, int) else etag}
