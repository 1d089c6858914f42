"""A running instance: the runtime, the HTTP API with the page, the gateway, the rule file, and a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from cmis_stream.api.app import create_app
from cmis_stream.api.auth import Auth
from cmis_stream.api.hosts import Hosts, reachable
from cmis_stream.api.incidents import incidents_router
from cmis_stream.api.ingest import ApiPorts, Busy, LogUnavailable
from cmis_stream.api.page import Page
from cmis_stream.api.query import query_router
from cmis_stream.api.session import session_router
from cmis_stream.core.batch import Batch
from cmis_stream.core.errors import CmisError, ConfigError
from cmis_stream.feeds.decode import Refusal
from cmis_stream.gateway.access import StoreAccess
from cmis_stream.gateway.server import PATH, Gateway
from cmis_stream.log.owner import Owner
from cmis_stream.log.packer import Pressure
from cmis_stream.modules.alerts.rule_file import RuleFileWatch, differences, read_rules
from cmis_stream.runtime import METRICS, Runtime
from cmis_stream.serving import HttpServer, listening_socket
from cmis_stream.settings import Settings
from cmis_stream.store.rights import Rights
from cmis_stream.store.sessions import SessionStore
from cmis_stream.store.signing import GatewayTokens, signing_key

log = logging.getLogger("cmis.rules")
RULES_POLL_S = 0.5


class Instance:
    """`async with Instance(settings) as instance`: accepts events and browsers from entry to exit."""

    def __init__(self, settings: Settings, report: Callable[[str], None] = lambda _: None) -> None:
        """report: told of each error in the rule file, at the start and whenever it is read again."""
        self.settings, self._report = settings, report
        self.rule_errors: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._gateway_tokens = GatewayTokens(signing_key(settings.gateway_key_path))
        with contextlib.ExitStack() as ports:  # given back when the rest cannot be made
            api_socket = ports.enter_context(listening_socket(settings.host, settings.port))
            gateway_socket = ports.enter_context(listening_socket(settings.host, settings.wanted_gateway_port, "--gateway-port"))
            self.port: int = api_socket.getsockname()[1]
            self.gateway_port: int = gateway_socket.getsockname()[1]
            self.hosts = Hosts(settings.host, settings.public_hosts, self.gateway_port)
            self.runtime = Runtime(settings)
            self.sessions = SessionStore(self.runtime.tokens)
            self._rights = Rights(settings.store_path)
            self._api = HttpServer(self._app(), api_socket)
            self._gateway, self._gateway_socket = self._made_gateway(), gateway_socket
            ports.pop_all()
        host = reachable(settings.host)
        self.url = f"http://{host}:{self.port}"
        self.gateway_url = f"ws://{host}:{self.gateway_port}{PATH}"

    async def __aenter__(self) -> Instance:
        try:
            await self.runtime.start()
            if self.settings.rules_file is not None:
                await self._read_rules(self.settings.rules_file, first=True)
                self._tasks.append(asyncio.create_task(self._follow_rules(self.settings.rules_file)))
            await self._gateway.start(self._gateway_socket)
            await self._api.start()
            self._announce()
        except BaseException:  # also a cancelled start gives back the lock and the ports; it is raised again
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """New requests are refused, those under way are answered, everything accepted is safe."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(self._api.stop(), self._gateway.stop(), *self._tasks, return_exceptions=True)
        self._gateway_socket.close()
        self._instance_file.unlink(missing_ok=True)
        try:
            await self.runtime.stop()
        finally:
            self.sessions.close()
            self._rights.close()

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
        ends = {partition: runtime.highwater(METRICS, partition) for partition in range(runtime.partitions)}
        while any(owner.position < ends[owner.partition] - 1 for owner in self.owners):
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
        routers = [
            session_router(auth, self._gateway_tokens),
            query_router(runtime.queries, auth.authorize),
            incidents_router(runtime.facts, auth.authorize),
        ]
        return create_app(ApiPorts(auth, publish, dead_letter, runtime.clock), routers, Page(self.hosts))

    def _made_gateway(self) -> Gateway:
        runtime = self.runtime
        access = StoreAccess(self._rights, runtime.tokens, self._gateway_tokens, runtime.clock)
        origins = self.hosts.origins(self.port)
        return Gateway(runtime.backplane, access, runtime.snapshots, allowed_origins=origins, clock=runtime.clock)

    # --- rules --------------------------------------------------------------------------------------------------------

    async def _follow_rules(self, path: Path) -> None:
        watch = RuleFileWatch(path)
        watch.changed()
        while True:
            await asyncio.sleep(RULES_POLL_S)
            if watch.changed():
                with self.runtime.guard("the rule file"):
                    await self._read_rules(path)

    async def _read_rules(self, path: Path, *, first: bool = False) -> None:
        try:
            read = read_rules(path, evaluate=self.settings.evaluate)
        except ConfigError as error:
            if first:
                raise
            self._tell([f"{error}; the rules before stay in force"])
            return
        self._tell(read.errors)
        stored = self.runtime.rule_sets.current()
        before = {org: row.rules for org, row in stored.items() if row.evaluate == self.settings.evaluate}
        for org, rules in differences(before, read.rules):
            await self.runtime.put_rules(org, rules)

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
