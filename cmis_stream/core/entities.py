"""Who the numbers are about: leaves (what feeds report) and the entities above them (what is derived).

A leaf is one path (org, currency, platform, account, campaign, ad_set, ad, custom metric). Each leaf adds to one entity
per level; entities are numbered densely and their number is a position in the arrays of `windows.py`. Number 0 is the
sink of the levels a leaf does not have, so that adding needs no masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cmis_stream.core.batch import PATH_SEPARATOR, Int32, Int64

LEVELS = ("org", "platform", "campaign", "ad_set", "ad")
SINK = 0

# How many parts of a path, and which one must not be empty, make the entity of a level.
_PARTS = {"org": 2, "platform": 3, "campaign": 5, "ad_set": 6, "ad": 7}


class Entity(NamedTuple):
    level: str
    org: str
    currency: str
    platform: str = ""
    account: str = ""
    campaign: str = ""
    ad_set: str = ""
    ad: str = ""
    custom: str = ""


def grown(array: Int32, size: int) -> Int32:
    """The array, or a copy with room for `size` entries on its last axis, doubled, zeros behind."""
    have = array.shape[-1]
    if size <= have:
        return array
    bigger = np.zeros((*array.shape[:-1], max(size, 2 * have)), array.dtype)
    bigger[..., :have] = array
    return bigger


class Entities:
    """The leaves and entities of one partition, numbered in the order of their first event."""

    def __init__(self, levels: Sequence[str] = LEVELS) -> None:
        self.levels = tuple(levels)
        self.orgs: list[str] = []
        self.org_number: dict[str, int] = {}
        self.paths: list[str] = []
        self.entities: list[Entity] = [Entity("", "", "")]
        self.entity_org = np.zeros(1024, np.int32)
        self.leaf_org = np.zeros(1024, np.int32)
        self.rows = np.zeros((len(self.levels), 1024), np.int32)  # [level, leaf] -> entity
        self._leaf_number: dict[str, int] = {}
        self._entity_number: dict[Entity, int] = {}

    def __len__(self) -> int:
        return len(self.entities)

    @property
    def leaves(self) -> int:
        return len(self.paths)

    def org(self, name: str) -> int:
        """The org's number; a new one for a new org."""
        number = self.org_number.get(name)
        if number is None:
            number = self.org_number[name] = len(self.orgs)
            self.orgs.append(name)
        return number

    def numbers(self, paths: Sequence[str]) -> Int64:
        """Leaf numbers int64[len(paths)]; new paths get new leaves and the entities above them."""
        get, add = self._leaf_number.get, self._add
        return np.array([number if (number := get(path)) is not None else add(path) for path in paths], np.int64)

    def _add(self, path: str) -> int:
        leaf = self._leaf_number[path] = len(self.paths)
        self.paths.append(path)
        self.leaf_org = grown(self.leaf_org, leaf + 1)
        self.rows = grown(self.rows, leaf + 1)
        parts = path.split(PATH_SEPARATOR)
        org = self.leaf_org[leaf] = self.org(parts[0])
        for level, name in enumerate(self.levels):
            depth = _PARTS[name]
            if not parts[depth - 1]:
                continue
            entity = Entity(name, *parts[:depth], custom=parts[7])
            number = self._entity_number.get(entity)
            if number is None:
                number = self._entity_number[entity] = len(self.entities)
                self.entities.append(entity)
                self.entity_org = grown(self.entity_org, number + 1)
                self.entity_org[number] = org
            self.rows[level, leaf] = number
        return leaf

    def find(self, entity: Entity) -> int | None:
        return self._entity_number.get(entity)
