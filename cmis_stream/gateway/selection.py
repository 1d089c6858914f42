"""Which items of a topic a subscription wants: its channel's entity, and a filter of its own in the subscribe data.

    {"filter": {"entities": ["USD/meta", "USD/google"], "depth": 2}, "since": 1767225600000}

entities: keys as in `core.channels.entity_key`. depth: entities of at most so many parts (1: the org's money in a currency,
2: with platforms, 4: with campaigns). since: epoch ms; publications from that moment on come first, then the live ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from cmis_stream.backplane.contract import Item, Publication, encoded
from cmis_stream.core.channels import Channel
from cmis_stream.gateway import codes
from cmis_stream.gateway.codes import CommandError

MOST_ENTITIES = 1_000
DEEPEST = 6


class Filter(msgspec.Struct, forbid_unknown_fields=True):
    entities: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MOST_ENTITIES)] | None = None
    depth: Annotated[int, msgspec.Meta(ge=1, le=DEEPEST)] | None = None


class SubscribeData(msgspec.Struct, forbid_unknown_fields=True):
    filter: Filter | None = None
    since: Annotated[int, msgspec.Meta(ge=0)] | None = None


class _Snapshot(msgspec.Struct):
    items: list[msgspec.Raw]


class _About(msgspec.Struct):
    entity: str


_data = msgspec.json.Decoder(SubscribeData).decode
_snapshot = msgspec.json.Decoder(_Snapshot).decode
_about = msgspec.json.Decoder(_About).decode


@dataclass(frozen=True, slots=True)
class Selection:
    """entities None: all, of at most `depth` parts if that is given. Equal selections share their encoded publications."""

    entities: frozenset[str] | None = None
    depth: int | None = None

    @property
    def everything(self) -> bool:
        return self.entities is None and self.depth is None

    @property
    def only(self) -> str | None:
        """The one entity that can be wanted, if it is one."""
        return next(iter(self.entities)) if self.entities is not None and len(self.entities) == 1 else None

    def wants(self, entity: str) -> bool:
        if self.entities is not None and entity not in self.entities:
            return False
        return self.depth is None or entity.count("/") < self.depth

    def chosen(self, publication: Publication) -> Sequence[Item]:
        if self.everything:
            return publication.items
        if (entity := self.only) is not None:
            return publication.by_entity.get(entity, ()) if self.wants(entity) else ()
        return [item for item in publication.items if self.wants(item.entity)]

    def data(self, publication: Publication) -> bytes:
        """The publication's data with what is chosen of it."""
        return publication.data() if self.everything else encoded(item.json for item in self.chosen(publication))

    def of_snapshot(self, json: bytes, most_bytes: int) -> list[bytes]:
        """Of `{"items": [...]}` those items that are wanted, in parts of about `most_bytes` in the same form; one at least."""
        if self.everything and len(json) <= most_bytes:
            return [json]
        parts: list[list[msgspec.Raw]] = [[]]
        size = 0
        for item in _snapshot(json).items:
            if self.everything or self.wants(_about(item).entity):
                if size > most_bytes:
                    parts.append([])
                    size = 0
                parts[-1].append(item)
                size += len(bytes(item))
        return [msgspec.json.encode({"items": part}) for part in parts]


def parse_selection(channel: Channel, data: bytes) -> tuple[Selection, int | None]:
    """The selection and `since`; CommandError 107 when the data is not of the form above."""
    try:
        given = _data(data) if data and data != b"null" else SubscribeData()
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CommandError(codes.BAD_REQUEST, f"data: {error}; {_known()}") from None
    entities: frozenset[str] | None = None
    depth: int | None = None
    if given.filter is not None:
        entities = None if given.filter.entities is None else frozenset(given.filter.entities)
        depth = given.filter.depth
    if channel.entity is not None:
        entities = frozenset((channel.entity,)) if entities is None else entities & {channel.entity}
    return Selection(entities, depth), given.since


def _known() -> str:
    def names(type_: Any) -> str:
        return ", ".join(field.name for field in msgspec.structs.fields(type_))

    return f"expected an object with some of {names(SubscribeData)}, filter with some of {names(Filter)}"
