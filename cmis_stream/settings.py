"""What can be set, from the command line or CMIS_* environment variables."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """One instance. Ports and addresses are those of the HTTP API; it listens on loopback unless told otherwise."""

    data_dir: Path = field(default_factory=lambda: Path("cmis-data"))
    host: str = "127.0.0.1"
    port: int = 8600
    sync: str = "normal"
    """normal: survives a kill of the process; full: also a loss of power."""
    rules_file: Path | None = None
    evaluate: str = "live"
    """What rules mean that do not say how they are evaluated."""

    @property
    def log_path(self) -> Path:
        return self.data_dir / "log.db"

    @property
    def state_dir(self) -> Path:
        return self.data_dir / "ingest"
