"""A real Chromium, of the system, in front of a real instance."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.e2e.installation import Installation
from tests.e2e.support import Processes

QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
"""As root it needs --no-sandbox; the rest keeps it from calling its maker."""

PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)

Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Ended with its module: while Playwright is there, an event loop runs in this thread, and no async test can."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield chromium
        chromium.close()


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    processes = Processes(tmp_path / "processes")
    try:
        yield Installation(processes, tmp_path)
    finally:
        processes.end()


@pytest.fixture
def open_page(browser: Browser, installation: Installation) -> Iterator[Open]:
    """A page of a new browser profile; what it writes to its console or throws fails the test, unless it is about a server
    that is away. `path` None: it signs in by the printed link."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def opened(path: str | None = None, *, width: int = 1440, scheme: str = "light", of: Page | None = None) -> Page:
        state = of.context.storage_state() if of is not None else None
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, storage_state=state)  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.goto(installation.sign_in_link() if path is None else installation.up.url + path)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [line for line in complaints if "ERR_CONNECTION" not in line and "Failed to load resource" not in line] == []
