"""Where documents are: collections, what can be asked of them, and which path is looked at first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...core.errors import ConfigError
from ...store.commands import DEFAULTS
from ...store.decisions import Rule
from ...store.kinds import Kind, Kinds


@dataclass(frozen=True, slots=True)
class Collection:
    """One place of a kind. path: as FastAPI has it. by_token: the org is the token's, it does not stand in the path."""

    kind: Kind
    module: str
    path: str
    by_token: bool

    @property
    def title(self) -> str:
        """In the singular, for people."""
        return self.kind.title or self.kind.name.replace("_", " ")

    @property
    def plural(self) -> str:
        return self.kind.plural or f"{self.kind.name}s"

    def commands(self) -> Iterator[tuple[str, Rule]]:
        """Those that the kind declares beside the usual ones."""
        return ((name, rule) for name, rule in self.kind.commands.items() if name not in DEFAULTS)


def collections(kinds: Kinds) -> list[Collection]:
    """All of them, in the order of their paths. ConfigError when two kinds want the same one."""
    found: dict[str, Collection] = {}
    for kind in kinds.values():
        module = kinds.module_of[kind.name]
        below = kind.path or f"{dashed(module)}/{dashed(kind.plural or f'{kind.name}s')}"
        places = [Collection(kind, module, f"/api/orgs/{{org}}/{below}", by_token=False)]
        if kind.token_path:
            places.append(Collection(kind, module, kind.token_path, by_token=True))
        for place in places:
            other = found.setdefault(place.path, place)
            if other is not place:
                raise ConfigError(f"{module}.{kind.name}: {place.path} is the path of {other.module}.{other.kind.name}")
    return [found[path] for path in sorted(found)]


def dashed(name: str) -> str:
    """As names stand in paths.

    >>> dashed("declare_winner")
    'declare-winner'
    """
    return name.replace("_", "-")


def literals_first(path: str) -> tuple[tuple[bool, str], ...]:
    """Sort key: at the first place where two paths differ, a word comes before a parameter.

    >>> sorted(["/a/{id}", "/a/b/{id}", "/a/{id}/c", "/a/b"], key=literals_first)
    ['/a/b', '/a/b/{id}', '/a/{id}', '/a/{id}/c']
    """
    return tuple((part.startswith("{"), part) for part in path.split("/"))
