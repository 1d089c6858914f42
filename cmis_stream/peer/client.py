"""The side of those who ask: panes and snapshots of an org, wherever its partition is owned."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import quote

import httpx
import orjson

from cmis_stream.core.channels import Channel
from cmis_stream.gateway.ports import Snapshot
from cmis_stream.log.topics import partition_for
from cmis_stream.peer import CROWDED, NOT_HERE, OFFSET_HEADER, PREFIX
from cmis_stream.query.datasets import Crowded, NotHere
from cmis_stream.query.model import Fault, Faulty
from cmis_stream.store.signing import PeerTokens

QUERY_S = 10.0
SNAPSHOT_S = 1.0
"""A subscription waits at most 2 s for its snapshot, and the page can ask REST."""
CONNECT_S = 1.0
IDLE_S = 2.0
"""Less than the 5 s after which uvicorn closes a connection that nobody uses: a request must not cross with that."""
# As many as are asked for: those that wait for a worker that is stuck must not keep others from a worker that is well.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=IDLE_S)
_log = logging.getLogger(__name__)


class Owners(Protocol):
    """`log.kafka_group.GroupOwners`."""

    async def owner(self, partition: int, *, instead_of: str | None = None) -> str | None: ...


class Peers:
    """Connections to the owners. owners: where they are; nothing else is ever connected to. clock: epoch ms."""

    def __init__(self, owners: Owners, tokens: PeerTokens, partitions: int, clock: Callable[[], int]) -> None:
        self._owners, self._tokens, self._partitions, self._clock = owners, tokens, partitions, clock
        # A proxy of the environment is for the world outside.
        self._http = httpx.AsyncClient(timeout=httpx.Timeout(None, connect=CONNECT_S), limits=_LIMITS, trust_env=False)

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, method: str, org: str, path: str, body: bytes = b"", *, within_s: float) -> httpx.Response:
        """What the owner of the org's partition answers: a 200, or a problem that is not `not_here`.

        NotHere when there is no owner now, or it does not answer in time. Both methods only read, so where the owner has moved
        or the connection is lost, it is asked once more.
        """
        try:
            async with asyncio.timeout(within_s):
                return await self._ask(method, org, path, body)
        except TimeoutError:
            _log.warning("the owner of the partition of org %s did not answer within %g s", org, within_s)
            raise NotHere("the org's figures are not to be had now: the worker that holds them does not answer") from None

    async def _ask(self, method: str, org: str, path: str, body: bytes) -> httpx.Response:
        partition = partition_for(org.encode(), self._partitions)
        url = await self._owners.owner(partition)
        for last in (False, True):
            if url is None:
                break
            found = await self._sent(url, method, org, path, body)
            if isinstance(found, httpx.Response) and not _not_here(found):
                return found
            if not last:
                before, url = url, await self._owners.owner(partition, instead_of=url)
                if url == before and isinstance(found, httpx.Response):
                    break  # it said so itself
        raise NotHere("the org's figures are not here yet: its partition is moving to another worker, or being recovered")

    async def _sent(self, url: str, method: str, org: str, path: str, body: bytes) -> httpx.Response | httpx.RequestError:
        headers = {"Authorization": f"Bearer {self._tokens.issue(org, self._clock())}", "Content-Type": "application/json"}
        try:
            return await self._http.request(
                method, f"{url}{PREFIX}/{quote(org, safe='')}/{path}", content=body, headers=headers
            )  # fmt: skip
        except httpx.RequestError as error:
            _log.info("the worker at %s could not be asked: %r", url, error)
            return error


class RemotePanes:
    """`query.datasets.Dataset`: the owner's answer, or what it refused, as it would have been here."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    async def answer(self, org: str, raw: Any) -> bytes:
        response = await self._peers.ask("POST", org, "query", orjson.dumps(raw), within_s=QUERY_S)
        if response.status_code == httpx.codes.OK:
            return response.content
        problem = _problem(response)
        if response.status_code == httpx.codes.UNPROCESSABLE_ENTITY and (faults := _faults(problem)):
            raise Faulty(faults, str(problem.get("type", "")).removeprefix("/problems/") or "invalid")
        if problem.get("reason") == CROWDED:
            raise Crowded(str(problem.get("detail", "too many queries wait for their turn")))
        raise _unexpected(response, problem)


class RemoteSnapshots:
    """`gateway.ports.Snapshots` of metrics; None when the owner does not answer within a second."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    async def snapshot(self, channel: Channel) -> Snapshot | None:
        try:
            response = await self._peers.ask("GET", channel.org, f"snapshots/{channel.topic}", within_s=SNAPSHOT_S)
            if response.status_code != httpx.codes.OK:
                raise _unexpected(response, _problem(response))
        except NotHere as error:
            _log.info("no snapshot of %s: %s", channel.whole, error)
            return None
        offset = response.headers.get(OFFSET_HEADER)
        return Snapshot(response.content, None if offset is None else int(offset))


def _not_here(response: httpx.Response) -> bool:
    return response.status_code == httpx.codes.SERVICE_UNAVAILABLE and _problem(response).get("reason") == NOT_HERE


def _problem(response: httpx.Response) -> dict[str, Any]:
    """The problem document; empty when it is none."""
    try:
        found = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _faults(problem: dict[str, Any]) -> list[Fault]:
    errors = problem.get("errors")
    if not isinstance(errors, list):
        return []
    return [Fault(*(str(error.get(name, "")) for name in Fault._fields)) for error in errors if isinstance(error, dict)]


def _unexpected(response: httpx.Response, problem: dict[str, Any]) -> NotHere:
    """For the log with the address and what it said; for who asked without."""
    said = problem.get("detail", "no problem document")
    _log.error("the worker at %s answered %d: %s", response.url, response.status_code, said)
    why = {401: "its gateway.key or its clock differs", 404: "it is of another version"}.get(
        response.status_code, "its log says why"
    )
    return NotHere(f"the worker that holds the org's figures answered {response.status_code}; {why}")
