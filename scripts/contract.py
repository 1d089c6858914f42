"""The interfaces as the browser page knows them: web/contract/*.json, and the TypeScript types made of them.

    python scripts/contract.py    asks an instance for its descriptions, and renews both

A test compares the files with what the server says; `npm run check` compares the types with the files. Only what the page
uses is kept, and of that the structure: words may change without the page.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx

from cmis_stream.instance import Instance
from cmis_stream.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "web" / "contract"
PATHS = ("/api/session", "/api/session/gateway-token", "/api/orgs/{org}/query", "/api/orgs/{org}/alerts/history",
         "/api/orgs/{org}/kinds")  # fmt: skip
ITEMS = ("MetricItem", "IncidentItem")
_WORDS = {"title", "description", "summary", "example", "examples", "tags", "security", "info"}


async def described() -> dict[str, Any]:
    """Name of the file -> what the server says of what the page uses."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder), port=0, gateway_port=0)
        async with Instance(settings) as instance, httpx.AsyncClient(base_url=instance.url) as client:
            openapi = (await client.get("/openapi.json")).json()
            asyncapi = (await client.get("/asyncapi.json")).json()
    paths = {path: {method: _succeeding(one) for method, one in openapi["paths"][path].items()} for path in PATHS}
    schemas = {name: asyncapi["components"]["schemas"][name] for name in ITEMS}
    return {"openapi.json": _bare(_inlined(paths, openapi["components"]["schemas"])), "channels.json": _bare(schemas)}


def _succeeding(operation: dict[str, Any]) -> dict[str, Any]:
    """Without the answers that are problems: they all look the same."""
    return {**operation, "responses": {status: one for status, one in operation["responses"].items() if status < "300"}}


def _inlined(value: Any, schemas: dict[str, Any]) -> Any:
    """With each component in the place of what refers to it: of those that the page's paths use, none refers to itself."""
    if isinstance(value, list):
        return [_inlined(one, schemas) for one in value]
    if not isinstance(value, dict):
        return value
    if (name := value.get("$ref", "").removeprefix("#/components/schemas/")) in schemas:
        return _inlined({**schemas[name], **{key: one for key, one in value.items() if key != "$ref"}}, schemas)
    return {key: _inlined(one, schemas) for key, one in value.items()}


def _bare(value: Any, *, names: bool = True) -> Any:
    """Without words. names: the keys of `value` name things of ours, which may be called like one of them."""
    if isinstance(value, list):
        return [_bare(one, names=False) for one in value]
    if not isinstance(value, dict):
        return value
    kept = {key: one for key, one in value.items() if names or key not in _WORDS}
    return {key: _bare(one, names=key in ("properties", "responses", "content")) for key, one in kept.items()}


def written(described: dict[str, Any]) -> dict[str, str]:
    return {name: json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False) + "\n" for name, body in described.items()}


def main() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    import web

    FOLDER.mkdir(exist_ok=True)
    for name, text in written(asyncio.run(described())).items():
        (FOLDER / name).write_text(text)
    sys.exit(web.run(ROOT, "generate"))


if __name__ == "__main__":
    main()
