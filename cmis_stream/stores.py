"""Everything of the store that a process has, opened once: see docs/design/modules.md for who has what."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from cmis_stream.core.errors import ConfigError
from cmis_stream.modules.discovery import all_kinds
from cmis_stream.settings import Settings
from cmis_stream.store.blobs import Blobs, FolderBlobs
from cmis_stream.store.changes import Changes
from cmis_stream.store.database import Database
from cmis_stream.store.documents import Documents
from cmis_stream.store.fact_commands import FactCommands
from cmis_stream.store.facts import Facts
from cmis_stream.store.files import FileLinks, Files
from cmis_stream.store.jobs import Jobs
from cmis_stream.store.keyring import keyring
from cmis_stream.store.personal import PersonalData
from cmis_stream.store.schedules import Schedules
from cmis_stream.store.secrets import Secrets
from cmis_stream.store.signing import gateway_key
from cmis_stream.store.tokens import TokenStore


class Stores:
    """clock: epoch ms. Opening blocks, and raises ConfigError or store.database.Unavailable."""

    def __init__(self, settings: Settings, clock: Callable[[], int]) -> None:
        with ExitStack() as opened:
            self.kinds = all_kinds()
            self.url = settings.store_url or f"sqlite:///{settings.store_path.absolute()}"
            self.database = Database(self.url)
            opened.callback(self.database.close)
            if self.database.oversees:
                raise ConfigError("--store: expected a URL of cmis_app, got one of cmis_relay")
            self.tokens = TokenStore(self.database)
            opened.callback(self.tokens.close)
            self.overseer = self.database
            """Sees what is due and what has changed in all orgs, and nothing else of them. SQLite has no roles."""
            if settings.store_url is not None and settings.role.has_agents:
                if settings.store_relay_url is None:
                    raise ConfigError(f"{settings.role.value}: --store needs --store-relay, too: the same database as cmis_relay")
                self.overseer = Database(settings.store_relay_url, connections=5)
                opened.callback(self.overseer.close)
                if self.overseer.oversees is False:
                    raise ConfigError("--store-relay: expected a URL of cmis_relay, got one of cmis_app")
            self.facts = Facts(self.database, self.kinds, self.overseer)
            self.keys = keyring(settings.secret_keys, settings.secret_key_path)
            self.personal = PersonalData(self.database, self.keys, clock)
            self.jobs = Jobs(self.database, self.kinds.jobs, clock)
            self.schedules = Schedules(self.database, clock)
            self.files = Files(self.database, blobs_at(settings.files_url, settings.data_dir / "files"), clock)
            self.file_links = FileLinks(gateway_key(settings.gateway_key, settings.gateway_key_path))
            self.secrets = Secrets(self.database, self.keys, clock)
            self.documents = Documents(self.database, self.kinds, clock, self.personal, self.jobs)
            self.changes = Changes(self.database)
            self.fact_commands = FactCommands(self.database, self.kinds, self.facts, self.jobs)
            self._opened = opened.pop_all()

    def close(self) -> None:
        self._opened.close()


def blobs_at(url: str | None, folder: Path) -> Blobs:
    """Where the bytes of files are: what `--files` says, else the folder. ConfigError."""
    if url is None:
        return FolderBlobs(folder)
    from cmis_stream.store.blobs_s3 import S3Blobs

    return S3Blobs(url)
