"""Ids of facts: made of what they are about, so that everybody who works them out, once or again, gets the same."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import xxhash

from cmis_stream.core.batch import PATH_SEPARATOR

_RANDOM_BITS = 74  # of a UUIDv7: 12 behind the version, 62 behind the variant


def fact_id(at_ms: int, name: str) -> str:
    """The id of the fact called `name` that began at this moment: a UUIDv7, its random bits taken from the name.

    Ids sort by their moments (epoch ms, 48 bits). Names that differ give ids that differ (74 bits of xxh3-128).

    >>> fact_id(1767225600000, "cmis.metrics.v1/3/17/0")
    '019b76da-a800-71d6-a2ec-7216849ac021'
    """
    bits = xxhash.xxh3_128_intdigest(name.encode()) >> (128 - _RANDOM_BITS)
    high, low = bits >> 62, bits & (1 << 62) - 1
    return str(UUID(int=(at_ms & (1 << 48) - 1) << 80 | 7 << 76 | high << 64 | 2 << 62 | low))


def moment_of(fact: str) -> int:
    """The moment (epoch ms) that a fact's id was made with.

    >>> moment_of(fact_id(1767225600000, "a"))
    1767225600000
    """
    return UUID(fact).int >> 80


def incident_key(org: str, rule: str, level: str, path: Sequence[str]) -> str:
    """What the incidents of one rule and entity have in common, 16 hex digits. path: currency to ad, "" for levels below.

    >>> incident_key("acme", "r1", "platform", ["USD", "meta", "", "", "", ""])
    '496e9d647d06eee1'
    """
    return xxhash.xxh3_64_hexdigest(PATH_SEPARATOR.join((org, rule, level, *path)).encode())
