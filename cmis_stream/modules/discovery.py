"""Which modules there are: folders with a `manifest.py` that exports MANIFEST, and what other packages bring.

Nothing is left out quietly: a manifest that cannot be imported stops the process with its own error.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any, Final

from cmis_stream.core.errors import ConfigError
from cmis_stream.store.kinds import Kinds, Manifest

PACKAGE: Final = "cmis_stream.modules"
GROUP: Final = "cmis_stream.modules"
"""Of entry points `name = "package.module:MANIFEST"`."""


def manifests(package: str = PACKAGE, more: Iterable[Manifest] = ()) -> list[Manifest]:
    """Of the package's folders, of installed entry points, and these; in the order of their names.

    A folder without manifest.py is no module. ConfigError: no MANIFEST, one of another name than its folder or entry point,
    or a name that is there twice. Whatever an import raises comes through.
    """
    found = [(f"{package}.{name}", _of_folder(package, name)) for name in _folders(package)]
    found += [(point.value, _checked(point.value, point.name, point.load())) for point in entry_points(group=GROUP)]
    found += [(f"the manifest {one.name}", one) for one in more]
    taken: dict[str, str] = {}
    for where, manifest in found:
        if manifest.name in taken:
            raise ConfigError(f"{where}: {taken[manifest.name]} is a module called {manifest.name!r}, too")
        taken[manifest.name] = where
    return sorted((manifest for _, manifest in found), key=lambda one: one.name)


def all_kinds(more: Iterable[Manifest] = ()) -> Kinds:
    """The kinds of all modules. ConfigError as `manifests`, and when the declarations do not hold."""
    return Kinds(manifests(more=more))


def _folders(package: str) -> list[str]:
    inside = importlib.import_module(package).__path__
    folders = sorted(one.name for one in pkgutil.iter_modules(inside) if one.ispkg)
    return [name for name in folders if find_spec(f"{package}.{name}.manifest") is not None]


def _of_folder(package: str, name: str) -> Manifest:
    where = f"{package}.{name}.manifest"
    module = importlib.import_module(where)
    if not hasattr(module, "MANIFEST"):
        raise ConfigError(f"{where}: expected it to export MANIFEST")
    return _checked(where, name, module.MANIFEST)


def _checked(where: str, name: str, found: Any) -> Manifest:
    if not isinstance(found, Manifest):
        raise ConfigError(f"{where}: expected a Manifest, got {type(found).__name__}")
    if found.name != name:
        raise ConfigError(f"{where}: expected a manifest called {name!r}, got {found.name!r}")
    return found
