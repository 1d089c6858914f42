"""The kinds of jobs that modules have."""

from __future__ import annotations

from dataclasses import dataclass

from cmis_stream.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class JobKind:
    """run: `package.module:function`, called in a child process with a `jobs.child.Run`; what it returns is the result (JSON).

    A job may be run again from its last checkpoint at any time: what it does twice has to come to the same."""

    name: str
    run: str


class JobKinds(dict[str, JobKind]):
    """By name. ConfigError when two have the same one, or one cannot be called."""

    def __init__(self, *kinds: JobKind) -> None:
        super().__init__((kind.name, kind) for kind in kinds)
        if len(self) != len(kinds):
            raise ConfigError(f"job kinds: expected different names, got {', '.join(sorted(kind.name for kind in kinds))}")
        for kind in kinds:
            module, _, function = kind.run.partition(":")
            if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
                raise ConfigError(f"job kind {kind.name}: expected package.module:function, got {kind.run!r}")
