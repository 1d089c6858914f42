"""What can be set, from the command line or CMIS_* environment variables."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """One instance; it listens on loopback unless told otherwise."""

    data_dir: Path = field(default_factory=lambda: Path("cmis-data"))
    host: str = "127.0.0.1"
    port: int = 8600
    """Of the HTTP API and the page. The next free one is taken when it is in use; 0: any."""
    gateway_port: int | None = None
    """Of the websocket gateway, likewise. None: the one after `port` (8601), any if that is any."""
    public_hosts: tuple[str, ...] = ()
    """Names besides loopback and `host` under which browsers may reach this instance (behind a proxy, in a network)."""
    sync: str = "normal"
    """normal: survives a kill of the process; full: also a loss of power."""
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
    def gateway_key_path(self) -> Path:
        return self.data_dir / "gateway.key"

    @property
    def wanted_gateway_port(self) -> int:
        if self.gateway_port is not None:
            return self.gateway_port
        return self.port + 1 if 0 < self.port < 65_535 else 0
