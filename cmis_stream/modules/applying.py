"""Making documents be as a file says: what that takes, worked out without doing it. Pure.

What a file made carries `metadata.applied_from`, the name of its set. A document without one is taken over by the set that names
it; a document of another set is a conflict. Documents are named by their kind's natural key, of kinds without one by their id.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from cmis_stream.core.errors import Rejected
from cmis_stream.store.bodies import NotValid, checked, validated, written
from cmis_stream.store.commands import APPLIED_FROM
from cmis_stream.store.decisions import Body
from cmis_stream.store.fields import in_rest, times_of
from cmis_stream.store.kinds import Kind, Kinds
from cmis_stream.store.writing import as_uuid

from .applying_order import dependents_last, ranks

ABSENT: Final = ...
_SOME_ID = "00000000-0000-7000-8000-000000000000"
_NO_OWNER = "no such field in a file: whoever applies it owns what is new"


class Wanted(NamedTuple):
    """A document as a file has it. key: its natural key, or its id for kinds without. body: its kind's fields, tags, metadata;
    fields that point at others may hold natural keys. place: in the file, for messages. id: of a kind with a key, if it is said.
    """

    kind: str
    key: str
    body: Mapping[str, Any]
    place: str = ""
    id: str | None = None


class Existing(NamedTuple):
    """A document that is there, or was (deleted)."""

    kind: str
    id: str
    version: int
    body: Mapping[str, Any]
    deleted: bool = False


class Difference(NamedTuple):
    """A field that would change; ABSENT where there is none. Times in RFC 3339."""

    field: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Create:
    kind: str
    key: str
    place: str
    id: str
    body: Body


@dataclass(frozen=True, slots=True)
class Change:
    """restored: it was deleted, and comes back first."""

    kind: str
    key: str
    place: str
    id: str
    version: int
    body: Body
    fields: tuple[Difference, ...]
    restored: bool = False


@dataclass(frozen=True, slots=True)
class Same:
    kind: str
    key: str
    place: str
    id: str


@dataclass(frozen=True, slots=True)
class Remove:
    kind: str
    key: str
    id: str
    version: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """Why this document cannot be as it is wanted; the error's field begins with its place."""

    kind: str
    key: str
    place: str
    error: Rejected


Step = Create | Change | Same | Remove | Conflict


class Operation(NamedTuple):
    """As items of a bulk have it. body: None for what takes none."""

    op: str
    kind: str
    id: str
    version: int | None
    body: Body | None


def operations(step: Create | Change | Remove) -> list[Operation]:
    """What carries out a step, in this order."""
    if isinstance(step, Create):
        return [Operation("create", step.kind, step.id, None, step.body)]
    if isinstance(step, Remove):
        return [Operation("delete", step.kind, step.id, step.version, None)]
    back = [Operation("restore", step.kind, step.id, step.version, None)] if step.restored else []
    return [*back, Operation("update", step.kind, step.id, step.version + len(back), step.body)]


def mistakes(kind: Kind, wanted: Wanted) -> list[Rejected]:
    """What is wrong in a document by itself, whatever else there is; fields begin with its place."""
    body = {name: _with_ids(kind, name, value) for name, value in wanted.body.items()}
    try:
        _made(kind, body, None, "")
    except Rejected as error:
        return list(_placed(wanted.place, error))
    return []


def plan(
    kinds: Kinds,
    wanted: Sequence[Wanted],
    existing: Iterable[Existing],
    set_name: str,
    *,
    new_id: Callable[[], str],
    prune: bool = False,
    kept: Collection[tuple[str, str]] = (),
) -> list[Step]:
    """What makes documents be as wanted: conflicts, then what is created and changed (what others point at before them), what
    is the same, and what is removed (in the opposite order).

    existing: all documents of the kinds that are wanted or pointed at by key; with `prune` of all kinds whose documents may be
    removed: those that this set made and that are not wanted any more. kept: (kind, key) not to be removed all the same. new_id:
    UUIDs for new documents, so that others can point at them.
    """
    return _Plan(kinds, existing, set_name, new_id).steps(wanted, prune, kept)


class _Plan:
    def __init__(self, kinds: Kinds, existing: Iterable[Existing], set_name: str, new_id: Callable[[], str]) -> None:
        self.kinds, self.set_name, self.new_id = kinds, set_name, new_id
        self.by_id = {(one.kind, one.id): one for one in existing}
        self.by_key = {(one.kind, _key(kinds[one.kind], one)): one for one in self.by_id.values() if not one.deleted}
        self.ids = {name: one.id for name, one in self.by_key.items()}
        """(kind, key) -> id, of what is there and of what will be."""
        self.conflicts: list[Step] = []

    def steps(self, wanted: Sequence[Wanted], prune: bool, kept: Collection[tuple[str, str]]) -> list[Step]:
        found = self._matched(wanted)
        named = {identity for _, identity, _ in found} | {one.id for one in wanted if one.id is not None}
        removes = self._removes(named, kept) if prune else []
        gone = {(one.kind, one.id) for one in removes}
        changing: list[Create | Change] = []
        same: list[Step] = []
        for one, identity, there in found:
            try:
                step = self._step(one, identity, there, gone)
            except Rejected as error:
                self.conflicts += [Conflict(one.kind, one.key, one.place, each) for each in _placed(one.place, error)]
            else:
                if isinstance(step, Same):
                    same.append(step)
                else:
                    changing.append(step)
        rank = ranks(self.kinds)
        order, circular = dependents_last(
            [(rank[step.kind], step.id, self._targets(step.kind, step.body)) for step in changing],
            {step.id for step in changing if isinstance(step, Create)},
        )
        for place in circular:
            step = changing[place]
            circle = Rejected("cycle", step.place, step.key, "new documents of which one can be created before the others")
            self.conflicts.append(Conflict(step.kind, step.key, step.place, circle))
        return [*self.conflicts, *(changing[place] for place in order), *same, *removes]

    def _matched(self, wanted: Sequence[Wanted]) -> list[tuple[Wanted, str, Existing | None]]:
        """Each with its id, and the document that is there."""
        found = []
        keys: dict[tuple[str, str], Wanted] = {}
        ids: dict[str, Wanted] = {}
        for one in wanted:
            there = self.by_id.get((one.kind, one.id)) if one.id is not None else None
            holder = self.by_key.get((one.kind, one.key))
            there = holder if there is None else there
            identity = there.id if there is not None else one.id or self.new_id()
            owner = None if there is None or there.deleted else _set_of(there)
            first = keys.setdefault((one.kind, one.key), one)
            first = ids.setdefault(identity, one) if first is one else first
            if first is not one:
                error = Rejected("not_unique", one.place, one.key, f"another {one.kind} than {first.place or 'one before'}")
            elif one.id is not None and holder is not None and holder.id != one.id:
                error = Rejected("not_unique", f"{one.place}.id", one.id, f"{holder.id}, the id of the {one.kind} {one.key}")
            elif owner not in (None, self.set_name):
                error = Rejected("invalid", one.place, owner, f"a document of no other set than {self.set_name}")
            else:
                self.ids[one.kind, one.key] = identity
                found.append((one, identity, there))
                continue
            self.conflicts.append(Conflict(one.kind, one.key, one.place, error))
        return found

    def _step(
        self, one: Wanted, identity: str, there: Existing | None, gone: Collection[tuple[str, str]]
    ) -> Create | Change | Same:
        kind = self.kinds[one.kind]
        given = {name: self._pointing(one, name, value, gone) for name, value in one.body.items()}
        if there is not None and kind.states is not None and kind.states.field not in given and not there.deleted:
            given[kind.states.field] = there.body.get(kind.states.field, kind.states.initial)  # commands move it, not files
        body = _made(kind, given, there, self.set_name)
        if there is None:
            return Create(one.kind, one.key, one.place, identity, body)
        before = _normal(kind, there.body)
        if written(before) == written(body) and not there.deleted:
            return Same(one.kind, one.key, one.place, identity)
        times = times_of(kind.model)
        fields = tuple(differences(in_rest(before, times), in_rest(body, times)))
        return Change(one.kind, one.key, one.place, identity, there.version, body, fields, there.deleted)

    def _pointing(self, one: Wanted, name: str, value: Any, gone: Collection[tuple[str, str]]) -> Any:
        """A field's value, with ids for natural keys where it points at others."""
        ref = self.kinds[one.kind].refs.get(name)
        if ref is None:
            return value
        if isinstance(value, list):
            return [self._pointing(one, name, item, gone) for item in value]
        if not isinstance(value, str):
            return value
        identity = as_uuid(value) or self.ids.get((ref.target, value))
        field = f"/{name}"
        if identity is None:
            key = self.kinds[ref.target].natural_key
            known = f"the {key} of one in the file or in the org" if key else "an id, since it has no natural key"
            raise Rejected("unknown_ref", field, value, f"a {ref.target}: {known}")
        if (ref.target, identity) in gone:
            raise Rejected("restricted", field, value, f"a {ref.target} that is not deleted by this: the file has it no more")
        return identity

    def _removes(self, wanted: Collection[str], kept: Collection[tuple[str, str]]) -> list[Remove]:
        spared = {*kept, *((one.kind, one.key) for one in self.conflicts)}
        found = [
            (key, one)
            for (kind, key), one in sorted(self.by_key.items())
            if one.id not in wanted and (kind, key) not in spared and _set_of(one) == self.set_name
        ]
        rank = ranks(self.kinds)
        order, circular = dependents_last(
            [(rank[one.kind], one.id, self._targets(one.kind, one.body)) for _, one in found], {one.id for _, one in found}
        )
        made = [Remove(one.kind, key, one.id, one.version) for key, one in found]
        return [made[place] for place in reversed([*order, *circular])]

    def _targets(self, kind: str, body: Mapping[str, Any]) -> list[str]:
        """The ids that a document points at."""
        values = [body.get(name) for name in self.kinds[kind].refs]
        return [one for value in values for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]


def differences(before: Any, after: Any, field: str = "") -> Iterator[Difference]:
    """Where two values differ, as deep as they are alike.

    >>> [tuple(one) for one in differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}], "c": 4})]
    [('a[1].b', 2, 3), ('c', Ellipsis, 4)]
    """
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in [*before, *(name for name in after if name not in before)]:
            yield from differences(before.get(name, ABSENT), after.get(name, ABSENT), f"{field}.{name}" if field else name)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (was, becomes) in enumerate(zip(before, after, strict=True)):
            yield from differences(was, becomes, f"{field}[{index}]")
    elif before != after or type(before) is not type(after):
        yield Difference(field, before, after)


def place_of(pointer: str) -> str:
    """A JSON pointer as places in files are written.

    >>> place_of("/when/all/0/metric")
    '.when.all[0].metric'
    """
    parts = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
    return "".join(f"[{part}]" if re.fullmatch("[0-9]+", part) else f".{part}" for part in parts)


def _placed(place: str, error: Rejected) -> Iterator[Rejected]:
    for one in error.errors if isinstance(error, NotValid) else [error]:
        yield Rejected(one.code, f"{place}{place_of(one.field)}".removeprefix("."), one.got, one.expected)


def _made(kind: Kind, given: Mapping[str, Any], there: Existing | None, set_name: str) -> Body:
    """The body as it is sent: defaults filled in, of this set."""
    metadata = given.get("metadata", {})
    if "owner_id" in given and kind.visibility is not None:
        raise Rejected("invalid", "/owner_id", given["owner_id"], _NO_OWNER)
    if isinstance(metadata, Mapping):
        if APPLIED_FROM in metadata:
            expected = "nothing here: it holds the name of the set, which stands beside the documents"
            raise Rejected("invalid", f"/metadata/{APPLIED_FROM}", metadata[APPLIED_FROM], expected)
        metadata = {**metadata, APPLIED_FROM: set_name}
    made = checked(kind, {**given, "metadata": metadata}, None if there is None else dict(there.body), "")
    made.pop("owner_id", None)
    return made


def _normal(kind: Kind, body: Mapping[str, Any]) -> Body:
    """A document that is there, with fields that are younger than it is; as it is when it does not fit any more."""
    fields = {name: value for name, value in body.items() if name in kind.model.model_fields}
    common = {name: value for name, value in body.items() if name not in fields and name != "owner_id"}
    try:
        return validated(kind.model, fields) | common
    except NotValid:
        return fields | common


def _with_ids(kind: Kind, name: str, value: Any) -> Any:
    """Some id in place of natural keys, which only a plan can resolve."""
    if name not in kind.refs:
        return value
    if isinstance(value, list):
        return [_with_ids(kind, name, item) for item in value]
    return _SOME_ID if isinstance(value, str) and as_uuid(value) is None else value


def _key(kind: Kind, one: Existing) -> str:
    return one.id if kind.natural_key is None else str(one.body.get(kind.natural_key) or one.id)


def _set_of(one: Existing) -> str | None:
    metadata = one.body.get("metadata")
    found = metadata.get(APPLIED_FROM) if isinstance(metadata, Mapping) else None
    return found if isinstance(found, str) else None
