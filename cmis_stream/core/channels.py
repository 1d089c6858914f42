"""Names: entities as one string, and the gateway's channels `org:{org}:{topic}[:{entity}]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote, unquote

from cmis_stream.core.errors import Rejected

LOSSLESS, CONFLATED = "lossless", "conflated"
TOPICS = {"metrics": CONFLATED, "incidents": LOSSLESS, "jobs": LOSSLESS}
"""Topic of a channel -> how it is delivered."""

LONGEST_CHANNEL = 2048


class Channel(NamedTuple):
    """entity None: everything of the topic."""

    org: str
    topic: str
    entity: str | None = None

    @property
    def whole(self) -> str:
        """The name of the channel that this one is, or is a part of."""
        return f"org:{self.org}:{self.topic}"

    def __str__(self) -> str:
        return self.whole if self.entity is None else f"{self.whole}:{quote(self.entity, safe='')}"


def parse_channel(name: str) -> Channel:
    """The channel; Rejected when the name does not have its form. Whether org and topic exist is not looked at.

    >>> parse_channel("org:acme:metrics:USD%2Fmeta")
    Channel(org='acme', topic='metrics', entity='USD/meta')
    """
    parts = name.split(":")
    if len(name) > LONGEST_CHANNEL or len(parts) not in (3, 4) or parts[0] != "org" or not all(parts):
        raise Rejected("invalid", "channel", name, "org:{org}:{topic} or org:{org}:{topic}:{entity}")
    return Channel(parts[1], parts[2], unquote(parts[3]) if len(parts) == 4 else None)


def entity_key(path: Sequence[str], custom: str = "") -> str:
    """The entity with this path below its org (currency, platform, account, campaign, ad_set, ad; shorter for those above).

    >>> entity_key(["USD", "meta", "act_7", "spring/sale"]), entity_key(["USD"], "views")
    ('USD/meta/act_7/spring%2Fsale', 'USD#views')
    """
    key = "/".join(quote(part, safe="") for part in path)
    return f"{key}#{quote(custom, safe='')}" if custom else key
