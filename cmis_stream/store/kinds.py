"""What a module declares about its kinds of documents, checked when it is loaded: errors name module, kind and field."""

from __future__ import annotations

import enum
import re
import types
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from pydantic import BaseModel

from cmis_stream.core.errors import ConfigError

from .commands import DEFAULTS, clone
from .decisions import Body, Command, Context, Decision, Document, Handler, Rule, Visibility
from .job_kinds import JobKind, JobKinds
from .personal_fields import Fields
from .tables import REALS, TEXTS, WHOLES
from .tokens import SCOPES

if TYPE_CHECKING:
    from .fact_kinds import FactKind

FilterType = Literal["text", "number", "time", "bool"]
RESERVED: Final = frozenset(
    {"org", "kind", "id", "version", "created_at", "updated_at", "deleted_at", "tags", "metadata", "owner_id", "visibility"}
)
"""What every document has, so that no kind's field can be called so."""
BUILT_IN_EFFECTS: Final = ("publish", "command", "job")
COMMON_SORTS: Final = ("id", "created_at", "updated_at")
ANYONE: Final = frozenset({"*"})
_NAME = re.compile(r"[a-z][a-z0-9_]{0,47}")
_PATH = re.compile(r"[a-z][a-z0-9-]*(/[a-z][a-z0-9-]*)*")
_TYPES: Mapping[FilterType, frozenset[type]] = {
    "text": frozenset({str}),
    "number": frozenset({int, float}),
    "time": frozenset({int}),
    "bool": frozenset({bool}),
}


class Ref(NamedTuple):
    """A field that holds the id of a document, or a list of ids. on_delete: what becomes of this document with its target.

    acyclic: following the field (to the same kind) never leads back.
    """

    target: str
    on_delete: Literal["restrict", "cascade", "detach"] = "restrict"
    acyclic: bool = False


class Template(NamedTuple):
    """What a new document can begin with. body: as it is created, or a part of that."""

    name: str
    title: str
    body: Mapping[str, Any]
    description: str = ""


class States(NamedTuple):
    """transitions: (from, to) -> the roles that may, or ANYONE."""

    field: str
    initial: str
    transitions: Mapping[tuple[str, str], frozenset[str]]


@dataclass(frozen=True, slots=True)
class Kind:
    """name: singular, unique over all modules. model: forbids extra fields.

    filters: field -> type, at most 8 texts, 8 of int, time or bool, 4 of float. time: epoch ms. sorts: which of them. unique:
    tuples of fields; null in one of them holds nothing. natural_key: a text field, unique alone, that stands for the id in
    paths. visibility: of new documents; None for a kind that the whole org sees. commands: besides or instead of the usual.

    check: what fields say together, beyond the model: raises Rejected. catalog: what agents that follow this kind get of a
    document, None for nothing of this one (docs/design/modules.md).

    ranks: text filters whose values have an order, the first one first; lists can be sorted by them.

    For REST: title, in the singular; plural, of the name; path below /api/orgs/{org}/, MODULE/PLURAL unless it is said;
    token_path: a second one, whole, with the org from the token. examples: bodies that can be created as they are, but for what
    refs point at. templates: what a new one can begin with. scopes: command, or "read" -> what a caller needs; write and read
    unless it is said.
    """

    name: str
    model: type[BaseModel]
    filters: Mapping[str, FilterType] = field(default_factory=dict)
    sorts: tuple[str, ...] = ()
    unique: tuple[tuple[str, ...], ...] = ()
    refs: Mapping[str, Ref] = field(default_factory=dict)
    states: States | None = None
    natural_key: str | None = None
    visibility: Visibility | None = None
    commands: Mapping[str, Rule] = field(default_factory=dict)
    check: Callable[[Body], None] | None = None
    catalog: Callable[[Document], Any | None] | None = None
    title: str = ""
    plural: str = ""
    path: str = ""
    token_path: str = ""
    examples: tuple[Mapping[str, Any], ...] = ()
    templates: tuple[Template, ...] = ()
    scopes: Mapping[str, str] = field(default_factory=dict)
    ranks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def common_filters(self) -> dict[str, str]:
        owned = {"owner_id": "text", "visibility": "text"} if self.visibility else {}
        return {"id": "text", "created_at": "time", "updated_at": "time", "tags": "tags", **owned}

    @property
    def common_sorts(self) -> tuple[str, ...]:
        return COMMON_SORTS

    @property
    def default_sort(self) -> str:
        return "-id"

    @property
    def deletes(self) -> bool:
        """Lists are asked with or without deleted ones."""
        return True

    def scope(self, command: str) -> str:
        """What a caller needs for a command, or for "read"."""
        return self.scopes.get(command, "read" if command == "read" else "write")

    def rule(self, command: str) -> Rule | None:
        rule = self.commands.get(command) or DEFAULTS.get(command)
        if rule is DEFAULTS["clone"] and self.states is not None:
            return rule._replace(decide=partial(_cloned_anew, self.states))
        return rule

    def is_list(self, name: str) -> bool:
        return list in types_of(self.model.model_fields[name].annotation)

    def family(self, name: str) -> Literal["text", "whole", "real"]:
        """Which columns hold the values of a filter field."""
        return family_of(self, name)


def _cloned_anew(states: States, context: Context, state: Document | None, command: Command) -> Decision:
    """A clone begins where every new document does."""
    begun = {states.field: states.initial, **command.body}
    return clone(context, state, replace(command, body=begun))


class ProblemCode(NamedTuple):
    """What a module's own code of Rejected is in REST."""

    status: int
    title: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a module consists of. problems: codes that its commands raise, besides those of `core.errors`. jobs: kinds
    of jobs that it has run. effects: what its decisions ask for by name, and what carries it out."""

    name: str
    kinds: tuple[Kind, ...]
    title: str = ""
    problems: Mapping[str, ProblemCode] = field(default_factory=dict)
    jobs: tuple[JobKind, ...] = ()
    effects: Mapping[str, Handler] = field(default_factory=dict)
    facts: tuple[FactKind, ...] = ()
    """What its agents find."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Names of those that it uses, and what they are for people; write-only, encrypted (store/secrets.py)."""


class Kinds(Mapping[str, Kind]):
    """The kinds of all modules, by name. ConfigError, one line per mistake, when their declarations do not hold."""

    def __init__(self, manifests: Iterable[Manifest]) -> None:
        self._kinds: dict[str, Kind] = {}
        self.facts: dict[str, FactKind] = {}
        self.module_of: dict[str, str] = {}
        """Of kinds of documents and of facts: no two have the same name."""
        self.manifests = tuple(manifests)
        mistakes = list[str]()
        self.effects: dict[str, Handler] = {}
        """By their names, besides those that the store itself carries out."""
        self.secrets: dict[str, str] = {}
        for manifest in self.manifests:
            for name, title in manifest.secrets.items():
                if name in self.secrets:
                    mistakes.append(f"{manifest.name}: another module has a secret called {name!r}")
                self.secrets.setdefault(name, title)
            for name, handler in manifest.effects.items():
                if name in BUILT_IN_EFFECTS or name in self.effects:
                    whose = "the store itself" if name in BUILT_IN_EFFECTS else "another module"
                    mistakes.append(f"{manifest.name}: expected an effect of another name than {name!r}, which is of {whose}")
                self.effects.setdefault(name, handler)
        for manifest in self.manifests:
            declared: list[Kind | FactKind] = [*manifest.kinds, *manifest.facts]
            for kind in declared:
                if kind.name in self.module_of:
                    mistakes.append(f"{manifest.name}.{kind.name}: module {self.module_of[kind.name]} has a kind of this name")
                    continue
                self.module_of[kind.name] = manifest.name
                if isinstance(kind, Kind):
                    self._kinds[kind.name] = kind
                else:
                    self.facts[kind.name] = kind
        for name, kind in self._kinds.items():
            mistakes += [f"{self.module_of[name]}.{name}{what}" for what in _mistakes(kind, self._kinds)]
        for name, fact in self.facts.items():
            mistakes += [f"{self.module_of[name]}.{name}{what}" for what in fact.mistakes()]
        try:
            self.jobs = JobKinds(*(kind for manifest in self.manifests for kind in manifest.jobs))
        except ConfigError as error:
            mistakes.append(str(error))
        if mistakes:
            raise ConfigError("\n".join(mistakes))
        found = {name: Fields(kind.model) for name, kind in self._kinds.items()}
        self.personal = {name: fields for name, fields in found.items() if fields}
        """Of the kinds that have some."""
        self._pointing = {
            name: [(k, f, r) for k in self.values() for f, r in k.refs.items() if r.target == name] for name in self
        }

    def __getitem__(self, name: str) -> Kind:
        return self._kinds[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def pointing_at(self, target: str) -> list[tuple[Kind, str, Ref]]:
        """(kind, field, ref) of all fields that can hold a document of this kind."""
        return self._pointing[target]


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


def rank(ranks: tuple[str, ...], value: Any) -> int | None:
    """What a column holds for a value that has a rank: 0 for the first, then -1, -2…; None for one that is not among them."""
    return -ranks.index(value) if value in ranks else None


def family_of(kind: Kind | FactKind, name: str) -> Literal["text", "whole", "real"]:
    if name in kind.ranks:
        return "whole"
    if kind.filters[name] == "text":
        return "text"
    return "real" if float in types_of(kind.model.model_fields[name].annotation) else "whole"


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


def _mistakes(kind: Kind, kinds: Mapping[str, Kind]) -> Iterator[str]:
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
