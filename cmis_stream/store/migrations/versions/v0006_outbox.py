"""What the outbox's worker needs."""

from __future__ import annotations

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """See the helper that fills this in."""
