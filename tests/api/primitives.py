"""The app with the routes of the primitives, over the stores that it has; tokens of two orgs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cmis_stream.api.app import create_app
from cmis_stream.api.ingest import ApiPorts
from cmis_stream.api.primitives import primitives_router
from cmis_stream.store.blobs import FolderBlobs
from cmis_stream.store.database import Database
from cmis_stream.store.files import FileLinks, Files
from cmis_stream.store.jobs import JobKind, JobKinds, Jobs
from cmis_stream.store.keyring import Keyring
from cmis_stream.store.personal import PersonalData
from cmis_stream.store.schedules import Schedules
from cmis_stream.store.secrets import Secrets
from tests.api.conftest import World
from tests.servers.postgres import postgres, postgres_urls
from tests.store.conftest import database, places

__all__ = ["Primitives", "database", "places", "postgres", "postgres_urls", "primitives", "problem"]

KINDS = JobKinds(JobKind("count", "tests.store.job_functions:count"), JobKind("wait", "tests.store.job_functions:wait"))
DECLARED = {"meta/token": "Meta access token", "slack": "Slack webhook"}


class Primitives:
    """files: where the bytes are. Its clock is the world's."""

    def __init__(self, world: World, database: Database, folder: Path) -> None:
        self.world, self.folder = world, folder
        keys = Keyring([bytes(range(32))])
        self.jobs, self.schedules = Jobs(database, KINDS, world.now), Schedules(database, world.now)
        self.files, self.links = Files(database, FolderBlobs(folder), world.now), FileLinks(bytes(32))
        self.secrets, self.personal = Secrets(database, keys, world.now), PersonalData(database, keys, world.now)
        router = primitives_router(
            self.jobs, self.files, self.links, self.secrets, self.schedules, self.personal, world.auth, world.now, DECLARED
        )
        ports = ApiPorts(world.auth, world.log.publish, world.log.dead_letter, world.now)
        self.app = create_app(ports, [router], schemas=router.schemas)
        world.app = self.app  # what `served` serves

    def token(self, org: str = "acme", *scopes: str) -> str:
        return self.world.tokens.create(org, list(scopes or ("read", "write", "admin")))[1]

    @asynccontextmanager
    async def client(self, org: str = "acme", *scopes: str, base_url: str = "") -> AsyncIterator[httpx.AsyncClient]:
        """Whose paths are below the org. base_url: where the app is served; empty: it is called in this process."""
        transport = None if base_url else httpx.ASGITransport(self.app, raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {self.token(org, *scopes)}"}
        where = f"{base_url or 'http://test'}/api/orgs/{org}"
        async with httpx.AsyncClient(transport=transport, base_url=where, headers=headers) as client:
            yield client


@pytest.fixture
def primitives(world: World, database: Database, tmp_path: Path) -> Iterator[Primitives]:
    yield Primitives(world, database, tmp_path / "files")


def problem(response: httpx.Response) -> dict[str, Any]:
    """The answer's document."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    found: dict[str, Any] = response.json()
    assert found["status"] == response.status_code
    return found
