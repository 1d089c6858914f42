"""What a module declares about its kinds of documents, checked when it is loaded: errors name module, kind and field."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from pydantic import BaseModel

from cmis_stream.core.errors import ConfigError

from .commands import DEFAULTS, clone
from .decisions import Body, Command, Context, Decision, Document, Handler, Rule, Visibility
from .declarations import kind_mistakes, types_of
from .job_kinds import JobKind, JobKinds
from .personal_fields import Fields

if TYPE_CHECKING:
    from .fact_kinds import FactKind

FilterType = Literal["text", "number", "time", "bool"]
BUILT_IN_EFFECTS: Final = ("publish", "command", "job")
COMMON_SORTS: Final = ("id", "created_at", "updated_at")
ANYONE: Final = frozenset({"*"})


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

    most: so many may an org have. check: what fields say together, beyond the model: raises Rejected. catalog: what agents that
    follow this kind get of a document, None for nothing of this one (docs/design/modules.md).

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
    most: int | None = None
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
            mistakes += [f"{self.module_of[name]}.{name}{what}" for what in kind_mistakes(kind, self._kinds)]
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


def rank(ranks: tuple[str, ...], value: Any) -> int | None:
    """What a column holds for a value that has a rank: 0 for the first, then -1, -2…; None for one that is not among them."""
    return -ranks.index(value) if value in ranks else None


def family_of(kind: Kind | FactKind, name: str) -> Literal["text", "whole", "real"]:
    if name in kind.ranks:
        return "whole"
    if kind.filters[name] == "text":
        return "text"
    return "real" if float in types_of(kind.model.model_fields[name].annotation) else "whole"
