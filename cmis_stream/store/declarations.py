"""Whether what a module declares about its kinds holds: mistakes as sentences, each of which begins with where it is."""

from __future__ import annotations

import enum
import re
import types
import typing
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

from cmis_stream.core.errors import ConfigError

from .personal_fields import Fields
from .tables import REALS, TEXTS, WHOLES
from .tokens import SCOPES

if TYPE_CHECKING:
    from .fact_kinds import FactKind
    from .kinds import FilterType, Kind, Ref, States

RESERVED: Final = frozenset(
    {"org", "kind", "id", "version", "created_at", "updated_at", "deleted_at", "tags", "metadata", "owner_id", "visibility"}
)
"""What every document has, so that no kind's field can be called so."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,47}")
_PATH = re.compile(r"[a-z][a-z0-9-]*(/[a-z][a-z0-9-]*)*")
_TYPES: Mapping[FilterType, frozenset[type]] = {
    "text": frozenset({str}),
    "number": frozenset({int, float}),
    "time": frozenset({int}),
    "bool": frozenset({bool}),
}


def types_of(annotation: Any) -> set[type]:
    """The plain types that a field's annotation lets through, None left out.

    >>> sorted(found.__name__ for found in types_of(list[str] | None))
    ['list']
    """
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return types_of(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return {found for part in typing.get_args(annotation) for found in types_of(part)}
    if origin is Literal:
        return {type(value) for value in typing.get_args(annotation)}
    if isinstance(annotation, typing.TypeAliasType if hasattr(typing, "TypeAliasType") else ()):
        return types_of(annotation.__value__)
    if isinstance(origin, type):
        return {origin}
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return {type(member.value) for member in annotation}
    return {annotation} if isinstance(annotation, type) and annotation is not type(None) else set()


def _values(annotation: Any) -> set[Any] | None:
    """The vocabulary of a field; None when it has none."""
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return {member.value for member in annotation}
    if typing.get_origin(annotation) is typing.Annotated:
        return _values(typing.get_args(annotation)[0])
    return set(typing.get_args(annotation)) if typing.get_origin(annotation) is Literal else None


def _without_none(annotation: Any) -> Any:
    parts = [part for part in typing.get_args(annotation) if part is not type(None)]
    return parts[0] if _allows_none(annotation) and len(parts) == 1 else annotation


def _allows_none(annotation: Any) -> bool:
    return type(None) in typing.get_args(annotation)


def kind_mistakes(kind: Kind, kinds: Mapping[str, Kind]) -> Iterator[str]:
    """Each begins with where it is: .FIELD, or a colon for the kind itself."""
    fields = kind.model.model_fields
    yield from path_mistakes(kind)
    if kind.model.model_config.get("extra") != "forbid":
        yield f': expected {kind.model.__name__} with extra="forbid"'
    for name, info in fields.items():
        if name in RESERVED:
            yield f".{name}: every document has this, a kind cannot declare it"
        elif info.alias is not None:
            yield f".{name}: expected no alias; documents are kept by the names of their fields"
    named = [*kind.filters, *(name for names in kind.unique for name in names), *kind.refs]
    named += [kind.states.field] if kind.states else []
    unknown = [name for name in dict.fromkeys(named) if name not in fields]
    yield from (f".{name}: expected one of {', '.join(fields)}" for name in unknown)
    if unknown:
        return
    try:
        personal = Fields(kind.model).names
    except ConfigError as error:
        yield f": {error}"
        return
    for name in sorted(personal & {*named, kind.natural_key}):
        yield f".{name}: a personal field cannot be a filter, unique, a reference or a state: it would stand there readable"
    if personal and kind.catalog is not None:
        yield ": expected no catalog of a kind with personal fields: an erasure does not reach the log that agents read"
    yield from filter_mistakes(kind)
    for names in kind.unique:
        if not names or len(set(names)) != len(names):
            yield f": expected a unique tuple of different fields, got {names!r}"
    if kind.natural_key is not None and (kind.natural_key,) not in kind.unique:
        yield f".{kind.natural_key}: expected a natural key among `unique`, alone"
    elif kind.natural_key is not None and types_of(fields[kind.natural_key].annotation) != {str}:
        yield f".{kind.natural_key}: expected a text as natural key"
    for name, ref in kind.refs.items():
        yield from (f".{name}: {what}" for what in _ref_mistakes(kind, name, ref, kinds))
    if kind.states is not None:
        yield from (f".{kind.states.field}: {what}" for what in _state_mistakes(kind, kind.states))
    yield from _rest_mistakes(kind)


def path_mistakes(kind: Kind | FactKind) -> Iterator[str]:
    if not _NAME.fullmatch(kind.name):
        yield ": expected a name of lower-case letters, digits and _, at most 48"
    if kind.path and not _PATH.fullmatch(kind.path):
        yield f": expected a path like alerts/rules, got {kind.path!r}"
    if kind.plural and not _NAME.fullmatch(kind.plural):
        yield f": expected a plural of lower-case letters, digits and _, got {kind.plural!r}"
    for command in kind.commands:
        if not _NAME.fullmatch(command) or command == "bulk":
            yield f": expected a command's name of lower-case letters, digits and _, other than bulk, got {command!r}"


def _rest_mistakes(kind: Kind) -> Iterator[str]:
    if kind.token_path and not _PATH.fullmatch(kind.token_path.removeprefix("/api/")):
        yield f": expected a token_path like /api/automation/rules, got {kind.token_path!r}"
    for command, scope in kind.scopes.items():
        if command != "read" and kind.rule(command) is None:
            yield f": expected scopes of its commands or read, got {command!r}"
        if scope not in SCOPES:
            yield f": expected one of the scopes {', '.join(SCOPES)} for {command}, got {scope!r}"


def filter_mistakes(kind: Kind | FactKind) -> Iterator[str]:
    for name, of in kind.filters.items():
        found = types_of(kind.model.model_fields[name].annotation)
        if not found or not found <= _TYPES[of]:
            got, expected = (" or ".join(sorted(one.__name__ for one in ones)) or "anything" for ones in (found, _TYPES[of]))
            yield f".{name}: expected a field of {expected} for a filter of {of}, got {got}"
    used = Counter[str](kind.family(name) for name in kind.filters)
    for family, most in (("text", TEXTS), ("whole", WHOLES), ("real", REALS)):
        if used[family] > most:
            yield f": expected at most {most} filters of {family} values, got {used[family]}"
    for name in kind.sorts:
        if name not in kind.filters:
            yield f".{name}: expected sorts among the filters ({', '.join(kind.filters)})"
    for name, ranks in kind.ranks.items():
        if kind.filters.get(name) != "text":
            yield f".{name}: expected ranks of a text among the filters"
        elif _values(_without_none(kind.model.model_fields[name].annotation)) != set(ranks) or len(set(ranks)) != len(ranks):
            yield f".{name}: expected a Literal or an Enum of the ranks {', '.join(ranks)}, each once"


def _ref_mistakes(kind: Kind, name: str, ref: Ref, kinds: Mapping[str, Kind]) -> Iterator[str]:
    annotation = kind.model.model_fields[name].annotation
    found = types_of(annotation)
    if found not in ({str}, {list}):
        yield "expected a text or a list of texts as reference"
    if ref.target not in kinds:
        yield f"expected a known kind as target, got {ref.target!r}"
    if ref.on_delete == "detach" and list not in found and not _allows_none(annotation):
        yield "expected a field that may be null, since it is detached"
    if ref.acyclic and ref.target != kind.name:
        yield "expected its own kind as target, since it is acyclic"


def _state_mistakes(kind: Kind, states: States) -> Iterator[str]:
    annotation = kind.model.model_fields[states.field].annotation
    vocabulary = _values(annotation)
    if vocabulary is None:
        yield "expected a Literal or an Enum of the states"
        return
    named = {states.initial, *(state for pair in states.transitions for state in pair)}
    for state in sorted(named - vocabulary):
        yield f"expected one of {', '.join(sorted(vocabulary))}, got {state!r}"
    reached, last = {states.initial}, set[str]()
    while reached != last:
        last = set(reached)
        reached |= {to for (start, to) in states.transitions if start in last}
    for state in sorted(vocabulary - reached):
        yield f"no transitions lead from {states.initial} to {state}"
