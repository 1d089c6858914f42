"""Hatch's build hook: no wheel and no editable install without the page."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PageHook(BuildHookInterface[Any]):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """For wheels; a source distribution holds the page's sources instead."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        spec = importlib.util.spec_from_file_location("cmis_page_build", root / "scripts" / "web.py")
        assert spec is not None and spec.loader is not None
        web = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(web)
        try:
            web.build(root)
        except web.PageError as error:
            self.app.abort(f"web: {error}")
        if not (root / "cmis_stream" / "page" / "index.html").is_file():
            self.app.abort("web: the page is missing after its build")
