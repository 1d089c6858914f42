"""docs/openapi.json: the REST interface as the app describes it, so that a change of it is seen where it is made.

python scripts/openapi.py           writes it
python scripts/openapi.py --check   fails when it is not what the app says, and when it would break programs that were
                                    written for the last tag's
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
from compatibility import breaking

from cmis_stream.instance import Instance
from cmis_stream.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "openapi.json"


async def described() -> dict[str, Any]:
    """What an instance with all modules serves at /openapi.json."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), port=0, gateway_port=0)
        async with Instance(settings) as instance, httpx.AsyncClient(base_url=instance.url, trust_env=False) as client:
            document: dict[str, Any] = (await client.get("/openapi.json")).json()
            return document


def written(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def released() -> tuple[str, dict[str, Any]] | None:
    """(the last tag, its document); None when there is no tag, or none with a document."""
    try:
        tag = _git("describe", "--tags", "--abbrev=0").strip()
        return tag, json.loads(_git("show", f"{tag}:{PAGE.relative_to(ROOT).as_posix()}"))
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def check(now: dict[str, Any]) -> list[str]:
    """What is wrong, a line each."""
    kept = json.loads(PAGE.read_text()) if PAGE.exists() else None
    since, before = released() or ("docs/openapi.json", kept or now)
    wrong = [f"breaks what {since} promised: {line}" for line in breaking(before, now)]
    if kept is None or written(kept) != written(now):
        wrong.append("docs/openapi.json is not what the app says; run: python scripts/openapi.py")
    return wrong


def main() -> None:
    now = asyncio.run(described())
    if "--check" not in sys.argv:
        PAGE.write_text(written(now))
    elif wrong := check(now):
        sys.exit("\n".join(f"openapi: {line}" for line in wrong))


if __name__ == "__main__":
    main()
