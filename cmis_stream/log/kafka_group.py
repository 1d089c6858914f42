"""Who owns a partition, from the group itself: each member of Faust's group has told it where it can be reached."""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Mapping
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient  # type: ignore[import-untyped]
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError, for_code  # type: ignore[import-untyped]
from faust.assignor.client_assignment import ClientMetadata
from faust.assignor.partition_assignor import PartitionAssignor
from yarl import URL

FRESH_S = 3.0
AGAIN_S = 0.2
"""An answer that helped nobody is asked for again after so long: a group that is just changing has changed by then, or not."""
ASK_S = 2.0
CLOSE_S = 1.0
_STABLE = "Stable"
_log = logging.getLogger(__name__)


class GroupOwners:
    """Partition -> URL of its owner. The group is asked when somebody wants to know, one request at a time for all of them.

    While the brokers do not answer, the owners that were known last are told: they still have their partitions, or say so.
    """

    def __init__(self, client: Mapping[str, Any], group: str, topic: str) -> None:
        """client: settings of aiokafka's clients. group: of the Faust app (`app.conf.id`). topic: whose partitions are meant."""
        self._client, self._group, self._topic = client, group, topic
        self._owners: dict[int, str] = {}
        self._asked_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None
        self._admin: AIOKafkaAdminClient | None = None

    async def owner(self, partition: int, *, instead_of: str | None = None) -> str | None:
        """http://host:port of the owner; None while the group is changing, has no members, or is not known yet.

        instead_of: an address that has turned out not to be the owner's. It may be told again: then there is no other yet.
        """
        known = self._owners.get(partition)
        age_s = asyncio.get_running_loop().time() - self._asked_at
        if age_s >= (FRESH_S if known not in (None, instead_of) else AGAIN_S):
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask())
            await asyncio.shield(self._asking)  # others wait for it, too
        return self._owners.get(partition)

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
        await self._disconnect()

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(ASK_S):
                self._owners = await self._described()
        except (KafkaError, TimeoutError, OSError) as error:
            _log.warning("the group %s could not be asked who owns what: %s", self._group, str(error) or type(error).__name__)
            await self._disconnect()  # the next time from the configured addresses on
        finally:
            self._asked_at = asyncio.get_running_loop().time()

    async def _described(self) -> dict[int, str]:
        if self._admin is None:
            self._admin = AIOKafkaAdminClient(**self._client)
            await self._admin.start()
        (response,) = await self._admin.describe_consumer_groups([self._group])
        code, _group, state, _type, _protocol, members = response.groups[0][:6]
        if code:
            raise for_code(code)(f"of the group {self._group}")
        return owners_of(self._topic, members) if state == _STABLE else {}

    async def _disconnect(self) -> None:
        admin, self._admin = self._admin, None
        if admin is not None:
            try:
                async with asyncio.timeout(CLOSE_S):
                    await admin.close()
            except (KafkaError, TimeoutError, OSError) as error:
                _log.debug("closing a connection to the group's coordinator: %r", error)


def owners_of(topic: str, members: Any) -> dict[int, str]:
    """Partition -> URL, of the members of a group as DescribeGroups tells them: (id, client, host, metadata, assignment).

    A member that is none of ours, or has no address, owns nothing that could be asked.
    """
    owners = {}
    for member_id, _client, host, _metadata, assignment in members:
        try:
            # What Faust's leader gave to the member: its partitions, and the address that it joined with.
            told: Any = ClientMetadata.loads(
                PartitionAssignor._decompress(ConsumerProtocolMemberAssignment.decode(assignment).user_data)
            )
            url, partitions = _address(told.url), told.assignment.actives.get(topic, ())
            owners.update(dict.fromkeys(map(int, partitions), url))
        except (ValueError, TypeError, KeyError, AttributeError, zlib.error) as error:
            _log.warning("member %s (%s) of the group does not say where it can be reached: %r", member_id, host, error)
    return owners


def _address(text: str) -> str:
    url = URL(text)
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"got {text!r}, expected http://HOST:PORT")
    return str(url.origin())
