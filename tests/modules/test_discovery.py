"""Modules are found by their manifests, and never lost quietly."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmis_stream.core.errors import ConfigError
from cmis_stream.modules.discovery import all_kinds, manifests
from cmis_stream.store.kinds import Manifest
from tests.contracts.toy.manifest import MANIFEST

GOOD = "from cmis_stream.store.kinds import Manifest\nMANIFEST = Manifest({name!r}, ())\n"


class Package:
    """A package of modules of the test's own."""

    name = "found_modules"

    def __init__(self, folder: Path) -> None:
        self.folder = folder / self.name
        self.folder.mkdir()
        (self.folder / "__init__.py").touch()

    def add(self, name: str, manifest: str | None) -> None:
        (self.folder / name).mkdir()
        (self.folder / name / "__init__.py").touch()
        if manifest is not None:
            (self.folder / name / "manifest.py").write_text(manifest)
        importlib.invalidate_caches()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    monkeypatch.syspath_prepend(tmp_path)
    yield Package(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == Package.name]:
        del sys.modules[name]


def test_folders_with_a_manifest_are_modules_in_the_order_of_their_names(package: Package) -> None:
    for name in ("pears", "apples"):
        package.add(name, GOOD.format(name=name))
    package.add("drawings", None)
    assert [one.name for one in manifests(package.name, [MANIFEST])] == ["apples", "pears", "toy"]


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ("", "found_modules.apples.manifest: expected it to export MANIFEST"),
        ("MANIFEST = {}", "found_modules.apples.manifest: expected a Manifest, got dict"),
        (GOOD.format(name="pears"), "expected a manifest called 'apples', got 'pears'"),
    ],
)
def test_what_is_no_manifest_is_told(package: Package, manifest: str, said: str) -> None:
    package.add("apples", manifest)
    with pytest.raises(ConfigError) as caught:
        manifests(package.name)
    assert said in str(caught.value)


@pytest.mark.parametrize(("manifest", "error"), [("import no_such_thing", ImportError), ("1 / 0", ZeroDivisionError)])
def test_a_manifest_that_cannot_be_imported_stops_us(package: Package, manifest: str, error: type[Exception]) -> None:
    package.add("apples", manifest)
    with pytest.raises(error):
        manifests(package.name)


def test_a_name_is_taken_once(package: Package) -> None:
    package.add("toy", GOOD.format(name="toy"))
    with pytest.raises(ConfigError, match=r"found_modules\.toy is a module called 'toy', too"):
        manifests(package.name, [MANIFEST])


def test_other_packages_bring_modules_by_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = tmp_path / "toys-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[cmis_stream.modules]\ntoy = tests.contracts.toy.manifest:MANIFEST\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert [one.name for one in manifests() if one.name == "toy"] == ["toy"]
    assert "loan" in all_kinds()
    (about / "entry_points.txt").write_text("[cmis_stream.modules]\ntoys = tests.contracts.toy.manifest:MANIFEST\n")
    with pytest.raises(ConfigError, match="expected a manifest called 'toys', got 'toy'"):
        manifests()


def test_our_own_modules_hold_together_with_any_other() -> None:
    assert {"toy", "box", "loan"} <= set(all_kinds([MANIFEST]))
    with pytest.raises(ConfigError, match="module toy has a kind of this name"):
        all_kinds([MANIFEST, Manifest("toys", MANIFEST.kinds[:1])])
