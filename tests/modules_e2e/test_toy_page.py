"""A module's page folder beside ours is a page; without it its kinds have the pages that are made of their schemas."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import browser
from tests.e2e.support import ROOT
from tests.faults.test_rules_over_rest import Store
from tests.modules_e2e.toy_site import TOY, Site
from tests.web.test_page_build import web

__all__ = ["browser"]
pytestmark = pytest.mark.slow  # it needs a Chromium: part of `make test-all`


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Our sources with the toy's page folder among those of our modules, as an installation of one's own is built."""
    web.install(ROOT, "build")
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "web", tree / "web", ignore=shutil.ignore_patterns("node_modules"))
    (tree / "web" / "node_modules").symlink_to(ROOT / "web" / "node_modules")
    for package in ("cmis_stream", "agents"):
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__", "page"))
    shutil.copy(ROOT / "topics.yaml", tree / "cmis_stream")
    shutil.copytree(TOY / "web", tree / "web" / "src" / "modules" / "toy")
    return tree


@pytest.fixture
def signed_in(browser: Browser) -> Iterator[list[Page]]:
    """Pages to be closed."""
    pages: list[Page] = []
    yield pages
    for page in pages:
        page.context.close()


def opened(browser: Browser, site: Site, pages: list[Page]) -> Page:
    site.up.ready()
    site.acme.post("toy/toys", {"name": "Wooden train", "slug": "train"})
    link = re.search(r"http\S+/sign-in#code=\S+", site.up.process.says("/sign-in#code="))
    assert link is not None
    page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    pages.append(page)
    page.goto(link[0])
    page.wait_for_url(re.compile("/orgs/acme/"))
    return page


def sqlite(folder: Path) -> Store:
    return Store(f"sqlite:///{folder / 'data' / 'store.db'}", [], [])


def test_its_page_folder_is_built_and_takes_its_kind_over(
    tree: Path, tmp_path: Path, browser: Browser, signed_in: list[Page]
) -> None:
    assert web.build(tree) is True
    assets = (tree / "cmis_stream" / "page" / "assets").glob("*.js")
    assert any("The shelf is empty" in asset.read_text() for asset in assets)
    site = Site(tmp_path, sqlite(tmp_path), ours=tree)
    try:
        page = opened(browser, site, signed_in)
        page.get_by_role("link", name="Toy shelf").click()
        expect(page.get_by_role("heading", name="Toy shelf", level=1)).to_be_visible()
        expect(page.get_by_role("group", name="Toys").get_by_text("Wooden train")).to_be_visible()
        expect(page.get_by_role("link", name="Boxes", exact=True)).to_be_visible()  # a kind that it does not show
        expect(page.get_by_role("link", name="Toys", exact=True)).to_have_count(0)
    finally:
        site.close()


def test_without_one_its_kinds_are_listed_shown_and_asked_to_act(tmp_path: Path, browser: Browser, signed_in: list[Page]) -> None:
    site = Site(tmp_path, sqlite(tmp_path))
    try:
        page = opened(browser, site, signed_in)
        page.get_by_role("link", name="Toys", exact=True).click()
        page.get_by_role("link", name="Wooden train", exact=True).click()
        expect(page.get_by_role("heading", name="Wooden train", exact=True)).to_be_visible()
        page.get_by_role("button", name="Play with a toy").click()
        expect(page.get_by_text("Used").first).to_be_visible()
        page.get_by_role("link", name="Playdates", exact=True).click()
        expect(page.get_by_role("row").filter(has_text="Wooden train")).to_be_visible()
    finally:
        site.close()
