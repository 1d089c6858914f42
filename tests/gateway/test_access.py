"""Who may connect, and how soon it is noticed that they may no more."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cmis_stream.core.time import DAY_MS, MINUTE_MS
from cmis_stream.gateway.access import StoreAccess
from cmis_stream.gateway.ports import Grant, Refused
from cmis_stream.store.database import Database
from cmis_stream.store.rights import Rights
from cmis_stream.store.sessions import Session, SessionStore
from cmis_stream.store.signing import GatewayTokens
from cmis_stream.store.tokens import TokenStore
from tests.store.conftest import Places, places, postgres, postgres_urls

__all__ = ["places", "postgres", "postgres_urls"]
NOW = 1_767_225_600_000


class Installation:
    def __init__(self, places: Places) -> None:
        self.url, self.database = places.app, Database(places.app)
        self.tokens = TokenStore(self.database)
        for org in ("acme", "globex"):
            self.tokens.create_org(org, org)
        self.sessions = SessionStore(self.database, self.tokens)
        self.rights = Rights(self.database)
        self.signer = GatewayTokens(bytes(32))
        self.now_ms = NOW
        self.access = StoreAccess(self.rights, self.tokens, self.signer, lambda: self.now_ms)

    def session(self, *orgs: str) -> Session:
        return self.sessions.exchange(self.sessions.make_code(orgs or None, now_ms=self.now_ms), self.now_ms)[0]

    async def connected(self, session: Session) -> Grant:
        return await self.access.verify(self.signer.issue(session.id, self.now_ms)[0])

    async def expired(self, token: str) -> bool:
        with pytest.raises(Refused) as refused:
            await self.access.verify(token)
        return refused.value.expired

    def elsewhere(self, *command: str) -> None:
        """Another process runs `cmis …`."""
        code = "from cmis_stream.cli import main; main()"
        arguments = [*command, "--store", self.url]
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=Path(__file__).parents[2], capture_output=True)


@pytest.fixture
def installation(places: Places) -> Iterator[Installation]:
    made = Installation(places)
    yield made
    made.sessions.close()
    made.tokens.close()
    made.database.close()


@pytest.mark.spec("GTW-M08", partial="the token decides the org; every topic is open to whoever may read it")
async def test_a_gateway_token_opens_the_orgs_of_its_session_until_it_expires(installation: Installation) -> None:
    some, everything = installation.session("acme"), installation.session()
    grant = await installation.connected(some)
    assert grant == Grant(some.id, some.id, frozenset({"acme"}), None, NOW + 5 * MINUTE_MS)
    assert (await installation.connected(everything)).orgs == {"acme", "globex"}


async def test_a_gateway_token_bought_with_an_api_token_opens_that_tokens_org(installation: Installation) -> None:
    token, _ = installation.tokens.create("globex", ["read"])
    grant = await installation.access.verify(installation.signer.issue(token.id, NOW)[0])
    assert (grant.id, grant.orgs) == (token.id, {"globex"})


async def test_an_api_token_that_reads_connects_by_itself_and_one_that_does_not_read_never(installation: Installation) -> None:
    reader, text = installation.tokens.create("acme", ["ingest", "read"])
    assert await installation.access.verify(text) == Grant(reader.id, reader.id, frozenset({"acme"}), None, None)
    for scopes in (["ingest"], ["write", "admin"]):
        token, text = installation.tokens.create("acme", scopes)
        assert not await installation.expired(text)
        assert not await installation.expired(installation.signer.issue(token.id, NOW)[0])


async def test_only_what_has_expired_is_refused_as_expired(installation: Installation) -> None:
    session = installation.session("acme")
    gateway_token = installation.signer.issue(session.id, NOW)[0]
    short = installation.tokens.create("acme", ["read"], expires_at_ms=NOW + 60_000)[1]
    revoked, revoked_text = installation.tokens.create("acme", ["read"])
    installation.tokens.revoke(revoked.id)
    forged = GatewayTokens(bytes([1]) * 32).issue(session.id, NOW)[0]
    for token in ("", "x", "cmis_x", "cmis_a_b", gateway_token[:-1], forged, revoked_text, short + "x", "cmis_\udcff_"):
        assert not await installation.expired(token), token
    installation.now_ms = NOW + 5 * MINUTE_MS - 1
    assert (await installation.access.verify(gateway_token)).id == session.id
    installation.now_ms += 1
    assert await installation.expired(gateway_token) and await installation.expired(short)
    installation.now_ms = NOW
    installation.sessions.revoke(session.id)
    assert not await installation.expired(gateway_token)


async def test_an_unchanged_grant_is_not_named(installation: Installation) -> None:
    _, text = installation.tokens.create("acme", ["read"])
    grants = [await installation.connected(installation.session("acme")), await installation.access.verify(text)]
    assert await installation.access.changed(grants) == {} and await installation.access.changed([]) == {}


async def test_what_another_process_revokes_is_named_at_the_next_look(installation: Installation) -> None:
    session, token = installation.session(), installation.tokens.create("acme", ["read"])
    kept = await installation.connected(installation.session("globex"))
    gone = [await installation.connected(session), await installation.access.verify(token[1])]
    installation.elsewhere("session", "revoke", session.id)
    installation.elsewhere("token", "revoke", token[0].id)
    assert await installation.access.changed([kept, *gone]) == {session.id: None, token[0].id: None}
    # The token store may believe the token for a second more; the gateway does not.
    assert not await installation.expired(token[1])


async def test_what_has_expired_is_named_and_the_gateway_tokens_own_end_is_not_looked_at(installation: Installation) -> None:
    session, (token, text) = installation.session(), installation.tokens.create("acme", ["read"], expires_at_ms=NOW + DAY_MS)
    grants = [await installation.connected(session), await installation.access.verify(text)]
    installation.now_ms = NOW + DAY_MS - 1
    assert await installation.access.changed(grants) == {}
    installation.now_ms += 1
    assert await installation.access.changed(grants) == {token.id: None}
    installation.now_ms = session.expires_at_ms
    assert await installation.access.changed(grants) == {token.id: None, session.id: None}


async def test_a_new_org_reaches_the_sessions_of_all_orgs_only(installation: Installation) -> None:
    everything, some = (
        await installation.connected(installation.session()),
        await installation.connected(installation.session("acme")),
    )
    installation.elsewhere("org", "create", "initech")
    more = replace(everything, orgs=frozenset({"acme", "globex", "initech"}))
    assert await installation.access.changed([everything, some]) == {everything.id: more}
    assert await installation.access.changed([more, some]) == {}
    assert await installation.access.changed([more, everything]) == {everything.id: more}, "two connections of one session"


async def test_thousands_are_looked_up_at_once(installation: Installation) -> None:
    sessions = [installation.session("acme") for _ in range(20)]
    grants = [await installation.connected(session) for session in sessions]
    strangers = [replace(grants[0], id=f"s{number}") for number in range(5_000)]
    installation.sessions.revoke(sessions[7].id)
    changed = await installation.access.changed([*grants, *strangers])
    assert len(changed) == 5_001 and set(changed.values()) == {None} and sessions[7].id in changed
