"""Who may connect and what for, from the sessions and tokens in the store: `ports.Access` for an installation's gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import replace

from cmis_stream.gateway.ports import Grant, Refused
from cmis_stream.store.rights import Rights
from cmis_stream.store.signing import GatewayTokens, NotSigned
from cmis_stream.store.tokens import TokenStore, Unauthorized


class StoreAccess:
    """Takes gateway tokens and API tokens with the scope `read`. Rights are looked up in a thread, whenever they are asked for:
    what another process has revoked is seen at once."""

    def __init__(self, rights: Rights, tokens: TokenStore, gateway_tokens: GatewayTokens, clock: Callable[[], int]) -> None:
        self._rights, self._tokens, self._gateway_tokens, self._clock = rights, tokens, gateway_tokens, clock

    async def verify(self, token: str) -> Grant:
        """The grant; raises Refused. An API token's connection has no end of its own: its expiry is seen by `changed`."""
        now_ms = self._clock()
        if token.startswith("cmis_"):
            holder_id, expires_at_ms = await asyncio.to_thread(self._api_token, token, now_ms)
        else:
            holder_id, expires_at_ms = self._signed(token, now_ms)
        # Not what was found on the way: that may be a second old.
        orgs = (await asyncio.to_thread(self._rights.readable, [holder_id], now_ms)).get(holder_id)
        if orgs is None:
            raise Refused
        return Grant(holder_id, holder_id, orgs, None, expires_at_ms)

    def _api_token(self, text: str, now_ms: int) -> tuple[str, int | None]:
        try:
            return self._tokens.verify(text, now_ms).id, None
        except Unauthorized as error:
            raise Refused(expired=error.reason == "expired") from None

    def _signed(self, text: str, now_ms: int) -> tuple[str, int]:
        try:
            signed = self._gateway_tokens.read(text)
        except NotSigned:
            raise Refused from None
        if signed.expires_at_ms <= now_ms:
            raise Refused(expired=True)
        return signed

    async def changed(self, grants: Collection[Grant]) -> dict[str, Grant | None]:
        """See `ports.Access`. Of several grants with one id, which differ in their expiry only, one is answered for all."""
        ids = {grant.id for grant in grants}
        found = await asyncio.to_thread(self._rights.readable, ids, self._clock())
        changed: dict[str, Grant | None] = {}
        for grant in grants:
            orgs = found.get(grant.id)
            if orgs is None:
                changed[grant.id] = None
            elif orgs != grant.orgs:
                changed[grant.id] = replace(grant, orgs=orgs)
        return changed
