"""The hub: the node's connections, what their commands do, and the watch over deadlines and access."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial

from cmis_stream.backplane.contract import Backplane, Unready
from cmis_stream.core.errors import CmisError
from cmis_stream.gateway import codes, protocol
from cmis_stream.gateway.client import Client, Socket
from cmis_stream.gateway.codes import CommandError, Disconnect
from cmis_stream.gateway.feed import Subscription
from cmis_stream.gateway.figures import Figures
from cmis_stream.gateway.limits import Limits
from cmis_stream.gateway.ports import Access, Grant, Refused, Snapshots
from cmis_stream.gateway.protocol import Request
from cmis_stream.gateway.subscriptions import Subscriptions, may_see

log = logging.getLogger("cmis.gateway")

Method = Callable[[Grant, bytes], Awaitable[bytes]]
"""What an rpc command calls: (who, JSON or nothing) -> JSON. May raise CommandError."""


class Hub:
    """figures: its totals. clients: the connections, from `opened` until they close."""

    def __init__(
        self,
        backplane: Backplane,
        access: Access,
        snapshots: Snapshots,
        limits: Limits,
        *,
        node: str,
        version: str,
        clock: Callable[[], int],
        methods: Mapping[str, Method],
    ) -> None:
        """clock: epoch ms, for tokens. methods: by name, for rpc commands."""
        self.limits, self.figures = limits, Figures()
        self.clients: set[Client] = set()
        self.subscriptions = Subscriptions(backplane, snapshots, limits, self.figures, clock)
        self._access, self._node, self._version, self._clock, self._methods = access, node, version, clock, methods
        self._holders: dict[str, set[Client]] = {}  # grant id -> its connections
        self._per_org: Counter[str] = Counter()
        self._watches: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._watches = [asyncio.create_task(watch) for watch in (self._watch_deadlines(), self._watch_access())]

    async def stop(self) -> None:
        """Call when all connections have been closed."""
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)

    # --- connections --------------------------------------------------------------------------------------------------

    def opened(self, socket: Socket) -> Client:
        client = Client(socket, self.limits, self.figures, time.monotonic(), self._too_slow)
        self.clients.add(client)
        self.figures.connections += 1
        return client

    async def receive(self, client: Client, frame: str | bytes) -> None:
        """A message of this client; returns when the next one may come."""
        if client.gone:
            return
        try:
            for command in client.session.receive(frame, time.monotonic()):
                self.figures.commands += 1
                await self._handle(client, command.id, command.request)
                if client.gone:
                    return
        except Disconnect as disconnect:
            self.disconnect(client, disconnect)

    def disconnect(self, client: Client, disconnect: Disconnect) -> None:
        """Closes the connection; what waits for it is dropped."""
        if not client.gone:
            self._release(client, disconnect.code)
            client.socket.close(disconnect.code, disconnect.reason)

    def closed(self, client: Client, code: int) -> None:
        """The connection has ended; code: the websocket's close code."""
        if not client.gone:
            self._release(client, code)

    def _release(self, client: Client, code: int) -> None:
        self.figures.closes[code] += 1
        client.gone = True
        client.outbox.stop()
        client.cancel_tasks()
        for subscription in list(client.subscriptions.values()):
            self.subscriptions.end(subscription)
        self.clients.discard(client)
        self._hold(client, None)

    def _too_slow(self, client: Client, reason: str) -> None:
        self.disconnect(client, Disconnect(codes.SLOW, reason))

    def _hold(self, client: Client, grant: Grant | None) -> None:
        """The client has this grant now, in the place of the one it had."""
        if (before := client.grant) is not None:
            for org in before.orgs:
                self._per_org[org] -= 1
            holders = self._holders[before.id]
            holders.discard(client)
            if not holders:
                del self._holders[before.id]
        client.grant = grant
        if grant is not None:
            self._per_org.update(grant.orgs)
            self._holders.setdefault(grant.id, set()).add(client)

    # --- watching -----------------------------------------------------------------------------------------------------

    async def _watch_deadlines(self) -> None:
        while True:
            self._tick(time.monotonic())
            await asyncio.sleep(self.limits.watch_s)

    def _tick(self, now: float) -> None:
        for client in list(self.clients):
            try:
                if ping := client.session.tick(now):
                    client.send(ping)
            except Disconnect as disconnect:
                self.disconnect(client, disconnect)
            except Exception:  # a bug costs this connection; the watch over the others goes on
                log.exception("client %s could not be looked after", client.id)
                self.disconnect(client, Disconnect(codes.SERVER_ERROR))

    async def _watch_access(self) -> None:
        while True:
            await asyncio.sleep(self.limits.watch_s)
            # Of every client: those of one session that connected at different times may hold different orgs.
            grants = [client.grant for holders in self._holders.values() for client in holders if client.grant is not None]
            try:
                changed = await self._access.changed(grants) if grants else {}
            except CmisError as error:  # the store is away or locked: access stays as it was until it can be asked again
                log.warning("access cannot be checked: %s", error)
                continue
            except Exception:  # a bug: the watch goes on
                log.exception("access could not be checked")
                continue
            for id_, grant in changed.items():
                self._change(id_, grant)

    def _change(self, id_: str, grant: Grant | None) -> None:
        for client in list(self._holders.get(id_, ())):
            if grant is None:
                self.disconnect(client, Disconnect(codes.INVALID_TOKEN, "revoked"))
            elif client.grant is not None:
                self._regrant(client, replace(client.grant, orgs=grant.orgs, topics=grant.topics))

    def _regrant(self, client: Client, grant: Grant) -> None:
        self._hold(client, grant)
        for name, subscription in list(client.subscriptions.items()):
            if not may_see(grant, subscription.channel):
                self.subscriptions.end(subscription)
                client.send(protocol.unsubscribe_push(name, codes.UNSUBSCRIBED_BY_SERVER, "permission denied"))

    # --- commands -----------------------------------------------------------------------------------------------------

    async def _handle(self, client: Client, number: int, request: Request | CommandError) -> None:
        """Commands that have to wait are carried out beside each other; connect alone, as everything depends on it."""
        answer = partial(self._answer, client, number)
        match request:
            case protocol.Subscribe():
                try:
                    subscription, since_ms = self.subscriptions.register(client, request)
                except CommandError as error:
                    client.answer_error(number, error)
                    return
                join = partial(self.subscriptions.join, subscription, number, request, since_ms)
                task = await client.work(answer(join))
                subscription.joining = subscription.joining or task
            case protocol.Unsubscribe():
                ended = client.subscriptions.get(request.channel)
                if ended is not None and ended.joining is not None and not ended.replied:
                    await client.work(answer(partial(self._unsubscribe, number, ended)))
                else:
                    await answer(partial(self._unsubscribe, number, ended))
            case protocol.History():
                await client.work(answer(partial(self._history, client, number, request)))
            case protocol.Rpc():
                await client.work(answer(partial(self._rpc, client, number, request)))
            case protocol.Refresh():
                await client.work(answer(partial(self._refresh, client, number, request)))
            case protocol.Connect():
                await answer(partial(self._connect, client, number, request))
            case protocol.Send():
                pass
            case _:
                await answer(partial(self._at_once, client, number, request))

    async def _answer(self, client: Client, number: int, carry_out: Callable[[], Awaitable[bytes | None]]) -> None:
        """Sends the reply that `carry_out` gives, if it does not reply itself. What goes wrong with it ends here."""
        try:
            reply = await carry_out()
            if reply is not None:
                client.send(reply)
        except CommandError as error:
            client.answer_error(number, error)
        except Unready:
            client.answer_error(number, CommandError(codes.INTERNAL, "not ready yet"))
        except Disconnect as disconnect:
            self.disconnect(client, disconnect)
        except CmisError as error:  # of a port: the store is away, say
            log.warning("a command of client %s failed: %s", client.id, error)
            client.answer_error(number, CommandError(codes.INTERNAL))
        except Exception:  # of a port or of ours: it costs this command, not the connection or the process
            log.exception("a command of client %s failed", client.id)
            client.answer_error(number, CommandError(codes.INTERNAL))

    async def _at_once(self, client: Client, number: int, request: Request | CommandError) -> bytes:
        match request:
            case CommandError():
                raise request
            case protocol.Presence() | protocol.PresenceStats():
                present = self.subscriptions.present(self.subscriptions.allowed(client, request.channel), request.channel)
                if isinstance(request, protocol.PresenceStats):
                    stats = {"num_clients": len(present), "num_users": len(set(present.values()))}
                    return protocol.reply(number, "presence_stats", stats)
                infos = {id_: {"client": id_, "user": subject} for id_, subject in present.items()}
                return protocol.reply(number, "presence", {"presence": infos})
            case protocol.Publish():
                raise CommandError(codes.PERMISSION_DENIED)  # no channel takes publications from clients
            case _:
                raise CommandError(codes.NOT_AVAILABLE)

    async def _connect(self, client: Client, number: int, request: protocol.Connect) -> bytes | None:
        try:
            grant = await self._verified(request.token)
        except CommandError:
            client.session.refused()
            raise
        if client.gone:
            return None
        if any(self._per_org[org] >= self.limits.connections_per_org for org in grant.orgs):
            raise Disconnect(codes.CONNECTION_LIMIT, f"expected at most {self.limits.connections_per_org} of an org")
        self._hold(client, grant)
        # Pings are spread, also those of clients that all came back at the same moment.
        client.session.connected(time.monotonic(), self.limits.ping_s * random.uniform(0.5, 1))
        ttl_s = self._set_expiry(client, grant)
        result = protocol.connect_result(client.id, self._version, self._node, self.limits, ttl_s)
        return protocol.reply(number, "connect", result)

    async def _refresh(self, client: Client, number: int, request: protocol.Refresh) -> bytes:
        grant = await self._verified(request.token)
        if client.grant is None or grant.subject != client.grant.subject:
            raise Disconnect(codes.INVALID_TOKEN, "of another subject")
        self._regrant(client, grant)
        result = protocol.refresh_result(client.id, self._version, self._set_expiry(client, grant))
        return protocol.reply(number, "refresh", result)

    async def _verified(self, token: str) -> Grant:
        try:
            grant = await self._access.verify(token)
        except Refused as refused:
            if refused.expired:
                raise CommandError(codes.TOKEN_EXPIRED) from None
            raise Disconnect(codes.INVALID_TOKEN) from None
        if grant.expires_at_ms is not None and grant.expires_at_ms <= self._clock():
            raise CommandError(codes.TOKEN_EXPIRED)
        return grant

    def _set_expiry(self, client: Client, grant: Grant) -> int | None:
        """Seconds until the client is to refresh; None: never."""
        if grant.expires_at_ms is None:
            client.session.expires(None)
            return None
        left_s = (grant.expires_at_ms - self._clock()) / 1000
        client.session.expires(time.monotonic() + left_s)
        return max(1, math.ceil(left_s))

    async def _unsubscribe(self, number: int, ended: Subscription | None) -> bytes:
        if ended is not None:
            if ended.joining is not None and not ended.replied:
                await asyncio.wait([ended.joining])  # so that the replies come in the order of the commands
            elif ended.joining is not None:
                ended.joining.cancel()
            self.subscriptions.end(ended)
        return protocol.reply(number, "unsubscribe", {})

    async def _history(self, client: Client, number: int, request: protocol.History) -> bytes:
        channel = self.subscriptions.allowed(client, request.channel)
        return protocol.reply(number, "history", await self.subscriptions.history(channel, request))

    async def _rpc(self, client: Client, number: int, request: protocol.Rpc) -> bytes:
        method = self._methods.get(request.method)
        if method is None or client.grant is None:
            raise CommandError(codes.METHOD_NOT_FOUND)
        answer = await method(client.grant, bytes(request.data))
        return protocol.reply(number, "rpc", {"data": protocol.one_line(answer)})
