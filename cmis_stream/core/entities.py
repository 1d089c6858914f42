"""Who the numbers are about: leaves (what feeds report) and the entities above them (what is derived).

A leaf is one path (org, currency, platform, account, campaign, ad_set, ad, custom metric). Each leaf adds to one entity
per level; entities are numbered densely and their number is a position in the arrays of `windows.py`. Number 0 is the
sink of the levels a leaf does not have, so that adding needs no masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from cmis_stream.core.batch import PATH_SEPARATOR, Int64

T = TypeVar("T", bound=np.generic)

LEVELS = ("org", "platform", "campaign", "ad_set", "ad")
SINK = 0

# How many parts of a path, and which one must not be empty, make the entity of a level.
_CUSTOM = "\x1e"
_AD = LEVELS.index("ad")
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


def grown(array: npt.NDArray[T], size: int) -> npt.NDArray[T]:
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
        self.levels = tuple(level for level in LEVELS if level in levels)
        self.orgs: list[str] = []
        self.org_number: dict[str, int] = {}
        self.paths: list[str] = []
        self.entity_org = np.zeros(1024, np.int32)
        self.entity_level = np.zeros(1024, np.int8)  # place in LEVELS
        self.leaf_org = np.zeros(1024, np.int32)
        self.rows = np.zeros((len(self.levels), 1024), np.int32)  # [level, leaf] -> entity
        self._keys: list[str] = [""]  # entity -> the part of a path that makes it
        self._leaf_number: dict[str, int] = {}
        self._entity_number: dict[str, int] = {}
        self._above: dict[str, tuple[int, ...]] = {}  # path without the ad -> org and entities of the levels above
        self._org_of_new: list[int] = []  # of the entities that `_add` is making
        self._level_of_new: list[int] = []

    def __len__(self) -> int:
        return len(self._keys)

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
        known = list(map(self._leaf_number.get, paths, repeat(-1)))
        numbers = np.array(known, np.int64)
        places = np.flatnonzero(numbers < 0).tolist()
        if places:
            numbers[places] = self._add([paths[i] for i in places])
        return numbers

    def entity(self, number: int) -> Entity:
        head, _, custom = self._keys[number].partition(_CUSTOM)
        return Entity(LEVELS[self.entity_level[number]], *head.split(PATH_SEPARATOR))._replace(custom=custom)

    def find(self, entity: Entity) -> int | None:
        depth = _PARTS[entity.level]
        key = PATH_SEPARATOR.join(entity[1 : depth + 1])
        if entity.level == "ad" and "ad" in self.levels:
            leaf = self._leaf_number.get(f"{key}{PATH_SEPARATOR}{entity.custom}")
            return None if leaf is None else int(self.rows[self.levels.index("ad"), leaf])
        return self._entity_number.get(f"{key}{_CUSTOM}{entity.custom}" if entity.custom else key)

    def _add(self, paths: Sequence[str]) -> list[int]:
        numbers, columns = [], []
        known, above_of, with_ads = self._leaf_number, self._above, "ad" in self.levels
        first, entities = len(self.paths), len(self._keys)
        for path in paths:
            number = known.get(path)
            if number is None:
                number = known[path] = len(self.paths)
                self.paths.append(path)
                head, _, custom = path.rpartition(PATH_SEPARATOR)
                parent, _, ad = head.rpartition(PATH_SEPARATOR)
                key = f"{parent}{_CUSTOM}{custom}" if custom else parent
                above = above_of.get(key)
                if above is None:
                    above = above_of[key] = self._entities_above(parent, custom)
                if with_ads:
                    # A leaf with an ad is that ad's only one, so an ad is new with its leaf and needs no dict of its own.
                    columns.append((*above, len(self._keys) if ad else SINK))
                    if ad:
                        self._keys.append(f"{head}{_CUSTOM}{custom}" if custom else head)
                        self._org_of_new.append(above[0])
                        self._level_of_new.append(_AD)
                else:
                    columns.append(above)
            numbers.append(number)
        total = len(self.paths)
        self.leaf_org, self.rows = grown(self.leaf_org, total), grown(self.rows, total)
        self.entity_org, self.entity_level = grown(self.entity_org, len(self)), grown(self.entity_level, len(self))
        if columns:
            table = np.array(columns, np.int32).T
            self.leaf_org[first:total], self.rows[:, first:total] = table[0], table[1:]
            self.entity_org[entities : len(self)], self.entity_level[entities : len(self)] = self._org_of_new, self._level_of_new
            self._org_of_new.clear()
            self._level_of_new.clear()
        return numbers

    def _entities_above(self, parent: str, custom: str) -> tuple[int, ...]:
        """The org's number and the entities of the kept levels above an ad that a leaf with this parent path adds to."""
        parts = parent.split(PATH_SEPARATOR)
        org = self.org(parts[0])
        above = [org]
        for name in self.levels:
            depth = _PARTS[name]
            if name != "ad":
                present = parts[depth - 1] != ""
                above.append(self._number(name, PATH_SEPARATOR.join(parts[:depth]), custom, org) if present else SINK)
        return tuple(above)

    def _number(self, level: str, key: str, custom: str, org: int) -> int:
        if custom:
            key = f"{key}{_CUSTOM}{custom}"
        number = self._entity_number.get(key)
        if number is None:
            number = self._entity_number[key] = len(self._keys)
            self._keys.append(key)
            self._org_of_new.append(org)
            self._level_of_new.append(LEVELS.index(level))
        return number
