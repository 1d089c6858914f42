"""What can be set, from the command line or CMIS_* environment variables."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path


class Role(Enum):
    """What a process of an installation does."""

    UP = "up"
    """Everything."""
    WORKER = "worker"
    API = "api"
    GATEWAY = "gateway"

    @property
    def has_agents(self) -> bool:
        return self in (Role.UP, Role.WORKER)

    @property
    def has_api(self) -> bool:
        return self in (Role.UP, Role.API)

    @property
    def has_gateway(self) -> bool:
        return self in (Role.UP, Role.GATEWAY)


@dataclass(frozen=True, slots=True)
class Settings:
    """One process; it listens on loopback unless told otherwise."""

    data_dir: Path = field(default_factory=lambda: Path("cmis-data"))
    role: Role = Role.UP
    log_url: str | None = None
    """kafka://host:port, several with ; between them. None: the embedded log in the data folder."""
    backplane_url: str | None = None
    """redis://host:port/db. None: in this process."""
    store_url: str | None = field(default=None, repr=False)
    """postgresql://cmis_app@HOST/NAME. None: SQLite in the data folder."""
    store_relay_url: str | None = field(default=None, repr=False)
    """The same database as the role cmis_relay, where housekeeping is done (docs/design/modules.md)."""
    gateway_key: str | None = field(default=None, repr=False)
    """Signs tokens of gateways and peers, and links to files: 32 bytes in base64. None: a file in the data folder."""
    files_url: str | None = None
    """s3://BUCKET/PREFIX?endpoint=URL&region=NAME (store/blobs_s3.py). None: the folder `files` in the data folder."""
    secret_keys: str | None = field(default=None, repr=False)
    """Keys for secrets and personal fields, the newest first (store/keyring.py). None: a file in the data folder."""
    history_days: int = 400
    """So long history is kept, as files in the data folder; 9 or more."""
    replication: int = 1
    """Of the topics that are made for state, on Kafka."""
    host: str = "127.0.0.1"
    port: int = 8600
    """Of the HTTP API and the page (worker: of health and peers). The next free one is taken when it is in use; 0: any."""
    gateway_port: int | None = None
    """Of the websocket gateway, likewise. None: the one after `port` (8601), any if that is any."""
    page_port: int = 8600
    """Where the page is that a gateway of its own serves."""
    address: str | None = None
    """Name or IP address under which the other processes reach this one. None: `host`, or this machine's name."""
    public_hosts: tuple[str, ...] = ()
    """Names besides loopback and `host` under which browsers may reach this instance (behind a proxy, in a network)."""
    sync: str = "normal"
    """normal: survives a kill of the process; full: also a loss of power."""
    log_format: str = "text"
    """Of the process log: text or json (`logs.py`)."""
    memory_limit: int | None = None
    """Bytes; a process that needs more ends and is started again. None: most of what the machine or container has."""
    rules_file: Path | None = None
    evaluate: str = "live"
    """What rules mean that do not say how they are evaluated."""

    @property
    def log_path(self) -> Path:
        return self.data_dir / "log.db"

    @property
    def store_path(self) -> Path:
        return self.data_dir / "store.db"

    @property
    def secret_key_path(self) -> Path:
        return self.data_dir / "secrets.key"

    @property
    def history_path(self) -> Path:
        """Written by processes with agents, read by those with an API: on several machines a volume that they share."""
        return self.data_dir / "history"

    @property
    def gateway_key_path(self) -> Path:
        return self.data_dir / "gateway.key"

    @property
    def wanted_gateway_port(self) -> int:
        if self.gateway_port is not None:
            return self.gateway_port
        return self.port + 1 if 0 < self.port < 65_535 else 0
