"""The interfaces as the page knows them are those of the server."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


async def test_the_descriptions_that_the_pages_types_are_made_of_are_what_the_server_says() -> None:
    spec = importlib.util.spec_from_file_location("page_contract", ROOT / "scripts" / "contract.py")
    assert spec is not None and spec.loader is not None
    contract = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(contract)
    for name, text in contract.written(await contract.described()).items():
        kept = (ROOT / "web" / "contract" / name).read_text()
        assert kept == text, f"web/contract/{name} is not what the server says; run: python scripts/contract.py"
