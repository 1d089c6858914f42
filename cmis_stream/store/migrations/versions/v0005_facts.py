"""Facts, the positions of who writes them, and the results of commands on them."""

from __future__ import annotations

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """See the helper that fills this in."""
