"""Everything of the store that a process has, opened once: see docs/design/modules.md for who has what."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from cmis_stream.core.errors import ConfigError
from cmis_stream.modules.discovery import all_kinds
from cmis_stream.settings import Settings
from cmis_stream.store.changes import Changes
from cmis_stream.store.database import Database
from cmis_stream.store.documents import Documents
from cmis_stream.store.facts import FactStore
from cmis_stream.store.keyring import Keyring
from cmis_stream.store.personal import PersonalData
from cmis_stream.store.tokens import TokenStore


class Stores:
    """clock: epoch ms. Opening blocks, and raises ConfigError or store.database.Unavailable."""

    def __init__(self, settings: Settings, clock: Callable[[], int]) -> None:
        with ExitStack() as opened:
            self.kinds = all_kinds()
            self.tokens = TokenStore.open(settings.store_path)
            opened.callback(self.tokens.close)
            self.database = Database(settings.store_url or f"sqlite:///{settings.store_path.absolute()}")
            opened.callback(self.database.close)
            self.overseer = self.database
            """Sees what is due and what has changed in all orgs, and nothing else of them. SQLite has no roles."""
            if settings.store_url is not None and settings.role.has_agents:
                if settings.store_relay_url is None:
                    raise ConfigError(f"a {settings.role.value} on PostgreSQL needs --store-relay, the store's URL for cmis_relay")
                self.overseer = Database(settings.store_relay_url, connections=5)
                opened.callback(self.overseer.close)
            self.facts = FactStore(settings.store_path)
            opened.callback(self.facts.close)
            self.keys = Keyring.open(settings.data_dir / "secrets.key")
            self.personal = PersonalData(self.database, self.keys, clock)
            self.documents = Documents(self.database, self.kinds, clock, self.personal)
            self.changes = Changes(self.database)
            self._opened = opened.pop_all()

    def close(self) -> None:
        self._opened.close()
