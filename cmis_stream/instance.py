"""A running process: the runtime and what its role serves (HTTP API with the page, gateway), the rule file, a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI

from cmis_stream.api.app import create_app, plain_app
from cmis_stream.api.auth import Auth
from cmis_stream.api.documents import documents_router
from cmis_stream.api.documents.described import described_router
from cmis_stream.api.facts import FactPorts, facts_router
from cmis_stream.api.hosts import WILDCARDS, Hosts, in_url, reachable
from cmis_stream.api.ingest import ApiPorts, Busy, LogUnavailable
from cmis_stream.api.operations import local_or, operations_router
from cmis_stream.api.page import Page
from cmis_stream.api.primitives import primitives_router
from cmis_stream.api.query import query_router
from cmis_stream.api.session import session_router
from cmis_stream.core.batch import Batch
from cmis_stream.core.errors import CmisError, ConfigError
from cmis_stream.feeds.decode import Refusal
from cmis_stream.gateway.access import StoreAccess
from cmis_stream.gateway.server import PATH, Gateway
from cmis_stream.health.binding import health_of
from cmis_stream.keeping import housekeeping_of
from cmis_stream.log.owner import Owner
from cmis_stream.log.packer import Pressure
from cmis_stream.modules.alerts import rule_sets
from cmis_stream.modules.alerts.rule_file import RuleFileWatch, apply_rules, read_items, rule_documents
from cmis_stream.runtime import METRICS, Runtime
from cmis_stream.serving import HttpServer, listening_socket
from cmis_stream.settings import Role, Settings
from cmis_stream.store.database import Unavailable
from cmis_stream.store.decisions import Actor
from cmis_stream.store.rights import Rights
from cmis_stream.store.sessions import SessionStore
from cmis_stream.store.signing import OPERATOR, GatewayTokens, NotSigned, gateway_key

log = logging.getLogger("cmis.rules")
RULES_POLL_S = 0.5
RULE_FILE = "rules-file"
"""Documents that come from --rules say so in `metadata.applied_from`."""
_RULE_FILE_ACTOR = Actor(RULE_FILE, sees_private=True)


class Instance:
    """`async with Instance(settings) as instance`: does what its role says from entry to exit."""

    def __init__(self, settings: Settings, report: Callable[[str], None] = lambda _: None) -> None:
        """report: told of each error in the rule file, at the start and whenever it is read again."""
        self.settings, self._report = settings, report
        self.rule_errors: list[str] = []
        self._ruled: set[str] = set()
        """Orgs that the rule file may have rules of."""
        self._tasks: list[asyncio.Task[None]] = []
        self._servers: list[HttpServer | Gateway] = []
        self._gateway_tokens = GatewayTokens(gateway_key(settings.gateway_key, settings.gateway_key_path))
        role = settings.role
        with contextlib.ExitStack() as sockets:  # given back when the rest cannot be made
            self._http_socket = self._gateway_socket = None
            self.port = self.gateway_port = settings.wanted_gateway_port
            if role is not Role.GATEWAY:
                self._http_socket = sockets.enter_context(listening_socket(settings.host, settings.port))
                self.port = self._http_socket.getsockname()[1]
            if role.has_gateway:
                wanted = settings.port if role is Role.GATEWAY else settings.wanted_gateway_port
                option = "--port" if role is Role.GATEWAY else "--gateway-port"
                self._gateway_socket = sockets.enter_context(listening_socket(settings.host, wanted, option))
                self.gateway_port = self._gateway_socket.getsockname()[1]
                self.port = self.gateway_port if role is Role.GATEWAY else self.port
            self.hosts = Hosts(settings.host, settings.public_hosts, self.gateway_port)
            self._sockets = sockets.pop_all()
        host = reachable(settings.host)
        self.url = f"http://{host}:{self.port}"
        self.gateway_url = f"ws://{host}:{self.gateway_port}{PATH}"

    @property
    def address(self) -> str:
        """Where the other processes of the installation reach this one, as a URL."""
        given = self.settings.address
        name = given or (socket.gethostname() if self.settings.host in WILDCARDS else self.settings.host)
        return f"http://{in_url(name)}:{self.port}"

    async def __aenter__(self) -> Instance:
        if self.settings.rules_file is not None and self.settings.role.has_api:
            read_items(self.settings.rules_file)  # what cannot be read ends the start before anything is opened
        async with contextlib.AsyncExitStack() as opened:  # also a cancelled start gives back the lock and the ports
            opened.callback(self._sockets.close)
            self.runtime = runtime = await Runtime.open(self.settings, self.address)
            self.health = health_of(runtime)
            opened.push_async_callback(self.health.stop)  # last of all: it watches how the rest ends
            opened.push_async_callback(runtime.stop)
            await self.health.start()
            self.sessions = SessionStore(runtime.stores.database, runtime.tokens)
            opened.callback(self.sessions.close)
            opened.push_async_callback(self._stop_serving)
            await runtime.start()
            if self.settings.role.has_agents:
                name = Role.UP.value if self.settings.log_url is None else self.address
                housekeeping = housekeeping_of(runtime, name)
                opened.push_async_callback(housekeeping.stop)
                await housekeeping.start()
                parts = self.health.parts
                parts.troubles, parts.failed_effects = housekeeping.troubles, housekeeping.failed_effects
            self.health.look()
            if self.settings.role.has_api:
                stores = runtime.stores
                self._tell(await asyncio.to_thread(rule_sets.take_over, stores.database, stores.documents, RULE_FILE))
            if self.settings.rules_file is not None and self.settings.role.has_api:
                await self._read_rules(self.settings.rules_file, first=True)
                self._tasks.append(asyncio.create_task(self._follow_rules(self.settings.rules_file)))
            if self._gateway_socket is not None:
                self._servers.append(gateway := self._made_gateway())
                self.health.parts.gateway = gateway.hub
                await gateway.start(self._gateway_socket)
            if self._http_socket is not None:
                app = self._app() if self.settings.role.has_api else self._worker_app()
                self._servers.append(http := HttpServer(app, self._http_socket))
                await http.start()
            if self.settings.role.has_api:
                self._announce()
                opened.callback(self._instance_file.unlink, missing_ok=True)
            self._opened = opened.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """New requests are refused, those under way are answered, everything accepted is safe."""
        await self._opened.aclose()

    async def _stop_serving(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(server.stop() for server in self._servers), *self._tasks, return_exceptions=True)

    async def wait(self, stop: asyncio.Event) -> None:
        """Until `stop` is set; raises what ended the instance if it fails first."""
        stopping: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        await asyncio.wait([stopping, self.runtime.failed], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if self.runtime.failed.done():
            self.runtime.failed.result()

    async def drained(self) -> None:
        """Returns when every record that is in the metrics log now has been applied."""
        runtime = self.runtime
        ends = await runtime.log.ends(METRICS)
        while any(owner.position < ends.get(owner.partition, 0) - 1 for owner in self.owners):
            if runtime.failed.done():
                runtime.failed.result()
            await asyncio.sleep(0.02)

    @property
    def owners(self) -> list[Owner]:
        return list(self.runtime.owners.values())

    # --- its servers ----------------------------------------------------------------------------------------------------

    def _app(self) -> FastAPI:
        runtime = self.runtime

        async def publish(org: str, batch: Batch) -> None:
            try:
                await runtime.packer.publish(org, batch)
            except Pressure as pressure:
                raise Busy(pressure.retry_after_s) from None
            except (OSError, CmisError) as error:
                raise LogUnavailable(str(error)) from error

        async def dead_letter(org: str, refusals: list[Refusal], source: str) -> None:
            try:
                await runtime.dead_letter(org, refusals, source)
            except (OSError, CmisError) as error:
                raise LogUnavailable(str(error)) from error

        auth = Auth(runtime.tokens, self.sessions, self.hosts, runtime.clock)
        stores = runtime.stores
        documents = documents_router(stores.documents, stores.changes, stores.kinds, auth)
        facts = facts_router(
            FactPorts(stores.facts, stores.fact_commands, stores.kinds, auth, runtime.send_command, runtime.clock)
        )  # fmt: skip
        routers = [
            self._operations_router(),
            session_router(auth, self._gateway_tokens),
            query_router(runtime.queries, auth.admitted),
            facts,
            documents,
            described_router(stores.kinds, auth),
            primitives_router(
                stores.jobs,
                stores.files,
                stores.file_links,
                stores.secrets,
                stores.schedules,
                stores.personal,
                auth,
                runtime.clock,
                stores.kinds.secrets,
                documents.refusals,
            ),
        ]
        if self.settings.role.has_agents and self.settings.log_url is not None:
            routers.append(self._peer_router())
        ports = ApiPorts(auth, publish, dead_letter, runtime.clock)
        return create_app(ports, routers, Page(self.hosts), documents.schemas | facts.schemas, stores.kinds.manifests)

    def _worker_app(self) -> FastAPI:
        return plain_app([self._operations_router(), self._peer_router()])

    def _operations_router(self) -> APIRouter:
        return operations_router(self.health, local_or(self._is_operator))

    def _is_operator(self, token: str) -> bool:
        try:
            return self.runtime.peer_tokens.read(token, self.runtime.clock()) == OPERATOR
        except NotSigned:
            return False

    def _peer_router(self) -> APIRouter:
        from cmis_stream.peer.server import peer_router

        runtime = self.runtime
        return peer_router(runtime.panes, runtime.pictures, runtime.peer_tokens, runtime.clock)

    def _made_gateway(self) -> Gateway:
        runtime = self.runtime
        access = StoreAccess(Rights(runtime.stores.database), runtime.tokens, self._gateway_tokens, runtime.clock)
        page_port = self.settings.page_port if self.settings.role is Role.GATEWAY else self.port
        origins = self.hosts.origins(page_port)
        return Gateway(
            runtime.backplane, access, runtime.snapshots,
            allowed_origins=origins, clock=runtime.clock,
            health=self.health, is_operator=self._is_operator,
        )  # fmt: skip

    # --- rules --------------------------------------------------------------------------------------------------------

    async def _follow_rules(self, path: Path) -> None:
        watch = RuleFileWatch(path)
        watch.changed()
        wanted = False
        while True:
            await asyncio.sleep(RULES_POLL_S)
            wanted |= watch.changed()
            if wanted:
                with self.runtime.guard("the rule file"):
                    try:
                        await self._read_rules(path)
                        wanted = False
                    except Unavailable as error:
                        log.warning("%s waits for the store: %s", path.name, error)

    async def _read_rules(self, path: Path, *, first: bool = False) -> None:
        """Makes the alert rules of each org be as the file says; the ones that it made and no longer has are deleted."""
        try:
            read = rule_documents(read_items(path), evaluate=self.settings.evaluate, file=path.name)
        except ConfigError as error:
            if first:
                raise
            self._tell([f"{error}; the rules before stay in force"])
            return
        documents, errors = self.runtime.stores.documents, list(read.errors)
        orgs = await asyncio.to_thread(self.runtime.tokens.orgs)
        self._ruled |= {*read.wanted, *(org.id for org in orgs)}
        for org in sorted(self._ruled):
            wanted, kept = read.wanted.get(org, ()), read.kept.get(org, ())
            applied = await asyncio.to_thread(apply_rules, documents, org, wanted, RULE_FILE, _RULE_FILE_ACTOR, kept=kept)
            errors += [f"{path.name}: {org}: {error}" for error in applied.errors]
        self._tell(errors)

    def _tell(self, errors: list[str]) -> None:
        self.rule_errors = errors
        for error in errors:
            log.warning("%s", error)
            self._report(error)

    # --- where it is --------------------------------------------------------------------------------------------------

    @property
    def _instance_file(self) -> Path:
        return self.settings.data_dir / "instance.json"

    def _announce(self) -> None:
        """`cmis ingest` and `cmis sign-in` on this machine find the address here."""
        self._instance_file.write_text(json.dumps({"url": self.url, "gateway": self.gateway_url, "pid": os.getpid()}))


def running_url(data_dir: Path) -> str | None:
    """The address of the instance on this data folder, if one has announced itself."""
    try:
        return str(json.loads((data_dir / "instance.json").read_text())["url"])
    except (OSError, ValueError, KeyError):
        return None


def sign_in_link(url: str, code: str) -> str:
    """For the browser. The code stands in the fragment, which no browser sends and no server logs; the page POSTs it."""
    return f"{url}/sign-in#code={code}"
