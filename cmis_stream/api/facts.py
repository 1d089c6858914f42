"""REST for every kind of fact, from what modules declare: lists, single ones, and commands, which agents carry out."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import UUID, uuid4

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..core.errors import CmisError, ConfigError, Rejected
from ..core.time import rfc3339
from ..live.commands import encode
from ..store.documents import Idempotency
from ..store.fact_commands import CommandResult, FactCommands, asked_for, body_of
from ..store.fact_kinds import Fact, FactCommand, FactKind
from ..store.facts import Facts
from ..store.kinds import Kinds
from ..store.listing import asked
from ..store.writing import Stale
from .auth import Auth, Caller
from .bodies import read_body
from .documents import openapi, requests
from .documents.components import Schema, name_of, page_schema, ref, shared_schemas
from .documents.openapi import READING, WRITING, answers, found
from .documents.operations import actor_of, answer, caller_of
from .documents.places import collections, dashed
from .documents.refusals import Refusals
from .documents.shapes import Shape
from .fact_schemas import RESULT, WAITING, command_body, done_schema, example_of, schemas_of
from .lists import refused
from .problems import Problem, document_of

WAIT_S: Final = 2.0
"""For a command's result; then it is answered 202."""
POLL_S: Final = 0.02
SEND_S: Final = 5.0
"""For the log to have a command."""
LARGEST_COMMAND: Final = 256 << 10
"""Bytes of its body: it travels through the log, among others."""
COMMANDS_PATH: Final = "/api/orgs/{org}/commands/{id}"
_log = logging.getLogger(__name__)

SendCommand = Callable[[str, bytes], Awaitable[None]]
"""send(org, record): returns when the record is durable in the log, in the org's partition. OSError or CmisError: it is not."""


@dataclass(frozen=True, slots=True)
class FactPorts:
    """clock: epoch ms."""

    facts: Facts
    commands: FactCommands
    kinds: Kinds
    auth: Auth
    send: SendCommand
    clock: Callable[[], int]


class FactsRouter(APIRouter):
    """schemas: what the operations refer to in the components of the OpenAPI document."""

    schemas: dict[str, Schema]


def facts_router(ports: FactPorts) -> FactsRouter:
    """REST of all kinds of facts. ConfigError when one wants a path that another kind has."""
    router = FactsRouter()
    router.schemas = shared_schemas()
    refusals = Refusals(ports.kinds)
    statuses = {manifest.name: {one.status for one in manifest.problems.values()} for manifest in ports.kinds.manifests}
    taken = {place.path: f"{place.module}.{place.kind.name}" for place in collections(ports.kinds)}
    taken[COMMANDS_PATH.removesuffix("/{id}")] = "results of commands"
    for name, kind in ports.kinds.facts.items():
        module = ports.kinds.module_of[name]
        path = path_of(kind, module)
        for other, whose in taken.items():
            if path == other or path == other.rpartition("/")[0] or path.rpartition("/")[0] == other:
                raise ConfigError(f"{module}.{name}: its path {path} is in the way of {whose}, which is at {other}")
        taken[path] = f"{module}.{name}"
        schemas = schemas_of(kind)
        if twice := schemas.keys() & router.schemas.keys():
            raise ConfigError(f"{module}.{name}: the name {min(twice)} is another one's in OpenAPI")
        router.schemas |= schemas
        _add_routes(router, _Operations(kind, ports, refusals), path, module, statuses[module])
    router.add_api_route(
        COMMANDS_PATH,
        _endpoint(_Results(ports, refusals)),
        methods=["GET"],
        summary="What became of a command",
        description="Results are kept for seven days. 404, too, for a command that has not been carried out yet.",
        operation_id="get_command",
        tags=["commands"],
        response_class=Response,
        responses=answers({200: found(RESULT, "Carried out.")}, READING),
        openapi_extra=_extra(openapi.path_parameters(COMMANDS_PATH)),
    )
    return router


def path_of(kind: FactKind, module: str) -> str:
    below = kind.path or f"{dashed(module)}/{dashed(_plural(kind))}"
    return f"/api/orgs/{{org}}/{below}"


def _plural(kind: FactKind) -> str:
    return kind.plural or f"{kind.name}s"


class _Operations:
    """Of one kind."""

    def __init__(self, kind: FactKind, ports: FactPorts, refusals: Refusals) -> None:
        self.kind, self._ports, self._refusals = kind, ports, refusals
        self._shape = Shape(kind)

    async def list(self, request: Request) -> Response:
        caller = await caller_of(self._ports.auth, request, self.kind.scope("read"))
        return await self._refusals.read(self._listed, request, caller)

    def _listed(self, request: Request, caller: Caller) -> Response:
        try:
            wanted = asked(self.kind, request.query_params.multi_items())
            page = self._ports.facts.list(caller.org, self.kind.name, wanted)
        except Rejected as error:
            raise refused(error) from None
        items = [self._shape.fact(fact) for fact in page.items]
        return answer({"items": items, "next": page.next, "total_estimate": page.total_estimate})

    async def get(self, request: Request) -> Response:
        caller = await caller_of(self._ports.auth, request, self.kind.scope("read"))
        requests.parameters(request)
        fact = await self._refusals.read(self._found, request, caller)
        return _with_etag(answer(self._shape.fact(fact)), fact)

    def _found(self, request: Request, caller: Caller) -> Fact:
        identity = request.path_params["id"]
        fact = self._ports.facts.get(caller.org, self.kind.name, identity)
        if fact is None:
            raise Rejected("not_found", "id", identity, f"the id of a {self.kind.name} of this org")
        return fact

    async def act(self, request: Request, name: str) -> Response:
        """Sends the command to the agent that carries it out, and waits a moment for its result."""
        caller = await caller_of(self._ports.auth, request, self.kind.scope(name))
        requests.parameters(request)
        version = requests.expected_version(request, required=False)
        key = requests.idempotency(request, caller.org)
        raw = await read_body(request, LARGEST_COMMAND)
        requests.check_media(request, raw, requests.JSON)
        command = await self._refusals.read(self._command, request, caller, name, raw, version, key)
        result = None if key is None else await self._result(command)
        repeated = result is not None
        if result is None:
            await self._send(command)
            result = await self._awaited(command)
        if result is None:
            response = answer({"id": command.id, "status": "waiting"}, 202)
            response.headers["Location"] = f"/api/orgs/{caller.org}/commands/{command.id}"
            return response
        if result.asked != asked_for(command):
            shown = key.key if key is not None else command.id
            raise self._refusals.problem(Rejected("key_reused", "Idempotency-Key", shown, "a new key for another command"))
        response = await self._refusals.read(self._done, request, caller, result)
        if repeated:
            response.headers["Idempotency-Replayed"] = "true"
        return response

    def _command(
        self, request: Request, caller: Caller, name: str, raw: bytes, version: int | None, key: Idempotency | None
    ) -> FactCommand:
        body = body_of(self.kind.commands[name], name, requests.an_object(requests.parsed(raw) if raw else {}))
        fact, actor = self._found(request, caller), actor_of(caller)
        identity = str(uuid4()) if key is None else _id_of(actor.id, key)
        return FactCommand(
            identity, caller.org, self.kind.name, fact.id, name, body, actor, self._ports.clock(), version
        )  # fmt: skip

    async def _send(self, command: FactCommand) -> None:
        try:
            async with asyncio.timeout(SEND_S):
                await self._ports.send(command.org, encode(command))
        except (OSError, CmisError) as error:  # a TimeoutError is an OSError
            _log.warning("the command %s is not in the log: %r", command.id, error)
            detail = "The log cannot be written now. Send the same request again, with an Idempotency-Key."
            raise Problem(503, "unavailable", detail, headers={"Retry-After": "1"}) from None

    async def _awaited(self, command: FactCommand) -> CommandResult | None:
        loop = asyncio.get_running_loop()
        until = loop.time() + WAIT_S
        while True:
            result = await self._result(command)
            if result is not None or loop.time() >= until:
                return result
            await asyncio.sleep(POLL_S)

    async def _result(self, command: FactCommand) -> CommandResult | None:
        return await self._refusals.read(self._ports.commands.result, command.org, command.id)

    def _done(self, request: Request, caller: Caller, result: CommandResult) -> Response:
        if result.rejected is not None:
            raise _problem(self._refusals, result.rejected)
        fact = self._found(request, caller)
        touched = [{"kind": result.kind, "id": result.fact, "version": result.version}]
        return _with_etag(answer({"item": self._shape.fact(fact), "touched": touched}), fact)


class _Results:
    def __init__(self, ports: FactPorts, refusals: Refusals) -> None:
        self._ports, self._refusals = ports, refusals

    async def __call__(self, request: Request) -> Response:
        caller = await caller_of(self._ports.auth, request, "read")
        requests.parameters(request)
        return await self._refusals.read(self._found, request.path_params["id"], caller)

    def _found(self, identity: str, caller: Caller) -> Response:
        result = self._ports.commands.result(caller.org, identity)
        if result is None:
            raise Rejected("not_found", "id", identity, "the id of a command that has been carried out in this org")
        told: dict[str, Any] = {
            "id": result.id, "kind": result.kind, "fact": result.fact, "status": result.status, "version": result.version,
            "at": rfc3339(result.at),
        }  # fmt: skip
        if result.rejected is not None:
            told["problem"] = document_of(_problem(self._refusals, result.rejected))
        return answer(told)


def _id_of(actor: str, key: Idempotency) -> str:
    """The same command of the same caller has the same id, and is carried out once."""
    digest = hashlib.sha256("\n".join((actor, key.path, key.key)).encode("utf-8", "surrogatepass")).digest()
    value = int.from_bytes(digest[:16], "big") & ~(0xF << 76) & ~(0b11 << 62)
    return str(UUID(int=value | 8 << 76 | 0b10 << 62))


def _problem(refusals: Refusals, rejected: Mapping[str, Any]) -> Problem:
    if rejected["code"] == "stale":
        return refusals.problem(Stale(0, rejected["version"]))
    return refusals.of_item(rejected)


def _with_etag(response: Response, fact: Fact) -> Response:
    response.headers["ETag"] = f'"{fact.version}"'
    return response


# --- routes and OpenAPI ------------------------------------------------------------------------------------------------


def _add_routes(router: FactsRouter, of: _Operations, path: str, module: str, own: set[int]) -> None:
    kind = of.kind
    title, whole = kind.title or kind.name.replace("_", " "), ref(name_of(kind))
    shared: dict[str, Any] = {"tags": [module], "response_class": Response}
    router.add_api_route(
        path, _endpoint(of.list), methods=["GET"], summary=f"List: {title}",
        operation_id=f"list_{_plural(kind)}",
        responses=answers({200: found(page_schema(whole, example_of(kind)), "A page.")}, READING),
        openapi_extra=_extra([*openapi.path_parameters(path), *openapi.list_parameters(kind)]), **shared,
    )  # fmt: skip
    by_id = f"{path}/{{id}}"
    router.add_api_route(
        by_id, _endpoint(of.get), methods=["GET"], summary=f"Get: {title}", operation_id=f"get_{kind.name}",
        responses=answers({200: found(whole, "Found.", "ETag")}, READING),
        openapi_extra=_extra(openapi.path_parameters(by_id)), **shared,
    )  # fmt: skip
    for name, rule in kind.commands.items():
        done = {
            200: found(done_schema(whole), "Done.", "ETag", "Idempotency-Replayed"),
            202: found(WAITING, "Not done yet: ask Location for what becomes of it.", "Location"),
        }
        extra = _extra([*openapi.path_parameters(by_id), *openapi.write_parameters(if_match=False)])
        body = command_body(kind, name, rule)
        router.add_api_route(
            f"{by_id}/{dashed(name)}", _endpoint(partial(of.act, name=name)), methods=["POST"],
            summary=rule.title or f"{name.replace('_', ' ').capitalize()}: {title}", operation_id=f"{name}_{kind.name}",
            responses=answers(done, sorted({*WRITING, *own})),
            openapi_extra=extra if body is None else {**extra, "requestBody": body}, **shared,
        )  # fmt: skip


def _endpoint(call: Callable[[Request], Awaitable[Response]]) -> Callable[..., Any]:
    """As FastAPI wants it: a function of the request."""

    async def endpoint(request: Request) -> Response:
        return await call(request)

    return endpoint


def _extra(parameters: list[Schema]) -> dict[str, Any]:
    return {"security": [{"token": []}, {"session": []}], "parameters": parameters}
