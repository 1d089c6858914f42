"""What the gateway needs of the rest, bound in `instance.py`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cmis_stream.core.channels import Channel


@dataclass(frozen=True, slots=True)
class Grant:
    """Who is connected, and what for.

    id: the session or API token behind it, by which it is revoked. subject: a name for presence. topics None: all.
    expires_at_ms: when the gateway token ends (None: never); a refresh brings a grant with a later end.
    """

    id: str
    subject: str
    orgs: frozenset[str]
    topics: frozenset[str] | None
    expires_at_ms: int | None


class Refused(Exception):
    """The token opens nothing. expired: a new one may."""

    def __init__(self, *, expired: bool = False) -> None:
        super().__init__("the token is expired" if expired else "the token is not valid")
        self.expired = expired


class Access(Protocol):
    async def verify(self, token: str) -> Grant:
        """Raises Refused."""
        ...

    async def changed(self, grants: Collection[Grant]) -> dict[str, Grant | None]:
        """Of these connected grants, by id, those that are not what they were: None when revoked, else the new one (its orgs
        may have changed). Asked twice a second; the token's own expiry is not looked at here."""
        ...


class Snapshot(NamedTuple):
    """json: `{"items": [...]}`, what holds now. offset: of the results topic, up to which it says everything; None: everything
    that had been published when it was asked for. Where it is behind, the client gets the publications in between."""

    json: bytes
    offset: int | None = None


class Snapshots(Protocol):
    async def snapshot(self, channel: Channel) -> Snapshot | None:
        """For the subscribe reply of a client that could not recover; None without any."""
        ...
