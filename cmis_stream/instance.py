"""A running instance: the runtime, the HTTP API on a free port, the rule file, and a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from cmis_stream.api.app import create_app
from cmis_stream.api.ingest import ApiPorts, Busy, LogUnavailable
from cmis_stream.core.batch import Batch
from cmis_stream.core.errors import CmisError, ConfigError
from cmis_stream.feeds.decode import Refusal
from cmis_stream.log.owner import Owner
from cmis_stream.log.packer import Pressure
from cmis_stream.modules.alerts.rule_file import RuleFileWatch, differences, read_rules
from cmis_stream.runtime import METRICS, Runtime
from cmis_stream.settings import Settings

log = logging.getLogger("cmis.rules")
PORTS_TRIED = 20
RULES_POLL_S = 0.5
API_STOPS_WITHIN_S = 1


class _Server(uvicorn.Server):
    """uvicorn without signal handlers: this process has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Instance:
    """`async with Instance(settings) as instance`: accepts events from entry to exit."""

    def __init__(self, settings: Settings, report: Callable[[str], None] = lambda _: None) -> None:
        """report: told of each error in the rule file, at the start and whenever it is read again."""
        self.settings, self._report = settings, report
        self.runtime = Runtime(settings)
        self.rule_errors: list[str] = []
        self._socket = listening_socket(settings.host, settings.port)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://{settings.host}:{self.port}"
        self._server = _Server(uvicorn.Config(self._app(), lifespan="off", log_level="warning", access_log=False, backlog=2048))
        self._server.config.timeout_graceful_shutdown = API_STOPS_WITHIN_S
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Instance:
        try:
            await self.runtime.start()
            if self.settings.rules_file is not None:
                await self._read_rules(self.settings.rules_file, first=True)
                self._tasks.append(asyncio.create_task(self._follow_rules(self.settings.rules_file)))
            self._tasks.append(asyncio.create_task(self._server.serve(sockets=[self._socket])))
            while not self._server.started and not self._tasks[-1].done():
                await asyncio.sleep(0.005)
            self._announce()
        except BaseException:  # also a cancelled start gives back the lock and the port; it is raised again
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """New requests are refused, those under way are answered, everything accepted is safe."""
        self._server.should_exit = True
        for task in self._tasks[:-1]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._socket.close()
        self._instance_file.unlink(missing_ok=True)
        await self.runtime.stop()

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

    # --- http ---------------------------------------------------------------------------------------------------------

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

        return create_app(ApiPorts(runtime.tokens, publish, dead_letter, runtime.clock))

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
        """`cmis ingest` on this machine finds the address here."""
        self._instance_file.write_text(json.dumps({"url": self.url, "pid": os.getpid()}))


def running_url(data_dir: Path) -> str | None:
    """The address of the instance on this data folder, if one has announced itself."""
    try:
        return str(json.loads((data_dir / "instance.json").read_text())["url"])
    except (OSError, ValueError, KeyError):
        return None


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket on `port`, or on the next free one when it is taken (0: any). ConfigError when none is."""
    for candidate in range(port, port + (PORTS_TRIED if port else 1)):
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, candidate))
            sock.listen(2048)
        except OSError as error:
            sock.close()
            if error.errno != errno.EADDRINUSE:
                raise ConfigError(f"cannot listen on {host}:{candidate}: {error.strerror}") from None
        else:
            return sock
    raise ConfigError(f"ports {port} to {port + PORTS_TRIED - 1} on {host} are all taken; choose another with --port")
