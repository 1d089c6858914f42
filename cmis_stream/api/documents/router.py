"""The routes of all kinds: one table of operations per collection, literals before ids."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ...core.errors import ConfigError
from ...store.changes import Changes
from ...store.documents import Documents
from ...store.kinds import Kinds
from ..auth import Auth
from . import openapi
from .bulk import Bulk
from .components import Schema, change_schema, command_schema, example_of, name_of, page_schema, ref, schemas_of, shared_schemas
from .openapi import READING, WRITING, answers, found
from .operations import Operations
from .places import Collection, collections, dashed, literals_first
from .refusals import Refusals

Endpoint = Callable[[Request], Awaitable[Response]]


class Route(NamedTuple):
    """parameters: besides those of the path. name: of the operation."""

    method: str
    path: str
    endpoint: Endpoint
    name: str
    title: str
    success: dict[int, Schema]
    problems: tuple[int, ...]
    parameters: list[Schema]
    body: Schema | None = None


class DocumentsRouter(APIRouter):
    """schemas: what the operations refer to in the components of the OpenAPI document."""

    schemas: dict[str, Schema]
    refusals: Refusals
    """Has the threads in which the store is written: for whatever else of the process writes it."""


def documents_router(documents: Documents, changes: Changes, kinds: Kinds, auth: Auth) -> DocumentsRouter:
    """REST of all kinds. ConfigError when two of them want the same path or name."""
    router = DocumentsRouter()
    router.schemas = shared_schemas()
    refusals = router.refusals = Refusals(kinds)
    statuses = {manifest.name: {problem.status for problem in manifest.problems.values()} for manifest in kinds.manifests}
    routes: list[tuple[Route, Collection]] = []
    for place in collections(kinds):
        ports = (place, documents, changes, auth, refusals)
        routes += [(route, place) for route in _routes(place, Operations(*ports), Bulk(*ports))]
        if not place.by_token:
            made = schemas_of(place)
            if twice := made.keys() & router.schemas.keys():
                raise ConfigError(f"{place.module}.{place.kind.name}: the name {min(twice)} is another one's in OpenAPI")
            router.schemas |= made
    _check(routes)
    for route, place in sorted(routes, key=lambda one: literals_first(one[0].path)):
        own = statuses[place.module] if 422 in route.problems else set()
        body = {} if route.body is None else {"requestBody": route.body}
        router.add_api_route(
            route.path,
            _endpoint(route.endpoint),
            methods=[route.method],
            summary=route.title,
            operation_id=f"{route.name}_by_token" if place.by_token else route.name,
            tags=[place.module],
            status_code=min(route.success),
            response_class=Response,
            responses=answers(route.success, sorted({*route.problems, *own})),
            openapi_extra={
                "security": [{"token": []}] if place.by_token else [{"token": []}, {"session": []}],
                "parameters": [*openapi.path_parameters(route.path), *route.parameters],
                **body,
            },
        )
    return router


def _routes(place: Collection, of: Operations, bulk: Bulk) -> Iterator[Route]:
    kind, path, title = place.kind, place.path, place.title
    one, whole, many = kind.name, ref(name_of(kind)), place.plural
    by_id, command = f"{path}/{{id}}", openapi.write_parameters
    again = tuple(status for status in WRITING if status != 404) if place.by_token else WRITING
    shown = found(whole, "As it is now.", "ETag", "Idempotency-Replayed")
    created = found(whole, "Created.", "ETag", "Location", "Idempotency-Replayed")
    page = {200: found(page_schema(whole, example_of(kind)), "A page.")}
    bulk_done = {200: found(ref("BulkResults"), "What became of each item.", "Idempotency-Replayed")}
    history = {200: found(page_schema(change_schema()), "A page, the newest first.")}
    reading = tuple(status for status in READING if status != 404) if place.by_token else READING

    def act(name: str) -> Endpoint:
        return partial(of.act, name=name)

    yield Route("GET", path, of.list, f"list_{many}", f"List: {title}", page, reading, openapi.list_parameters(kind))
    yield Route(
        "POST", path, act("create"), f"create_{one}", f"Create: {title}", {201: created}, again,
        command(if_match=None), openapi.input_body(kind),
    )  # fmt: skip
    yield Route(
        "POST", f"{path}/bulk", bulk, f"bulk_{many}", f"Do many things: {title}", bulk_done,
        tuple(status for status in again if status not in (409, 412)),
        command(if_match=None), openapi.bulk_body(place),
    )  # fmt: skip
    yield Route(
        "GET", by_id, of.get, f"get_{one}", f"Get: {title}", {200: found(whole, "Found.", "ETag")}, READING,
        [openapi.deleted_parameter()],
    )  # fmt: skip
    writing = (*WRITING, 428)
    yield Route(
        "PUT", by_id, act("update"), f"replace_{one}", f"Replace all fields: {title}", {200: shown}, writing,
        command(if_match=True), openapi.input_body(kind),
    )  # fmt: skip
    yield Route(
        "PATCH", by_id, act("patch"), f"patch_{one}", f"Change fields: {title}", {200: shown}, writing,
        command(if_match=True), openapi.patch_body(kind),
    )  # fmt: skip
    without_body = tuple(status for status in writing if status not in (413, 415))
    yield Route(
        "DELETE", by_id, act("delete"), f"delete_{one}", f"Delete: {title}", {204: openapi.gone()}, without_body,
        command(if_match=True),
    )  # fmt: skip
    yield Route(
        "POST", f"{by_id}/restore", act("restore"), f"restore_{one}", f"Restore a deleted one: {title}", {200: shown}, WRITING,
        command(if_match=False),
    )  # fmt: skip
    yield Route(
        "POST", f"{by_id}/clone", act("clone"), f"clone_{one}", f"Copy, with these fields changed: {title}", {201: created},
        WRITING, command(if_match=False), openapi.clone_body(kind),
    )  # fmt: skip
    yield Route(
        "GET", f"{by_id}/changes", of.changes, f"list_changes_of_{one}", f"Who changed what and when: {title}", history, READING,
        openapi.changes_parameters(),
    )  # fmt: skip
    for name, rule in place.commands():
        done: dict[int, Schema] = {200: found(command_schema(kind), "Done.", "ETag", "Idempotency-Replayed")}
        if rule.creates:
            done[201] = found(command_schema(kind), "Created.", "ETag", "Location", "Idempotency-Replayed")
        yield Route(
            "POST", f"{path if rule.creates else by_id}/{dashed(name)}", act(name), f"{name}_{one}",
            rule.title or f"{name.replace('_', ' ').capitalize()}: {title}", done, WRITING,
            command(if_match=None if rule.creates else False), openapi.command_body(kind, name, rule),
        )  # fmt: skip


def _check(routes: list[tuple[Route, Collection]]) -> None:
    """ConfigError when something is there twice."""
    paths: dict[tuple[str, str], Collection] = {}
    names: dict[tuple[str, bool], Collection] = {}
    for route, place in routes:
        where = f"{place.module}.{place.kind.name}"
        other = paths.setdefault((route.method, route.path), place)
        if other is not place:
            raise ConfigError(f"{where}: {route.method} {route.path} is taken by {other.module}.{other.kind.name}")
        other = names.setdefault((route.name, place.by_token), place)
        if other is not place:
            raise ConfigError(f"{where}: the operation {route.name} is also one of {other.module}.{other.kind.name}")


def _endpoint(call: Endpoint) -> Callable[..., Any]:
    """As FastAPI wants it: a function of the request."""

    async def endpoint(request: Request) -> Response:
        return await call(request)

    return endpoint
