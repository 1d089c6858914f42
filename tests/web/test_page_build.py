"""The page's build: what it makes, when it builds again, how it fails, and that the wheel holds it."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("page_build", ROOT / "scripts" / "web.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


web = script()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the page's sources, to be changed."""
    web.install(ROOT, "build")
    shutil.copytree(ROOT / "web", tmp_path / "web", ignore=shutil.ignore_patterns("node_modules"))
    (tmp_path / "cmis_stream").mkdir()
    (tmp_path / "web" / "node_modules").symlink_to(ROOT / "web" / "node_modules")
    return tmp_path


def test_the_page_is_built_when_its_sources_have_changed_and_only_then(tree: Path) -> None:
    assert web.build(tree) is True
    page = tree / "cmis_stream" / "page"
    assert "<script" in (page / "index.html").read_text()
    assert web.build(tree) is False
    catalogue = tree / "web" / "src" / "strings.ts"
    catalogue.write_text(catalogue.read_text().replace("Data is current", "Fresh as dew"))
    assert web.build(tree) is True
    assert any("Fresh as dew" in asset.read_text() for asset in page.glob("assets/*.js"))
    assert not any("Data is current" in asset.read_text() for asset in page.glob("assets/*.js"))
    (page / "index.html").unlink()
    assert web.build(tree) is True


def test_a_build_that_fails_says_so_and_leaves_the_page_as_it_was(tree: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page = tree / "cmis_stream" / "page"
    page.mkdir()
    (page / "index.html").write_text("the one before")
    (tree / "web" / "src" / "main.ts").write_text("import './nowhere.ts';")
    with pytest.raises(web.PageError, match="could not be built; the lines above say why"):
        web.build(tree)
    assert "nowhere.ts" in capfd.readouterr().err
    assert (page / "index.html").read_text() == "the one before"


def test_a_tree_without_sources_is_named(tmp_path: Path) -> None:
    with pytest.raises(web.PageError, match="sources are missing"):
        web.build(tmp_path)


def test_packages_that_cannot_be_fetched_fail_with_one_sentence_that_names_the_cause(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "web" / "node_modules").unlink()
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:1/")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    with pytest.raises(web.PageError, match="could not be installed: no network"):
        web.build(tree)


def test_the_page_runs_no_inline_script_and_asks_nobody_else_for_anything(tree: Path) -> None:
    web.build(tree)
    page = tree / "cmis_stream" / "page"
    index = (page / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|javascript:", index)
    named = re.findall(r'(?:src|href)="([^"]+)"', index)
    assert len(named) >= 4
    for name in named:
        assert name.startswith("/") and (page / name[1:]).is_file()
    for sheet in page.glob("assets/*.css"):
        assert not re.search(r"url\((?!/assets/)|@import", sheet.read_text())


def test_our_own_javascript_keeps_to_its_budget(tree: Path) -> None:
    """250 kB gzipped of ours in total; the charts' library is loaded on its own, when a chart is shown."""
    import gzip

    web.build(tree)
    assets = list((tree / "cmis_stream" / "page" / "assets").glob("*.js"))
    charts = [asset for asset in assets if asset.name.startswith("chart-")]
    assert len(charts) == 1
    own = sum(len(gzip.compress(asset.read_bytes())) for asset in assets if asset not in charts)
    assert own < 250_000


def test_the_lock_file_names_no_place_to_download_from() -> None:
    lock = (ROOT / "web" / "package-lock.json").read_text()
    assert '"resolved"' not in lock and '"integrity"' in lock


@pytest.mark.slow
def test_a_wheel_made_from_the_source_distribution_serves_the_page_without_node(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "cmis_stream/page/index.html" in names and "cmis_stream/page/licenses.txt" in names
    assert not [name for name in names if name.startswith("web/") or "node_modules" in name or name.endswith(".fingerprint")]
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(installed), str(wheel)]
    subprocess.run(pip, check=True)
    ask = """
import re
from pathlib import Path
from starlette.testclient import TestClient
from cmis_stream.api.hosts import Hosts
from cmis_stream.api.page import FOLDER, Page
assert Path(FOLDER).is_relative_to(Path.cwd()), FOLDER
client = TestClient(Page(Hosts()), base_url="http://127.0.0.1:8600")
index = client.get("/orgs/acme/live")
assert index.status_code == 200, index
for name in re.findall(r'(?:src|href)="([^"]+)"', index.text):
    assert client.get(name).status_code == 200, name
"""
    environment = {"PATH": "", "PYTHONPATH": str(installed)}
    subprocess.run([sys.executable, "-c", ask], check=True, cwd=installed, env=environment)
